"""When to try again: jittered exponential backoff, for one thing or for thousands. Pure."""

import heapq
import random
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from meshd.clock import Instant, Seconds

KeyT = TypeVar("KeyT", bound=Hashable)

ALONE_FIRST_S = 1.0
CALM_FIRST_S = 30.0
LIMIT_S = 3600.0
"""Dead for a day or for a year: one try an hour heals any partition without an operator."""

ALONE_LIMIT_S = 60.0
ALONE_KEYS_PER_S = 4.0
"""Alone, every key is tried once a minute, or as often as four keys a second allow."""

_STALE_MAX = 64
"""Heap entries of removed keys, beyond as many as there are keys, before they are cleared out."""

JITTER = 0.25
"""Each delay is drawn from +-25 %, so that nodes which failed together do not retry together."""


class Backoff:
    """Delays that double from `first_s` up to `limit_s`, each jittered."""

    def __init__(self, rng: random.Random, *, first_s: Seconds, limit_s: Seconds) -> None:
        self._rng = rng
        self._first_s = first_s
        self._limit_s = limit_s
        self._delay_s = first_s

    def next(self) -> Seconds:
        """The delay before the next try."""
        delay = self._delay_s
        self._delay_s = min(self._limit_s, delay * 2)
        return jittered(self._rng, delay)

    def reset(self) -> None:
        """It worked: begin again with the shortest delay."""
        self._delay_s = self._first_s


def jittered(rng: random.Random, delay_s: Seconds) -> Seconds:
    """`delay_s` within +-25 %."""
    return delay_s * rng.uniform(1.0 - JITTER, 1.0 + JITTER)


class RetrySchedule(Generic[KeyT]):
    """When each of many keys is due for another try, at the cost of only those that are due.

    A key that is alive when it comes due starts again at 30 s; one that is not doubles its delay
    up to an hour, for ever. When we become alone, all start again at one second, and none waits
    much longer than a minute.
    """

    def __init__(
        self,
        rng: random.Random,
        *,
        first_s: Seconds = CALM_FIRST_S,
        limit_s: Seconds = LIMIT_S,
    ) -> None:
        """Begin without keys.

        Args:
            rng: the source of chance.
            first_s: the shortest delay in company.
            limit_s: the longest one.
        """
        self._rng = rng
        self._first_s = first_s
        self._limit_s = limit_s
        self._delay_s: dict[KeyT, Seconds] = {}
        self._due_at: dict[KeyT, Instant] = {}
        self._heap: list[tuple[Instant, int, KeyT]] = []
        self._tie = 0
        self._alone = False

    def __len__(self) -> int:
        return len(self._due_at)

    def add(self, key: KeyT, now: Instant) -> None:
        """Begin to retry `key`, if it is new: at once while we are alone, else after a delay."""
        if key not in self._due_at:
            self._delay_s[key] = ALONE_FIRST_S if self._alone else self._first_s
            self._put(key, now if self._alone else self._later(key, now))

    def remove(self, key: KeyT) -> None:
        """Forget `key`."""
        self._due_at.pop(key, None)
        self._delay_s.pop(key, None)
        if len(self._heap) > 2 * len(self._due_at) + _STALE_MAX:
            self._heap = [entry for entry in self._heap if self._due_at.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)

    def due(
        self,
        now: Instant,
        *,
        alone: bool,
        is_alive: Callable[[KeyT], bool],
        limit: int,
        share: float = 1.0,
    ) -> list[KeyT]:
        """At most `limit` keys to try now, in the order in which they came due.

        With a `share` below 1 only that part of them is tried, by lot: others of the mesh have the
        same keys, and the same schedule.
        """
        if alone and not self._alone:
            self.hurry(now)
        self._alone = alone
        keys: list[KeyT] = []
        while self._heap and self._heap[0][0] <= now and len(keys) < limit:
            at, _, key = heapq.heappop(self._heap)
            if self._due_at.get(key) != at:
                continue  # removed or rescheduled since
            if is_alive(key):
                self._delay_s[key] = self._first_s
                self._put(key, self._later(key, now))
                continue
            if share >= 1.0 or self._rng.random() < share:
                keys.append(key)
            self._put(key, self._later(key, now))
            self._delay_s[key] = min(self._longest_s(), self._delay_s[key] * 2)
        return keys

    def _longest_s(self) -> Seconds:
        if not self._alone:
            return self._limit_s
        return min(self._limit_s, max(ALONE_LIMIT_S, len(self._due_at) / ALONE_KEYS_PER_S))

    def hurry(self, now: Instant) -> None:
        """Everybody is gone, or the network is another: all are due, and soon again after that."""
        self._heap = []
        for key in list(self._due_at):
            self._delay_s[key] = ALONE_FIRST_S
            self._put(key, now)

    def _later(self, key: KeyT, now: Instant) -> Instant:
        return Instant(now + jittered(self._rng, self._delay_s[key]))

    def _put(self, key: KeyT, at: Instant) -> None:
        self._tie += 1  # keeps the order of equal instants, and keys out of comparisons
        self._due_at[key] = at
        heapq.heappush(self._heap, (at, self._tie, key))


class TokenBucket:
    """Lets `burst` through at once and `per_s` a second after that; counts the rest."""

    def __init__(self, *, per_s: float, burst: int) -> None:
        self._per_s = per_s
        self._burst = float(burst)
        self._tokens = float(burst)
        self._at: Instant | None = None
        self.refused = 0

    def take(self, now: Instant) -> bool:
        """Whether one more may pass now."""
        if self._at is not None:
            self._tokens = min(self._burst, self._tokens + max(0.0, now - self._at) * self._per_s)
        self._at = now
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return True
        self.refused += 1
        return False
