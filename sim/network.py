"""The network between simulated nodes: latency, loss, duplicates, queues, cuts and clogs."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

RandomFor = Callable[[str], random.Random]

DEFAULT_LATENCY_LOW_S = 0.000_5
DEFAULT_LATENCY_HIGH_S = 0.001_5
LOSS_CALM = 0.03
"""Above this share of lost packets the failure detector may err."""
EGRESS_QUEUE_MAX_S = 0.5
"""What would wait longer than this for a narrow link is dropped, as a router's queue would."""


@dataclass(frozen=True, slots=True)
class Constant:
    """Every packet takes `delay_s`."""

    delay_s: float

    def draw(self, rng: random.Random) -> float:
        """One-way delay of the next packet, in seconds."""
        del rng
        return self.delay_s


@dataclass(frozen=True, slots=True)
class Uniform:
    """Any delay between `low_s` and `high_s` is as likely as another."""

    low_s: float
    high_s: float

    def draw(self, rng: random.Random) -> float:
        """One-way delay of the next packet, in seconds."""
        return self.low_s + (self.high_s - self.low_s) * rng.random()


@dataclass(frozen=True, slots=True)
class Exponential:
    """At least `low_s`, on average `mean_s` more, at most `high_s` in all."""

    low_s: float
    mean_s: float
    high_s: float

    def draw(self, rng: random.Random) -> float:
        """One-way delay of the next packet, in seconds."""
        return min(self.high_s, self.low_s + rng.expovariate(1.0 / self.mean_s))


Latency = Constant | Uniform | Exponential


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How one link treats its packets.

    Attributes:
        latency: one-way delay.
        loss: share of packets that are lost, 0 .. 1.
        duplicate: share of packets that arrive twice.
        reorder: share of packets that are held back for up to `reorder_s`.
        reorder_s: the longest such hold.
        mtu_bytes: larger datagrams are lost (nobody fragments them).
        bytes_per_s: what a sender's link carries; None for no limit.
    """

    latency: Latency = Uniform(DEFAULT_LATENCY_LOW_S, DEFAULT_LATENCY_HIGH_S)
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    reorder_s: float = 0.05
    mtu_bytes: int = 1_472
    bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """No packet passes from one of `sources` to one of `targets`."""

    sources: frozenset[int]
    targets: frozenset[int]


class Network:
    """Decides for each packet when, and how often, it arrives."""

    def __init__(self, shape: Shape, random_for: RandomFor) -> None:
        """Start whole and equal.

        Args:
            shape: what holds where no override does.
            random_for: gives each concern its own source of chance, so that a change of one does
                not shift the draws of the others.
        """
        self.shape = shape
        self.dropped = 0
        self.crowded_at = 0.0
        """When a narrow link last had to drop a packet."""
        self._latency = random_for("latency")
        self._loss = random_for("loss")
        self._duplicate = random_for("duplicate")
        self._reorder = random_for("reorder")
        self._links: dict[tuple[int, int], Shape] = {}
        self._nodes: dict[int, Shape] = {}
        self._cuts: dict[str, tuple[Cut, ...]] = {}
        self._clogs: dict[int, float] = {}
        self._free_at: dict[int, float] = {}

    def route(self, source: int, target: int, size: int, now: float) -> tuple[float, ...]:
        """When a packet of `size` bytes sent `now` arrives: no time, one, or two."""
        shape = self._shape(source, target) if self._nodes or self._links else self.shape
        if self._cuts and self.is_cut(source, target):
            self.dropped += 1
            return ()
        if (shape.loss and self._loss.random() < shape.loss) or size > shape.mtu_bytes:
            self.dropped += 1
            return ()
        at = now + shape.latency.draw(self._latency)
        if shape.reorder and self._reorder.random() < shape.reorder:
            at += self._reorder.random() * shape.reorder_s
        if shape.bytes_per_s is not None:
            wait_s = self._queue_s(source, size, shape.bytes_per_s, now)
            if wait_s > EGRESS_QUEUE_MAX_S:
                self.dropped += 1
                self.crowded_at = now
                return ()
            at += wait_s
        if self._clogs:
            at = max(at, self._clogs.get(source, 0.0), self._clogs.get(target, 0.0))
        if shape.duplicate and self._duplicate.random() < shape.duplicate:
            return at, at + shape.latency.draw(self._duplicate)
        return (at,)

    def _shape(self, source: int, target: int) -> Shape:
        """A link's own shape, else the worse of its two ends'."""
        link = self._links.get((source, target))
        if link is not None:
            return link
        one, other = self._nodes.get(source), self._nodes.get(target)
        if one is not None and other is not None:
            return one if one.loss >= other.loss else other
        return one or other or self.shape

    def _queue_s(self, source: int, size: int, bytes_per_s: float, now: float) -> float:
        start = max(now, self._free_at.get(source, 0.0))
        if start - now <= EGRESS_QUEUE_MAX_S:
            self._free_at[source] = start + size / bytes_per_s
        return start - now

    def backlog_s(self, now: float) -> float:
        """How long the busiest sender's link takes for what waits in it."""
        return max(self._free_at.values(), default=now) - now

    # What faults change

    def is_cut(self, source: int, target: int) -> bool:
        """Whether some cut lies between these two, in this direction."""
        return any(
            source in cut.sources and target in cut.targets
            for cuts in self._cuts.values()
            for cut in cuts
        )

    @property
    def is_whole(self) -> bool:
        """Whether no cut, clog or override is in force."""
        return not (self._cuts or self._clogs or self._nodes or self._links)

    def partition(self, name: str, groups: tuple[frozenset[int], ...]) -> None:
        """No packet passes between different `groups`, under this `name`, until `heal`."""
        self._cuts[name] = tuple(
            Cut(one, other) for one in groups for other in groups if one is not other
        )

    def cut(self, name: str, sources: frozenset[int], targets: frozenset[int]) -> None:
        """No packet passes from `sources` to `targets`; the other direction stays open."""
        self._cuts[name] = (Cut(sources, targets),)

    def heal(self, name: str | None = None) -> None:
        """Remove the cuts of this name, or all of them. Idempotent."""
        if name is None:
            self._cuts.clear()
        else:
            self._cuts.pop(name, None)

    def clog(self, node: int, until: float) -> None:
        """Packets to and from `node` wait until then; they are not lost."""
        self._clogs[node] = until

    def unclog(self, node: int) -> None:
        """Packets of `node` no longer wait. Idempotent."""
        self._clogs.pop(node, None)

    def override_node(self, node: int, loss: float | None) -> None:
        """All of a node's links lose this share; None puts the common shape back."""
        if loss is None:
            self._nodes.pop(node, None)
        else:
            self._nodes[node] = replace(self.shape, loss=loss)

    def override_link(self, source: int, target: int, shape: Shape | None) -> None:
        """One direction of one link differs; None puts the common shape back."""
        if shape is None:
            self._links.pop((source, target), None)
        else:
            self._links[source, target] = shape

    def reset(self) -> None:
        """Remove all cuts, clogs and overrides, and lose no more than a calm network does."""
        self._cuts.clear()
        self._clogs.clear()
        self._nodes.clear()
        self._links.clear()
        self.shape = replace(self.shape, loss=min(self.shape.loss, LOSS_CALM))
