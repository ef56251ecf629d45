"""How much a node may add to the load of a mesh that fails or is slow: retries, second copies.

Sources: "The Tail at Scale" (Dean and Barroso 2013) for hedging after the 95th percentile within
5 %; Finagle's retry budget (20 % of calls, and 10 a second) against retry storms; "Exponential
Backoff And Jitter" (AWS 2015) for full jitter.
"""

from collections import deque
from random import Random

from meshd.bucket import TokenBucket
from meshd.clock import Instant, Seconds

RETRY_FRACTION = 0.2
RETRIES_PER_S = 10.0
RETRIES_SAVED = 100.0
"""Retries that a node may have saved up: ten seconds' worth."""

PAUSE_FIRST_S: Seconds = 0.025
PAUSE_MAX_S: Seconds = 1.0

HEDGE_FRACTION = 0.05
HEDGES_SAVED = 20.0
HEDGE_QUANTILE = 0.95
HEDGE_SAMPLES_MIN = 20
HEDGE_AFTER_MIN_S: Seconds = 0.005
"""What is done sooner than that is not worth a second copy."""
SAMPLES_KEPT = 100
SAMPLES_UNREAD_MAX = 10
"""So many new answers may come before the percentile is worked out anew."""
CAPABILITIES_MAX = 512


class _Latencies:
    """The last answers' times of one capability; sorted only for who asks: most calls never do."""

    __slots__ = ("_quantile", "_times", "_unread")

    def __init__(self) -> None:
        self._times: deque[Seconds] = deque(maxlen=SAMPLES_KEPT)
        self._quantile = 0.0
        self._unread = HEDGE_SAMPLES_MIN

    def add(self, took_s: Seconds) -> None:
        """One more; the oldest is forgotten."""
        self._times.append(took_s)
        self._unread += 1

    def quantile(self) -> Seconds | None:
        """The 95th percentile, a few answers old at most; None while there are too few."""
        count = len(self._times)
        if count < HEDGE_SAMPLES_MIN:
            return None
        if self._unread >= SAMPLES_UNREAD_MAX:
            self._quantile = sorted(self._times)[min(count - 1, int(HEDGE_QUANTILE * count))]
            self._unread = 0
        return self._quantile


class Resilience:
    """Budgets and pauses of one node. Every call of its clients pays a little into them."""

    def __init__(self, random: Random) -> None:
        self.retries = 0
        self.hedges = 0
        self._random = random
        self._retries = TokenBucket(RETRIES_PER_S, RETRIES_SAVED)
        self._hedges = TokenBucket(0.0, HEDGES_SAVED)
        self._latencies: dict[str, _Latencies] = {}
        self._unpaid = 0
        """Calls whose share is not in the budgets yet: it is looked for only where one fails."""

    def began(self) -> None:
        """A client's call came."""
        self._unpaid += 1

    def may_retry(self, now: Instant, *, is_patient: bool = False) -> bool:
        """Whether one more try is within the budget; it is counted then.

        Who is patient leaves half of what can be saved to the others: many that wait for one
        worker would else try again on the account of all.
        """
        self._pay(now)
        is_short = is_patient and self._retries.tokens(now) < RETRIES_SAVED / 2
        is_granted = not is_short and self._retries.take(now)
        self.retries += is_granted
        return is_granted

    def pause_s(self, failures: int) -> Seconds:
        """How long to wait after so many failures (1 or more) of one call: full jitter."""
        longest_s = min(PAUSE_MAX_S, PAUSE_FIRST_S * 2 ** min(failures - 1, 16))
        return self._random.uniform(0.0, longest_s)

    def answered(self, capability: str, took_s: Seconds) -> None:
        """A peer answered well after so long."""
        kept = self._latencies
        latencies = kept.get(capability)
        if latencies is None:
            latencies = kept[capability] = _Latencies()
        elif len(kept) * 2 > CAPABILITIES_MAX:  # else nobody asks which was used last
            kept[capability] = kept.pop(capability)
        if len(kept) > CAPABILITIES_MAX:
            del kept[next(iter(kept))]
        latencies.add(took_s)

    def hedge_after_s(self, capability: str) -> Seconds | None:
        """When a second copy may be worth it; None while too little is known."""
        latencies = self._latencies.get(capability)
        usual_s = None if latencies is None else latencies.quantile()
        return None if usual_s is None else max(HEDGE_AFTER_MIN_S, usual_s)

    def may_hedge(self, now: Instant) -> bool:
        """Whether a second copy is within the budget; it is counted then."""
        self._pay(now)
        is_granted = self._hedges.take(now)
        self.hedges += is_granted
        return is_granted

    def _pay(self, now: Instant) -> None:
        """Put in what calls have brought since: as much as if each had done so when it came."""
        self._retries.add(RETRY_FRACTION * self._unpaid, now)
        self._hedges.add(HEDGE_FRACTION * self._unpaid, now)
        self._unpaid = 0
