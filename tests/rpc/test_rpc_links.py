"""Links between nodes: dialled once, used both ways, dropped and dialled again."""

import asyncio
import random
import socket
from dataclasses import replace

import aiohttp
import pytest
from rpc_bench import Bench

from meshd.daemon.platform import SystemClock
from meshd.errors import BusyError, Code, DeadlineError, PeerError, UsageError
from meshd.model import Address
from meshd.rpc import links as links_module
from meshd.rpc.client import RpcClient
from meshd.rpc.links import LINK_LIMITS, LINK_PROTOCOL, MESH_HEADER, Links
from meshd.rpc.server import RpcServer

pytestmark = pytest.mark.net
LOCAL = Address("127.0.0.1", 0)
MESH = "ab" * 8


class End:
    """One node as far as links go."""

    def __init__(self, name, *, whose=lambda node, host: None, mesh=MESH, **options):
        self.bench = Bench()
        self.server = RpcServer(self.bench.registry)
        self.client = RpcClient(connect_timeout_s=0.3)
        self.links = Links(
            self.client, self.server, clock=SystemClock(), random=random.Random(1),
            methods=self.bench.registry, mesh=mesh, node=name, whose=whose, **options,
        )  # fmt: skip
        self.address = None

    async def start(self, bind=LOCAL):
        self.address = await self.server.start_tcp(bind)
        return self

    async def stop(self):
        self.bench.release.set()
        await self.server.stop(1.0)
        await self.links.close()
        await self.client.close()


@pytest.fixture
async def end():
    made = []

    async def start(name="a" * 16, *, bind=LOCAL, **options):
        made.append(End(name, **options))
        return await made[-1].start(bind)

    yield start
    for each in made:
        await each.stop()


async def until(wanted):
    async with asyncio.timeout(5):
        while not wanted():
            await asyncio.sleep(0)


async def test_many_calls_share_one_link(end):
    one, other = await end(), await end("b" * 16)
    calls = (
        one.links.invoke(other.address, "echo", {"text": str(i)}, timeout_s=5) for i in range(50)
    )
    assert await asyncio.gather(*calls) == [{"text": str(i)} for i in range(50)]
    assert one.links.open == (other.address,)
    assert other.links.accepted == 1
    assert other.server.counters["calls"] == 0, "none of them was POSTed"


async def test_who_was_dialled_calls_back_over_the_same_link(end):
    address = Address("127.0.0.1", 1)
    one = await end("a" * 16)
    other = await end("b" * 16, whose=lambda node, host: address if node == "a" * 16 else None)
    await one.links.invoke(other.address, "echo", {}, timeout_s=5)
    # Nothing listens at that address: only the link leads there.
    assert await other.links.invoke(address, "echo", {"text": "back"}, timeout_s=5) == {
        "text": "back"
    }


async def test_a_stranger_is_not_called_back(end):
    one, other = await end("a" * 16), await end("b" * 16)
    await one.links.invoke(other.address, "echo", {}, timeout_s=5)
    assert other.links.open == ()


async def test_a_link_that_was_lost_is_dialled_again(end):
    one, other = await end(), await end("b" * 16)
    await one.links.invoke(other.address, "echo", {}, timeout_s=5)
    await other.server.stop(1.0)
    again = await end("b" * 16, bind=other.address)
    answer = await one.links.invoke(again.address, "echo", {"text": "again"}, timeout_s=5)
    assert answer == {"text": "again"}


async def test_a_call_under_way_on_a_lost_link_is_indefinite(end):
    one, other = await end(), await end("b" * 16)
    call = asyncio.create_task(one.links.invoke(other.address, "hold", {}, timeout_s=5))
    await other.bench.started.acquire()
    for channel in list(other.server._channels):
        await channel.close()
    with pytest.raises(PeerError, match="lost") as caught:
        await call
    assert not caught.value.definite


