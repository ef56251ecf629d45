"""TCP between simulated machines: in order, sent again when lost, refused, reset, and slow to tell.

The model: segments keep their order and are repeated with doubling pauses while the network drops
them, as in RFC 6298; a connection whose data nobody acknowledged for long is given up; a killed
process's kernel closes its connections at once; a machine that is cut off tells nobody. There are
no windows of congestion: only the receiver's buffer holds a sender back.
"""

import asyncio
import contextvars
import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any

from meshd.model import Address
from sim.trace import STREAM
from sim.whole.wires import Machine, Wires

RTO_FIRST_S = 0.2
RTO_MAX_S = 120.0
SYN_RTO_FIRST_S = 1.0
SYN_TRIES_MAX = 7
"""First and six more, as Linux does: about two minutes in all."""
GIVE_UP_S = 900.0
"""Data that nobody acknowledges for so long ends the connection (tcp_retries2, about 15 min)."""
SEGMENT_BYTES = 65_536
PACKET_BYTES = 1_448
RECEIVE_BUFFER_BYTES = 1 << 20
SEND_HIGH_BYTES = 64 * 1024


class Mark(Enum):
    """Segments without data."""

    OPEN = 0
    END = 1
    RESET = 2


Segment = bytes | Mark


class Stream:
    """One end of a connection, as its machine's kernel holds it."""

    def __init__(self, wires: Wires, machine: Machine, own: Address, remote: Address) -> None:
        self.wires = wires
        self.machine = machine
        self.own = own
        self.remote = remote
        self.peer: Stream | None = None
        self.transport: StreamTransport | None = None
        self.listener: Listener | None = None
        self.inbox: deque[Segment] = deque()
        self.unread = 0
        self.waiting = 0
        """Bytes that the kernel has not sent yet."""
        self._outbox: deque[Segment] = deque()
        self._in_flight = 0
        self._last_at = 0.0
        self._rto_s = RTO_FIRST_S
        self._stalled_at: float | None = None
        self._is_dead = False
        machine.streams[self] = None

    def send(self, segment: Segment) -> None:
        """Put data, or a mark, behind what waits."""
        if self._is_dead:
            return
        if isinstance(segment, bytes):
            self.waiting += len(segment)
        self._outbox.append(segment)
        if self._stalled_at is None:
            self.pump()

    def pump(self) -> None:
        """Send what the other side has room for."""
        peer = self.peer
        assert peer is not None
        while self._outbox and peer.unread + self._in_flight < RECEIVE_BUFFER_BYTES:
            segment = self._outbox[0]
            size = len(segment) if isinstance(segment, bytes) else 0
            arrivals = self.wires.arrivals(self.machine, peer.machine, min(size + 40, PACKET_BYTES))
            if not arrivals:
                self._stall()
                return
            self._outbox.popleft()
            self._stalled_at, self._rto_s = None, RTO_FIRST_S
            self.waiting -= size
            self._in_flight += size
            self._last_at = max(self._last_at, arrivals[0])
            self.wires.at(self._last_at, self._arrive, segment, size)
        if self.transport is not None:
            self.transport.on_sent()

    def _stall(self) -> None:
        """The network dropped it: try again later, and at last give up."""
        now = self.wires.loop.time()
        if self._stalled_at is None:
            self._stalled_at = now
        if now - self._stalled_at > GIVE_UP_S:
            self.fail(_error(errno.ETIMEDOUT))
            return
        self.wires.at(now + self._rto_s, self._retry)
        self._rto_s = min(RTO_MAX_S, 2 * self._rto_s)

    def _retry(self) -> None:
        if self._stalled_at is not None and not self._is_gone:
            self.pump()

    @property
    def _is_gone(self) -> bool:
        return self not in self.machine.streams and not self._outbox

    def _arrive(self, segment: Segment, size: int) -> None:
        self._in_flight -= size
        assert self.peer is not None
        self.peer.take(segment)

    def take(self, segment: Segment) -> None:
        """The network brings a segment."""
        wires = self.wires
        # Lengths, not contents: a Date header is the real clock's.
        told = f"{len(segment)} bytes" if isinstance(segment, bytes) else segment.name
        wires.trace.add(wires.loop.time(), STREAM, self.machine.index, told.encode(), self.remote)
        if segment is Mark.RESET:
            self.fail(_error(errno.ECONNRESET))
            return
        if segment is Mark.OPEN:
            if self.listener is not None and self in self.machine.streams:
                self.listener.accept(self)
            return
        if self not in self.machine.streams:
            # The process closed or died; who still sends is told so.
            if isinstance(segment, bytes):
                self._reset_peer()
            return
        self.inbox.append(segment)
        self.unread += len(segment) if isinstance(segment, bytes) else 0
        if self.transport is not None:
            self.transport.on_arrival()

    def consumed(self, size: int) -> None:
        """The process has read so much: the other side may send on."""
        self.unread -= size
        if self.peer is not None and size:
            self.peer.pump_if_open()

    def pump_if_open(self) -> None:
        """Go on sending if that waited for room."""
        if self._outbox and self._stalled_at is None:
            self.pump()

    def shut(self) -> None:
        """The process has closed it: what waits is still sent, then the end."""
        if self.machine.streams.pop(self, 0) is None:
            if self.unread:
                self._reset_peer()
            else:
                self.send(Mark.END)

    def reset(self) -> None:
        """The process has aborted it."""
        if self.machine.streams.pop(self, 0) is None:
            self._reset_peer()

    def die(self) -> None:
        """The process was killed."""
        self.transport = None
        self.shut()

    def fail(self, error: OSError) -> None:
        """It is lost; tell the process."""
        self._is_dead = True
        self._outbox.clear()
        self.machine.streams.pop(self, 0)
        if self.transport is not None:
            self.transport.on_failed(error)

    def _reset_peer(self) -> None:
        """One packet, never repeated: whoever misses it learns from the next answer."""
        self._is_dead = True
        self._outbox.clear()
        peer = self.peer
        if peer is not None:
            for when in self.wires.arrivals(self.machine, peer.machine, 40)[:1]:
                self.wires.at(max(when, self._last_at), peer.take, Mark.RESET)


