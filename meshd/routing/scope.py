"""A bound on the time of what is awaited, which others may end sooner."""

import asyncio
from types import TracebackType
from typing import Self

from meshd.clock import Seconds


class Scope:
    """`asyncio.timeout` for one use, that can be ended early, at a third of its price.

    On leaving it raises `TimeoutError` where it was ended, by its time or by `end`. Each call has
    one, so it is a plain context manager with one timer.
    """

    __slots__ = ("_cancelling", "_task", "_timer", "has_ended", "seconds")

    def __init__(self, seconds: Seconds) -> None:
        self.seconds = seconds
        self.has_ended = False
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0

    def __enter__(self) -> Self:
        """Begin; what the present task awaits from here on is bounded."""
        task = asyncio.current_task()
        assert task is not None, "a scope bounds what a task awaits"
        self._task, self._cancelling = task, task.cancelling()
        self._timer = asyncio.get_running_loop().call_later(self.seconds, self.end)
        return self

    def end(self) -> None:
        """End it now; nothing where it is over, has not begun, or is ending."""
        if self._task is not None and not self.has_ended:
            self.has_ended = True
            self._task.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Raise TimeoutError where it was ended, unless the task was cancelled besides."""
        self._timer.cancel()
        task, self._task = self._task, None
        if self.has_ended and task is not None:
            is_ours = task.uncancel() <= self._cancelling
            if is_ours and kind is asyncio.CancelledError:
                raise TimeoutError from error
