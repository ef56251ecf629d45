"""Partial results over plain HTTP: `POST /rpc` with `Accept: text/event-stream`.

Each event's data is one JSON-RPC message: `part` and `progress` notifications, as a channel has
them, then the response. Source: server-sent events (HTML standard, section 9.2).
"""

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web

from meshd.clock import Seconds
from meshd.errors import PeerError
from meshd.rpc.flow import WINDOW_BYTES, Outflow
from meshd.rpc.messages import Id
from meshd.rpc.sse_reader import CONTENT_TYPE
from meshd.sink import Sink

Run = Callable[[Sink], Awaitable[bytes]]


def wants_events(request: web.BaseRequest) -> bool:
    """Whether the caller wants partial results."""
    return CONTENT_TYPE in request.headers.get("Accept", "")


async def answer_in_events(
    request: web.BaseRequest, request_id: Id, run: Run, *, write_timeout_s: Seconds
) -> web.StreamResponse:
    """Write what `run(sink)` tells while it goes on, and then the answer that it returns.

    A caller who does not read for `write_timeout_s` ends the call.
    """
    response = web.StreamResponse(
        headers={"Server": "meshd", "Content-Type": CONTENT_TYPE, "Cache-Control": "no-store"}
    )
    await response.prepare(request)

    async def write(data: bytes) -> None:
        try:
            async with asyncio.timeout(write_timeout_s):
                await response.write(b"data: " + data + b"\n\n")
        except (TimeoutError, ConnectionError):
            raise PeerError("the caller does not read its partial results") from None

    async def send(data: bytes) -> None:
        await write(data)
        outflow.grant(len(data))

    outflow = Outflow(request_id, WINDOW_BYTES, send)
    try:
        encoded = await run(outflow)
        await outflow.finish()
    finally:
        outflow.close()
    try:
        await write(encoded)
        await response.write_eof()
    except (PeerError, ConnectionError):
        if request.transport is not None:
            request.transport.abort()
    return response
