"""Running a capability's handler: a function, a program, a URL, or an attached program.

Functions that block run in threads, or where their declaration says: see `meshd.work.pools`.
"""

import asyncio
import contextvars
import inspect
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, assert_never

import msgspec

from meshd.capability.definition import (
    CapabilityDefinition,
    CommandHandler,
    FunctionHandler,
    Handler,
    HttpHandler,
    RemoteHandler,
)
from meshd.capability.schema import to_json
from meshd.clock import Seconds
from meshd.errors import Code, PeerError, UsageError, error_from_wire
from meshd.sink import Sink
from meshd.work.command import run_command
from meshd.work.faults import ERROR_CHARS_MAX, RAISED, failed, guard, how_it_ended, raise_for
from meshd.work.pools import Pools, check_executor
from meshd.work.streams import Collected, stream_function

RESULT_BYTES_MAX = 8 * 1_048_576


@dataclass(frozen=True, slots=True)
class HttpReply:
    """What a URL answered."""

    status: int
    body: bytes


class Forward(Protocol):
    """Posts a JSON body to a URL; `meshd.work.forward` has the real one."""

    async def __call__(
        self, url: str, body: bytes, *, timeout_s: Seconds, bytes_max: int
    ) -> HttpReply:
        """The answer, without following redirects.

        Raises:
            PeerError: no connection (definite), lost, or longer than `bytes_max` (indefinite).
        """
        ...


@dataclass(frozen=True, slots=True)
class Tools:
    """What handlers are run with: executors for functions that block, a way to post to URLs."""

    pools: Pools
    forward: Forward | None = None


def runnable(definitions: Iterable[CapabilityDefinition]) -> tuple[CapabilityDefinition, ...]:
    """The definitions, once each names an executor that there is.

    Raises:
        UsageError: one does not.
    """
    found = tuple(definitions)
    for definition in found:
        handler = definition.handler
        if isinstance(handler, FunctionHandler) and handler.executor:
            check_executor(handler.executor)
    return found


def prepare(definition: CapabilityDefinition, value: Any) -> Any:
    """The input as the handler takes it, checked before anything is run or queued.

    Raises:
        UsageError: the input does not fit; definite.
        MeshError: the type of a parameter failed; as of a handler that fails.
    """
    if definition.check is not None:
        definition.check(value)
    handler = definition.handler
    match handler:
        case FunctionHandler():
            try:
                return handler.arguments(value)
            except UsageError:
                raise
            except RAISED as error:  # types of parameters are user code, too
                raise failed(definition.manifest.name, error) from error
        case CommandHandler() | HttpHandler():
            return _encode(value, definition.manifest.name)
        case RemoteHandler():
            return value
        case _:
            assert_never(handler)


def execute(
    definition: CapabilityDefinition,
    prepared: Any,
    tools: Tools,
    *,
    timeout_s: Seconds,
    sink: Sink | None = None,
    is_whole: bool = False,
) -> Coroutine[Any, Any, Any]:
    """What runs a handler on what `prepare` made; its result are JSON values.

    Partial results go to `sink`, and the result is None then; without one, or if `is_whole`, the
    result is a list of them all.

    It ends only when the run holds nothing any more: a cancelled function in a thread is waited
    for, as a thread cannot be stopped, and a cancelled program is killed with its whole group. So
    whoever awaits this knows when the slot is free. `timeout_s` is passed on to URLs and attached
    programs; the caller enforces it by cancelling.

    Raises:
        MeshError: the handler failed; definite only where it surely never ran.
    """
    name = definition.manifest.name
    handler = definition.handler
    if definition.manifest.streaming and (sink is None or is_whole):
        return _collect(name, handler, prepared, tools, timeout_s, sink)
    return _run(name, handler, prepared, tools, timeout_s, sink)


async def _collect(
    name: str, handler: Handler, prepared: Any, tools: Tools, timeout_s: Seconds, sink: Sink | None
) -> list[Any]:
    whole = Collected(name, sink)
    await _run(name, handler, prepared, tools, timeout_s, whole)
    return whole.parts


def _run(
    name: str, handler: Handler, prepared: Any, tools: Tools, timeout_s: Seconds, sink: Sink | None
) -> Coroutine[Any, Any, Any]:
    # Not asynchronous itself: each call would pay for one more coroutine.
    match handler:
        case FunctionHandler():
            return _call_function(name, handler, prepared, tools.pools, sink)
        case CommandHandler():
            return _by_command(name, handler, prepared, sink)
        case HttpHandler():
            return _by_http(name, handler, prepared, tools, timeout_s)
        case RemoteHandler():
            return guard(
                name, lambda: handler.call(name, prepared, timeout_s, sink), passes_errors=True
            )
        case _:
            assert_never(handler)


