"""Links between nodes: dialled once, used both ways, dropped and dialled again."""

import asyncio
import gc
import random
import socket
from contextvars import ContextVar
from dataclasses import replace

import aiohttp
import pytest
from rpc_bench import Bench

from meshd.daemon.platform import SystemClock
from meshd.errors import BusyError, Code, DeadlineError, PeerError, UsageError
from meshd.model import Address, MemberState
from meshd.rpc import links as links_module
from meshd.rpc.client import RpcClient
from meshd.rpc.links import (
    LINK_HEADER,
    LINK_LIMITS,
    LINK_PROTOCOL,
    MESH_HEADER,
    NODE_HEADER,
    Links,
)
from meshd.rpc.server import RpcServer
from meshd.rpc.sockets import KEEPALIVE_IDLE_S, UNHEARD_MAX_S

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


@pytest.fixture
async def pair(end):
    """Two nodes that know each other's addresses, and the book in which these stand."""
    book = {}

    def whose(node, host):
        return book.get(node)

    one, other = await end("a" * 16, whose=whose), await end("b" * 16, whose=whose)
    book.update({"a" * 16: one.address, "b" * 16: other.address})
    return one, other, book


async def test_who_was_dialled_calls_back_over_the_same_link(pair):
    one, other, _ = pair
    await one.links.invoke(other.address, "echo", {}, timeout_s=5)
    answer = await other.links.invoke(one.address, "echo", {"text": "back"}, timeout_s=5)
    assert answer == {"text": "back"}
    assert other.links.open == (one.address,)
    assert one.links.accepted == 0, "nobody dialled back"


async def test_an_impostor_at_the_same_host_is_not_called(pair, end):
    one, other, _ = pair
    thief = await end("a" * 16)
    await thief.links.invoke(other.address, "echo", {}, timeout_s=5)
    await other.links.invoke(one.address, "echo", {"text": "for a"}, timeout_s=5)
    assert (one.bench.seen, thief.bench.seen) == (["for a"], [])
    assert one.links.accepted == 1, "it was dialled"


async def test_a_token_that_was_shown_to_one_node_proves_nothing_to_another(pair, end):
    one, other, book = pair
    third = await end("c" * 16)
    book["c" * 16] = third.address
    await one.links.invoke(third.address, "echo", {}, timeout_s=5)
    (token,) = one.links._tokens
    headers = {MESH_HEADER: MESH, NODE_HEADER: "a" * 16, LINK_HEADER: token}
    url = f"http://{other.address}/link"
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, headers=headers, protocols=(LINK_PROTOCOL,)),
    ):
        await other.links.invoke(one.address, "echo", {"text": "for a"}, timeout_s=5)
    assert one.bench.seen == ["for a"]
    assert one.links.accepted == 1, "it was dialled"


async def test_tokens_are_forgotten_with_their_links(pair):
    one, other, _ = pair
    await one.links.invoke(other.address, "echo", {}, timeout_s=5)
    assert len(one.links._tokens) == 1
    (channel,) = one.links._dialled
    await channel.close()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(PeerError):
            await one.links.invoke(Address(*taken.getsockname()), "echo", {}, timeout_s=5)
    assert one.links._tokens == {}


async def test_a_stranger_is_not_called_back(end):
    one, other = await end("a" * 16), await end("b" * 16)
    await one.links.invoke(other.address, "echo", {}, timeout_s=5)
    await other.links.invoke(one.address, "echo", {}, timeout_s=5)
    assert one.links.accepted == 1


async def test_calls_over_a_link_know_nothing_of_the_call_that_dialled_it(pair):
    one, other, _ = pair
    whose = ContextVar("whose", default="nobody's")
    whose.set("the first caller's")

    async def look(params, context):
        return whose.get()

    one.bench.registry.add("look", None, look)
    await one.links.invoke(other.address, "echo", {}, timeout_s=5)
    assert await other.links.invoke(one.address, "look", {}, timeout_s=5) == "nobody's"
    assert one.links.accepted == 0


