"""The one immutable view of the mesh: routing, CLI, dashboard and SDK read this alone."""

from collections.abc import Iterator, Mapping
from functools import cached_property

import msgspec

from meshd.capability.manifest import CapabilitySummary
from meshd.clock import Instant, Seconds
from meshd.model import Address, Epoch, Incarnation, Load, MemberState, NodeId

OFFERING_MAX = 64
"""Capabilities whose peers one view remembers; then it starts anew."""


class Doubt(msgspec.Struct, frozen=True):
    """Why a suspect is one, and how much longer.

    `accusers` are the nodes whose own probes failed, the first one first, `retracted` those that
    took it back; `confirmations` count the opinions that stand beyond the first, and `needed` (K)
    of them bring the doubt down from `longest_s` (T_max) to `shortest_s` (T_min). `lag_s` is how
    late the suspect reads its mail by its own word: both bounds are longer by twice that. In a
    crowd of suspects they are longer, too. After `is_last_called` two others have been asked.
    """

    accusers: tuple[NodeId, ...]
    retracted: tuple[NodeId, ...]
    confirmations: int
    needed: int
    since: Instant
    deadline: Instant
    shortest_s: Seconds
    longest_s: Seconds
    lag_s: Seconds = 0.0
    is_crowd: bool = False
    is_last_called: bool = False


class Peer(msgspec.Struct, frozen=True):
    """A member as routing sees it: member, node state, load, and what this node measured itself.

    `address` is where this node reaches it, `other` its address of the other IP version, if any;
    `heard_at` is when this node last had first-hand word of it or a fresh load record; `load_at`
    when the load record was received; `rtt_s` a moving average of probe round trips, or None;
    `rtt_estimate_s` what network coordinates say of it, right or wrong by the share
    `rtt_estimate_error`, or None while they say nothing;
    `reachable` is false from the first unanswered probe round until it is heard again: local
    knowledge that is never gossiped, on which routing stops at once; `doubt` is why it
    is suspected, and None while it is not; `region` and `labels` are what the node says of where
    and what it is.
    """

    node: NodeId
    name: str
    address: Address
    state: MemberState
    epoch: Epoch
    incarnation: Incarnation
    capabilities: tuple[CapabilitySummary, ...] = ()
    load: Load | None = None
    load_at: Instant | None = None
    heard_at: Instant | None = None
    changed_at: Instant = Instant(0.0)
    rtt_s: float | None = None
    reachable: bool = True
    version: str = ""
    other: Address | None = None
    signals: Mapping[str, float] = {}
    rtt_estimate_s: float | None = None
    rtt_estimate_error: float | None = None
    doubt: Doubt | None = None
    region: str = ""
    labels: Mapping[str, str] = {}

    @property
    def distance_s(self) -> Seconds | None:
        """The round trip: as measured, else as estimated, else unknown."""
        return self.rtt_estimate_s if self.rtt_s is None else self.rtt_s

    def is_at(self, address: Address) -> bool:
        """Whether it says that it is reached there."""
        return address in (self.address, self.other)

    def age(self, now: Instant) -> Seconds | None:
        """Seconds since it was last heard; None if it never was."""
        return None if self.heard_at is None else max(0.0, now - self.heard_at)

    def offers(self, capability: str) -> CapabilitySummary | None:
        """Its summary of the named capability, if it has it."""
        for summary in self.capabilities:
            if summary.name == capability:
                return summary
        return None


class ClusterView:
    """A frozen snapshot of what one node believes. `peers` includes the node itself.

    `description` counts how often this node had said what it is and offers by then.
    `by_node` is never changed after construction; orderings and look-ups are made on first use, so
    that a snapshot which nobody reads costs nothing.
    """

    def __init__(
        self,
        *,
        version: int,
        me: NodeId,
        by_node: Mapping[NodeId, Peer],
        stale_after_s: Seconds,
        view_hash: str = "",
        description: int = 0,
    ) -> None:
        self.version = version
        self.me = me
        self.by_node = by_node
        self.stale_after_s = stale_after_s
        self.view_hash = view_hash
        self.description = description
        self._offering: dict[str, tuple[Peer, ...]] = {}

    def offering(self, capability: str) -> tuple[Peer, ...]:
        """Peers that say they have the named capability, in order of arrival, in whatever state."""
        found = self._offering.get(capability)
        if found is None:
            if len(self._offering) >= OFFERING_MAX:
                self._offering.clear()
            offering = []
            for peer in self.by_node.values():
                for summary in peer.capabilities:
                    if summary.name == capability:
                        offering.append(peer)
                        break
            self._offering[capability] = found = tuple(offering)
        return found

    @cached_property
    def peers(self) -> tuple[Peer, ...]:
        """All members, this node first, then by name and id."""
        me = self.me
        return tuple(sorted(self.by_node.values(), key=lambda p: (p.node != me, p.name, p.node)))

    @property
    def self_peer(self) -> Peer:
        """This node's own row."""
        return self.by_node[self.me]

    def get(self, node: NodeId) -> Peer | None:
        """The peer with this id, if known."""
        return self.by_node.get(node)

    def named(self, name: str) -> tuple[Peer, ...]:
        """Peers whose name or 16-digit id is `name`. Names are labels and may clash."""
        return tuple(p for p in self.peers if p.name == name or p.node.hex() == name)

    @cached_property
    def clashes(self) -> Mapping[str, tuple[Peer, ...]]:
        """Names that several nodes bear of which none is dead or has left, and those nodes."""
        bearers: dict[str, list[Peer]] = {}
        for peer in self.peers:
            if peer.state <= MemberState.SUSPECT:
                bearers.setdefault(peer.name, []).append(peer)
        return {name: tuple(peers) for name, peers in bearers.items() if len(peers) > 1}

    def in_state(self, state: MemberState) -> Iterator[Peer]:
        """Peers believed to be in `state`."""
        return (p for p in self.peers if p.state is state)

    def stale(self, peer: Peer, now: Instant) -> bool:
        """Whether nothing was heard of `peer` for so long that no work should go to it."""
        age = peer.age(now)
        return peer.node != self.me and (age is None or age > self.stale_after_s)
