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
    """The time limits of whoever shares them. Belongs to the event loop that runs."""

    def __init__(self) -> None:
        # Asked for once: until Python 3.12 that is a call of the system each time.
        self.loop = asyncio.get_running_loop()
        self.heap: list[tuple[float, int, Alarm]] = []
        self.rings_at = math.inf
        self.idle = 0
        """How many of the heap are over."""
        self.idle_max = IDLE_MAX
        self.numbers = itertools.count()
        """Of equal instants the heap compares these."""
        self.is_closing = False
        self._timer: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Call off the timer as soon as nobody is within a limit; nobody enters one any more."""
        self.is_closing = True
        self.forget_idle()

    def ring_at(self, at: float) -> None:
        """Ring at this time of the loop, and no more at the one before.

        Raises:
            ValueError: it is not a number, and no order among others.
        """
        if math.isnan(at):
            raise ValueError("a time limit must be a number of seconds")
        self._call_off()
        self.rings_at = at
        self._timer = self.loop.call_at(at, self._ring)

    def forget_idle(self) -> None:
        """Keep only limits that are not over."""
        self.heap = [each for each in self.heap if each[2].task is not None]
        heapify(self.heap)
        self.idle = 0
        self.idle_max = IDLE_MAX + len(self.heap)
        if self.is_closing and not self.heap:
            self._call_off()

    def _call_off(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self.rings_at = None, math.inf

    def _ring(self) -> None:
        # A loop may round to milliseconds, and call before the very instant.
        now = max(self.loop.time(), self.rings_at)
        self._timer, self.rings_at = None, math.inf
        while self.heap and (self.heap[0][0] <= now or self.heap[0][2].task is None):
            alarm = heappop(self.heap)[2]
            if alarm.task is None:
                self.idle -= 1
            else:
                alarm.is_over = True
                alarm.task.cancel()
        if self.heap:
            self.ring_at(self.heap[0][0])


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

    def __enter__(self) -> Self:
        alarms = self._alarms
        task = self.task = asyncio.current_task(alarms.loop)
        assert task is not None, "only a task can be cancelled"
        self._cancelling = task.cancelling()
        if self._limit_s is not None:
            at = alarms.loop.time() + self._limit_s
            if not at >= alarms.rings_at:
                alarms.ring_at(at)
            entry: tuple[float, int, Alarm] = (at, next(alarms.numbers), self)
            heappush(alarms.heap, entry)
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
            alarms = self._alarms
            alarms.idle += 1
            is_last = alarms.is_closing and alarms.idle == len(alarms.heap)
            if is_last or alarms.idle > alarms.idle_max:
                alarms.forget_idle()
