"""Which versions of a capability a caller takes: one, its leading parts, or a range."""

from functools import lru_cache
from typing import Any

WANTED_CHARS_MAX = 100
RANGES_KEPT = 256
ANSWERS_KEPT = 4_096
_RANGE_SIGNS = frozenset("^~<>=!,*")


def is_range(wanted: str) -> bool:
    """Whether this asks for a range; else it is a whole version or its leading parts."""
    return not _RANGE_SIGNS.isdisjoint(wanted)


def version_fault(wanted: str) -> str:
    """What is wrong with a wanted version, as a sentence; empty if nothing is."""
    if len(wanted) > WANTED_CHARS_MAX:
        return f"version is longer than {WANTED_CHARS_MAX} characters"
    if is_range(wanted) and _range(wanted) is None:
        return (
            f"version {wanted!r} is no range: write ^1.2 (below 2), ~1.2 (below 1.3), >=1,<2,"
            " !=1.4.0 or parts of a version such as 1.2"
        )
    return ""


def version_matches(offered: str, wanted: str) -> bool:
    """Whether `wanted` is empty, is `offered` or its leading dotted parts, or a range around it.

    In a range, versions are compared as Semantic Versioning 2.0 orders them; an offered version
    that is none, even with parts added or dropped (`1` is `1.0.0`), is in no range.
    """
    if not wanted or offered == wanted:
        return True
    return _in_range(offered, wanted) if is_range(wanted) else offered.startswith(wanted + ".")


@lru_cache(maxsize=ANSWERS_KEPT)
def _in_range(offered: str, wanted: str) -> bool:
    from semantic_version import Version

    found = _range(wanted)
    if found is None:
        return False
    try:
        return bool(Version.coerce(offered) in found)
    except ValueError:
        return False


@lru_cache(maxsize=RANGES_KEPT)
def _range(wanted: str) -> Any:
    """The range; None if it is none. Imported late: most nodes never see one."""
    from semantic_version import SimpleSpec

    try:
        return SimpleSpec("".join(wanted.split()))
    except ValueError:
        return None
