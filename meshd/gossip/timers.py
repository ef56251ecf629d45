"""Named timers in one queue, so that a machine has a single next deadline."""

import heapq
from collections.abc import Callable, Hashable

from meshd.clock import Instant, Seconds

_STALE_MAX = 64  # replaced or cancelled entries kept beyond as many as are pending


class Timers:
    """At most one pending time per key. Ties fire in the order in which they were set."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Hashable]] = []
        self._live: dict[Hashable, tuple[float, int, Hashable]] = {}
        self._count = 0

    def set(self, key: Hashable, at: float) -> None:
        """Fire `key` at `at`; replaces its earlier time."""
        self._count += 1
        self._live[key] = entry = (at, self._count, key)
        heapq.heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self._live) + _STALE_MAX:
            self._sweep()

    def set_earlier(self, key: Hashable, at: float) -> None:
        """Fire `key` at `at` unless it fires earlier anyway."""
        live = self._live.get(key)
        if live is None or live[0] > at:
            self.set(key, at)

    def cancel(self, key: Hashable) -> None:
        """Forget `key`. Idempotent."""
        self._live.pop(key, None)

    def pending(self, key: Hashable) -> bool:
        """Whether `key` is set."""
        return key in self._live

    def next_deadline(self) -> Instant | None:
        """The earliest pending time."""
        # Counts differ: what is equal is the same. Compiled, a tuple has no identity to ask for.
        heap, live = self._heap, self._live
        while heap:
            entry = heap[0]
            if live.get(entry[2]) == entry:
                return Instant(entry[0])
            heapq.heappop(heap)
        return None

    def pop_due(self, now: Instant) -> Hashable | None:
        """Remove and return one key that is due, earliest first; None if none is."""
        heap, live = self._heap, self._live
        while heap and heap[0][0] <= now:
            entry = heapq.heappop(heap)
            if live.get(entry[2]) == entry:
                del live[entry[2]]
                return entry[2]
        return None

    def shift(self, delay_s: Seconds, wanted: Callable[[Hashable], bool]) -> None:
        """Push the pending times of `wanted` keys back by `delay_s`; their order stays."""
        self._live = {
            key: (entry[0] + delay_s, entry[1], key) if wanted(key) else entry
            for key, entry in self._live.items()
        }
        self._sweep()

    def _sweep(self) -> None:
        """Drop what was replaced or cancelled, so that the heap stays as small as what waits."""
        # Counts differ, so keys are never compared. A sorted list is a heap.
        self._heap = sorted(self._live.values())

    def __len__(self) -> int:
        return len(self._live)
