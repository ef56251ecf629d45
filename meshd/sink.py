"""Where a call's partial results and progress go while it is under way."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextvars import ContextVar
from typing import Any, Protocol

from meshd.errors import PeerError


class Sink(Protocol):
    """Takes what comes before the result. Both are told in order, and before the call ends."""

    async def part(self, value: Any) -> None:
        """Take one partial result (JSON values); waits while whoever reads is slow."""
        ...

    def progress(self, fraction: float | None, message: str) -> None:
        """Take how far it is, 0 .. 1 or None, and a word on it. The newest may replace others."""
        ...


class UntilGone:
    """Passes all on until whoever takes it is gone; then the work goes on without him."""

    def __init__(self, sink: Sink) -> None:
        self._sink: Sink | None = sink

    async def part(self, value: Any) -> None:
        """Pass one on, if anybody is there."""
        if self._sink is None:
            return
        try:
            await self._sink.part(value)
        except PeerError:
            self._sink = None

    def progress(self, fraction: float | None, message: str) -> None:
        """Pass it on, if anybody is there."""
        if self._sink is not None:
            self._sink.progress(fraction, message)


class LoopSink:
    """A sink whose progress may be told from any thread."""

    def __init__(self, sink: Sink) -> None:
        """On the loop that `sink` belongs to."""
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self.part = sink.part

    def progress(self, fraction: float | None, message: str) -> None:
        """Hand it on, on the loop: at once from there, so that none comes after the result."""
        if threading.get_ident() == self._thread:
            self._sink.progress(fraction, message)
        else:
            self._loop.call_soon_threadsafe(self._sink.progress, fraction, message)


SINK: ContextVar[LoopSink | None] = ContextVar("meshd_sink", default=None)
"""Set around each run of a handler whose caller looks on."""


def progress(fraction: float | None = None, message: str = "") -> None:
    """Tell whoever waits for the work that runs now how far it is.

    Anywhere in a handler, also in its threads; where nobody looks on, it does nothing.

    Args:
        fraction: 0 .. 1, or None where that is not known.
        message: a word on it.
    """
    sink = SINK.get()
    if sink is not None:
        sink.progress(None if fraction is None else min(1.0, max(0.0, float(fraction))), message)


class PartQueue:
    """A sink to iterate over: each part waits until it is taken."""

    def __init__(self, on_progress: Callable[[float | None, str], None] | None = None) -> None:
        self._on_progress = on_progress
        self._parts: asyncio.Queue[Any] = asyncio.Queue(maxsize=1)
        self._is_over = False
        self._work: asyncio.Future[Any] | None = None
        self._fault: Exception | None = None

    async def part(self, value: Any) -> None:
        """Hand it to whoever iterates.

        Raises:
            PeerError: nobody does any more.
        """
        if not self._is_over:
            await self._parts.put(value)
        if self._is_over:
            self.close()  # it may have been put in since
            raise PeerError("nobody takes its partial results any more", definite=False)

    def close(self) -> None:
        """Nobody iterates any more: let go who waits for that."""
        self._is_over = True
        while not self._parts.empty():
            self._parts.get_nowait()

    def progress(self, fraction: float | None, message: str) -> None:
        """Call whoever wants to know. What that raises ends the work, and is for who iterates."""
        if self._on_progress is None or self._fault is not None:
            return
        try:
            self._on_progress(fraction, message)
        except Exception as error:  # noqa: BLE001 - it is the user's own
            self._fault = error
            if self._work is not None:
                self._work.cancel()

    async def of(
        self, work: Coroutine[Any, Any, Any], result_of: Callable[[Any], Any]
    ) -> AsyncIterator[Any]:
        """The parts of `work`, whose sink this is; its result, where it has none.

        Whoever stops to iterate cancels it.

        Raises:
            Exception: what the work raised, or whoever wants to know of its progress.
        """
        task = self._work = asyncio.ensure_future(work)
        getting: asyncio.Future[Any] | None = None
        has_parts = False
        try:
            while True:
                getting = asyncio.ensure_future(self._parts.get())
                await asyncio.wait((task, getting), return_when=asyncio.FIRST_COMPLETED)
                if not getting.done():
                    break
                has_parts = True
                yield getting.result()
            if self._fault is not None:
                raise self._fault
            result = result_of(await task)
            if not has_parts and result is not None:
                yield result
        finally:
            self.close()
            task.cancel()
            if getting is not None:
                getting.cancel()
            await asyncio.wait((task,))
            if not task.cancelled():
                task.exception()  # nobody asks any more; asyncio need not log it
