"""A bounded queue of what happens to one task, for one who looks on."""

import asyncio
from collections import deque
from typing import Any

EVENTS_MAX = 1_024
EVENTS_BYTES_MAX = 4 * 1_048_576
"""That wait for one slow onlooker; then he misses some, and is told so. The end he always gets."""

Event = dict[str, Any]


class Watcher:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self.missed = 0
        self._events: deque[tuple[Event, int]] = deque()
        self._bytes = 0
        self._is_over = False
        self._news = asyncio.Event()

    def tell(self, event: Event, size: int) -> None:
        """Something happened; missed where too much waits already."""
        if self._is_full(size):
            self.missed += 1
        else:
            self._add(event, size)

    def end(self, event: Event, size: int) -> None:
        """The last thing happened: what is oldest makes room for it."""
        while self._is_full(size):
            _, old = self._events.popleft()
            self._bytes -= old
            self.missed += 1
        self._add(event, size)
        self.close()

    def close(self) -> None:
        """Nothing more is told here."""
        self._is_over = True
        self._news.set()

    async def next(self) -> Event | None:
        """The next thing that happened, with the number of those missed before it; None after all.

        A single one is handed on however large it is.
        """
        while not self._events:
            if self._is_over:
                return None
            self._news.clear()
            await self._news.wait()
        event, size = self._events.popleft()
        self._bytes -= size
        return event

    def _is_full(self, size: int) -> bool:
        waits = len(self._events)
        return waits > 0 and (waits >= EVENTS_MAX or self._bytes + size > EVENTS_BYTES_MAX)

    def _add(self, event: Event, size: int) -> None:
        missed, self.missed = self.missed, 0
        self._events.append(({**event, "missed": missed} if missed else event, size))
        self._bytes += size
        self._news.set()
