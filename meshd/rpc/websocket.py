"""A WebSocket whose upgrade is done: frames from the transport to a callback, no task between."""

import asyncio
import struct
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

from aiohttp import WebSocketError, WSCloseCode, WSMessage, WSMsgType
from aiohttp._websocket.helpers import websocket_mask
from aiohttp._websocket.reader import WebSocketDataQueue
from aiohttp.http_websocket import WebSocketReader

from meshd.clock import Seconds
from meshd.rpc.channel import ChannelLimits

JOINED_BYTES_MAX = 16_384
"""What is not masked goes to the transport together with its head up to this size; of a larger one
no copy is made."""
_QUEUE_BYTES_MAX = 65_536
"""Of aiohttp's queue, in which nothing ever waits here."""
_random_bits = Random().getrandbits
_head_16 = struct.Struct("!BBH").pack
_head_64 = struct.Struct("!BBQ").pack
_FIN = 0x80
_TEXT, _BINARY = WSMsgType.TEXT, WSMsgType.BINARY  # an enumeration is looked up slowly
_MASKED = 0x80


class WebSocket(asyncio.Protocol):
    """One end of a WebSocket, taken over from aiohttp once that has done the upgrade.

    What arrives goes through aiohttp's compiled parser straight to who listens, in the turn of the
    loop in which it arrived. Nothing is kept for who is slow: who listens takes each frame at once,
    and refuses what would be too much (`CallGate`, `Outflow`). Nothing is read before somebody
    listens. Compression is never agreed on. Satisfies `meshd.rpc.frames.Socket`.

    Source: RFC 6455, sections 5 and 7.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        before: asyncio.Protocol,
        *,
        limits: ChannelLimits,
        is_client: bool,
        early: bytes = b"",
        release: Callable[[], None] | None = None,
        let_go: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Take the transport over.

        Args:
            transport: of a connection whose upgrade is done.
            before: its protocol until now, which is told when the connection is lost.
            limits: of a frame, the heartbeat and the goodbye.
            is_client: whether this end dialled: it masks what it sends.
            early: what came after the upgrade already.
            release: called by each `close`, to have aiohttp forget the connection.
            let_go: awaited by each `close` after that, to free what was made for this link alone.
        """
        self.closed = False
        """Whether nothing can be sent any more, and what arrives is dropped."""
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._before = before
        self._limits = limits
        self._is_client = is_client
        self._early = early
        self._release = release
        self._let_go = let_go
        self._is_full = False
        self._room = asyncio.Event()
        self._room.set()
        self._silent = asyncio.Event()
        """No further frame will be handed on."""
        self._gone = asyncio.Event()
        """The other side has said goodbye, or broke the rules, or the connection is lost."""
        self._fault: BaseException | None = None
        self._ping: bytes | None = None
        """The latest that is not answered yet, since the other side is slow to read."""
        self._has_heartbeat = limits.heartbeat_s is not None
        self._heard_at = 0.0
        self._beat: asyncio.TimerHandle | None = None
        self._cut: asyncio.TimerHandle | None = None
        self._inbox = _Inbox(self)
        # The parser refuses what has just the size that it is given.
        reader = WebSocketReader(self._inbox, limits.message_bytes_max + 1, False, False)
        self._feed = reader.feed_data
        if not transport.is_closing():
            transport.pause_reading()
        transport.set_protocol(self)

    def listen(self, on_frame: Callable[[bytes], None]) -> None:
        """Begin to read, and hand on the payload of each frame of data; called once."""
        if self.closed:
            return
        self._inbox.on_frame = on_frame
        if self._limits.heartbeat_s is not None:
            self._heard_at = self._loop.time()
            self._beat = self._loop.call_later(self._limits.heartbeat_s, self._on_beat)
        self._begin_reading()

    def get_extra_info(self, name: str) -> Any:
        """What the transport knows, such as its socket."""
        return self._transport.get_extra_info(name)

    async def wait_silent(self) -> None:
        """Return once no further frame will be handed on.

        Raises:
            Exception: what the listener raised, which ended the link.
        """
        await self._silent.wait()
        if self._fault is not None:
            raise self._fault

    def send(self, message: bytes) -> bool:
        """Send one frame of text; false where whoever sends waits for room before the next one.

        Raises:
            ConnectionError: the link is lost or closed.
        """
        if self.closed or self._transport.is_closing():
            raise ConnectionResetError("the WebSocket is closed")
        self._write(_TEXT, message)
        return not self._is_full

    async def wait_for_room(self) -> None:
        """Wait while the other side is slow to read.

        Raises:
            ConnectionError: the link was lost or closed meanwhile.
        """
        await self._room.wait()
        if self.closed:
            raise ConnectionResetError("the WebSocket was closed")

    async def close(self, code: int = WSCloseCode.OK) -> None:
        """Say goodbye, wait for the other side's until `close_timeout_s`, and close. Idempotent."""
        try:
            # A coroutine that is collected once its loop is gone comes here as well.
            if not self.closed and not self._loop.is_closed():
                self._say_goodbye(code)
                self._begin_reading()  # nobody may have listened yet
                async with asyncio.timeout(self._limits.close_timeout_s):
                    await self._gone.wait()
                self._transport.close()
        except TimeoutError:
            # What the kernel has taken arrives all the same; the rest would wait for ever.
            if self._is_full:
                self._transport.abort()
            self._transport.close()
        except asyncio.CancelledError:
            self._transport.close()
            raise
        finally:
            if self._release is not None:
                self._release()
            if self._let_go is not None:
                await self._let_go()

    def abort(self) -> None:
        """Cut the connection at once; what waits to be sent is dropped."""
        self._fall_silent()
        self._transport.abort()

    # From the transport

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived."""
        if self._has_heartbeat:
            self._heard_at = self._loop.time()
        self._feed(data)

    def pause_writing(self) -> None:
        """The other side is slow to read."""
        self._is_full = True
        self._room.clear()

    def resume_writing(self) -> None:
        """It has taken most of it."""
        self._is_full = False
        self._room.set()
        if self._ping is not None:
            self._on_ping(self._ping)

    def eof_received(self) -> None:
        """The other side sends no more: so it takes no answer either. Closes the transport."""
        self._fall_silent()
        self._end_connection()

    def connection_lost(self, exc: Exception | None) -> None:
        """End, and tell aiohttp, which counts its connections."""
        self._fall_silent()
        self._gone.set()
        if self._cut is not None:
            self._cut.cancel()
        self._before.connection_lost(exc)

    # From the parser

    def _on_ping(self, payload: bytes) -> None:
        """Answer. While the other side does not read, only the latest is kept for an answer."""
        self._ping = payload if self._is_full else None
        if not self._is_full and not self.closed:
            self._control(WSMsgType.PONG, payload)

    def _on_goodbye(self) -> None:
        if not self.closed:
            self._say_goodbye(WSCloseCode.OK)
            self._end_connection()
        self._gone.set()

    def _on_error(self, error: BaseException) -> None:
        """The other side broke the rules, or the listener has a fault."""
        if not self.closed:
            code: int = WSCloseCode.INTERNAL_ERROR
            if isinstance(error, WebSocketError):
                code = error.code
            else:
                self._fault = error
            self._say_goodbye(code)
        self._end_connection()

    def _on_beat(self) -> None:
        """Ask whether the other side is there, unless it was heard lately."""
        heartbeat_s = self._limits.heartbeat_s
        assert heartbeat_s is not None
        due = self._heard_at + heartbeat_s
        if self._loop.time() < due:
            self._beat = self._loop.call_at(due, self._on_beat)
            return
        self._control(WSMsgType.PING, b"")
        self._beat = self._loop.call_later(heartbeat_s / 2, self._on_answer_due, self._heard_at)

    def _on_answer_due(self, heard_at: Seconds) -> None:
        if self._heard_at == heard_at:
            self.abort()
        else:
            self._on_beat()

    # Both ways

    def _begin_reading(self) -> None:
        early, self._early = self._early, b""
        if early:
            self._feed(early)
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def _say_goodbye(self, code: int) -> None:
        self._fall_silent()
        self._control(WSMsgType.CLOSE, code.to_bytes(2, "big"))

    def _control(self, opcode: int, payload: bytes) -> None:
        """Write a frame of the WebSocket's own, unless the transport takes none any more."""
        if not self._transport.is_closing():
            self._write(opcode, payload)

    def _end_connection(self) -> None:
        """Close by the other side's doing: what it has not taken by then is dropped."""
        self._gone.set()
        self._transport.close()
        if self._cut is None and self._transport.get_write_buffer_size():
            limit_s = self._limits.close_timeout_s
            self._cut = self._loop.call_later(limit_s, self._transport.abort)

    def _fall_silent(self) -> None:
        self.closed = True
        self._inbox.on_frame = _ignore
        self._ping = None
        if self._beat is not None:
            self._beat.cancel()
        self._silent.set()
        self._room.set()

    def _write(self, opcode: int, payload: bytes) -> None:
        size, mask_bit = len(payload), _MASKED if self._is_client else 0
        if size < 126:
            head = bytes((_FIN | opcode, mask_bit | size))
        elif size < 65_536:
            head = _head_16(_FIN | opcode, mask_bit | 126, size)
        else:
            head = _head_64(_FIN | opcode, mask_bit | 127, size)
        if self._is_client:
            mask, masked = _random_bits(32).to_bytes(4, "big"), bytearray(payload)
            websocket_mask(mask, masked)
            self._transport.write(b"".join((head, mask, masked)))
        elif size <= JOINED_BYTES_MAX:
            self._transport.write(head + payload)
        else:
            self._transport.write(head)
            self._transport.write(payload)


class _Inbox(WebSocketDataQueue):
    """What aiohttp's parser puts messages into: it keeps none, so the parser never waits."""

    def __init__(self, socket: WebSocket) -> None:
        super().__init__(socket, _QUEUE_BYTES_MAX, loop=asyncio.get_running_loop())  # type: ignore[arg-type]
        self.on_frame: Callable[[bytes], None] = _ignore
        self._socket = socket

    def feed_data(self, data: Any, size: int) -> None:
        """Take one message."""
        del size
        message: WSMessage = data
        kind = message[0]
        if kind is _TEXT or kind is _BINARY:
            self.on_frame(message[1])
        elif kind is WSMsgType.PING:
            self._socket._on_ping(bytes(message[1]))  # noqa: SLF001 - a part of it
        elif kind is WSMsgType.CLOSE:
            self._socket._on_goodbye()  # noqa: SLF001 - as above

    def set_exception(self, exc: BaseException, exc_cause: BaseException | None = None) -> None:
        """Take the error after which the parser takes nothing more."""
        del exc_cause
        self._socket._on_error(exc)  # noqa: SLF001 - as above


def _ignore(frame: bytes) -> None:
    """It came after the goodbye, or before anybody listens."""
    del frame