async def test_calls_under_way_end_before_a_server_stops_and_later_ones_are_refused(end):
    one, other = await end(), await end("b" * 16)
    call = asyncio.create_task(one.links.invoke(other.address, "hold", {}, timeout_s=5))
    await other.bench.started.acquire()
    stop = asyncio.create_task(other.server.stop(5.0))
    await until(lambda: all(channel.is_draining for channel in other.server._channels))
    with pytest.raises(BusyError, match="closing") as caught:
        await one.links.invoke(other.address, "echo", {}, timeout_s=5)
    assert caught.value.definite
    other.bench.release.set()
    assert await call == "held"
    await stop


async def test_who_is_not_there_is_not_dialled_at_every_call(end):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = Address(*taken.getsockname())
        one = await end()
        dials = []
        upgrade = one.client.upgrade

        async def counted(*args, **options):
            dials.append(args)
            return await upgrade(*args, **options)

        one.client.upgrade = counted
        for _ in range(20):
            with pytest.raises(PeerError, match="cannot be reached") as caught:
                await one.links.invoke(nobody, "echo", {}, timeout_s=5)
            assert caught.value.definite
        assert 1 <= len(dials) < 20
        before = len(dials)
        one.links.forget(nobody)
        with pytest.raises(PeerError, match="refused"):
            await one.links.invoke(nobody, "echo", {}, timeout_s=5)
        assert len(dials) == before + 1


async def test_a_dial_that_hangs_is_given_up_in_time(end):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        one = await end()
        calls = (
            one.links.invoke(Address(*silent.getsockname()), "echo", {}, timeout_s=0.1)
            for _ in range(3)
        )
        for error in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(error, DeadlineError)
            assert error.definite


async def test_a_peer_without_links_is_called_by_single_requests(end):
    one = await end()
    bench = Bench()
    old = RpcServer(bench.registry)
    address = await old.start_tcp(LOCAL)
    try:
        for _ in range(2):
            assert await one.links.invoke(address, "echo", {"text": "old"}, timeout_s=5)
        assert old.counters["http_404"] == 1, "it is not asked for a link each time"
        assert one.links.open == ()
    finally:
        await old.stop(0.1)


async def test_a_node_of_another_mesh_gets_no_link_and_no_call(end):
    one, other = await end(mesh="cd" * 8), await end("b" * 16)
    with pytest.raises(PeerError, match="takes no link") as caught:
        await one.links.invoke(other.address, "echo", {}, timeout_s=5)
    assert caught.value.code == Code.FORBIDDEN
    assert other.server.counters["calls"] == 0


async def test_the_bound_of_links_holds_and_one_that_rests_gives_way(end):
    one = await end(links_max=1)
    first, second = await end("b" * 16), await end("c" * 16)
    await one.links.invoke(first.address, "echo", {}, timeout_s=5)
    await one.links.invoke(second.address, "echo", {}, timeout_s=5)
    assert one.links.open == (second.address,)
    call = asyncio.create_task(one.links.invoke(second.address, "hold", {}, timeout_s=5))
    await second.bench.started.acquire()
    assert await one.links.invoke(first.address, "echo", {"text": "posted"}, timeout_s=5)
    assert first.server.counters["calls"] == 1
    second.bench.release.set()
    await call


async def test_a_server_takes_so_many_links_and_posts_beyond(end):
    other = await end("b" * 16, links_max=1)
    one, two = await end(), await end("c" * 16)
    await one.links.invoke(other.address, "echo", {}, timeout_s=5)
    await two.links.invoke(other.address, "echo", {}, timeout_s=5)
    assert (other.links.accepted, other.server.counters["calls"]) == (1, 1)


class Taker:
    """A sink that may do without."""

    def __init__(self, *, is_optional):
        self.is_optional = is_optional

    async def part(self, value):
        raise AssertionError("only a link brings parts")

    def progress(self, fraction, message):
        raise AssertionError("only a link brings progress")


