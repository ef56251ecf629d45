"""A timed doubt that independent confirmations shorten (Lifeguard section IV-B)."""

import math
from functools import lru_cache

from meshd.clock import Instant, Seconds
from meshd.gossip.config import GossipConfig
from meshd.model import NodeId


@lru_cache(maxsize=1_024)
def suspicion_bounds_s(config: GossipConfig, members: int) -> tuple[Seconds, Seconds]:
    """T_min and T_max for a mesh of `members`: alpha * max(1, log10 n) * T, and beta times that."""
    scale = max(1.0, math.log10(max(1, members)))
    shortest = config.suspicion_mult * scale * config.probe_interval_s
    return shortest, shortest * config.suspicion_max_mult


class Suspicion:
    """One suspected member at one incarnation."""

    __slots__ = ("_accusers", "_confirmations", "_longest", "_needed", "_shortest", "started")

    def __init__(
        self, config: GossipConfig, members: int, accuser: NodeId | None, now: Instant
    ) -> None:
        """Start the doubt.

        Args:
            config: gives alpha, beta and K.
            members: live members including both of us; others who could confirm are two fewer.
            accuser: whose failed probe started it; None for hearsay, which confirms nothing.
            now: when it started.
        """
        self.started = now
        self._shortest, self._longest = suspicion_bounds_s(config, members)
        self._needed = min(config.suspicion_confirmations, max(0, members - 2))
        # The first accuser is not a confirmation: confirmations are *further* opinions.
        self._accusers: tuple[NodeId, ...] = () if accuser is None else (accuser,)
        self._confirmations = 0

    def confirm(self, accuser: NodeId) -> bool:
        """Count one more opinion; false if it is not new or no more are needed."""
        if not self.is_news(accuser):
            return False
        first = not self._accusers
        self._accusers = (*self._accusers, accuser)
        # After hearsay the first real accuser takes the place of the one who started the doubt.
        if not first:
            self._confirmations += 1
        return True

    def is_news(self, accuser: NodeId) -> bool:
        """Whether one more opinion, of this node, would count."""
        return self._confirmations < self._needed and accuser not in self._accusers

    @property
    def confirmations(self) -> int:
        """Independent opinions beyond the first."""
        return self._confirmations

    def deadline(self) -> Instant:
        """When doubt becomes certainty: T(c) of Lifeguard, from T_max down to T_min."""
        if self._needed == 0:
            return Instant(self.started + self._shortest)
        share = math.log(self._confirmations + 1) / math.log(self._needed + 1)
        wait_s = self._longest - (self._longest - self._shortest) * share
        return Instant(self.started + max(self._shortest, wait_s))