async def test_the_kernel_watches_a_link_and_no_heartbeat(end):
    """A heartbeat takes a peer whose main loop user code blocks for a dead one."""
    one, other = await end(), await end("b" * 16)
    await one.links.invoke(other.address, "echo", {}, timeout_s=5)
    assert LINK_LIMITS.heartbeat_s is None
    (far,), (near,) = other.server._upgraded, one.links._dialled
    for link in (far.transport.get_extra_info("socket"),
                 near._socket.get_extra_info("socket")):  # fmt: skip
        assert link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert link.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == KEEPALIVE_IDLE_S
        unheard_ms = link.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        assert unheard_ms == UNHEARD_MAX_S * 1_000


async def test_no_call_begins_over_a_link_to_a_dead_node_and_those_under_way_may_end(end):
    one, other = await end(), await end("b" * 16)
    call = asyncio.create_task(one.links.invoke(other.address, "hold", {}, timeout_s=5))
    await other.bench.started.acquire()
    one.links.on_member(other.address, MemberState.SUSPECT)
    assert one.links.open == (other.address,)
    one.links.on_member(other.address, MemberState.DEAD)
    assert one.links.open == ()
    await one.links.invoke(other.address, "echo", {}, timeout_s=5)
    assert other.links.accepted == 2
    other.bench.release.set()
    assert await call == "held"


async def test_news_of_a_node_does_not_forget_the_link_that_it_dialled(pair):
    one, other, _ = pair
    await one.links.invoke(other.address, "echo", {}, timeout_s=5)
    other.links.on_member(one.address, MemberState.ALIVE)
    await other.links.invoke(one.address, "echo", {}, timeout_s=5)
    assert one.links.accepted == 0


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


async def test_a_dial_that_fails_after_its_callers_left_is_nobodys_fault(end):
    told = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    one = await end()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        with pytest.raises(DeadlineError):
            await one.links.invoke(Address(*silent.getsockname()), "echo", {}, timeout_s=0.05)
    # Closed with its backlog: the dial under way is reset.
    await until(lambda: not one.links._dialling)
    gc.collect()
    assert told == []


class Kept:
    """A sink that keeps all."""

    def __init__(self):
        self.parts = []
        self.told = []

    async def part(self, value):
        self.parts.append(value)

    def progress(self, fraction, message):
        self.told.append((fraction, message))


async def test_a_stream_from_a_peer_without_links_comes_part_by_part_all_the_same(end):
    one, bench, sink = await end(), Bench(), Kept()

    async def count(params, context):
        for number in range(3):
            await context.sink.part([number, "\n\n" * 50_000])
        context.sink.progress(0.5, "half")
        return "ended"

    bench.registry.add("count", None, count)
    old = RpcServer(bench.registry)
    address = await old.start_tcp(LOCAL)
    try:
        answer = await one.links.invoke(address, "count", {}, timeout_s=5, sink=sink)
        assert answer == "ended"
        assert [part[0] for part in sink.parts] == [0, 1, 2]
        assert sink.told == [(0.5, "half")]
        with pytest.raises(BusyError, match="no slot"):
            await one.links.invoke(address, "refuse", {}, timeout_s=5, sink=sink)
    finally:
        await old.stop(0.1)


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


async def test_the_bound_of_links_holds_and_one_that_nobody_uses_gives_way(end, monkeypatch):
    monkeypatch.setattr(links_module, "REST_S", 0.05)
    one = await end(links_max=1)
    first, second = await end("b" * 16), await end("c" * 16)
    call = asyncio.create_task(one.links.invoke(first.address, "hold", {}, timeout_s=5))
    await first.bench.started.acquire()
    await one.links.invoke(second.address, "echo", {"text": "posted"}, timeout_s=5)
    assert second.server.counters["calls"] == 1
    assert one.links.open == (first.address,), "one that is in use stays"
    first.bench.release.set()
    await call
    (channel,) = first.server._channels
    await one.links.invoke(second.address, "echo", {"text": "posted"}, timeout_s=5)
    assert second.server.counters["calls"] == 2
    await until(lambda: channel.is_resting)
    await until(lambda: not one.links._dialled)
    await one.links.invoke(second.address, "echo", {}, timeout_s=5)
    assert one.links.open == (second.address,)


