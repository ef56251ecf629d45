"""A timed doubt that independent confirmations shorten (Lifeguard section IV-B)."""

import math
from functools import lru_cache

from meshd.clock import Instant, Seconds
from meshd.gossip.config import GossipConfig
from meshd.gossip.messages import ACCUSERS_MAX
from meshd.model import NodeId


@lru_cache(maxsize=1_024)
def suspicion_bounds_s(config: GossipConfig, members: int) -> tuple[Seconds, Seconds]:
    """T_min and T_max for a mesh of `members`: alpha * T, and beta times that.

    With verifiers T_min is constant: their probes leave with the news of the doubt, so that nobody
    waits for chance to bring a second prober by. Without, it is alpha * max(1, log10 n) * T as in
    Lifeguard.
    """
    scale = 1.0 if config.verifiers else max(1.0, math.log10(max(1, members)))
    shortest = config.suspicion_mult * scale * config.probe_interval_s
    return shortest, shortest * config.suspicion_max_mult


def crowded_bounds_s(config: GossipConfig, members: int) -> tuple[Seconds, Seconds]:
    """T_min and T_max while many are suspected at once: Lifeguard's, from 4 max(1, log10 n) T.

    Rumours queue up then, and a refutation takes longer to come round.
    """
    shortest = 4.0 * max(1.0, math.log10(max(1, members))) * config.probe_interval_s
    return shortest, shortest * config.suspicion_max_mult


class Suspicion:
    """One suspected member at one incarnation.

    Accusers are those whose own probes failed; each may take it back once, for good, when an answer
    comes after all. Both sets only grow, so that all who hear the same hold the same.
    """

    __slots__ = (
        "_longest", "_needed", "_shortest", "accusers", "is_last_called", "is_lengthened",
        "lag_s", "not_before", "retracted", "started",
    )  # fmt: skip

    def __init__(
        self, config: GossipConfig, members: int, now: Instant, *, lag_s: Seconds = 0.0
    ) -> None:
        """Start the doubt.

        Args:
            config: gives alpha, beta and K.
            members: live members including both of us; others who could confirm are two fewer.
            now: when it started.
            lag_s: how late the suspect reads its mail by its own word: it needs that long to hear
                of the doubt, and about as long for its answer to be believed.
        """
        self.started = now
        shortest, longest = suspicion_bounds_s(config, members)
        self._shortest, self._longest = shortest + 2 * lag_s, longest + 2 * lag_s
        self._needed = min(config.suspicion_confirmations, max(0, members - 2))
        self.accusers: tuple[NodeId, ...] = ()
        self.retracted: tuple[NodeId, ...] = ()
        self.is_last_called = False
        self.lag_s = lag_s
        self.is_lengthened = False
        """Whether it lasts longer because many are doubted at once."""
        self.not_before = now
        """When answers to the last call should be there."""

    def confirm(self, accuser: NodeId) -> bool:
        """Count one more opinion; false if it is not new or no more are needed."""
        if not self.is_news(accuser):
            return False
        self.accusers = (*self.accusers, accuser)
        return True

    def is_news(self, accuser: NodeId) -> bool:
        """Whether one more opinion, of this node, would count."""
        return (self.confirmations < self._needed or not self._active) and self._may_count(accuser)

    def retract(self, accuser: NodeId) -> bool:
        """Somebody takes back its opinion, be it known or not; false if it did before."""
        if accuser in self.retracted or len(self.retracted) == ACCUSERS_MAX:
            return False
        self.retracted = (*self.retracted, accuser)
        return True

    def _may_count(self, accuser: NodeId) -> bool:
        return (
            accuser not in self.accusers
            and accuser not in self.retracted
            and len(self.accusers) < ACCUSERS_MAX
        )

    @property
    def _active(self) -> int:
        return sum(accuser not in self.retracted for accuser in self.accusers)

    @property
    def confirmations(self) -> int:
        """Independent opinions that stand, beyond the first."""
        return max(0, self._active - 1)

    @property
    def needed(self) -> int:
        """K: the confirmations that bring the doubt down to its shortest."""
        return self._needed

    @property
    def bounds_s(self) -> tuple[Seconds, Seconds]:
        """T_min and T_max of this doubt."""
        return self._shortest, self._longest

    def lengthen(self, bounds_s: tuple[Seconds, Seconds]) -> bool:
        """Last as long as these bounds at least; false if it does anyway."""
        before = self._shortest, self._longest
        self._shortest = max(self._shortest, bounds_s[0])
        self._longest = max(self._longest, bounds_s[1])
        is_longer = before != (self._shortest, self._longest)
        self.is_lengthened |= is_longer
        return is_longer

    def deadline(self) -> Instant:
        """When doubt becomes certainty: T(c) of Lifeguard, from T_max down to T_min.

        If all who doubted took it back, somebody's mere hearsay is left: that lasts longest.
        """
        wait_s = self._shortest
        if self.accusers and not self._active:
            wait_s = self._longest
        elif self._needed:
            share = math.log(self.confirmations + 1) / math.log(self._needed + 1)
            wait_s = self._longest - (self._longest - self._shortest) * min(1.0, share)
        return Instant(max(self.not_before, self.started + max(self._shortest, wait_s)))
