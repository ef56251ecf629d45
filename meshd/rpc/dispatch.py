"""One request in, one answer's bytes out, whatever the handler does."""

import asyncio
import logging
import secrets
from functools import partial
from typing import Any

from meshd.errors import Code, DeadlineError, MeshError
from meshd.rpc.jsonrpc import encode_error, encode_result, internal_error
from meshd.rpc.messages import Request
from meshd.rpc.methods import CallContext, Params, Registry
from meshd.scope import Scope

_log = logging.getLogger("meshd.rpc")


async def run(registry: Registry, method: str, params: Params, context: CallContext) -> Any:
    """What a call comes to, the short way or by its handler: for who awaits it anyway.

    Raises:
        MeshError, Exception: as `Registry.call` does.
    """
    end: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    begun = registry.begin(method, params, context, partial(_settle, end))
    if begun is None:
        return await registry.call(method, params, context)
    try:
        came_to = await end
    except asyncio.CancelledError as cancelled:
        begun.cancel(*cancelled.args)
        raise
    if isinstance(came_to, Exception):
        raise came_to
    return came_to


def _settle(end: asyncio.Future[Any], came_to: Any) -> None:
    if not end.done():
        end.set_result(came_to)


async def answer(
    request: Request,
    registry: Registry,
    context: CallContext,
    *,
    bytes_max: int,
    is_offered: bool = False,
) -> bytes:
    """Run one request and write its answer, of at most about `bytes_max` bytes.

    A handler's own exception is logged under an id, and the caller learns that id alone. The
    caller of this function drops the answer to a notification. `is_offered`: the short way was, and
    is closed.
    """
    scope = Scope(context.deadline_s)
    end: Any
    try:
        with scope:
            if is_offered:
                end = await registry.call(request.method, request.params, context)
            else:
                end = await run(registry, request.method, request.params, context)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # Not this call was cancelled but something that its handler waited for.
        end = MeshError("the work was cancelled", code=Code.CANCELLED, definite=False)
    except Exception as error:  # noqa: BLE001 - the border: a handler may raise anything
        end = error
        if scope.has_ended and not isinstance(error, MeshError):
            end = DeadlineError(
                f"{request.method!r} was not done within the caller's time", definite=False
            )
    return written(request, end, bytes_max=bytes_max)


def written(request: Request, end: Any, *, bytes_max: int) -> bytes:
    """The answer to a request that has ended with this result, or with this exception."""
    is_error = isinstance(end, MeshError)
    fault = end if isinstance(end, Exception) and not is_error else None
    encoded = b""
    if fault is None:
        try:
            encoded = (encode_error if is_error else encode_result)(request.id, end)
        except Exception as error:  # noqa: BLE001 - what a handler gives may be no JSON
            fault = error
    if fault is not None:
        reference = secrets.token_hex(4)
        _log.error(
            "event=internal_error id=%s method=%r", reference, request.method[:64], exc_info=fault
        )
        return encode_error(request.id, internal_error(reference))
    if len(encoded) > bytes_max and not is_error:
        return encode_error(request.id, too_large(len(encoded), bytes_max))
    return encoded


def too_large(size: int, bytes_max: int) -> MeshError:
    """The error for an answer that is larger than an answer may be."""
    return MeshError(
        f"the answer takes {size} bytes, more than the {bytes_max} allowed",
        hint="ask for less, or in parts",
        definite=False,
    )
