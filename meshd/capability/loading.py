"""Capabilities by import path: `package.module:object`, as `meshd start --capability` takes it."""

import difflib
import importlib
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from meshd.capability.definition import CapabilityDefinition, collect
from meshd.errors import MeshError, UsageError

REASON_CHARS_MAX = 300


def load_object(spec: str, *, fresh: bool = False) -> Any:
    """The object that `package.module:object` names, or the module itself without `:object`.

    The current directory is put on the import path, as `python -m` does. `fresh` loads a module
    that is loaded already as a new one (its submodules are not): what its file no longer holds is
    gone, and what runs of the old one goes on undisturbed. If that fails the old one stays.

    Raises:
        UsageError: the module is not found or fails, or the object is not in it.
    """
    module_name, _, path = spec.strip().partition(":")
    if not module_name or not all(part.isidentifier() for part in module_name.split(".")):
        raise UsageError(
            f"{spec!r} is not an import path",
            hint="write it as package.module:object, for example tools.text:summarise",
        )
    found: Any = _import(module_name, fresh=fresh)
    for name in path.split(".") if path else ():
        found = _attribute(found, name, module_name)
    return found


def load_definitions(
    specs: Iterable[str], *, fresh: bool = False
) -> tuple[CapabilityDefinition, ...]:
    """All capabilities that the import paths name, in their order.

    Raises:
        UsageError: it lists the faults of all paths at once; two share a name.
    """
    found: list[CapabilityDefinition] = []
    faults: list[MeshError] = []
    for spec in specs:
        try:
            found.extend(collect(load_object(spec, fresh=fresh)))
        except UsageError as error:
            faults.append(error)
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise UsageError("; ".join(str(fault) for fault in faults))
    return collect(found) if found else ()


def _import(name: str, *, fresh: bool) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    old = sys.modules.pop(name, None) if fresh else None
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name + ".").startswith(error.name + "."):
            raise _not_found(name, error.name) from error
        raise _failed(name, error) from error
    # A module that calls sys.exit() must not end the daemon.
    except (Exception, SystemExit) as error:
        raise _failed(name, error) from error
    finally:
        if old is not None:
            sys.modules.setdefault(name, old)


def _not_found(name: str, missing: str) -> UsageError:
    what = f"module {name!r}" + ("" if missing == name else f" (no {missing!r})")
    return UsageError(
        f"{what} is not found",
        hint="is it in the current directory or installed in this Python environment?",
    )


def _failed(name: str, error: BaseException) -> UsageError:
    reason = f"{type(error).__name__}: {error}".splitlines()[0][:REASON_CHARS_MAX]
    if isinstance(error, SyntaxError) and error.filename:
        where = f"{Path(error.filename).name} line {error.lineno}"
    else:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name} line {last.lineno}"
    return UsageError(
        f"module {name!r} fails in {where}: {reason}",
        hint=f"try: {Path(sys.executable).name or 'python'} -c 'import {name}'",
    )


def _attribute(owner: Any, name: str, module: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError as error:
        public = [n for n in dir(owner) if not n.startswith("_")]
        close = difflib.get_close_matches(name, public, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "is it defined at the module's top?"
        raise UsageError(f"module {module!r} has no {name!r}", hint=hint) from error
