"""Plans as TOML: what a user writes as a scenario, and what a recorded run keeps of its plan.

Everything that a plan holds survives the way there and back. The tables follow from the dataclasses
themselves, so a new fault or a new field needs nothing here.
"""

import importlib
import json
import math
import re
import tomllib
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

import sim.faults
from meshd.errors import UsageError
from meshd.gossip.config import profile
from sim.faults import At
from sim.faults.hostile import FORGERIES
from sim.network import Shape
from sim.plan import Plan, number

SCHEMA = "meshd.sim.plan/1"
WHOLE_FAULTS = "sim.whole.faults"
CORE_ONLY = frozenset(
    ("asks", "clone", "forger", "loads", "outsider", "power_loss", "replayer", "tells")
)
"""Faults of level 1 that whole daemons have no counterpart of."""
NODES_MAX = 20_000
SEED_MAX = 2**63 - 1
TIME_MAX_S = 86_400.0
FILE_BYTES_MAX = 16 * 1024 * 1024
NAME_CHARS_MAX = 128
FAULTS_MAX = 100_000
DEFAULT_DURATION_S = 60.0
NODE_FIELDS = frozenset(
    ("node", "nodes", "seeds", "source", "target", "sources", "targets", "groups")
)
"""Fields of faults that hold indices of nodes."""
SHARE_FIELDS = frozenset({"loss", "duplicate", "reorder"})
SIGNED_FIELDS = frozenset({"by_s"})
SMALLEST = {"every_s": 0.001, "per_s": 0.001, "mean_s": 1e-9}
"""What zero would make endless."""
LARGEST = {"per_s": 100_000.0, "calls_per_s": 1_000.0}
ITEMS_SHOWN = 12
_RUN_MIN = 3
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h)?")
_RANGE = re.compile(r"([0-9]{1,6})-([0-9]{1,6})")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(text: str) -> float | None:
    """Seconds of `60`, `60s`, `500ms`, `2m` or `1h`; None if it is none of these."""
    found = _DURATION.fullmatch(text.strip())
    return float(found[1]) * _UNIT_S[found[2] or "s"] if found else None


# Reading


def load(path: str | Path) -> Plan:
    """The plan in a TOML file.

    Raises:
        UsageError: the file cannot be read, or says something that no plan can be made of.
    """
    try:
        with Path(path).open("rb") as file:
            text = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror or error}",
            hint="give a scenario file that you may read, or a name of `meshd sim list`",
        ) from None
    if len(text) > FILE_BYTES_MAX:
        limit = f"at most {FILE_BYTES_MAX // 2**20} MiB"
        raise UsageError(f"{path} is too large for a scenario file ({limit})", hint=_FORM)
    try:
        return loads(text.decode("utf-8"), name=Path(path).stem, where=str(path))
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not a text file in UTF-8", hint=_FORM) from None


def loads(text: str, *, name: str = "scenario", where: str = "the plan") -> Plan:
    """The plan in TOML text; `name` is its scenario's where it says none, `where` is for errors.

    Raises:
        UsageError: no plan can be made of it.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where} is not TOML: {error}", hint=_FORM) from None
    except RecursionError:
        raise UsageError(f"{where} is nested too deeply", hint=_FORM) from None
    schema = document.pop("schema", SCHEMA)
    if schema != SCHEMA:
        raise UsageError(f"{where}: unknown schema {schema!r}", hint=f"this meshd reads {SCHEMA}")
    faults = document.pop("fault", [])
    if not isinstance(faults, list):
        _refuse(where, "fault is not a list of tables", hint="write each fault as [[fault]]")
    if len(faults) > FAULTS_MAX:
        _refuse(where, f"{len(faults)} faults", hint=f"at most {FAULTS_MAX:,}")
    if "nodes" not in document:
        _refuse(where, "it does not say how many nodes there are", hint="add: nodes = 20")
    document.setdefault("scenario", name)
    document.setdefault("seed", 0)
    document.setdefault("duration_s", DEFAULT_DURATION_S)
    document.setdefault("converged", document["nodes"])
    shape = document.get("shape", {})
    if isinstance(shape, dict):
        document["shape"] = {"loss": document.get("loss", 0.0), **shape}
    plan: Plan = _struct(Plan, document, where, skip="faults")
    timed = [
        _at(each, f"{where}: fault {i}", whole=plan.whole) for i, each in enumerate(faults, start=1)
    ]
    plan = replace(plan, faults=tuple(timed))
    check(plan, where)
    return plan


_FORM = "see `meshd sim run --help`, or let a run write one: meshd sim run split --out DIR"


def _refuse(where: str, what: str, *, hint: str) -> NoReturn:
    raise UsageError(f"{where}: {what}", hint=hint)


def _at(value: Any, where: str, *, whole: bool) -> At:
    if not isinstance(value, dict):
        _refuse(where, "is not a table", hint="write each fault as [[fault]]")
    rest = dict(value)
    if "at_s" not in rest:
        _refuse(where, "it does not say when", hint="add: at_s = 10.0")
    at_s = _value(float, rest.pop("at_s"), where, "at_s")
    kinds, kind = fault_kinds(whole=whole), str(rest.get("kind"))
    if whole and kind in CORE_ONLY:
        _refuse(where, f"{kind} is no fault of whole daemons", hint="leave out: whole = true")
    if kind not in kinds and kind in fault_kinds(whole=True):
        _refuse(where, f"{kind} is a fault of whole daemons", hint="add: whole = true")
    return At(at_s, _one_of(kinds, rest, where, "fault"))


@cache
def fault_kinds(*, whole: bool = False) -> Mapping[str, type]:
    """All kinds of faults by the name that they have in files; with `whole`, of level 2 as well.

    Those come with whole daemons, so they are found by name, and only where a plan asks for them.
    """
    modules = [sim.faults, *([importlib.import_module(WHOLE_FAULTS)] if whole else [])]
    found = [
        each
        for module in modules
        for each in vars(module).values()
        if isinstance(each, type) and is_dataclass(each) and hasattr(each, "apply")
    ]
    return {_kind(each): each for each in found}


def _kind(cls: type) -> str:
    """`OneWay` is `one_way`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