class StreamTransport(asyncio.Transport):
    """What asyncio's protocols see of a `Stream`. It calls them in the lane that made it."""

    def __init__(self, stream: Stream, protocol: Any, context: contextvars.Context) -> None:
        super().__init__(
            {
                "peername": (stream.remote.host, stream.remote.port),
                "sockname": (stream.own.host, stream.own.port),
            }
        )
        self._stream = stream
        self._protocol = protocol
        self._context = context
        self._is_closing = False
        self._is_paused = False
        self._is_delivering = False
        self._is_full = False
        self._high = SEND_HIGH_BYTES
        self._lost = False
        stream.transport = self

    def begin(self) -> None:
        """Introduce itself; in the lane that the protocol is to run in."""
        self._protocol.connection_made(self)
        self.on_arrival()

    # From the kernel

    def on_arrival(self) -> None:
        """Something waits to be read."""
        if not (self._is_delivering or self._is_paused or self._is_closing) and self._stream.inbox:
            self._is_delivering = True
            self._stream.wires.loop.call_soon(self._deliver, context=self._context)

    def on_sent(self) -> None:
        """The kernel has room again."""
        if self._is_full and self._stream.waiting <= self._high // 4:
            self._is_full = False
            self._stream.wires.loop.call_soon(self._protocol.resume_writing, context=self._context)

    def on_failed(self, error: OSError) -> None:
        """The connection is lost."""
        if not self._is_closing:
            self._is_closing = True
            self._lose(error)

    def _deliver(self) -> None:
        self._is_delivering = False
        inbox = self._stream.inbox
        while inbox and not (self._is_paused or self._is_closing):
            segment = inbox.popleft()
            if isinstance(segment, bytes):
                self._stream.consumed(len(segment))
                self._protocol.data_received(segment)
            elif not self._protocol.eof_received():
                self.close()

    def _lose(self, error: OSError | None) -> None:
        if not self._lost:
            self._lost = True
            loop = self._stream.wires.loop
            loop.call_soon(self._protocol.connection_lost, error, context=self._context)

    # From the protocol

    def is_closing(self) -> bool:
        """Whether it was closed, by whomever."""
        return self._is_closing

    def close(self) -> None:
        """Send what waits, then the end.

        Nothing once the world has ended: what a killed process held is collected then.
        """
        if not (self._is_closing or self._stream.wires.loop.is_closed()):
            self._is_closing = True
            self._stream.shut()
            self._lose(None)

    def abort(self) -> None:
        """Drop it all."""
        if not self._lost:
            self._is_closing = True
            self._stream.reset()
            self._lose(None)

    def write(self, data: Any) -> None:
        """Send bytes."""
        if self._is_closing or not data:
            return
        raw = bytes(data)
        for start in range(0, len(raw), SEGMENT_BYTES):
            self._stream.send(raw[start : start + SEGMENT_BYTES])
        if not self._is_full and self._stream.waiting > self._high:
            self._is_full = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        """Send bytes."""
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        """No half-closed connections here."""
        return False

    def get_write_buffer_size(self) -> int:
        """Bytes that wait."""
        return self._stream.waiting

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """When to ask the protocol to pause."""
        del low
        self._high = SEND_HIGH_BYTES if high is None else high

    def pause_reading(self) -> None:
        """Leave what comes in the kernel's buffer."""
        self._is_paused = True

    def resume_reading(self) -> None:
        """Go on."""
        self._is_paused = False
        self.on_arrival()

    def is_reading(self) -> bool:
        """Whether what comes is delivered."""
        return not (self._is_paused or self._is_closing)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Deliver to another."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Who is delivered to."""
        return self._protocol  # type: ignore[no-any-return]


