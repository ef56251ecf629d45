"""aiohttp and JSON by POST: a relay that takes turns, and one that asks every worker first.

python post.py worker | relay URL... | poll URL... | caller URL
"""

import asyncio
import itertools
import json
import sys
from collections.abc import Awaitable, Callable

import aiohttp
from aiohttp import web
from loop import TEXT, obey, run

HEADERS = {"Content-Type": "application/json"}


def session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))


async def serve(handler: Callable[[web.BaseRequest], Awaitable[web.Response]]) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(web.Server(handler, access_log=None), "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


async def worker() -> None:
    async def echo(request: web.BaseRequest) -> web.Response:
        if request.method == "GET":
            return web.json_response({"load": 0.1})
        text = json.loads(await request.read())["params"]["text"]
        return web.json_response({"jsonrpc": "2.0", "id": 1, "result": text})

    await serve(echo)


async def relay(urls: list[str]) -> None:
    turns = itertools.cycle(urls)
    async with session() as client:

        async def pass_on(request: web.BaseRequest) -> web.Response:
            data = await request.read()
            async with client.post(next(turns), data=data, headers=HEADERS) as answer:
                return web.Response(body=await answer.read(), content_type="application/json")

        await serve(pass_on)


async def poll(urls: list[str]) -> None:
    """For each call ask all how busy they are, then send it to the least busy one."""
    async with session() as client:

        async def load(url: str) -> tuple[float, str]:
            async with client.get(url) as answer:
                return (await answer.json())["load"], url

        async def pass_on(request: web.BaseRequest) -> web.Response:
            data = await request.read()
            _, url = min(await asyncio.gather(*map(load, urls)))
            async with client.post(url, data=data, headers=HEADERS) as answer:
                return web.Response(body=await answer.read(), content_type="application/json")

        await serve(pass_on)


async def caller(url: str) -> None:
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "work", "params": {"text": TEXT}})
    async with session() as client:

        async def call() -> None:
            async with client.post(url, data=body, headers=HEADERS) as answer:
                assert json.loads(await answer.read())["result"] == TEXT

        await obey(call)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["worker"]:
            run(worker())
        case ["relay", *urls]:
            run(relay(urls))
        case ["poll", *urls]:
            run(poll(urls))
        case ["caller", url]:
            run(caller(url))
