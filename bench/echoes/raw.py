"""The floor in Python: asyncio streams, msgpack behind a length, many calls on one connection.

python raw.py worker | relay ADDRESS... | caller ADDRESS
"""

import asyncio
import itertools
import struct
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import msgpack
from loop import TEXT, obey, run

HEAD = struct.Struct(">I")
Handler = Callable[[Any], Awaitable[Any]]


class Peer(asyncio.Protocol):
    """One connection: messages `[id, is_answer, value]`, either way."""

    def __init__(self, handler: Handler | None = None) -> None:
        self.handler = handler
        self.pending: dict[int, asyncio.Future[Any]] = {}
        self.numbers = itertools.count()
        self.rest = b""
        self.tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: Any) -> None:
        """It is there."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Take whole messages, keep the rest."""
        data = self.rest + data
        at = 0
        while len(data) - at >= HEAD.size:
            (size,) = HEAD.unpack_from(data, at)
            if len(data) - at - HEAD.size < size:
                break
            at += HEAD.size
            self.take(msgpack.unpackb(data[at : at + size]))
            at += size
        self.rest = data[at:]

    def take(self, message: list[Any]) -> None:
        """Settle a call, or serve one."""
        number, is_answer, value = message
        if is_answer:
            self.pending.pop(number).set_result(value)
        else:
            task = asyncio.ensure_future(self.serve(number, value))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def serve(self, number: int, value: Any) -> None:
        """Answer a call."""
        assert self.handler is not None
        self.send([number, True, await self.handler(value)])

    def send(self, message: list[Any]) -> None:
        """Write a message."""
        body = msgpack.packb(message)
        self.transport.write(HEAD.pack(len(body)) + body)

    async def call(self, value: Any) -> Any:
        """Call the other side."""
        number = next(self.numbers)
        answer = self.pending[number] = asyncio.get_running_loop().create_future()
        self.send([number, False, value])
        return await answer


async def connect(address: str) -> Peer:
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    _, peer = await loop.create_connection(Peer, host, int(port))
    return peer


async def serve(handler: Handler) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Peer(handler), "127.0.0.1", 0)
    print(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


async def worker() -> None:
    async def echo(value: Any) -> Any:
        return value["text"]

    await serve(echo)


async def relay(addresses: list[str]) -> None:
    turns = itertools.cycle([await connect(address) for address in addresses])

    async def pass_on(value: Any) -> Any:
        return await next(turns).call(value)

    await serve(pass_on)


async def caller(address: str) -> None:
    peer = await connect(address)

    async def call() -> None:
        assert await peer.call({"text": TEXT}) == TEXT

    await obey(call)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["worker"]:
            run(worker())
        case ["relay", *addresses]:
            run(relay(addresses))
        case ["caller", address]:
            run(caller(address))
