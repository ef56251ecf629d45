"""JSON-RPC 2.0 both ways over one WebSocket: many calls at a time, on either side's initiative."""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from meshd.clock import Seconds
from meshd.errors import (
    LINK_LOST,
    NOT_CALLED_OFF,
    BusyError,
    Code,
    DeadlineError,
    MeshError,
    PeerError,
    UsageError,
)
from meshd.rpc.dispatch import answer, written
from meshd.rpc.flow import WINDOW_BYTES, Inflow, Outflow
from meshd.rpc.frames import SEPARATOR, FrameWriter, Socket, messages_in
from meshd.rpc.jsonrpc import (
    DEPTH_MAX,
    encode_error,
    encode_notification,
    encode_request,
    parse_message,
)
from meshd.rpc.limits import CALL_TIMEOUT_S, CallGate
from meshd.rpc.messages import Id, Refused, Request, Response
from meshd.rpc.methods import Begun, CallContext, Registry
from meshd.rpc.running import RunningCalls
from meshd.scope import Scope
from meshd.sink import Sink

_log = logging.getLogger("meshd.rpc")

_End = tuple[Any, MeshError | None]
OnAnswer = Callable[[Any, MeshError | None], None]
"""Takes the answer to a call: its result, or else the error."""


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
            None, and nobody asks: one whose loop is blocked answers late, but is there.
        close_timeout_s: for what waits to leave, and for the other side to say goodbye.
    """

    message_bytes_max: int = 8 * 1_048_576
    depth_max: int = DEPTH_MAX
    outgoing_max: int = 1_024
    incoming_max: int = 1_024
    call_timeout_s: Seconds = CALL_TIMEOUT_S
    heartbeat_s: Seconds | None = 30.0
    close_timeout_s: Seconds = 2.0


class Channel:
    """One end of a two-way link. `methods` are what the other side may call here.

    Whoever makes a channel runs it: `await run()`, or `start()` and later `close()`. Calls end
    exactly once: with a result, an error, or the deadline. When the link is lost, every call that
    waits ends with an indefinite `PeerError`, and every handler that runs is cancelled. Whoever
    stops waiting for a call says so by the notification `cancel {id}`; the other side then cancels
    its handler and does not answer. Partial results come as `part {id, value}`, progress as
    `progress {id, fraction, message}`, and `credit {id, bytes}` asks for more of them. `rest {}`
    says that the link is about to be closed.
    """

    def __init__(
        self,
        socket: Socket,
        *,
        methods: Registry | None = None,
        context: CallContext | None = None,
        limits: ChannelLimits | None = None,
        gate: CallGate | None = None,
    ) -> None:
        """Put one end together; nothing is read yet.

        Args:
            socket: connected.
            methods: what the other side may call here.
            context: what those are told of their caller.
            limits: bounds of this channel.
            gate: counts the other side's calls with those of others; only its own if None.
        """
        self.methods = methods or Registry()
        self.limits = limits or ChannelLimits()
        self.context = replace(context or CallContext(), deadline_s=self.limits.call_timeout_s)
        self.late_answers = 0
        self.turnover = 0
        """Calls of either side so far."""
        self.is_draining = False
        self.is_resting = False
        """Whether one side has said that it will close the link: no new call goes over it."""
        self._loop = asyncio.get_running_loop()
        self._socket = socket
        self._writer = FrameWriter(socket, self.limits.message_bytes_max)
        self._gate = gate or CallGate(self.limits.incoming_max, self.limits.incoming_max)
        self._bytes_max = self.limits.message_bytes_max
        self._ids = itertools.count(1)
        self._pending: dict[Id, OnAnswer] = {}
        self._inflows: dict[Id, Inflow] = {}
        self._running: RunningCalls[asyncio.Task[None] | _Short] = RunningCalls()
        """The other side's calls."""
        self._empty = asyncio.Event()
        """Set when none of them is left; cleared by who waits for that."""
        self._outflows: dict[tuple[type, Id], Outflow] = {}
        self._on_closed: list[Callable[[Channel], None]] = []
        self._is_lost = False
        self._closed = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None

    @property
    def calls(self) -> int:
        """How many calls of either side are under way."""
        return len(self._pending) + len(self._running)

    @property
    def has_room(self) -> bool:
        """Whether a call may `begin` now."""
        return len(self._pending) < self.limits.outgoing_max and self._writer.has_room

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
        fault: BaseException | None = None
        try:
            self._socket.listen(self._on_frame)
            await self._socket.wait_silent()
        except GeneratorExit:
            raise  # the loop is gone: nothing can be awaited any more
        except BaseException as error:  # noqa: BLE001 - it goes on below
            fault = error
        await self._finish()  # not in a `finally`: compiled, that shows the fault to all tasks
        if fault is not None:
            raise fault

    async def call(
        self,
        method: str,
        params: Any = None,
        timeout_s: Seconds = 60.0,
        *,
        sink: Sink | None = None,
    ) -> Any:
        """Call the other side and return its result.

        Cancelled, it cancels the other side's work, unless with the message `NOT_CALLED_OFF`.

        `sink`, if any, has taken all partial results and progress before this returns.

        Raises:
            MeshError: what the other side answered.
            DeadlineError: no answer within `timeout_s` (indefinite).
            PeerError: the link was closed (definite) or got lost meanwhile (indefinite).
            BusyError: `outgoing_max` calls wait already (definite).
            UsageError: the parameters are not JSON or too large (definite).
            Exception: what the sink raised; the other side's work is cancelled.
        """
        if len(self._pending) >= self.limits.outgoing_max:
            raise BusyError(f"{len(self._pending)} calls already wait on this channel")
        request_id = next(self._ids)
        self.turnover += 1
        window = 0 if sink is None else WINDOW_BYTES
        data = self._check(encode_request(request_id, method, params, window))
        future: asyncio.Future[_End] = self._loop.create_future()
        self._pending[request_id] = partial(_settle, future)
        if sink is not None:
            self._inflows[request_id] = Inflow(sink, partial(self._grant, request_id))
        is_called_off = True
        try:
            has_left = self._put(data)
            if sink is None and has_left:
                late = self._loop.call_later(
                    timeout_s, self._on_late, request_id, method, timeout_s
                )
                try:
                    result, error = await future
                finally:
                    late.cancel()
            else:
                with Scope(timeout_s):
                    if not has_left:
                        await self._writer.wait_for_room(data)
                    result, error = await (
                        future if sink is None else self._answer_to(request_id, future)
                    )
        except asyncio.CancelledError as cancelled:
            is_called_off = cancelled.args != (NOT_CALLED_OFF,)
            raise
        except TimeoutError:
            raise _late(method, timeout_s) from None
        finally:
            self._pending.pop(request_id, None)
            if sink is not None:
                self._inflows.pop(request_id).close()
            if is_called_off and (not future.done() or future.cancelled()):
                # Nobody waits for it any more: the other side is told.
                self._post(encode_notification("cancel", {"id": request_id}))
        if error is not None:
            raise error
        return result

    def _on_late(self, request_id: int, method: str, timeout_s: Seconds) -> None:
        """Nobody waits any longer for an answer that has not come."""
        on_answer = self._pending.get(request_id)
        if on_answer is not None:
            self.call_off(request_id)
            on_answer(None, _late(method, timeout_s))

    def begin(self, method: str, params: Any, on_answer: OnAnswer) -> int | None:
        """Call the other side without a task; `on_answer(result, error)` is called once, and later.

        Whoever waits no longer says so by `call_off`; then it is not called.

        Returns:
            the call's id; None where it would have to wait for room, and nothing was sent.

        Raises:
            PeerError: the link is closed (definite) or got lost meanwhile (indefinite).
            UsageError: the parameters are not JSON or too large (definite).
        """
        if not self.has_room:
            return None
        request_id = next(self._ids)
        self.turnover += 1
        self._put(self._check(encode_request(request_id, method, params)))
        self._pending[request_id] = on_answer
        return request_id

    def call_off(self, request_id: int) -> None:
        """Nobody waits any more for a call that was begun: the other side is told."""
        if self._pending.pop(request_id, None) is not None:
            self._post(encode_notification("cancel", {"id": request_id}))

    async def _answer_to(self, request_id: Id, future: asyncio.Future[_End]) -> _End:
        """The answer, once the sink has taken all that came before it."""
        inflow = self._inflows[request_id]
        failed = asyncio.ensure_future(inflow.failed.wait())
        try:
            await asyncio.wait((future, failed), return_when=asyncio.FIRST_COMPLETED)
            await inflow.finish()
        finally:
            failed.cancel()
        return await future

    def rest(self) -> None:
        """Begin no call here any more, and tell the other side not to either; then close it later.

        A link that is closed while the other side begins a call would lose that.
        """
        self.is_resting = True
        self._post(encode_notification("rest", {}))

    async def notify(self, method: str, params: Any = None) -> None:
        """Send a notification; nobody says whether it arrived.

        Raises:
            PeerError: the link is closed.
            UsageError: the parameters are not JSON or too large.
        """
        await self._send(self._check(encode_notification(method, params)))

    async def drain(self, timeout_s: Seconds) -> None:
        """Refuse the other side's calls from now on, and give those that run so long to end.

        Their answers have left then, too.
        """
        self.is_draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._wait_empty()
                await self._writer.flush()

    async def close(self) -> None:
        """Close the link, end its calls and wait for that. Idempotent.

        It takes about twice `close_timeout_s` at most: who does not read is cut off.
        """
        await self._say_goodbye()
        if self._reader is not None and self._reader is not asyncio.current_task():
            await asyncio.wait((self._reader,))

    async def _say_goodbye(self) -> None:
        limit_s = self.limits.close_timeout_s
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._writer.flush()
        try:
            async with asyncio.timeout(limit_s + _GOODBYE_GRACE_S):
                await self._socket.close()
        except TimeoutError:
            self._socket.abort()

    def _check(self, data: bytes) -> bytes:
        if len(data) > self._bytes_max:
            raise UsageError(
                f"the call takes {len(data)} bytes, more than {self._bytes_max}",
                hint="send less, or a reference to the data",
            )
        return data

    def _grant(self, request_id: Id, size: int) -> None:
        self._post(encode_notification("credit", {"id": request_id, "bytes": size}))

    def _post(self, data: bytes) -> None:
        """Send what the reader itself has to say; it never waits, or two ends would do so for ever.

        Who does not take even that is cut off.
        """
        if self.closed:
            return
        with contextlib.suppress(ConnectionError, RuntimeError):
            if not self._writer.post(data):
                self._is_lost = True
                self._socket.abort()

    async def _send(self, data: bytes) -> None:
        if not self._put(data):
            await self._writer.wait_for_room(data)

    def _put(self, data: bytes) -> bool:
        """Send, or leave it to be sent soon; false where whoever sends must wait for room then."""
        if self._is_lost or self._socket.closed:
            raise PeerError("the link is closed; nothing was sent")
        try:
            return self._writer.put(data)
        except (ConnectionError, RuntimeError) as error:
            raise PeerError(f"the link got lost while sending: {error}", definite=False) from None

    def _on_frame(self, frame: bytes) -> None:
        if not frame.startswith(SEPARATOR):
            self._on_message(frame)
            return
        for data in messages_in(frame):
            if self._is_lost:
                return
            self._on_message(data)

    def _on_message(self, data: bytes) -> None:
        message = parse_message(data, depth_max=self.limits.depth_max)
        if isinstance(message, Response):
            self._on_response(message)
        elif isinstance(message, Refused):
            self._post(encode_error(message.id, message.error))
        elif message.is_notification and message.method in _OWN and type(message.params) is dict:
            self._on_own(message.method, message.params, len(data))
        else:
            self._on_request(message, len(data))

    def _on_request(self, request: Request, size: int) -> None:
        busy: BusyError | None = _CLOSING
        if not self.is_draining:
            busy = self._gate.enter(self.context.remote, size)
        if busy is None:
            self.turnover += 1
            if not self._is_begun(request, size):
                task = self._loop.create_task(self._serve(request))
                self._running.add(task, request.id, size)
                task.add_done_callback(self._served)
        elif not request.is_notification:
            self._post(encode_error(request.id, busy))

    def _is_begun(self, request: Request, size: int) -> bool:
        """Whether the call could begin the short way, without a task; it may have ended, too."""
        if request.window or request.is_notification or not self._writer.has_room:
            return False  # who answers where there is no room waits for it, in a task
        short = _Short(self, request)
        self._running.add(short, request.id, size)
        try:
            begun = self.methods.begin(request.method, request.params, self.context, short.answered)
        except Exception as error:  # noqa: BLE001 - a fault of ours costs one call, not all of a link
            short.answered(error)
            return True
        if short not in self._running:
            return True
        if begun is None:
            self._running.remove(short)
            return False
        short.begun = begun
        return True

    def _served(self, running: "asyncio.Task[None] | _Short") -> None:
        size = self._running.remove(running)
        if type(running) is _Short:
            running.begun = None  # no circle of references is left to the garbage collector
        self._gate.leave(self.context.remote, size)
        if not self._running:
            self._empty.set()

    async def _wait_empty(self) -> None:
        while self._running:
            self._empty.clear()
            await self._empty.wait()

    def _reply(self, short: "_Short", end: Any) -> None:
        if short in self._running:
            self._served(short)
            with contextlib.suppress(PeerError):  # the link is lost: the reader sees that too
                self._put(written(short.request, end, bytes_max=self._bytes_max))

    def _on_response(self, response: Response) -> None:
        # A number that a hostile peer sends as 1.0 or true must not find call 1 by equality.
        exact = type(response.id) is int
        on_answer = self._pending.pop(response.id, None) if exact else None
        if on_answer is None:
            self.late_answers += 1
        else:
            self._tell(on_answer, response.result, response.error)

    def _tell(self, on_answer: OnAnswer, result: Any, error: MeshError | None) -> None:
        """Give an answer to who waits for it; a fault there costs no other call of the link."""
        try:
            on_answer(result, error)
        except Exception:  # noqa: BLE001 - as it says
            _log.exception("event=internal_error what=answer")

    def _on_own(self, method: str, params: dict[str, Any], size: int) -> None:
        """A notification of the channel itself. What fits no call is from one that has ended."""
        match method, params:
            case "rest", _:
                self.is_resting = True
            case "cancel", {"id": request_id}:
                self._on_cancel(request_id)
            case "credit", {"id": str() | int() | float() as request_id, "bytes": int(granted)}:
                outflow = self._outflows.get((type(request_id), request_id))
                if outflow is not None and granted > 0:
                    outflow.grant(granted)
            case "part", {"id": int(request_id), "value": value}:
                self._on_part(request_id, value, size)
            case "progress", {"id": int(request_id), "fraction": fraction, "message": str(text)}:
                inflow = self._inflows.get(request_id)
                if inflow is not None and isinstance(fraction, int | float | None):
                    inflow.progress(fraction, text)
            case _:
                pass

    def _on_part(self, request_id: int, value: Any, size: int) -> None:
        inflow = self._inflows.get(request_id)
        if inflow is None or request_id not in self._pending:
            return
        if not inflow.take(value, size):
            error = PeerError("it sent more partial results than were asked for", definite=False)
            self._pending.pop(request_id)(None, error)

    def _on_cancel(self, request_id: Any) -> None:
        for running in self._running.called(request_id):
            if running in self._running:  # else the end of one before has ended it
                running.cancel()

    async def _serve(self, request: Request) -> None:
        if request.window and not request.is_notification:
            data = await self._answer_in_parts(request)
        else:
            data = await answer(
                request, self.methods, self.context, bytes_max=self._bytes_max, is_offered=True
            )
        if not request.is_notification:
            try:
                if not self._put(data):
                    await self._writer.wait_for_room(data)
            except PeerError:
                pass  # the link is lost: the reader sees that too and ends the channel

    async def _answer_in_parts(self, request: Request) -> bytes:
        outflow = Outflow(request.id, request.window, self._send_part)
        key = type(request.id), request.id
        self._outflows[key] = outflow
        try:
            data = await answer(
                request, self.methods, replace(self.context, sink=outflow),
                bytes_max=self._bytes_max, is_offered=True,
            )  # fmt: skip
            await outflow.finish()
            return data
        finally:
            outflow.close()
            if self._outflows.get(key) is outflow:
                del self._outflows[key]

    async def _send_part(self, data: bytes) -> None:
        await self._send(self._check(data))

    async def _finish(self) -> None:
        self._is_lost = True
        self._writer.close()
        lost = PeerError("the link got lost before the answer came", definite=False)
        while self._pending:
            _, on_answer = self._pending.popitem()
            self._tell(on_answer, None, _copy(lost))
        for running in list(self._running):
            running.cancel(LINK_LOST)
        try:
            await self._wait_empty()
            await self._say_goodbye()
        finally:
            # A web server cancels the reader of a lost connection: its end is told all the same.
            self._closed.set()
            for callback in self._on_closed:
                callback(self)
            self._on_closed.clear()


