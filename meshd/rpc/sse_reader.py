"""Partial results of a call by plain HTTP, as they are read."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from aiohttp import StreamReader

from meshd.errors import PeerError
from meshd.rpc.jsonrpc import parse_message
from meshd.rpc.messages import Request, Response
from meshd.sink import Sink

CONTENT_TYPE = "text/event-stream"
_END = b"\n\n"


async def answer_of(content: StreamReader, sink: Sink, *, bytes_max: int) -> Response:
    """Read such an answer to its end: partial results and progress go to the sink.

    Raises:
        PeerError: it breaks off, or an event is larger than allowed (the other side's fault).
        Exception: what the sink raised.
    """
    async with aclosing(_events_in(content, bytes_max)) as events:
        async for data in events:
            match parse_message(data):
                case Response() as response:
                    return response
                case Request("part", {"value": value}):
                    await sink.part(value)
                case Request("progress", {"fraction": fraction, "message": str(text)}):
                    if isinstance(fraction, int | float | None):
                        sink.progress(fraction, text)
                case _:
                    pass
    raise PeerError("the answer broke off", definite=False)


async def _events_in(content: StreamReader, bytes_max: int) -> AsyncGenerator[bytes]:
    """The data of each event, one line as `answer_in_events` writes it."""
    held = bytearray()
    while chunk := await content.readany():
        searched = max(0, len(held) - 1)
        held += chunk
        while (end := held.find(_END, searched)) >= 0:
            yield bytes(held[:end]).removeprefix(b"data: ")
            del held[: end + len(_END)]
            searched = 0
        if len(held) > bytes_max:
            raise PeerError("a partial result is larger than allowed", definite=False)