async def test_where_there_is_no_link_the_result_alone_comes_to_whom_that_will_do(end):
    other = await end("b" * 16, links_max=0)
    one = await end()
    call = one.links.invoke
    may, must = Taker(is_optional=True), Taker(is_optional=False)
    assert await call(other.address, "echo", {"text": "x"}, timeout_s=5, sink=may) == {"text": "x"}
    with pytest.raises(PeerError, match="no link to stream over") as caught:
        await call(other.address, "echo", {}, timeout_s=5, sink=must)
    assert caught.value.definite


async def test_calls_of_all_links_count_together(end):
    one, two = await end(), await end("c" * 16)
    other = await end("b" * 16, calls_max=1)
    call = asyncio.create_task(one.links.invoke(other.address, "hold", {}, timeout_s=5))
    await other.bench.started.acquire()
    with pytest.raises(BusyError, match="already") as caught:
        await two.links.invoke(other.address, "echo", {}, timeout_s=5)
    assert caught.value.definite
    other.bench.release.set()
    await call


async def test_a_call_too_large_is_refused_before_it_is_sent(end):
    limits = replace(LINK_LIMITS, message_bytes_max=1_000)
    one, other = await end(limits=limits), await end("b" * 16, limits=limits)
    with pytest.raises(UsageError, match="more than 1000"):
        await one.links.invoke(other.address, "echo", {"text": "x" * 2_000}, timeout_s=5)
    assert await one.links.invoke(other.address, "echo", {"text": "x" * 500}, timeout_s=5)


@pytest.mark.parametrize(
    ("headers", "protocols", "status"),
    [
        ({MESH_HEADER: "00"}, (LINK_PROTOCOL,), 403),
        ({MESH_HEADER: MESH}, ("meshd.link.99",), 400),
        ({}, (), 400),
        ({"Origin": "http://evil.example"}, (LINK_PROTOCOL,), 403),
    ],
)
async def test_a_wrong_upgrade_is_refused_and_says_why(end, headers, protocols, status):
    other = await end("b" * 16)
    url = f"http://{other.address}/link"
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await session.ws_connect(url, headers=headers, protocols=protocols)
    assert caught.value.status == status


async def test_a_peer_that_redirects_is_not_followed(end):
    one, other = await end(), await end("b" * 16)

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        location = b"Location: http://%b/link\r\n" % str(other.address).encode()
        writer.write(b"HTTP/1.1 302 Found\r\n" + location + b"Content-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        target = Address(*server.sockets[0].getsockname())
        with pytest.raises(PeerError, match="redirect"):
            await one.links.invoke(target, "echo", {}, timeout_s=5)
    assert other.links.accepted == 0


async def test_a_link_that_nobody_uses_is_closed_after_both_sides_know(end, monkeypatch):
    monkeypatch.setattr(links_module, "REST_S", 0.05)
    address = Address("127.0.0.1", 1)
    one = await end("a" * 16)
    other = await end("b" * 16, whose=lambda node, host: address)
    await one.links.invoke(other.address, "echo", {}, timeout_s=5)
    (channel,) = other.server._channels
    await until(lambda: channel.is_resting)
    assert other.links.open == (), "no call begins over it any more"
    await until(lambda: other.links.accepted == 0)
    assert one.links._sweeping.done() or one.links.open == ()
    assert await one.links.invoke(other.address, "echo", {"text": "again"}, timeout_s=5)


async def test_a_link_that_is_used_stays(end, monkeypatch):
    monkeypatch.setattr(links_module, "REST_S", 0.03)
    one, other = await end(), await end("b" * 16)
    call = asyncio.create_task(one.links.invoke(other.address, "hold", {}, timeout_s=5))
    await other.bench.started.acquire()
    (channel,) = one.links._dialled
    ended = asyncio.create_task(channel.wait_closed())
    await asyncio.wait((ended,), timeout=0.3)
    assert not ended.done()
    other.bench.release.set()
    assert await call == "held"
    await asyncio.wait_for(ended, 5)
