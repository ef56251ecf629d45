"""Messages into WebSocket frames and back: those of one turn of the loop leave in one frame.

A frame holds one JSON text, or several as a JSON text sequence: each begins with the record
separator, which no JSON text contains (RFC 7464, section 2).
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

SEPARATOR = b"\x1e"
SEPARATION_BYTES = 2
"""What each message of several takes in a frame beside its own: a separator and a newline."""
FRAME_BYTES_MAX = 262_144
"""Messages are put together up to this; a larger one has a frame of its own."""
WAITING_BYTES_MAX = 1_048_576
"""Of messages that wait for a slow reader; then whoever sends more waits too."""
URGENT_BYTES_MAX = 4 * 1_048_576
"""Of messages that wait for nobody: refusals, credit, what is called off. A frame full of calls
that are all refused makes a third of it."""


class Socket(Protocol):
    """What a channel needs of a WebSocket; see `meshd.rpc.websocket`."""

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more."""
        ...

    def listen(self, on_frame: Callable[[bytes], None]) -> None:
        """Begin to read, and hand on each frame as it arrives; called once."""
        ...

    async def wait_silent(self) -> None:
        """Return once no further frame will be handed on."""
        ...

    def send(self, message: bytes) -> bool:
        """Send one frame; false where whoever sends waits for room before the next one."""
        ...

    async def wait_for_room(self) -> None:
        """Wait while the other side is slow to read."""
        ...

    async def close(self) -> None:
        """Say goodbye and close."""
        ...

    def abort(self) -> None:
        """Cut the connection at once; what waits to be sent is dropped."""
        ...


class FrameWriter:
    """Sends messages in order.

    The first of a turn of the loop leaves at once, so that a lone call is not held up; whatever
    follows in the same turn, or while the reader is slow, leaves together. Where a turn had
    several, the first of the next one waits for the others: each frame costs a call of the system.
    """

    def __init__(self, socket: Socket, message_bytes_max: int = FRAME_BYTES_MAX) -> None:
        """Messages are put together up to what the other side takes of one, at most."""
        self._socket = socket
        self._frame_bytes_max = min(FRAME_BYTES_MAX, message_bytes_max)
        # Asked for once: until Python 3.12 that is a call of the system each time.
        self._loop = asyncio.get_running_loop()
        self._waiting = _Waiting()
        self._urgent = _Waiting()
        self._is_turn = False
        self._is_crowded = False
        self._flusher: asyncio.Task[None] | None = None
        self._has_room = asyncio.Event()
        self._has_room.set()

    def put(self, message: bytes) -> bool:
        """Send one, or leave it to be sent with others; false while too much waits already.

        Whoever put it waits for room then, before he puts another.

        Raises:
            ConnectionError, RuntimeError: the link is lost; the message may have left.
        """
        if not self._is_turn and self._leaves_alone(message):
            return True
        waiting = self._waiting
        waiting.put(message)
        return waiting.size <= WAITING_BYTES_MAX

    @property
    def has_room(self) -> bool:
        """Whether whoever puts a message need not wait then."""
        return self._waiting.size <= WAITING_BYTES_MAX

    async def wait_for_room(self, message: bytes) -> None:
        """Wait, after `message` was put. Who is cancelled has sent nothing, unless it just left."""
        self._has_room.clear()
        try:
            await self._has_room.wait()
        except asyncio.CancelledError:
            self._waiting.take_back(message)
            raise

    def post(self, message: bytes) -> bool:
        """Send one before those that wait, and wait for nothing: for who reads meanwhile.

        Two ends that stop reading in order to send wait for each other. False, and it is dropped,
        where `URGENT_BYTES_MAX` wait already.

        Raises:
            ConnectionError, RuntimeError: the link is lost; the message may have left.
        """
        if not self._is_turn and self._leaves_alone(message):
            return True
        if self._urgent.size + len(message) > URGENT_BYTES_MAX:
            return False
        self._urgent.put(message)
        return True

    async def flush(self) -> None:
        """Wait until all has left that was sent so far, or the link is lost."""
        self._leave()
        while self._flusher is not None and not self._flusher.done():
            await asyncio.wait((self._flusher,))

    def close(self) -> None:
        """Drop what waits, and let go whoever waits for room."""
        if self._flusher is not None:
            self._flusher.cancel()
        self._drop()

    def _leaves_alone(self, message: bytes) -> bool:
        """Send the first message of a turn, unless others are likely to follow."""
        self._is_turn = True
        self._loop.call_soon(self._end_turn)
        if self._is_crowded or self._flusher is not None:
            return False
        self._send_now(message)
        return True

    def _end_turn(self) -> None:
        self._is_turn = False
        count = len(self._urgent.messages) + len(self._waiting.messages)
        # In a crowded turn all wait, else the first has left before.
        self._is_crowded = count > self._is_crowded
        if count:
            self._leave()

    def _leave(self) -> None:
        """Send what waits, unless the reader is slow and a task does that."""
        try:
            while self._flusher is None and (self._urgent.messages or self._waiting.messages):
                self._send_now(self._next_frame())
        except (ConnectionError, RuntimeError):
            # The reader of the channel sees that the link is lost, and ends all calls.
            self._drop()

    def _send_now(self, frame: bytes) -> None:
        if not self._socket.send(frame):
            # The reader is slow: a task waits for it, and all that follows waits behind that.
            self._flusher = asyncio.create_task(self._flush(), name="meshd-frames")

    async def _flush(self) -> None:
        try:
            await self._socket.wait_for_room()
            while self._urgent.messages or self._waiting.messages:
                if not self._socket.send(self._next_frame()):
                    await self._socket.wait_for_room()
        except (ConnectionError, RuntimeError):
            self._drop()  # as above
        finally:
            self._flusher = None
            self._has_room.set()

    def _next_frame(self) -> bytes:
        together: list[bytes] = []
        room = self._urgent.move_into(together, self._frame_bytes_max)
        self._waiting.move_into(together, room)
        if self._waiting.size <= WAITING_BYTES_MAX // 2:
            self._has_room.set()
        if len(together) == 1:
            return together[0]
        return b"%b%b\n" % (SEPARATOR, (b"\n" + SEPARATOR).join(together))

    def _drop(self) -> None:
        self._waiting, self._urgent = _Waiting(), _Waiting()
        self._has_room.set()


class _Waiting:
    """Messages in a row, none of them empty, and how many bytes they are in a frame of several."""

    def __init__(self) -> None:
        self.messages: deque[bytes] = deque()
        self.size = 0

    def put(self, message: bytes) -> None:
        self.messages.append(message)
        self.size += len(message) + SEPARATION_BYTES

    def move_into(self, frame: list[bytes], room: int) -> int:
        """Move as many to a frame as fit; returns the room that is left. The first always fits."""
        messages, before = self.messages, room
        if self.size <= room:
            frame.extend(messages)
            messages.clear()
            room -= self.size
        while messages and (not frame or len(messages[0]) + SEPARATION_BYTES <= room):
            frame.append(messages.popleft())
            room -= len(frame[-1]) + SEPARATION_BYTES
        self.size -= before - room
        return room

    def take_back(self, message: bytes) -> None:
        if message in self.messages:
            self.messages.remove(message)
            self.size -= len(message) + SEPARATION_BYTES


def messages_in(frame: bytes) -> list[bytes]:
    """The JSON texts of a frame, in order; not yet looked into."""
    if not frame.startswith(SEPARATOR):
        return [frame]
    return [message.rstrip(b"\n") for message in frame.split(SEPARATOR)[1:]]
