"""A bound on the time of what is awaited, which others may end sooner."""

import asyncio
from types import TracebackType
from typing import Self

from meshd.clock import Seconds


class Scope:
    """`asyncio.timeout` for one use, that can be ended early, at a third of its price.

    On leaving it raises `TimeoutError` where it was ended, by its time or by `end`, and the task
    was not cancelled besides. Each call has several, so it is a plain context manager with one
    timer, or with none where `seconds` is None.
    """

    __slots__ = ("_cancelling", "_seconds", "_task", "_timer", "has_ended")

    def __init__(self, seconds: Seconds | None) -> None:
        self.has_ended = False
        self._seconds = seconds
        self._task: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._cancelling = 0

    def __enter__(self) -> Self:
        """Begin; what the present task awaits from here on is bounded."""
        # The loop is asked for once: until Python 3.12 that is a call of the system each time.
        loop = asyncio.get_running_loop()
        task = self._task = asyncio.current_task(loop)
        assert task is not None, "a scope bounds what a task awaits"
        self._cancelling = task.cancelling()
        if self._seconds is not None:
            self._timer = loop.call_later(self._seconds, self._end)
        return self

    def end(self) -> None:
        """End it by the next turn of the loop, unless it is over by then, or has not begun.

        Not at once: what it waits for may be there already, and the task that is within it would
        not hear of its own cancellation before it has left.
        """
        asyncio.get_running_loop().call_soon(self._end)

    def _end(self) -> None:
        if self._task is not None and not self.has_ended:
            self.has_ended = True
            self._task.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Call the timer off, and say so where it was too late for that."""
        if self._timer is not None:
            self._timer.cancel()
        task, self._task = self._task, None
        if self.has_ended and task is not None:
            is_ours = task.uncancel() <= self._cancelling
            if is_ours and kind is asyncio.CancelledError:
                raise TimeoutError from error
