"""Time limits of many calls at once, with one timer of the loop for all of them.

`asyncio.timeout` has a timer of its own each time, and nearly all of them are called off unused:
making and calling off one takes as long as reading a request.
"""

import asyncio
import itertools
import math
from heapq import heapify, heappop, heappush
from types import TracebackType
from typing import Self

from meshd.clock import Seconds

IDLE_MAX = 64
"""Limits that are over and still kept: so many, and one for each that was not at the last look."""


class Alarms:
    """The time limits of whoever shares them. Belongs to the event loop of who first has one."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._heap: list[tuple[float, int, Alarm]] = []
        self._numbers = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = math.inf
        self._idle = 0
        """How many of the heap are over."""
        self._idle_max = IDLE_MAX

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that they belong to."""
        if self._loop is None:
            # Asked for once: until Python 3.12 that is a call of the system each time.
            self._loop = asyncio.get_running_loop()
        return self._loop

    def close(self) -> None:
        """Call off the timer. Nobody may be within a limit any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._heap, self._timer, self._rings_at, self._idle = [], None, math.inf, 0

    def begin(self, alarm: "Alarm", at: float) -> None:
        """Ring at this time of the loop, unless it has ended by then."""
        heappush(self._heap, (at, next(self._numbers), alarm))
        if at < self._rings_at:
            self._set(at)

    def end(self) -> None:
        """One that has begun is over, and did not ring."""
        self._idle += 1
        if self._idle > self._idle_max:
            self._heap = [each for each in self._heap if each[2].task is not None]
            heapify(self._heap)
            self._idle = 0
            self._idle_max = IDLE_MAX + len(self._heap)

    def _set(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings_at = at
        self._timer = self.loop.call_at(at, self._ring)

    def _ring(self) -> None:
        # A loop may round to milliseconds, and call before the very instant.
        now = max(self.loop.time(), self._rings_at)
        self._timer, self._rings_at = None, math.inf
        while self._heap and (self._heap[0][0] <= now or self._heap[0][2].task is None):
            alarm = heappop(self._heap)[2]
            if alarm.task is None:
                self._idle -= 1
            else:
                alarm.ring()
        if self._heap:
            self._set(self._heap[0][0])


class Alarm:
    """As `asyncio.timeout(limit_s)`, but entered by `with`; None is no limit.

    It cancels the task that has entered it, and turns that into `TimeoutError`.
    """

    __slots__ = ("_alarms", "_cancelling", "_limit_s", "is_over", "task")

    def __init__(self, alarms: Alarms, limit_s: Seconds | None) -> None:
        self._alarms = alarms
        self._limit_s = limit_s
        self.is_over = False
        """Whether the time was over before the work was."""
        self.task: asyncio.Task[object] | None = None

    def ring(self) -> None:
        """The time is over."""
        assert self.task is not None
        self.is_over = True
        self.task.cancel()

    def __enter__(self) -> Self:
        loop = self._alarms.loop
        task = self.task = asyncio.current_task(loop)
        assert task is not None, "only a task can be cancelled"
        self._cancelling = task.cancelling()
        if self._limit_s is not None:
            self._alarms.begin(self, loop.time() + self._limit_s)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        task, self.task = self.task, None
        assert task is not None
        if self.is_over:
            # Who was cancelled by somebody else as well is cancelled, not late.
            if task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
                raise TimeoutError from error
        elif self._limit_s is not None:
            self._alarms.end()