async def test_a_link_that_gives_way_loses_no_call_of_the_other_side(pair, end):
    one, other, _ = pair
    one.links._links_max = 1
    third = await end("c" * 16)
    await one.links.invoke(other.address, "echo", {}, timeout_s=5)
    await other.links.invoke(one.address, "echo", {}, timeout_s=5)
    call = asyncio.create_task(other.links.invoke(one.address, "echo", {"text": "x"}, timeout_s=5))
    await asyncio.sleep(0)  # it has left, and is not read yet
    await one.links.invoke(third.address, "echo", {}, timeout_s=5)
    assert await call == {"text": "x"}


async def test_the_least_used_link_gives_way(end):
    one = await end(links_max=2)
    first, second, third = [await end(name * 16) for name in "bcd"]
    for target in (first, second, first):
        await one.links.invoke(target.address, "echo", {}, timeout_s=5)
    for _ in range(2):
        await one.links.invoke(third.address, "echo", {}, timeout_s=5)
        assert one.links.open == (first.address,), "one at a time"


async def test_dials_under_way_count_as_links(end):
    one, other = await end(links_max=1), await end("b" * 16)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        with pytest.raises(DeadlineError):
            await one.links.invoke(Address(*silent.getsockname()), "echo", {}, timeout_s=0.05)
        await one.links.invoke(other.address, "echo", {}, timeout_s=5)
        assert (other.links.accepted, other.server.counters["calls"]) == (0, 1)


async def test_a_server_takes_so_many_links_and_posts_beyond(end):
    other = await end("b" * 16, links_max=1)
    one, two = await end(), await end("c" * 16)
    await one.links.invoke(other.address, "echo", {}, timeout_s=5)
    await two.links.invoke(other.address, "echo", {}, timeout_s=5)
    assert (other.links.accepted, other.server.counters["calls"]) == (1, 1)


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


async def test_one_host_may_not_have_all_calls(end):
    one, other = await end(), await end("b" * 16, calls_max=4)
    calls = [
        asyncio.create_task(one.links.invoke(other.address, "hold", {}, timeout_s=5))
        for _ in range(2)
    ]
    for _ in calls:
        await other.bench.started.acquire()
    with pytest.raises(BusyError) as caught:
        await one.links.invoke(other.address, "echo", {}, timeout_s=5)
    assert caught.value.data["bound"] == "remote"
    other.bench.release.set()
    assert await asyncio.gather(*calls) == ["held", "held"]


async def test_one_host_may_not_have_all_links(end):
    other = await end("b" * 16, links_max=4)
    for name in "cde":
        one = await end(name * 16)
        await one.links.invoke(other.address, "echo", {}, timeout_s=5)
    assert (other.links.accepted, other.server.counters["calls"]) == (2, 1)


async def test_a_link_that_its_dialler_leaves_open_unused_is_closed(end, monkeypatch):
    monkeypatch.setattr(links_module, "REST_S", 0.02)
    other = await end("b" * 16)
    url = f"http://{other.address}/link"
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, headers={MESH_HEADER: MESH}, protocols=(LINK_PROTOCOL,)) as link,
    ):
        told = await link.receive(5)
        assert "rest" in told.data
        assert (await link.receive(5)).type is aiohttp.WSMsgType.CLOSE
    await until(lambda: other.links.accepted == 0)


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
        ({MESH_HEADER: MESH}, (), 400),
        ({}, (LINK_PROTOCOL,), 403),
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


async def test_a_link_that_nobody_uses_is_closed_after_both_sides_know(pair, monkeypatch):
    monkeypatch.setattr(links_module, "REST_S", 0.05)
    one, other, _ = pair
    await one.links.invoke(other.address, "echo", {}, timeout_s=5)
    await other.links.invoke(one.address, "echo", {}, timeout_s=5)
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