def _one_of(kinds: Mapping[str, type], value: Mapping[str, Any], where: str, noun: str) -> Any:
    rest = dict(value)
    kind = rest.pop("kind", None)
    known = ", ".join(sorted(kinds))
    if kind is None:
        _refuse(where, f"{noun} has no kind", hint=f'add: kind = "..." with one of {known}')
    if not isinstance(kind, str) or kind not in kinds:
        near = get_close_matches(str(kind), kinds, n=1)
        hint = f"did you mean {near[0]!r}? There are {known}" if near else f"there are {known}"
        _refuse(where, f"unknown {noun} {kind!r}", hint=hint)
    return _struct(kinds[kind], rest, f"{where} ({kind})")


def _struct(cls: type, value: Mapping[str, Any], where: str, *, skip: str = "") -> Any:
    known = {each.name: each for each in _fields(cls) if each.name != skip}
    for name in value:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            taken = "it takes " + ", ".join(known) if known else "it takes nothing more"
            hint = f"did you mean {near[0]!r}? {taken}" if near else taken
            _refuse(where, f"unknown field {name!r}", hint=hint)
    missing = [
        name
        for name, each in known.items()
        if name not in value and each.default is MISSING and each.default_factory is MISSING
    ]
    if missing:
        _refuse(where, f"{missing[0]} is missing", hint=f"add: {missing[0]} = ...")
    hints = get_type_hints(cls)
    return cls(**{name: _value(hints[name], each, where, name) for name, each in value.items()})


def _fields(cls: type) -> tuple[Field[Any], ...]:
    return fields(cls) if is_dataclass(cls) else ()


def _value(hint: Any, value: Any, where: str, name: str) -> Any:
    """`value` as the type `hint`, or an error that names the field."""
    origin = get_origin(hint)
    if origin in {Union, types.UnionType}:
        kinds = [each for each in get_args(hint) if each is not types.NoneType]
        if len(kinds) == 1:
            return _value(kinds[0], value, where, name)
        if isinstance(value, dict):
            return _one_of({_kind(each): each for each in kinds}, value, where, name)
        _refuse(where, f"{name} is not a table", hint=f'write {name} = {{ kind = "..." }}')
    if origin in {tuple, frozenset}:
        return _sequence(origin, get_args(hint)[0], value, where, name)
    if is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, dict):
            return _struct(hint, value, f"{where}: {name}")
        _refuse(where, f"{name} is not a table", hint=f"write [{name}] and its fields below")
    return _scalar(hint, value, where, name)


def _sequence(origin: Any, item: Any, value: Any, where: str, name: str) -> Any:
    if not isinstance(value, list):
        _refuse(where, f"{name} is {value!r}, not a list", hint=f"write {name} = [...]")
    found: list[Any] = []
    for each in value:
        run = _RANGE.fullmatch(each) if item is int and isinstance(each, str) else None
        if run is None:
            found.append(_value(item, each, where, name))
        elif int(run[1]) > int(run[2]) or int(run[2]) >= NODES_MAX:
            _refuse(where, f"{name} holds the range {each!r}", hint='write it as "3-9"')
        else:
            found.extend(range(int(run[1]), int(run[2]) + 1))
    return origin(found)


