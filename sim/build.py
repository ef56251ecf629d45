"""Which build runs: pure Python, or the wheel whose hot modules are compiled."""

import sys
from importlib.machinery import EXTENSION_SUFFIXES
from typing import Any

from meshd.errors import UsageError
from meshd.gossip import swim


def name() -> str:
    """The build of the protocol core: "compiled" or "pure"."""
    return "compiled" if _is_compiled(swim.__name__) else "pure"


def require_pure(owner: Any) -> None:
    """Make sure that what belongs to `owner`, a class or a module, can be replaced.

    Raises:
        UsageError: it is compiled; compiled code calls its own without looking them up.
    """
    module = owner.__module__ if isinstance(owner, type) else owner.__name__
    if _is_compiled(module):
        raise UsageError(
            f"{module} is compiled here: nothing in it can be replaced for a run",
            hint="use the pure build: a checkout, or a wheel built without "
            "HATCH_BUILD_HOOK_ENABLE_CUSTOM",
        )


def _is_compiled(module: str) -> bool:
    file = getattr(sys.modules[module], "__file__", None) or ""
    return file.endswith(tuple(EXTENSION_SUFFIXES))
