"""NATS: request and reply through its broker, workers in a queue group.

python nats_echo.py worker URL | caller URL
"""

import asyncio
import sys

import nats
from loop import TEXT, obey, run


async def worker(url: str) -> None:
    client = await nats.connect(url)

    async def echo(message: nats.aio.msg.Msg) -> None:
        await message.respond(message.data)

    await client.subscribe("echo", queue="workers", cb=echo)
    await client.flush()
    print("serves", flush=True)
    await asyncio.get_running_loop().create_future()


async def caller(url: str) -> None:
    client = await nats.connect(url)

    async def call() -> None:
        answer = await client.request("echo", TEXT.encode(), timeout=10)
        assert answer.data == TEXT.encode()

    await obey(call)


if __name__ == "__main__":
    run({"worker": worker, "caller": caller}[sys.argv[1]](sys.argv[2]))