def _scalar(hint: Any, value: Any, where: str, name: str) -> Any:
    if hint is float:
        parsed = seconds(value) if isinstance(value, str) and name.endswith("_s") else value
        if isinstance(parsed, int | float) and not isinstance(parsed, bool):
            return float(parsed)
    elif hint is bytes:
        if isinstance(value, str):
            return value.encode()
        if isinstance(value, dict) and isinstance(value.get("hex"), str) and len(value) == 1:
            try:
                return bytes.fromhex(value["hex"])
            except ValueError:
                _refuse(where, f"{name} is not hexadecimal", hint='write { hex = "00ff" }')
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    wanted = _WANTED.get(hint, hint.__name__)
    _refuse(where, f"{name} is {value!r}, not {wanted}", hint=f"write {name} as {wanted}")


_WANTED = {float: "a number", int: "a whole number", str: "text in quotes", bytes: "text in quotes"}


# What a plan may say


def check(plan: Plan, where: str = "the plan") -> None:
    """Whether a plan can be run.

    Raises:
        UsageError: a number is out of its range, or a fault names a node that is not there.
    """
    if not plan.scenario.isprintable() or len(plan.scenario) > NAME_CHARS_MAX:
        hint = f"a name has at most {NAME_CHARS_MAX} characters, all of them printable"
        _refuse(where, f"the scenario is called {plan.scenario[:NAME_CHARS_MAX]!r}", hint=hint)
    if not 2 <= plan.nodes <= NODES_MAX:
        _refuse(where, f"{plan.nodes} nodes", hint=f"nodes is 2 to {NODES_MAX:,}")
    if not 0 <= plan.seed <= SEED_MAX:
        _refuse(where, f"seed is {plan.seed}", hint=f"seed is 0 to {SEED_MAX}")
    if not 0 < plan.duration_s <= TIME_MAX_S:
        span = f"above 0 and at most {number(TIME_MAX_S)} s"
        _refuse(where, f"a duration of {number(plan.duration_s)} s", hint=f"it is {span}")
    if not 0 <= plan.converged <= plan.nodes:
        hint = f"converged is 0 to nodes, which is {plan.nodes}"
        _refuse(where, f"{plan.converged} nodes start as one mesh", hint=hint)
    if not 1 <= plan.meshes <= plan.nodes:
        _refuse(where, f"{plan.meshes} meshes", hint=f"meshes is 1 to nodes, which is {plan.nodes}")
    if plan.calls_per_s and not plan.whole:
        _refuse(where, "only whole daemons have calls", hint="add: whole = true")
    try:
        profile(plan.profile)
    except UsageError as error:
        raise UsageError(f"{where}: {error.message}", hint=error.hint) from None
    _check_numbers(plan, where)
    _check_shape(plan.shape, where)
    for index, each in enumerate(plan.faults, start=1):
        told = f"{where}: fault {index} ({_kind(type(each.fault))})"
        if not 0 <= each.at_s <= TIME_MAX_S:
            _refuse(told, f"at_s is {each.at_s!r}", hint=f"it is 0 to {TIME_MAX_S:g}")
        _check_numbers(each.fault, told)
        _check_nodes(each.fault, plan.nodes, told)
    _check_cuts(plan, where)


def _check_numbers(value: Any, where: str) -> None:
    for each in _fields(type(value)):
        held = getattr(value, each.name)
        if each.name == "forgery" and held not in FORGERIES:
            _refuse(where, f"unknown forgery {held!r}", hint=f"there are {', '.join(FORGERIES)}")
        if each.name in SHARE_FIELDS and not 0 <= held <= 1:
            _refuse(where, f"{each.name} is {held!r}", hint=f"{each.name} is a share, 0 to 1")
        if not isinstance(held, float) or each.name == "bytes_per_s":
            continue
        most = LARGEST.get(each.name, TIME_MAX_S * 366)
        least = -most if each.name in SIGNED_FIELDS else SMALLEST.get(each.name, 0.0)
        if each.name.endswith("_s") and not least <= held <= most:
            hint = f"{each.name} is {least:g} to {most:g}"
            _refuse(where, f"{each.name} is {held!r}", hint=hint)
    if getattr(value, "low_s", 0.0) > getattr(value, "high_s", math.inf):
        _refuse(where, "low_s is above high_s", hint="give the smaller time first")


def _check_shape(shape: Shape, where: str) -> None:
    told = f"{where}: shape"
    _check_numbers(shape, told)
    _check_numbers(shape.latency, f"{told}.latency")
    if shape.bytes_per_s is not None and not 0 < shape.bytes_per_s < math.inf:
        _refuse(told, f"bytes_per_s is {shape.bytes_per_s!r}", hint="leave it out for no limit")
    if shape.mtu_bytes < 1:
        _refuse(told, f"mtu_bytes is {shape.mtu_bytes}", hint="1472 is what Ethernet carries")


