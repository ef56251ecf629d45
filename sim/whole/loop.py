"""An asyncio loop whose time is a number: it jumps to the next timer instead of waiting for it.

Every callback belongs to a `Lane`, which stands for a thread of a process: the lane is found in
the context that asyncio carries along anyhow. A lane can be frozen (its callbacks wait) or ended
(they never run), and that is how processes are stopped, blocked and killed from outside, while the
code that runs in them is the production code.
"""

import asyncio
import contextvars
import heapq
import socket
import weakref
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor, Future
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

from meshd.errors import MeshError

if TYPE_CHECKING:
    from sim.whole.streams import StreamSocket

Answer = TypeVar("Answer")
Arguments = TypeVarTuple("Arguments")
Context = contextvars.Context
_CANCELLED_MIN = 200
"""Cancelled timers leave the heap when they are more than these, and more than half of it."""
_Handler = Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object]


class StalledError(MeshError):
    """Nothing is left that could ever happen, and somebody still waits."""


class LaneState(Enum):
    """What becomes of a lane's callbacks."""

    RUNS = 0
    FROZEN = 1
    ENDED = 2


class Lane:
    """One thread of one process; `LANE` holds it in the context of all that runs there."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = LaneState.RUNS
        self.held: list[asyncio.Handle] = []
        self.tasks: weakref.WeakKeyDictionary[asyncio.Task[Any], Context] = (
            weakref.WeakKeyDictionary()
        )
        self.graveyard: list[tuple[asyncio.Task[Any], Context]] = []
        self.last_words: list[str] = []
        """What its coroutines raised when they were closed after its end."""

    def context(self) -> Context:
        """A context in which everything belongs to this lane."""
        context = contextvars.copy_context()
        context.run(LANE.set, self)
        return context


LANE: contextvars.ContextVar[Lane | None] = contextvars.ContextVar("lane", default=None)
"""The lane that the running code belongs to; None for the world itself."""
KERNEL = contextvars.Context()
"""Where machines' kernels, the network and faults run: in no lane."""


class _Handle(asyncio.Handle):
    """Knows its lane: what it calls runs there, or waits, or never runs."""

    __slots__ = ("lane",)
    lane: Lane | None


class _Timer(asyncio.TimerHandle):
    """As above, at a time."""

    __slots__ = ("lane",)
    lane: Lane | None


