"""JSON-RPC 2.0 both ways over one WebSocket: many calls at a time, on either side's initiative."""

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from aiohttp import WSMsgType

from meshd.clock import Seconds
from meshd.errors import BusyError, Code, DeadlineError, MeshError, PeerError, UsageError
from meshd.rpc.dispatch import answer
from meshd.rpc.jsonrpc import (
    DEPTH_MAX,
    Id,
    Refused,
    Request,
    Response,
    encode_error,
    encode_notification,
    encode_request,
    parse_message,
)
from meshd.rpc.methods import CallContext, Registry


@dataclass(frozen=True, slots=True)
class ChannelLimits:
    """Bounds of one channel.

    Attributes:
        message_bytes_max: one message, either way. A longer incoming one closes the channel.
        depth_max: nesting of a message.
        outgoing_max: own calls that wait for an answer; more raise `BusyError`.
        incoming_max: the other side's calls that run; more are answered -32011.
        call_timeout_s: the longest time that one of the other side's calls may take.
        heartbeat_s: a ping each so often; without an answer within half of it the channel closes.
        close_timeout_s: for the other side to say goodbye.
    """

    message_bytes_max: int = 8 * 1_048_576
    depth_max: int = DEPTH_MAX
    outgoing_max: int = 1_024
    incoming_max: int = 1_024
    call_timeout_s: Seconds = 3_600.0
    heartbeat_s: Seconds = 30.0
    close_timeout_s: Seconds = 2.0


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


