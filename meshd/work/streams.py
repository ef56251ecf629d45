"""Generators as handlers: what they yield leaves one by one, no faster than it is taken."""

import asyncio
import contextvars
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future
from typing import Any

import msgspec

from meshd.capability.definition import FunctionHandler
from meshd.capability.schema import to_json
from meshd.errors import Code, PeerError
from meshd.sink import Sink, UntilGone
from meshd.work.faults import failed

COLLECTED_BYTES_MAX = 8 * 1_048_576
"""Of all partial results that are kept for a caller who wants them in one."""


class Collected:
    """A sink that keeps all parts: for a caller who wants the result alone, or for repeats.

    It passes them on to another one, if there is one, for as long as somebody takes them there:
    repeats may come for the whole.
    """

    def __init__(self, name: str, sink: Sink | None = None) -> None:
        self.parts: list[Any] = []
        self._name = name
        self._sink = None if sink is None else UntilGone(sink)
        self._bytes = 0

    async def part(self, value: Any) -> None:
        """Keep one.

        Raises:
            PeerError: all together are too large; indefinite.
        """
        self._bytes += len(msgspec.json.encode(value))
        if self._bytes > COLLECTED_BYTES_MAX:
            raise PeerError(
                f"{self._name}: its partial results take more than {COLLECTED_BYTES_MAX} bytes",
                hint="take them one by one: meshd call --stream, or mesh.stream()",
                definite=False,
            )
        self.parts.append(value)
        if self._sink is not None:
            await self._sink.part(value)

    def progress(self, fraction: float | None, message: str) -> None:
        """Pass it on."""
        if self._sink is not None:
            self._sink.progress(fraction, message)


async def stream_function(
    name: str, handler: FunctionHandler, arguments: dict[str, Any], threads: Executor, sink: Sink
) -> None:
    """Run a generator to its end.

    Ends only when the generator has: a plain one in its thread is closed at its next `yield`.

    Raises:
        MeshError: it failed, or yielded what is no JSON; indefinite.
    """
    if handler.is_async:
        await _drain(name, handler.function(**arguments), sink)
        return
    handing = _Handing(asyncio.get_running_loop(), sink)
    context = contextvars.copy_context()
    try:
        running = threads.submit(
            context.run, _iterate, name, lambda: handler.function(**arguments), handing.over
        )
    except RuntimeError as error:
        raise PeerError(f"{name}: this node is stopping", code=Code.REJECTED) from error
    waiting = asyncio.wrap_future(running)
    try:
        await asyncio.shield(waiting)
    except asyncio.CancelledError:
        handing.stop()
        if not running.cancel():
            await asyncio.wait((waiting,))
        raise


class _Handing:
    """Hands values from a thread to a sink on the loop, one at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sink: Sink) -> None:
        self._loop = loop
        self._sink = sink
        self._under_way: Future[None] | None = None
        self._is_over = False

    def over(self, value: Any) -> None:
        """In the thread: return once the sink has taken it.

        Raises:
            CancelledError: nobody takes any more.
        """
        self._under_way = asyncio.run_coroutine_threadsafe(self._sink.part(value), self._loop)
        if self._is_over:
            self._under_way.cancel()
        self._under_way.result()

    def stop(self) -> None:
        """On the loop: from now on nobody takes any more."""
        self._is_over = True
        if self._under_way is not None:
            self._under_way.cancel()


async def _drain(name: str, parts: AsyncIterator[Any], sink: Sink) -> None:
    try:
        async for part in parts:
            await sink.part(to_json(part, name))
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise PeerError(f"{name} cancelled itself", definite=False) from error
    except (Exception, SystemExit) as error:
        raise failed(name, error) from error
    finally:
        if inspect.isasyncgen(parts):
            await parts.aclose()


def _iterate(
    name: str, start: Callable[[], Iterator[Any]], hand_over: Callable[[Any], None]
) -> None:
    parts = start()
    try:
        for part in parts:
            hand_over(to_json(part, name))
    except CancelledError:
        return  # nobody takes any more
    except (Exception, SystemExit) as error:
        raise failed(name, error) from error
    finally:
        if inspect.isgenerator(parts):
            parts.close()
