"""Partial results of one call over a channel, no faster than they are read.

Who calls grants a window of bytes and more with each part that was taken in; who answers sends
while some of it is left. So a slow reader holds up his own stream, and nobody else's calls on the
same link. Source: credit-based flow control as in HTTP/2 (RFC 9113, section 5.2).
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from meshd.errors import PeerError
from meshd.rpc.jsonrpc import encode_notification
from meshd.rpc.messages import Id
from meshd.sink import Sink

WINDOW_BYTES = 1_048_576
"""Of parts under way to one caller; a larger part goes alone."""
WINDOW_BYTES_MAX = 16 * WINDOW_BYTES
"""What a caller may ask for."""
_GRANT_BYTES = WINDOW_BYTES // 4
"""So much is granted at a time: not a message for each part."""

Send = Callable[[bytes], Awaitable[None]]


class Outflow:
    """The end that sends. Satisfies `Sink`."""

    def __init__(self, request_id: Id, window: int, send: Send) -> None:
        self._id = request_id
        self._credit = min(window, WINDOW_BYTES_MAX)
        self._send = send
        self._has_credit = asyncio.Event()
        self._has_credit.set()
        self._progress: dict[str, Any] | None = None
        self._telling: asyncio.Task[None] | None = None
        self._is_over = False

    async def part(self, value: Any) -> None:
        """Send one part, once the reader has room.

        Raises:
            UsageError: it is not JSON.
            PeerError: the link is lost, or the call has ended.
        """
        data = encode_notification("part", {"id": self._id, "value": value})
        await self._has_credit.wait()
        if self._is_over:
            raise PeerError("nobody takes its partial results any more", definite=False)
        self._credit -= len(data)
        if self._credit <= 0:
            self._has_credit.clear()
        await self._send(data)

    def progress(self, fraction: float | None, message: str) -> None:
        """Send the progress soon: the newest, where several come in a turn of the loop."""
        if self._is_over:
            return
        self._progress = {"id": self._id, "fraction": fraction, "message": message}
        if self._telling is None:
            self._telling = asyncio.create_task(self._tell(), name="meshd-progress")

    def grant(self, size: int) -> None:
        """The reader has taken so many bytes in."""
        self._credit = min(WINDOW_BYTES_MAX, self._credit + size)
        if self._credit > 0:
            self._has_credit.set()

    def close(self) -> None:
        """The call has ended: let go the work that goes on for others and waits for credit."""
        self._is_over = True
        self._has_credit.set()

    async def finish(self) -> None:
        """Wait until all progress is told: the result comes after it."""
        if self._telling is not None:
            await asyncio.wait((self._telling,))

    async def _tell(self) -> None:
        try:
            while self._progress is not None:
                told, self._progress = self._progress, None
                await self._send(encode_notification("progress", told))
        except PeerError:
            return  # the link is lost: the channel ends the call
        finally:
            self._telling = None


class Inflow:
    """The end that reads: hands parts to a sink one after the other, and grants what it took."""

    def __init__(self, sink: Sink, grant: Callable[[int], None]) -> None:
        self._sink = sink
        self._grant = grant
        self._fault: Exception | None = None
        self._parts: deque[tuple[Any, int]] = deque()
        self._waiting_bytes = 0
        self._owed = 0
        self.failed = asyncio.Event()
        """Set once the sink has raised: the call need not go on."""
        self._pump: asyncio.Task[None] | None = None

    def take(self, value: Any, size: int) -> bool:
        """Queue a part that came; false if more came than was granted."""
        is_fair = self._waiting_bytes + self._owed <= WINDOW_BYTES
        if self.failed.is_set():
            return True
        self._parts.append((value, size))
        self._waiting_bytes += size
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._run(), name="meshd-parts")
            self._pump.add_done_callback(_look_at)
        return is_fair

    def progress(self, fraction: float | None, message: str) -> None:
        """Hand progress on. Where the sink raises, its call ends, and nobody else's."""
        if self.failed.is_set():
            return
        try:
            self._sink.progress(fraction, message)
        except Exception as error:  # noqa: BLE001 - a sink of the caller's may raise anything
            self._fault = error
            self.failed.set()

    async def finish(self) -> None:
        """Wait until the sink has taken all parts.

        Raises:
            Exception: what the sink raised.
        """
        if self._pump is not None and self._fault is None:
            await self._pump
        if self._fault is not None:
            raise self._fault

    def close(self) -> None:
        """Hand on nothing more."""
        self._parts.clear()
        if self._pump is not None:
            self._pump.cancel()

    async def _run(self) -> None:
        while self._parts:
            value, size = self._parts.popleft()
            try:
                await self._sink.part(value)
            except BaseException:
                self.failed.set()
                raise
            self._waiting_bytes -= size
            self._owed += size
            if self._owed >= _GRANT_BYTES:
                owed, self._owed = self._owed, 0
                self._grant(owed)


def _look_at(pump: asyncio.Task[None]) -> None:
    """Whoever waits for the call hears of a fault; asyncio need not log it for those who left."""
    if not pump.cancelled():
        pump.exception()