class VirtualLoop(asyncio.BaseEventLoop):
    """A deterministic loop without files: sockets are `StreamSocket`s, threads run at once."""

    def __init__(self, start_s: float = 0.0) -> None:
        super().__init__()
        self._ready: Any
        self._scheduled: Any
        self._stopping: bool
        self._closed: bool
        self._timer_cancelled_count: int
        self._now_s = start_s
        self._numbers = 0
        self.problems: list[str] = []
        """What reached the loop's exception handler: always a bug."""
        self.set_exception_handler(self._on_problem)
        self.set_task_factory(self._make_task)

    # Time

    def time(self) -> float:
        """Virtual seconds."""
        return self._now_s

    def _run_once(self) -> None:
        """One turn, as asyncio's: what is ready now, or at the next timer's time.

        Where a real loop would sleep, time leaps. Timers of the same time run in the order in
        which they were set.

        Raises:
            StalledError: nothing would ever happen again.
        """
        ready, timers = self._ready, self._scheduled
        if self._timer_cancelled_count > max(_CANCELLED_MIN, len(timers) // 2):
            timers[:] = [entry for entry in timers if not entry[2].cancelled()]
            heapq.heapify(timers)
            self._timer_cancelled_count = 0
        if not ready and not self._stopping:
            self._leap()
        while timers and timers[0][0] <= self._now_s:
            timer = heapq.heappop(timers)[2]
            timer._scheduled = False  # noqa: SLF001 - no longer in the heap
            ready.append(timer)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:  # noqa: SLF001 - the method costs more
                continue
            lane = handle.lane
            if lane is None or lane.state is LaneState.RUNS:
                handle._run()  # noqa: SLF001 - what a loop does
            elif lane.state is LaneState.FROZEN:
                lane.held.append(handle)

    def _leap(self) -> None:
        """Go to the time of the first timer that still counts."""
        timers = self._scheduled
        while timers and timers[0][2].cancelled():
            self._timer_cancelled_count -= 1
            heapq.heappop(timers)[2]._scheduled = False  # noqa: SLF001 - no longer in the heap
        if not timers:
            raise StalledError(
                "nothing is left to happen, and something is still awaited",
                hint="await with a deadline, or end what waits",
            )
        self._now_s = max(self._now_s, timers[0][0])

    def run_until(self, at_s: float) -> None:
        """Run everything that happens up to a time, from outside the loop."""
        handle = self.call_at(at_s, self.stop, context=KERNEL)
        self.run_forever()
        handle.cancel()

    # Lanes

    def call_soon(
        self,
        callback: Callable[[*Arguments], object],
        *args: *Arguments,
        context: Context | None = None,
    ) -> asyncio.Handle:
        """As asyncio has it; the handle belongs to the lane of its context."""
        return self._call_soon(callback, args, context)

    def _call_soon(
        self, callback: Any, args: Sequence[Any], context: Context | None
    ) -> asyncio.Handle:
        if self._closed:
            raise RuntimeError("Event loop is closed")
        handle = _Handle(callback, args, self, context)
        handle.lane = LANE.get() if context is None else context.get(LANE)
        self._ready.append(handle)
        return handle

    def call_at(
        self,
        when: float,
        callback: Callable[[*Arguments], object],
        *args: *Arguments,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """As asyncio has it; the timer belongs to the lane of its context."""
        if self._closed:
            raise RuntimeError("Event loop is closed")
        timer = _Timer(when, callback, args, self, context)
        timer.lane = LANE.get() if context is None else context.get(LANE)
        self._numbers += 1
        heapq.heappush(self._scheduled, (when, self._numbers, timer))
        timer._scheduled = True  # type: ignore[attr-defined]  # noqa: SLF001 - in the heap now
        return timer

    def freeze(self, lane: Lane) -> None:
        """Hold back all that the lane would do."""
        if lane.state is LaneState.RUNS:
            lane.state = LaneState.FROZEN

    def thaw(self, lane: Lane) -> None:
        """Let it go on, with all that waited, in its order."""
        if lane.state is LaneState.FROZEN:
            lane.state = LaneState.RUNS
            held, lane.held = lane.held, []
            self._ready.extend(held)

    def end(self, lane: Lane) -> None:
        """Kill it: nothing of it runs again, not even a `finally`."""
        lane.state = LaneState.ENDED
        lane.held.clear()
        # Kept until the loop closes: a collected coroutine would run its `finally` blocks.
        lane.graveyard.extend(lane.tasks.items())

    @staticmethod
    def bury(lane: Lane) -> None:
        """Close the coroutines of a lane that has ended. Whatever they still do goes nowhere.

        What they begin meanwhile is closed as well: it comes to stand behind them.
        """
        for task, context in lane.graveyard:
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001 - it was killed on purpose
            coroutine = task.get_coro()
            if isinstance(coroutine, Coroutine) and not task.done():
                try:
                    context.run(coroutine.close)
                except Exception as error:  # noqa: BLE001 - a dead process may not fail the living
                    lane.last_words.append(repr(error))
        lane.graveyard.clear()

    def _make_task(
        self, _loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any
    ) -> asyncio.Task[Any]:
        context = options.get("context")
        if context is None:
            context = options["context"] = contextvars.copy_context()
        task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=self, **options)
        lane = context.get(LANE)
        if lane is not None:
            lane.tasks[task] = context
            if lane.state is LaneState.ENDED:
                # What a coroutine begins that is being closed: it goes nowhere either.
                lane.graveyard.append((task, context))
        return task

    def _on_problem(self, _loop: asyncio.AbstractEventLoop, told: dict[str, Any]) -> None:
        error = told.get("exception")
        lane = getattr(told.get("handle"), "lane", None) or LANE.get()
        who = "the world" if lane is None else lane.name
        self.problems.append(f"{who}: {told.get('message', '')}: {error!r}")

    # What a loop does with the machine

    def _write_to_self(self) -> None:
        """Nobody sleeps who would have to be woken."""

    def _process_events(self, event_list: Any) -> None:
        """There are no files."""

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., Answer], *args: Any
    ) -> asyncio.Future[Answer]:
        """Run `func` now: a thread takes no virtual time."""
        running = (executor or InlineExecutor()).submit(func, *args)
        return asyncio.wrap_future(running, loop=self)

    def remove_reader(self, fd: Any) -> bool:
        """No file is ever watched."""
        del fd
        return False

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        """Connect a `StreamSocket`.

        Raises:
            OSError: refused, or nobody answered.
        """
        await _stream(sock).connect(address)

    async def create_connection(  # type: ignore[override]
        self, protocol_factory: Callable[[], Any], *, sock: socket.socket, **_options: Any
    ) -> tuple[asyncio.Transport, Any]:
        """A transport over a connected `StreamSocket`."""
        return await _stream(sock).attach(protocol_factory)

    async def create_server(  # type: ignore[override]
        self, protocol_factory: Callable[[], Any], *, sock: socket.socket, **_options: Any
    ) -> asyncio.AbstractServer:
        """Serve on a bound `StreamSocket`."""
        return _stream(sock).serve(protocol_factory)


class InlineExecutor(Executor):
    """Runs what it is given at once, in the thread of whoever gives it."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Run `fn`; the future is done."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - as a thread would: the future carries it
            future.set_exception(error)
        return future


def _stream(sock: socket.socket) -> "StreamSocket":
    from sim.whole.streams import StreamSocket

    if not isinstance(sock, StreamSocket):
        raise TypeError("under virtual time there are no real sockets: ask the platform for one")
    return sock
