"""A token bucket: what may happen so often on average, and so often at once."""

from meshd.clock import Instant, Seconds


class TokenBucket:
    """`rate_per_s` tokens come each second, up to `burst`; it begins full.

    `add` puts in more by hand, for budgets that grow with use.
    """

    def __init__(self, rate_per_s: float, burst: float) -> None:
        assert rate_per_s >= 0, "time does not take tokens away"
        assert burst > 0, "a bucket holds something"
        self.rate_per_s = rate_per_s
        self.burst = burst
        self._tokens = burst
        self._at: Instant | None = None

    def tokens(self, now: Instant) -> float:
        """How many there are."""
        if self._at is not None and now > self._at:
            self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate_per_s)
        self._at = now
        return self._tokens

    def add(self, tokens: float, now: Instant) -> None:
        """Put in some, as far as they fit."""
        self._tokens = min(self.burst, self.tokens(now) + tokens)

    def take(self, now: Instant) -> bool:
        """Take one; false, and nothing is taken, where there is none."""
        if self.tokens(now) < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def wait_s(self, now: Instant) -> Seconds:
        """Seconds until there will be one."""
        missing = 1.0 - self.tokens(now)
        if missing <= 0:
            return 0.0
        return missing / self.rate_per_s if self.rate_per_s else float("inf")
