import asyncio

import pytest
from rpc_bench import LOOPBACK, Bench, Wire

from meshd.rpc.server import RpcServer


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
