"""The RPC client: what surely had no effect, and what may have had one."""

import asyncio
import contextlib
import json
import socket

import pytest

from meshd.errors import (
    BusyError,
    Code,
    DeadlineError,
    MeshError,
    PeerError,
    UsageError,
)
from meshd.model import Address
from meshd.rpc.client import RpcClient
from meshd.rpc.limits import ServerLimits
from meshd.rpc.server import RpcServer

pytestmark = pytest.mark.net


@pytest.fixture
async def client():
    made = RpcClient(response_bytes_max=100_000, connect_timeout_s=0.2)
    yield made
    await made.close()


@pytest.fixture
async def script():
    """Serve one scripted behaviour for each connection; count requests that came whole."""
    servers = []

    async def start(*behaviours):
        requests = []
        queue = list(behaviours)

        async def serve(reader, writer):
            behaviour = queue.pop(0)
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while (head := await reader.readuntil(b"\r\n\r\n")) is not None:
                    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                    requests.append(json.loads(await reader.readexactly(length)))
                    if not await behaviour(writer, requests[-1]):
                        break
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        servers.append(server)
        return Address(*server.sockets[0].getsockname()), requests

    yield start
    for server in servers:
        server.close()


def answer(status=b"200 OK", body=b"", *fields):
    def write(writer, request):
        text = body.replace(b"ID", str(request["id"]).encode())
        head = b"\r\n".join((b"HTTP/1.1 " + status, b"Content-Length: %d" % len(text), *fields))
        writer.write(head + b"\r\n\r\n" + text)

    return write


def behave(write, *, keep=False):
    async def behaviour(writer, request):
        write(writer, request)
        await writer.drain()
        return keep

    return behaviour


GOOD = b'{"jsonrpc":"2.0","id":ID,"result":"ok"}'


async def call(client, target, method="echo", params=None, timeout_s=5.0):
    return await client.invoke(target, method, params or {}, timeout_s=timeout_s)


async def test_a_result_comes_back(serve, client):
    _, address = await serve()
    assert await call(client, address, params={"text": "hi"}) == {"text": "hi"}


async def test_the_callers_time_is_sent_along(serve, client):
    _, address = await serve()
    assert (await call(client, address, "who", timeout_s=7))["deadline_s"] == 7


async def test_the_nodes_errors_come_back_as_they_were(serve, client):
    _, address = await serve()
    with pytest.raises(BusyError) as caught:
        await call(client, address, "refuse")
    assert (caught.value.hint, caught.value.data) == ("later", {"eta_s": 3})
    with pytest.raises(UsageError):
        await call(client, address, params={"wrong": 1})
    with pytest.raises(MeshError) as caught:
        await call(client, address, "fail")
    assert not caught.value.definite


async def test_a_busy_server_is_a_definite_busy_error(serve, client, bench):
    _, address = await serve(limits=ServerLimits(calls_max=1))
    held = asyncio.create_task(call(client, address, "hold"))
    await bench.started.acquire()
    with pytest.raises(BusyError) as caught:
        await call(client, address)
    assert caught.value.definite
    bench.release.set()
    assert await held == "held"


async def test_a_server_with_no_room_for_a_connection_is_a_definite_busy_error(
    serve, dial, client, bench
):
    _, address = await serve(limits=ServerLimits(connections_max=1))
    await dial(address)
    for size in (1, 500_000):
        with pytest.raises(BusyError) as caught:
            await client.invoke(address, "echo", {"text": "x" * size}, timeout_s=5)
        assert caught.value.definite
    assert bench.seen == []


async def test_calls_share_kept_connections(serve, client):
    server, address = await serve()
    for _ in range(5):
        await call(client, address)
    assert len(server._faces[0][1].web_server.connections) == 1


async def test_a_refused_connection_is_definite(client):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(PeerError, match="cannot be reached") as caught:
            await call(client, Address(*unused.getsockname()))
    assert caught.value.definite


async def test_a_connection_that_never_comes_about_is_definite(client):
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = Address(*full.getsockname())
        waiting = []
        for _ in range(3):
            other = socket.socket()
            other.setblocking(False)
            other.connect_ex((address.host, address.port))
            waiting.append(other)
        with pytest.raises(PeerError, match="cannot be reached") as caught:
            await call(client, address)
        assert caught.value.definite
        with pytest.raises(DeadlineError) as late:
            await call(client, address, timeout_s=0.05)
        assert late.value.definite
        for other in waiting:
            other.close()


async def test_a_host_name_is_never_resolved(client):
    with pytest.raises(PeerError, match="cannot be reached") as caught:
        await call(client, Address("localhost", 1))
    assert caught.value.definite


async def test_no_answer_in_time_is_indefinite_and_cancels_the_call(serve, client, bench):
    _, address = await serve()
    with pytest.raises(DeadlineError) as caught:
        await call(client, address, "hold", timeout_s=0.1)
    assert not caught.value.definite
    async with asyncio.timeout(5):
        await bench.ended.acquire()


async def test_a_link_lost_after_sending_is_indefinite_and_not_tried_again(script, client):
    address, requests = await script(behave(lambda writer, request: None))
    with pytest.raises(PeerError, match="got lost") as caught:
        await call(client, address)
    assert not caught.value.definite
    assert len(requests) == 1


async def test_a_kept_connection_that_ended_meanwhile_is_replaced_silently(script, client):
    closed = asyncio.Event()

    async def answer_and_close(writer, request):
        answer(body=GOOD)(writer, request)
        writer.close()
        closed.set()
        return False

    address, requests = await script(answer_and_close, behave(answer(body=GOOD)))
    assert await call(client, address) == "ok"
    await closed.wait()
    assert await call(client, address) == "ok"
    assert len(requests) == 2