class _Short:
    """One of the other side's calls that runs without a task of its own."""

    __slots__ = ("begun", "channel", "request")

    def __init__(self, channel: Channel, request: Request) -> None:
        self.begun: Begun | None = None
        self.channel = channel
        self.request = request

    def answered(self, end: Any) -> None:
        """It has ended so; that is for nobody if it was called off before."""
        self.channel._reply(self, end)  # noqa: SLF001 - a part of it

    def cancel(self, msg: object = None) -> None:
        """Call it off."""
        begun = self.begun
        if begun is not None:  # else it has ended meanwhile, by the end of another
            self.channel._served(self)  # noqa: SLF001 - as above
            begun.cancel(msg)


def _settle(future: asyncio.Future[_End], result: Any, error: MeshError | None) -> None:
    if not future.done():
        future.set_result((result, error))


_OWN = frozenset({"cancel", "credit", "part", "progress", "rest"})
"""Notifications about calls under way, and about the link itself."""

_GOODBYE_GRACE_S: Seconds = 0.5

_CLOSING = BusyError("this side of the link is closing", hint="ask another node")


def _late(method: str, timeout_s: Seconds) -> DeadlineError:
    return DeadlineError(f"no answer to {method!r} within {timeout_s:g} s", definite=False)


def _copy(error: PeerError) -> PeerError:
    """An error of its own for each caller: a traceback belongs to one."""
    return PeerError(error.message, code=Code.UPSTREAM, definite=error.definite)
