"""What passing work on costs: each way to call a capability, against one direct call to the worker.

`direct` is a POST, `link` a call over a kept link as between two daemons; the daemons link to each
other in any case.

Every party is a process of its own: the caller (this one), the daemon that the caller talks to, the
worker's daemon, and two bare aiohttp servers: `bare` echoes by itself, and `relay` forwards each
body unread to the worker's daemon. They show what HTTP costs before meshd does anything.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import uvloop
from aiohttp import web
from echoes.loop import crowd as calls_at_once
from echoes.loop import single as calls_in_turn
from echoes.loop import until_answered
from mesh_processes import Daemon, MeshProcesses, arguments, kill, progress, report, summary

from meshd import Mesh
from meshd.daemon.platform import SystemClock
from meshd.model import Address
from meshd.rpc.client import RpcClient
from meshd.rpc.links import Links
from meshd.rpc.methods import Registry
from meshd.rpc.server import RpcServer
from meshd.security.identity import mesh_id

TEXT = "hello"
HEADERS = {"Content-Type": "application/json"}
Call = Callable[[], Awaitable[Any]]


async def bare_server(target: str) -> None:
    """Answer every POST with an echo, or with what `target` answers; the port goes to stdout."""

    async def echo(request: web.BaseRequest) -> web.Response:
        text = json.loads(await request.read())["params"]["input"]["text"]
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "result": {"result": text}}).encode()
        return web.Response(body=body, content_type="application/json")

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def relay(request: web.BaseRequest) -> web.Response:
            data = await request.read()
            async with session.post(target, data=data, headers=HEADERS) as response:
                return web.Response(body=await response.read(), content_type="application/json")

        server = await asyncio.get_running_loop().create_server(
            web.Server(relay if target else echo, access_log=None), "127.0.0.1", 0
        )
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


@contextlib.contextmanager
def bare_process(target: str = "") -> Iterator[str]:
    """The URL of a bare server in a process of its own."""
    process = subprocess.Popen([sys.executable, __file__, "--bare", target], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/rpc"
    finally:
        kill(process)


def post(session: aiohttp.ClientSession, url: str, method: str) -> Call:
    """A JSON-RPC call by POST over a kept connection."""
    params = {"capability": "echo", "input": {"text": TEXT}}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()

    async def call() -> None:
        async with session.post(url, data=body, headers=HEADERS) as response:
            result = json.loads(await response.read())["result"]
        assert result.get("peer_result", result)["result"] == TEXT, result

    return call


def control(front: Daemon) -> Call:
    """The standard-library client of the control socket, as the command line uses it."""
    params = {"capability": "echo", "input": {"text": TEXT}}
    client = front.client

    async def call() -> None:
        assert client.call("delegate", params)["peer_result"]["result"] == TEXT

    return call


def link(links: Links, worker: Daemon) -> Call:
    """A direct call over a link, as one daemon calls another."""
    params = {"capability": "echo", "input": {"text": TEXT}}
    host, _, port = worker.address.rpartition(":")
    target = Address(host, int(port))

    async def call() -> None:
        answer = await links.invoke(target, "work", params, timeout_s=30.0)
        assert answer["result"] == TEXT

    return call


def sdk(mesh: Mesh) -> Call:
    """The SDK's `call`."""

    async def call() -> None:
        assert await mesh.call("echo", {"text": TEXT}) == TEXT

    return call


@contextlib.asynccontextmanager
async def paths(front: Daemon, worker: Daemon) -> AsyncIterator[dict[str, Call]]:
    """Every way to have the work done, ready to be called."""
    direct = f"http://{worker.address}/rpc"
    embedded = Mesh(
        "caller", embed=True, mesh=os.environ["MESHD_MESH"], bind="127.0.0.1:0", mdns=False,
        join=[worker.address],
    )  # fmt: skip
    client = RpcClient()
    links = Links(
        client, RpcServer(Registry()), clock=SystemClock(), random=random.Random(1),
        methods=Registry(), mesh=mesh_id(os.environ["MESHD_MESH"]).hex(), node="0" * 16,
        whose=lambda *_: None,
    )  # fmt: skip
    with bare_process() as bare, bare_process(direct) as relay:
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
            Mesh("attached", control=front.socket) as attached,
            embedded,
        ):
            yield {
                "bare": post(session, bare, "work"),
                "direct": post(session, direct, "work"),
                "link": link(links, worker),
                "relay": post(session, relay, "work"),
                "delegate": post(session, f"http://{front.address}/rpc", "delegate"),
                "control": control(front),
                "attached": sdk(attached),
                "embedded": sdk(embedded),
            }
            await links.close()
            await client.close()


async def measure(ways: dict[str, Call], options: argparse.Namespace) -> dict[str, Any]:
    """All ways in turn, several rounds: drift of the machine hits all of them alike."""
    single: dict[str, list[float]] = {name: [] for name in ways}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    crowd: dict[str, list[float]] = {name: [] for name in ways}
    for call in ways.values():
        await until_answered(call)
        await calls_in_turn(call, options.warm_up)
    for number in range(1, options.rounds + 1):
        for name, call in ways.items():
            single[name] += (await calls_in_turn(call, options.calls))[0]
            if name != "control":  # it blocks its caller: nothing to have at once
                taken, seconds = await calls_at_once(call, options.callers, options.seconds)
                rates[name].append(len(taken) / seconds)
                crowd[name] += taken
        progress(f"round {number} of {options.rounds}")
    figures: dict[str, Any] = {}
    for name in ways:
        alone = summary(single[name])
        figures[name] = {"c1_p50_ms": alone["p50"], "c1_p99_ms": alone["p99"]}
        if rates[name]:
            together = summary(crowd[name])
            figures[name] |= {
                "crowd_per_s": round(sum(rates[name]) / len(rates[name])),
                "crowd_p99_ms": together["p99"],
            }
    return figures


async def run(options: argparse.Namespace) -> dict[str, Any]:
    with MeshProcesses() as mesh:
        worker = mesh.spawn("worker", "--capability", "echo:echo", "--slots", "64")
        mesh.wait_ready([worker])
        front = mesh.spawn("front", join=[worker.address])
        mesh.wait_ready([front])
        # The embedded node of this very process keeps its state in the bench's place, too.
        os.environ |= {**mesh.environment, "MESHD_MESH": mesh.mesh}
        async with paths(front, worker) as ways:
            return await measure(ways, options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bare", metavar="TARGET", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=1_000, help="One by one, in each round.")
    parser.add_argument("--callers", type=int, default=32, help="At once.")
    parser.add_argument("--seconds", type=float, default=2.0, help="At once, in each round.")
    parser.add_argument("--warm-up", type=int, default=200, help="Calls that do not count.")
    options = arguments(parser)
    if options.quick:
        options.rounds, options.calls, options.seconds, options.warm_up = 1, 50, 0.2, 10
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if options.bare is not None:
            runner.run(bare_server(options.bare))
            return
        figures = runner.run(run(options))
    base = figures["direct"]
    for each in figures.values():
        each["c1_ratio"] = round(each["c1_p50_ms"] / base["c1_p50_ms"], 2)
        each["c1_to_link"] = round(each["c1_p50_ms"] / figures["link"]["c1_p50_ms"], 2)
    rows = [{"way": name, **{k: each.get(k, "-") for k in base}} for name, each in figures.items()]
    parameters = {k: v for k, v in vars(options).items() if k not in {"bare", "quick"}}
    report("delegate", rows, parameters=parameters, figures=figures)


if __name__ == "__main__":
    main()