async def test_a_connection_that_ends_before_anything_is_written_is_tried_once_more(
    script, client, monkeypatch
):
    address, requests = await script(
        behave(answer(body=GOOD), keep=True), behave(answer(body=GOOD))
    )
    assert await call(client, address) == "ok"
    session = client._open_session()
    (kept,) = (entry[0] for entries in session.connector._conns.values() for entry in entries)
    # The transport is closing, but the loop has not yet told anybody: the pool still lends it.
    monkeypatch.setattr(kept, "is_connected", lambda: True)
    kept.transport.close()
    assert await call(client, address) == "ok"
    assert len(requests) == 2


@pytest.mark.parametrize(
    ("status", "body", "kind", "definite"),
    [
        (b"500 Oops", b"<html>", PeerError, False),
        (b"502 Bad Gateway", b"", PeerError, False),
        (b"404 Not Found", b"no", PeerError, True),
        (b"413 Too Large", b"", PeerError, True),
        (b"429 Too Many", b"", BusyError, True),
        (b"200 OK", b"[]", PeerError, False),
        (b"200 OK", b'{"jsonrpc":"2.0","id":77,"result":1}', PeerError, False),
        (b"200 OK", b'{"jsonrpc":"2.0","id":ID}', PeerError, False),
        (b"200 OK", b'"' + b"x" * 100_001 + b'"', PeerError, False),
        (b"200 OK", b"[" * 90_000, PeerError, False),
    ],
)
async def test_an_answer_that_breaks_the_rules_is_a_peers_error(
    script, client, status, body, kind, definite
):
    address, _ = await script(behave(answer(status, body)))
    with pytest.raises(kind) as caught:
        await call(client, address)
    assert caught.value.definite is definite


async def test_an_endless_answer_is_cut_off(script, client):
    async def endless(writer, request):
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"ffff\r\n" + b" " * 0xFFFF + b"\r\n")
            await writer.drain()

    address, _ = await script(endless)
    with pytest.raises(PeerError, match="larger than allowed"):
        await call(client, address)


async def test_a_redirect_is_not_followed(script, serve, client, bench):
    _, elsewhere = await serve()
    location = b"Location: http://%s/rpc" % str(elsewhere).encode()
    address, _ = await script(behave(answer(b"307 Temporary Redirect", b"", location)))
    with pytest.raises(PeerError, match="HTTP 307") as caught:
        await call(client, address)
    assert caught.value.definite
    assert bench.seen == []


async def test_a_compressed_answer_is_not_unpacked(script, client):
    address, _ = await script(behave(answer(b"200 OK", b"\x1f\x8bzip", b"Content-Encoding: gzip")))
    with pytest.raises(PeerError, match="did not answer in JSON-RPC"):
        await call(client, address)


async def test_parameters_that_are_no_json_are_refused_before_dialling(client):
    with pytest.raises(UsageError) as caught:
        await call(client, Address("127.0.0.1", 1), params={"x": object()})
    assert caught.value.code == Code.INVALID_PARAMS


async def test_ipv6_addresses_are_dialled(bench, client):
    server = RpcServer(bench.registry)
    address = await server.start_tcp(Address("::1", 0))
    assert (await call(client, address, "who"))["remote"] == "::1"
    await server.stop()


async def test_closing_twice_is_once_and_a_closed_client_opens_anew(serve, client):
    _, address = await serve()
    await call(client, address)
    await client.close()
    await client.close()
    assert await call(client, address) == {"text": ""}


class Kept:
    """A sink that keeps all, or raises."""

    def __init__(self, error=None):
        self.seen = []
        self.error = error

    async def part(self, value):
        if self.error is not None:
            raise self.error
        self.seen.append(value)

    def progress(self, fraction, message):
        self.seen.append((fraction, message))


EVENTS = b"Content-Type: text/event-stream"
PART = b'data: {"jsonrpc":"2.0","method":"part","params":{"id":ID,"value":1}}\n\n'


async def test_an_answer_in_events_is_read_to_its_response_and_rubbish_passed_over(script, client):
    rubbish = b'data: [\n\ndata: {}\n\n: a comment\n\ndata: {"jsonrpc":"2.0","method":"part"}\n\n'
    odd = b'data: {"jsonrpc":"2.0","method":"progress","params":{"fraction":"x","message":""}}\n\n'
    told = odd.replace(b'"x"', b"0.5")
    body = rubbish + PART + odd + told + b"data: " + GOOD + b"\n\n"
    sink = Kept()
    target, _ = await script(behave(answer(b"200 OK", body, EVENTS)))
    assert await client.invoke(target, "echo", {}, timeout_s=5, sink=sink) == "ok"
    assert sink.seen == [1, (0.5, "")]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (PART, "broke off"),
        (PART + b"data: " + b"x" * 200_000, "larger than allowed"),
        (b'data: {"jsonrpc":"2.0","id":99,"result":1}\n\n', "another request"),
    ],
)
async def test_a_wrong_answer_in_events_is_indefinite(script, client, body, why):
    target, _ = await script(behave(answer(b"200 OK", body, EVENTS)))
    with pytest.raises(PeerError, match=why) as caught:
        await client.invoke(target, "echo", {}, timeout_s=5, sink=Kept())
    assert not caught.value.definite


async def test_a_sink_that_fails_ends_a_call_by_events(script, client):
    target, _ = await script(behave(answer(b"200 OK", PART + PART, EVENTS)))
    with pytest.raises(ZeroDivisionError):
        await client.invoke(target, "echo", {}, timeout_s=5, sink=Kept(ZeroDivisionError()))
