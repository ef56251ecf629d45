"""Telling a member that is behind what it missed, at most once a second a pair.

Source: memberlist issue 311: a node that lost a rumour, or slept through it, goes on telling old
news, which everybody drops in silence; so it is never put right.
"""

from meshd.clock import Instant, Seconds
from meshd.gossip.doors import Budget
from meshd.model import NodeId

PAIR_INTERVAL_S: Seconds = 1.0
PER_S = 16
"""Corrections to all members together, a second and at once."""
PAIRS_MAX = 1_024
"""Pairs whose last correction is remembered; the oldest gives way."""


class Corrections:
    """When whom was told what about whom."""

    def __init__(self, now: Instant) -> None:
        self._told: dict[tuple[NodeId, NodeId], Instant] = {}
        self._budget = Budget(PER_S, PER_S, now)

    def may_tell(self, member: NodeId, subject: NodeId, now: Instant) -> bool:
        """Whether a member may be put right about a subject now; counts as done if so."""
        pair = (member, subject)
        told_at = self._told.get(pair)
        if told_at is not None and now - told_at < PAIR_INTERVAL_S:
            return False
        if not self._budget.take(now):
            return False
        self._told.pop(pair, None)
        if len(self._told) >= PAIRS_MAX:
            del self._told[next(iter(self._told))]
        self._told[pair] = now
        return True
