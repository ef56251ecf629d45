"""Policies that other packages bring, by the entry point group `meshd.policies`."""

from collections.abc import Collection, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from meshd.faults import meant
from meshd.model import NAME_CHARS_MAX, is_name
from meshd.routing.settings import POLICY_NAMES

GROUP = "meshd.policies"
RESERVED = frozenset((*POLICY_NAMES, "pinned"))
"""Names of meshd's own policies, which no other may have."""


@cache
def installed() -> Mapping[str, EntryPoint]:
    """Where each is, by its name; looked up once. Names that no policy may have are passed over."""
    return {
        point.name: point
        for point in entry_points(group=GROUP)
        if is_name(point.name) and point.name not in RESERVED
    }


def policy_faults(name: str, own: Collection[str] = ()) -> Iterator[str]:
    """What is wrong with the name of a policy that a configuration holds, in sentences.

    `own` are the policies that the program brings whose node is configured.
    """
    if name in POLICY_NAMES or name in own or name in installed():
        return
    known = tuple(dict.fromkeys((*POLICY_NAMES, *own, *installed())))
    # A package may bring one of this name: then it is the name that is to be mended.
    rule = (
        "" if is_name(name)
        else f"; names have 1 to {NAME_CHARS_MAX} letters, digits, dots, hyphens or underscores"
    )  # fmt: skip
    yield f"{name[:80]!r} is none of {', '.join(known)}{meant(name, known)}{rule}"