def _check_nodes(fault: Any, nodes: int, where: str) -> None:
    for each in _fields(type(fault)):
        if each.name not in NODE_FIELDS:
            continue
        held = getattr(fault, each.name)
        named = list(_indices(held))
        for index in named:
            if not 0 <= index < nodes:
                hint = f"nodes are counted from 0: with {nodes} nodes the last is {nodes - 1}"
                _refuse(where, f"{each.name} names node {index}", hint=hint)
        if each.name == "groups" and len(set(named)) != len(named):
            _refuse(where, "a node is in two groups", hint="each node is in one group or in none")


def _indices(held: Any) -> Iterator[int]:
    if isinstance(held, int):
        yield held
    else:
        for each in held:
            yield from _indices(each)


def _check_cuts(plan: Plan, where: str) -> None:
    """At the end of its duration a run mends all; a cut after that must be healed by the plan."""
    healed: dict[str, float] = {}
    for each in plan.faults:
        if isinstance(each.fault, sim.faults.Heal):
            healed[each.fault.name] = max(each.at_s, healed.get(each.fault.name, 0.0))
    for index, each in enumerate(plan.faults, start=1):
        name = getattr(each.fault, "name", None)
        if name is None or each.at_s <= plan.duration_s or isinstance(each.fault, sim.faults.Heal):
            continue
        if healed.get(name, -1.0) < each.at_s:
            hint = f"heal {name!r} later on, or make duration_s longer"
            told = f"{where}: fault {index} ({_kind(type(each.fault))})"
            _refuse(
                told, f"it comes after the {number(plan.duration_s)} s and never ends", hint=hint
            )


# Writing


def dumps(plan: Plan) -> str:
    """A plan as TOML."""
    hints = get_type_hints(Plan)
    lines = [f"schema = {_toml(SCHEMA)}"]
    tables: list[str] = []
    for each in _fields(Plan):
        held = getattr(plan, each.name)
        if each.name == "faults" or held is None:
            continue
        coded = _coded(hints[each.name], held)
        if isinstance(coded, dict):
            tables += ["", f"[{each.name}]", *_assignments(coded)]
        else:
            lines.append(f"{each.name} = {_toml(coded)}")
    for timed in plan.faults:
        fault = {"at_s": timed.at_s, "kind": _kind(type(timed.fault)), **_table(timed.fault)}
        tables += ["", "[[fault]]", *_assignments(fault)]
    return "\n".join([*lines, *tables, ""])


def _assignments(table: Mapping[str, Any]) -> list[str]:
    return [f"{name} = {_toml(value)}" for name, value in table.items()]


def _table(value: Any) -> dict[str, Any]:
    hints = get_type_hints(type(value))
    return {
        each.name: _coded(hints[each.name], getattr(value, each.name))
        for each in _fields(type(value))
        if getattr(value, each.name) is not None
    }


def _coded(hint: Any, value: Any) -> Any:
    """`value` in the words of TOML."""
    origin = get_origin(hint)
    if origin in {Union, types.UnionType}:
        kinds = [each for each in get_args(hint) if each is not types.NoneType]
        if len(kinds) == 1:
            return _coded(kinds[0], value)
        return {"kind": _kind(type(value)), **_table(value)}
    if origin in {tuple, frozenset}:
        item = get_args(hint)[0]
        ordered = sorted(value) if origin is frozenset else value
        return list(_runs(ordered)) if item is int else [_coded(item, each) for each in ordered]
    if is_dataclass(value) and not isinstance(value, type):
        return _table(value)
    if isinstance(value, bytes):
        text = value.decode("ascii", "replace")
        return text if text.isprintable() and text.isascii() else {"hex": value.hex()}
    return value


def _runs(numbers: Iterable[int]) -> Iterator[int | str]:
    """Three and more that follow one another are written as a range."""
    run: list[int] = []
    for each in [*numbers, None]:
        if run and each == run[-1] + 1:
            run.append(each)
            continue
        if len(run) >= _RUN_MIN and run[0] >= 0:
            yield f"{run[0]}-{run[-1]}"
        else:
            yield from run
        run = [] if each is None else [each]


def fault_text(fault: Any) -> str:
    """A fault for people, in one line: `OneWay(name=cut4, sources=[10], targets=[0-9, 11-15])`."""
    told = ", ".join(f"{name}={_plain(value)}" for name, value in _table(fault).items())
    return f"{type(fault).__name__}({told})"


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if not isinstance(value, list):
        return str(value)
    told = [_plain(each) for each in value[:ITEMS_SHOWN]]
    if len(value) > ITEMS_SHOWN:
        told.append(f"... {len(value) - ITEMS_SHOWN} more")
    return "[" + ", ".join(told) + "]"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    return "{ " + ", ".join(_assignments(value)) + " }" if value else "{}"
