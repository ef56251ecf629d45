"""How often calls to each node succeeded, as seen from here and as it says itself."""

from meshd.clock import Instant, Seconds
from meshd.model import Epoch, NodeId
from meshd.view import Peer

NODES_MAX = 4_096
"""Nodes whose results are kept; beyond it the one that was not called for longest is forgotten."""

RESULTS_WEIGHT = 50.0
"""A new result weighs at least a fiftieth: what was long ago counts little."""

OWN_WORD_WEIGHT = 10.0
"""What a node says of its errors counts as ten results seen here."""

GRAIN_S: Seconds = 0.1
"""Within so long nothing fades: a power for each result would cost more than all the rest."""

HALF_LIFE_S: Seconds = 300.0
"""Results count half after so long, so that who was left out gets another chance."""


class _Results:
    """The results of one run of one node: how many, and how many good ones, both fading."""

    __slots__ = ("at", "epoch", "good", "seen")

    def __init__(self, epoch: Epoch | None, at: Instant) -> None:
        self.epoch = epoch
        self.at = at
        self.good = 0.0
        self.seen = 0.0

    def faded(self, now: Instant) -> float:
        """What is left of their weight by now."""
        return float(0.5 ** (max(0.0, now - self.at) / HALF_LIFE_S))

    def add(self, now: Instant, *, is_good: bool) -> None:
        """One more."""
        most = RESULTS_WEIGHT - 1.0
        share = 1.0 if self.seen <= most else most / self.seen
        if now - self.at >= GRAIN_S:
            share *= self.faded(now)
            self.at = now
        self.good = self.good * share + is_good
        self.seen = self.seen * share + 1.0


class History:
    """Results of own calls, for each node."""

    def __init__(self, *, nodes_max: int = NODES_MAX) -> None:
        self._nodes_max = nodes_max
        self._results: dict[NodeId, _Results] = {}

    def __len__(self) -> int:
        return len(self._results)

    def note(self, node: NodeId, epoch: Epoch | None, now: Instant, *, is_good: bool) -> None:
        """A call to this run of a node succeeded or failed; refusals are neither."""
        results = self._results.get(node)
        if results is None or results.epoch != epoch:
            results = self._results[node] = _Results(epoch, now)
        elif len(self._results) * 2 > self._nodes_max:  # else nobody asks who was called last
            self._results[node] = self._results.pop(node)
        results.add(now, is_good=is_good)
        if len(self._results) > self._nodes_max:
            del self._results[next(iter(self._results))]

    def success(self, peer: Peer, now: Instant) -> float:
        """The share of calls to the peer that succeed, 0..1, as far as that can be known.

        What it says itself is where it begins, and counts less with each result that was seen
        here. Another run of it begins anew.
        """
        said = 1.0 if peer.load is None else 1.0 - peer.load.error_fraction
        results = self._results.get(peer.node)
        if results is None or results.epoch != peer.epoch:
            return said
        share = results.faded(now)
        good, seen = results.good * share, results.seen * share
        return (good + OWN_WORD_WEIGHT * said) / (seen + OWN_WORD_WEIGHT)