class Channel:
    """One end of a two-way link. `methods` are what the other side may call here.

    Whoever makes a channel runs it: `await run()`, or `start()` and later `close()`. Calls end
    exactly once: with a result, an error, or the deadline. When the link is lost, every call that
    waits ends with an indefinite `PeerError`, and every handler that runs is cancelled. Whoever
    stops waiting for a call says so by the notification `cancel {id}`; the other side then cancels
    its handler and does not answer.
    """

    def __init__(
        self,
        socket: Socket,
        *,
        methods: Registry | None = None,
        context: CallContext | None = None,
        limits: ChannelLimits | None = None,
    ) -> None:
        self.methods = methods or Registry()
        self.limits = limits or ChannelLimits()
        self.context = replace(context or CallContext(), deadline_s=self.limits.call_timeout_s)
        self.late_answers = 0
        self._socket = socket
        self._ids = itertools.count(1)
        self._pending: dict[Id, asyncio.Future[Response]] = {}
        self._running: dict[asyncio.Task[None], Id] = {}
        self._on_closed: list[Callable[[Channel], None]] = []
        self._is_lost = False
        self._closed = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None

    @property
    def closed(self) -> bool:
        """Whether the link is lost or closed."""
        return self._is_lost or self._socket.closed

    def on_closed(self, callback: Callable[["Channel"], None]) -> None:
        """Call `callback(channel)` once the link is gone and all its calls have ended.

        At once if that is so already: whoever has just set a channel up may come too late.
        """
        if self._closed.is_set():
            callback(self)
        else:
            self._on_closed.append(callback)

    async def wait_closed(self) -> None:
        """Return once the link is gone and all its calls have ended."""
        await self._closed.wait()

    def start(self) -> None:
        """Read in a task of the channel's own; `close` ends it."""
        self._reader = asyncio.create_task(self.run(), name="meshd-channel")

    async def run(self) -> None:
        """Serve the link until it closes. Never raises for what the other side does."""
        try:
            while await self._read_one():
                pass
        finally:
            await self._finish()

    async def call(self, method: str, params: Any = None, timeout_s: Seconds = 60.0) -> Any:
        """Call the other side and return its result. Cancelled, it cancels the other side's work.

        Raises:
            MeshError: what the other side answered.
            DeadlineError: no answer within `timeout_s` (indefinite).
            PeerError: the link was closed (definite) or got lost meanwhile (indefinite).
            BusyError: `outgoing_max` calls wait already (definite).
            UsageError: the parameters are not JSON or too large (definite).
        """
        if len(self._pending) >= self.limits.outgoing_max:
            raise BusyError(f"{len(self._pending)} calls already wait on this channel")
        request_id = next(self._ids)
        data = self._check(encode_request(request_id, method, params))
        future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._pending[request_id] = future
        try:
            async with asyncio.timeout(timeout_s):
                await self._send(data)
                response = await future
        except TimeoutError:
            raise DeadlineError(
                f"no answer to {method!r} within {timeout_s:g} s", definite=False
            ) from None
        finally:
            del self._pending[request_id]
            if not future.done() or future.cancelled():
                await self._call_off(request_id)
        if response.error is not None:
            raise response.error
        return response.result

    async def notify(self, method: str, params: Any = None) -> None:
        """Send a notification; nobody says whether it arrived.

        Raises:
            PeerError: the link is closed.
            UsageError: the parameters are not JSON or too large.
        """
        await self._send(self._check(encode_notification(method, params)))

    async def close(self) -> None:
        """Close the link, end its calls and wait for that. Idempotent."""
        await self._socket.close()
        if self._reader is not None and self._reader is not asyncio.current_task():
            await self._reader

    def _check(self, data: bytes) -> bytes:
        if len(data) > self.limits.message_bytes_max:
            raise UsageError(
                f"the call takes {len(data)} bytes, more than {self.limits.message_bytes_max}",
                hint="send less, or a reference to the data",
            )
        return data

    async def _call_off(self, request_id: Id) -> None:
        """Tell the other side that nobody waits for that call any more, if it still listens."""
        with contextlib.suppress(PeerError, TimeoutError):
            async with asyncio.timeout(self.limits.close_timeout_s):
                await self.notify("cancel", {"id": request_id})

    async def _send(self, data: bytes) -> None:
        if self.closed:
            raise PeerError("the link is closed; nothing was sent")
        try:
            await self._socket.send_frame(data, WSMsgType.TEXT)
        except (ConnectionError, RuntimeError) as error:
            raise PeerError(f"the link got lost while sending: {error}", definite=False) from None

    async def _read_one(self) -> bool:
        """Take one message; false once there will be no more."""
        message = await self._socket.receive()
        if message.type in {WSMsgType.TEXT, WSMsgType.BINARY}:
            return await self._on_message(message.data)
        return False

    async def _on_message(self, data: bytes) -> bool:
        match parse_message(data, depth_max=self.limits.depth_max):
            case Response() as response:
                self._on_response(response)
            case Request("cancel", {"id": request_id}, _, True):
                self._on_cancel(request_id)
            case Request() as request if len(self._running) < self.limits.incoming_max:
                task = asyncio.create_task(self._serve(request))
                self._running[task] = request.id
                task.add_done_callback(self._running.pop)
            case Request() as request:
                busy = BusyError(f"{len(self._running)} calls already run on this channel")
                return request.is_notification or await self._reply(request.id, busy)
            case Refused() as refused:
                return await self._reply(refused.id, refused.error)
        return True

    def _on_response(self, response: Response) -> None:
        # A number that a hostile peer sends as 1.0 or true must not find call 1 by equality.
        exact = type(response.id) is int
        future = self._pending.get(response.id) if exact else None
        if future is None or future.done():
            self.late_answers += 1
        else:
            future.set_result(response)

    def _on_cancel(self, request_id: Any) -> None:
        # A notification has the id None, which nobody can call off.
        for task, running in list(self._running.items()):
            if running is not None and (type(running), running) == (type(request_id), request_id):
                task.cancel()

    async def _serve(self, request: Request) -> None:
        data = await answer(
            request, self.methods, self.context, bytes_max=self.limits.message_bytes_max
        )
        if not request.is_notification:
            await self._send_quietly(data)

    async def _reply(self, request_id: Id, error: MeshError) -> bool:
        await self._send_quietly(encode_error(request_id, error))
        return True

    async def _send_quietly(self, data: bytes) -> None:
        """Send an answer. Where the link is lost, the reader sees that too and ends the channel."""
        with contextlib.suppress(PeerError):
            await self._send(data)

    async def _finish(self) -> None:
        self._is_lost = True
        lost = PeerError("the link got lost before the answer came", definite=False)
        for request_id, future in self._pending.items():
            if not future.done():
                future.set_result(Response(request_id, error=_copy(lost)))
        for task in list(self._running):
            task.cancel()
        try:
            await asyncio.gather(*self._running, return_exceptions=True)
            await self._socket.close()
        finally:
            # A web server cancels the reader of a lost connection: its end is told all the same.
            self._closed.set()
            for callback in self._on_closed:
                callback(self)
            self._on_closed.clear()


def _copy(error: PeerError) -> PeerError:
    """An error of its own for each caller: a traceback belongs to one."""
    return PeerError(error.message, code=Code.UPSTREAM, definite=error.definite)
