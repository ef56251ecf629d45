"""Messages into WebSocket frames and back: those of one turn of the loop leave in one frame.

A frame holds one JSON text, or several as a JSON text sequence: each begins with the record
separator, which no JSON text contains (RFC 7464, section 2).
"""

import asyncio
from collections import deque
from typing import Any, Protocol

from aiohttp import WSMsgType

SEPARATOR = b"\x1e"
FRAME_BYTES_MAX = 262_144
"""Messages are put together up to this; a larger one has a frame of its own."""
WAITING_BYTES_MAX = 1_048_576
"""Of messages that wait for a slow reader; then whoever sends more waits too."""


class Socket(Protocol):
    """What a channel needs of a WebSocket: aiohttp's server and client ends both have it."""

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more."""
        ...

    async def send_frame(self, message: bytes, opcode: WSMsgType) -> None:
        """Send one message; waits while the other side is slow to read."""
        ...

    async def receive(self) -> Any:
        """The next message, or one of a closing kind."""
        ...

    async def close(self) -> bool:
        """Say goodbye and close."""
        ...


class FrameWriter:
    """Sends messages in order.

    The first of a turn of the loop leaves at once, so that a lone call is not held up; whatever
    follows in the same turn, or while the reader is slow, leaves together.
    """

    def __init__(self, socket: Socket) -> None:
        self._socket = socket
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._has_sent = False
        self._flusher: asyncio.Task[None] | None = None
        self._has_room = asyncio.Event()
        self._has_room.set()

    async def send(self, message: bytes) -> None:
        """Send one, or leave it to be sent with others; waits while too much waits already.

        Raises:
            ConnectionError, RuntimeError: the link is lost; the message may have left.
        """
        if not self._has_sent and self._flusher is None:
            self._has_sent = True
            asyncio.get_running_loop().call_soon(self._turn)
            await self._socket.send_frame(message, WSMsgType.TEXT)
            return
        self._waiting.append(message)
        self._waiting_bytes += len(message)
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush(), name="meshd-frames")
        if self._waiting_bytes > WAITING_BYTES_MAX:
            self._has_room.clear()
            await self._has_room.wait()

    def close(self) -> None:
        """Drop what waits, and let go whoever waits for room."""
        if self._flusher is not None:
            self._flusher.cancel()
        self._waiting.clear()
        self._has_room.set()

    def _turn(self) -> None:
        self._has_sent = False

    async def _flush(self) -> None:
        try:
            while self._waiting:
                await self._socket.send_frame(self._next_frame(), WSMsgType.TEXT)
        except (ConnectionError, RuntimeError):
            # The reader of the channel sees that the link is lost, and ends all calls.
            self._waiting.clear()
        finally:
            self._flusher = None
            self._has_room.set()

    def _next_frame(self) -> bytes:
        together = [self._waiting.popleft()]
        size = len(together[0])
        while self._waiting and size + len(self._waiting[0]) <= FRAME_BYTES_MAX:
            together.append(self._waiting.popleft())
            size += len(together[-1])
        self._waiting_bytes -= size
        if self._waiting_bytes <= WAITING_BYTES_MAX // 2:
            self._has_room.set()
        if len(together) == 1:
            return together[0]
        return b"".join(SEPARATOR + message + b"\n" for message in together)


def messages_in(frame: bytes) -> list[bytes]:
    """The JSON texts of a frame, in order; not yet looked into."""
    if not frame.startswith(SEPARATOR):
        return [frame]
    return [message.rstrip(b"\n") for message in frame.split(SEPARATOR)[1:]]