def _call_function(
    name: str, handler: FunctionHandler, arguments: dict[str, Any], pools: Pools, sink: Sink | None
) -> Coroutine[Any, Any, Any]:
    if handler.is_stream:
        assert sink is not None, "partial results go somewhere"
        return stream_function(name, handler, arguments, pools.threads, sink)
    if handler.is_async:
        return _on_loop(name, handler, arguments)
    if handler.executor:
        return _apart(name, handler, arguments, pools)
    return _in_thread(name, handler, arguments, pools.threads)


async def _on_loop(name: str, handler: FunctionHandler, arguments: dict[str, Any]) -> Any:
    # `guard` without its own coroutine: most calls come here.
    try:
        result = await handler.function(**arguments)
    except RAISED as error:
        raise_for(name, error)
    return to_json(result, name)


async def _by_command(name: str, handler: CommandHandler, text: bytes, sink: Sink | None) -> Any:
    if not handler.is_stream:
        return decode(await run_command(handler, text, name, RESULT_BYTES_MAX))
    assert sink is not None, "partial results go somewhere"
    await run_command(handler, text, name, RESULT_BYTES_MAX, partial(_line, sink))
    return None


async def _line(sink: Sink, line: bytes) -> None:
    await sink.part(decode(line))


def decode(output: bytes) -> Any:
    """What a program or URL put out: JSON where it is that, else text without its last newline."""
    try:
        return msgspec.json.decode(output)
    except (msgspec.DecodeError, RecursionError):
        return output.decode("utf-8", "replace").removesuffix("\n").removesuffix("\r")


def _encode(value: Any, name: str) -> bytes:
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{name}: the input is not JSON: {error}"[:ERROR_CHARS_MAX],
            code=Code.INVALID_PARAMS,
        ) from error


async def _in_thread(
    name: str, handler: FunctionHandler, arguments: dict[str, Any], threads: Executor
) -> Any:
    context = contextvars.copy_context()
    try:
        running = threads.submit(context.run, _call, name, handler, arguments)
    except RuntimeError as error:
        raise PeerError(f"{name}: this node is stopping", code=Code.REJECTED) from error
    result = await _ended(running)
    if inspect.isawaitable(result):
        # A plain function that only makes a coroutine, such as a partial or a wrapper.
        return to_json(await guard(name, lambda: result), name)
    return result


async def _ended(running: Future[Any]) -> Any:
    """Wait for a run; if cancelled, until it is over where it cannot be stopped."""
    waiting = asyncio.wrap_future(running)
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        if not running.cancel():
            await asyncio.wait((waiting,))
        raise


async def _apart(
    name: str, handler: FunctionHandler, arguments: dict[str, Any], pools: Pools
) -> Any:
    """Run a function in another process. Its end is a failed run, and nothing more."""
    try:
        running = await pools.submit(
            handler.executor, call_apart, name, handler.function, arguments
        )
    except RuntimeError as error:
        raise PeerError(f"{name}: this node is stopping", code=Code.REJECTED) from error
    try:
        has_result, value = await guard(name, lambda: _ended(running), passes_errors=True)
    except PeerError as error:
        code = getattr(error.__cause__, "exitcode", None)
        if code is None:
            raise
        told = how_it_ended("its process", code)
        raise PeerError(f"{name}: {told}", definite=False) from error
    if has_result:
        return value
    raise error_from_wire(*value)


def call_apart(
    name: str, function: Callable[..., Any], arguments: dict[str, Any]
) -> tuple[bool, Any]:
    """In the other process: the result as JSON values, or what an error is rebuilt from.

    Exceptions of the user's own types need not survive the way back.
    """
    try:
        return True, to_json(function(**arguments), name)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - handed over in words
        what = failed(name, error)
        data = {**what.data, "hint": what.hint, "definite": what.definite}
        return False, (what.code, what.message, data)


def _call(name: str, handler: FunctionHandler, arguments: dict[str, Any]) -> Any:
    """Run the function and convert its result, both away from the event loop.

    Exceptions are replaced here already: a future cannot carry a StopIteration.
    """
    try:
        result = handler.function(**arguments)
    except (Exception, SystemExit) as error:
        raise failed(name, error) from error
    return result if inspect.isawaitable(result) else to_json(result, name)


async def _by_http(
    name: str, handler: HttpHandler, body: bytes, tools: Tools, timeout_s: Seconds
) -> Any:
    forward = tools.forward
    if forward is None:
        raise PeerError(f"{name}: this node cannot forward to URLs", code=Code.REJECTED)
    reply: HttpReply = await guard(
        name,
        lambda: forward(handler.url, body, timeout_s=timeout_s, bytes_max=RESULT_BYTES_MAX),
        passes_errors=True,
    )
    if 200 <= reply.status < 300:
        return decode(reply.body)
    if 300 <= reply.status < 400:
        raise PeerError(
            f"{name}: its URL answers with a redirect ({reply.status}), which is not followed",
            hint="declare the URL that it leads to",
            definite=False,
        )
    text = reply.body[: 4 * ERROR_CHARS_MAX].decode("utf-8", "replace").strip()
    raise PeerError(
        f"{name}: its URL answered {reply.status}: {text}"[:ERROR_CHARS_MAX], definite=False
    )
