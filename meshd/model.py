"""The frozen values that every room speaks: nodes, members, load."""

from collections.abc import Mapping
from enum import IntEnum
from typing import NewType

import msgspec

from meshd.errors import UsageError

NodeId = NewType("NodeId", bytes)
"""8 bytes: BLAKE2b-8 of the node's Ed25519 public key. Written as 16 hex digits for people."""

MeshId = NewType("MeshId", bytes)
"""8 bytes: BLAKE2b-8 of the mesh's name."""

Incarnation = NewType("Incarnation", int)
"""A number that only the member itself raises, to refute. 0 .. 2**32-1."""

Epoch = NewType("Epoch", int)
"""A run of a node: wall-clock milliseconds at its start, raised past any earlier run's."""

ID_BYTES = 8
NAME_CHARS_MAX = 64
_NAME_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


class MemberState(IntEnum):
    """This node's belief about a member. The order is the precedence at one incarnation."""

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2
    LEFT = 3


class Address(msgspec.Struct, frozen=True, order=True, gc=False):
    """An IP address in text and a port: one number for UDP gossip and TCP calls."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Load(msgspec.Struct, frozen=True, gc=False):
    """How busy a node is, as it says itself. The newest record wins.

    `cpu_fraction`, `mem_fraction` and `error_fraction` are 0..1; `service_s` is the moving average
    of how long a task runs; `dispatch_per_s` how many tasks it hands out; `lag_s` how late its own
    event loop runs; `sequence` counts its records modulo 4096.
    """

    cpu_fraction: float = 0.0
    mem_fraction: float = 0.0
    in_flight: int = 0
    queue: int = 0
    slots: int = 1
    service_s: float = 0.0
    dispatch_per_s: float = 0.0
    error_fraction: float = 0.0
    lag_s: float = 0.0
    ready: bool = True
    full: bool = False
    draining: bool = False
    sequence: int = 0


class Member(msgspec.Struct, frozen=True, gc=False):
    """A node as another node's table records it.

    `lag` is how late it reads its mail by its own word, in steps of 20 ms (`meshd.gossip.lag`).
    `digest` is 8 bytes over its whole state at `state_version`; empty where that is not known.
    `address` is the one that the table's owner uses; `other` is where the member is reached by the
    other IP version, if it is.
    """

    node: NodeId
    epoch: Epoch
    incarnation: Incarnation
    state: MemberState
    address: Address
    state_version: int = 0
    lag: int = 0
    digest: bytes = b""
    other: Address | None = None

    def is_at(self, address: Address) -> bool:
        """Whether the member says that it is reached there."""
        return address in (self.address, self.other)


LABELS_MAX = 16


class Site(msgspec.Struct, frozen=True):
    """Where and what a node is, by its operator's word: a region, and labels of any meaning."""

    region: str = ""
    labels: Mapping[str, str] = {}


def site_faults(site: Site) -> list[tuple[str, str]]:
    """What is wrong with a site, as (field, sentence); empty if nothing is."""
    faults = []
    if site.region and not is_name(site.region):
        faults.append(("region", f"{site.region[:80]!r} is not a valid name"))
    if len(site.labels) > LABELS_MAX:
        faults.append(("labels", f"more than {LABELS_MAX} labels"))
    rule = f"both must be 1 to {NAME_CHARS_MAX} letters, digits, dots, hyphens or underscores"
    faults += [
        ("labels", f"{name[:80]}={value[:80]}: {rule}")
        for name, value in site.labels.items()
        if not (is_name(name) and is_name(value))
    ]
    return faults


def is_name(text: str) -> bool:
    """Whether `text` may name a node, mesh or capability: 1..64 of letters, digits, `._-`."""
    return 0 < len(text) <= NAME_CHARS_MAX and _NAME_CHARS.issuperset(text)


def check_name(text: str, what: str) -> str:
    """Return `text` if it is a valid name.

    Raises:
        UsageError: it is not; nothing changed.
    """
    if not is_name(text):
        raise UsageError(
            f"{what} {text[:80]!r} is not a valid name",
            hint=f"use 1 to {NAME_CHARS_MAX} letters, digits, dots, hyphens or underscores",
        )
    return text
