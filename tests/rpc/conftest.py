"""Event loops and servers that the RPC tests share."""

import asyncio

import pytest
import uvloop
from rpc_bench import LOOPBACK, Bench, Wire

from meshd.rpc.server import RpcServer


def pytest_asyncio_loop_factories(config, item):
    """Sockets behave a little differently on the loop that daemons use: try them on both."""
    stock = {"asyncio": asyncio.SelectorEventLoop}
    both = {**stock, "uvloop": uvloop.new_event_loop}
    return both if item.get_closest_marker("net") else stock


@pytest.fixture
async def bench():
    return Bench()


@pytest.fixture
async def serve(bench):
    """Start servers on the loopback interface; they are stopped after the test."""
    servers = []

    async def start(**options):
        server = RpcServer(bench.registry, **options)
        servers.append(server)
        return server, await server.start_tcp(LOOPBACK)

    yield start
    bench.release.set()
    for server in servers:
        await server.stop(1.0)


@pytest.fixture
async def dial():
    wires = []

    async def connect(address):
        reader, writer = await asyncio.open_connection(address.host, address.port)
        wires.append(Wire(reader, writer))
        return wires[-1]

    yield connect
    for wire in wires:
        await wire.close()