class Listener(asyncio.AbstractServer):
    """A listening socket."""

    def __init__(self, sock: "StreamSocket", factory: Callable[[], Any]) -> None:
        self._sock = sock
        self._factory = factory
        self._context = contextvars.copy_context()
        sock.machine.listeners[sock.own.port] = self

    @property
    def sockets(self) -> tuple["StreamSocket", ...]:
        """The one that it listens on."""
        return (self._sock,)

    def accept(self, stream: Stream) -> None:
        """A connection is complete: let the process have it when it gets to it."""
        context = self._context.copy()

        def hand_over() -> None:
            if stream in stream.machine.streams:
                StreamTransport(stream, self._factory(), context).begin()

        self._sock.wires.loop.call_soon(hand_over, context=context)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The one loop."""
        return self._sock.wires.loop

    async def start_serving(self) -> None:
        """It does from the start."""

    async def serve_forever(self) -> None:
        """Until cancelled."""
        await self.get_loop().create_future()

    def is_serving(self) -> bool:
        """Whether newcomers are let in."""
        return self._sock.machine.listeners.get(self._sock.own.port) is self

    def close(self) -> None:
        """Let nobody in any more, nor those whom nobody has accepted yet. Idempotent."""
        if self.is_serving():
            del self._sock.machine.listeners[self._sock.own.port]
        for stream in list(self._sock.machine.streams):
            if stream.listener is self and stream.transport is None:
                stream.reset()

    async def wait_closed(self) -> None:
        """It is."""


class StreamSocket(socket.socket):
    """A TCP socket of a simulated machine: enough of one for asyncio's and aiohttp's eyes."""

    def __init__(self, wires: Wires, machine: Machine, port: int = 0) -> None:
        # Not super().__init__(): that would open a real one.
        self._closed = False
        self._io_refs = 0
        self.wires = wires
        self.machine = machine
        self.own = Address(machine.host, port or machine.free_port())
        self._stream: Stream | None = None

    @property
    def family(self) -> int:  # type: ignore[override]
        """IPv4."""
        return socket.AF_INET

    @property
    def type(self) -> int:  # type: ignore[override]
        """A stream."""
        return socket.SOCK_STREAM

    def fileno(self) -> int:
        """It has none."""
        return -1

    def setblocking(self, flag: bool, /) -> None:
        """It never blocks."""

    def setsockopt(self, *_arguments: Any) -> None:
        """Nothing to set."""

    def listen(self, backlog: int = 0, /) -> None:
        """`create_server` does it."""

    def getsockname(self) -> Any:
        """Own address and port."""
        return (self.own.host, self.own.port)

    def close(self) -> None:
        """Release it."""
        if self._stream is not None and self._stream.transport is None:
            self._stream.shut()

    async def connect(self, address: Any) -> None:  # type: ignore[override]
        """Shake hands.

        Raises:
            OSError: refused, or nobody answered.
        """
        self._stream = await Dial(self, Address(*address[:2])).run()

    async def attach(self, factory: Callable[[], Any]) -> tuple[StreamTransport, Any]:
        """Make the transport of a connected socket."""
        assert self._stream is not None, "not connected"
        protocol = factory()
        transport = StreamTransport(self._stream, protocol, contextvars.copy_context())
        transport.begin()
        return transport, protocol

    def serve(self, factory: Callable[[], Any]) -> Listener:
        """Let others connect."""
        return Listener(self, factory)


class Dial:
    """One attempt to connect, repeated while the network drops its packets."""

    def __init__(self, sock: StreamSocket, to: Address) -> None:
        self._sock = sock
        self._wires = sock.wires
        self._to = to
        self._target = sock.wires.machines.get(to.host)
        self._done: asyncio.Future[Stream] = sock.wires.loop.create_future()
        self._tries = 0

    async def run(self) -> Stream:
        """Shake hands.

        Raises:
            OSError: refused, or nobody answered.
        """
        self._sock.machine.dials[self] = None
        try:
            self._knock()
            return await self._done
        except asyncio.CancelledError:
            if self._done.done() and not self._done.cancelled() and not self._done.exception():
                self._done.result().shut()
            raise
        finally:
            self.drop()

    def drop(self) -> None:
        """Nobody asks for it any more: it is given up, or its process was killed. Idempotent."""
        self._sock.machine.dials.pop(self, None)
        self._done.cancel()

    def _knock(self) -> None:
        if self._done.done():
            return
        if self._tries == SYN_TRIES_MAX:
            self._fail(errno.ETIMEDOUT)
            return
        now = self._wires.loop.time()
        if self._target is not None:
            for when in self._wires.arrivals(self._sock.machine, self._target, 40)[:1]:
                self._wires.at(when, self._at_target)
        self._wires.at(now + SYN_RTO_FIRST_S * 2**self._tries, self._knock)
        self._tries += 1

    def _at_target(self) -> None:
        assert self._target is not None
        listener = self._target.listeners.get(self._to.port)
        for when in self._wires.arrivals(self._target, self._sock.machine, 40)[:1]:
            if listener is None:
                self._wires.at(when, self._fail, errno.ECONNREFUSED)
            else:
                self._wires.at(when, self._establish, listener)

    def _establish(self, listener: Listener) -> None:
        if self._done.done():
            return
        if not listener.is_serving():  # it closed, or its process died, while the answer travelled
            self._fail(errno.ECONNRESET)
            return
        assert self._target is not None
        near = Stream(self._wires, self._sock.machine, self._sock.own, self._to)
        far = Stream(self._wires, self._target, self._to, self._sock.own)
        near.peer, far.peer = far, near
        far.listener = listener
        near.send(Mark.OPEN)
        self._done.set_result(near)

    def _fail(self, number: int) -> None:
        if not self._done.done():
            self._done.set_exception(_error(number))


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
