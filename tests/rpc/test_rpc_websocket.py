"""A WebSocket after its upgrade: frames both ways, pings, goodbyes, broken rules, lost links."""

import asyncio
import base64
import hashlib
import json
import socket
import struct
from itertools import pairwise

import aiohttp
import pytest
from aiohttp._websocket.reader import WebSocketDataQueue
from aiohttp.http_websocket import WS_KEY, WebSocketReader
from hypothesis import given
from hypothesis import strategies as st
from rpc_bench import LOOPBACK, Bench

from meshd.rpc.channel import Channel, ChannelLimits
from meshd.rpc.client import RpcClient, connect_channel
from meshd.rpc.methods import Registry
from meshd.rpc.server import RpcServer
from meshd.rpc.websocket import JOINED_BYTES_MAX, WebSocket

TEXT, PING, PONG, CLOSE = 0x81, 0x89, 0x8A, 0x88
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
LIMITS = ChannelLimits(heartbeat_s=None, message_bytes_max=1_000, close_timeout_s=0.2)


def frame(first, payload=b"", mask=None):
    """One frame, as RFC 6455 has it."""
    size, bit = len(payload), 0 if mask is None else 0x80
    if size < 126:
        head = bytes((first, bit | size))
    elif size < 65_536:
        head = struct.pack("!BBH", first, bit | 126, size)
    else:
        head = struct.pack("!BBQ", first, bit | 127, size)
    if mask is None:
        return head + payload
    return head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


def goodbye(code):
    return frame(CLOSE, struct.pack("!H", code))


class Transport:
    """Takes what is written; fed by hand."""

    def __init__(self):
        self.written = bytearray()
        self.is_reading = True
        self.is_shut = False

    def write(self, data):
        self.written += data

    def pause_reading(self):
        self.is_reading = False

    def resume_reading(self):
        self.is_reading = True

    def set_protocol(self, protocol):
        self.protocol = protocol

    def is_closing(self):
        return self.is_shut

    def get_write_buffer_size(self):
        return 0

    def close(self):
        self.is_shut = True

    abort = close


class Before(asyncio.Protocol):
    """Whoever had the connection before."""

    is_told = False

    def connection_lost(self, exc):
        self.is_told = True


def taken(transport, *, limits=LIMITS, is_client=False, early=b"", listens=True):
    """A WebSocket over it, and what it has handed on."""
    link = WebSocket(transport, Before(), limits=limits, is_client=is_client, early=early)
    seen = []
    if listens:
        link.listen(seen.append)
    return link, seen


@pytest.fixture
async def pair():
    """A WebSocket, what it has handed on, and the raw other end."""
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()
    before = Before()
    transport, _ = await loop.create_connection(lambda: before, sock=ours)
    link = WebSocket(transport, before, limits=LIMITS, is_client=False)
    seen = asyncio.Queue()
    link.listen(seen.put_nowait)
    reader, writer = await asyncio.open_connection(sock=theirs)
    yield link, seen, reader, writer
    link.abort()
    writer.transport.abort()
    async with asyncio.timeout(5):
        while not before.is_told:
            await asyncio.sleep(0)


def filled(link, writer):
    """Send until the other end, which reads no more, takes no more; returns how many bytes."""
    writer.transport.pause_reading()
    sent = len(frame(TEXT, b"x" * 65_536))
    total = sent
    while link.send(b"x" * 65_536):
        total += sent
    return total


class Oracle:
    """aiohttp's parser and what it found."""

    def __init__(self, bytes_max=10_000_000):
        self.messages = []
        outer = self

        class Queue(WebSocketDataQueue):
            def feed_data(self, data, size):
                outer.messages.append((data[0], bytes(data[1])))

        self._queue = Queue(None, 65_536, loop=asyncio.get_running_loop())
        self.feed = WebSocketReader(self._queue, bytes_max, False, False).feed_data


SIZES = st.sampled_from([0, 1, 125, 126, 127, 300, 65_535, 65_536, JOINED_BYTES_MAX + 1])


@given(st.lists(SIZES, max_size=4), st.booleans())
def test_what_is_sent_is_read_by_another_parser(sizes, is_client):
    payloads = [bytes(at % 251 for at in range(size)) for size in sizes]

    async def sent():
        link, _ = taken(transport := Transport(), is_client=is_client)
        for payload in payloads:
            assert link.send(payload)
        oracle = Oracle()
        oracle.feed(bytes(transport.written))
        return oracle.messages, transport.written

    messages, written = asyncio.run(sent())
    assert messages == [(aiohttp.WSMsgType.TEXT, payload) for payload in payloads]
    if written:
        assert bool(written[1] & 0x80) is is_client


@given(
    st.lists(st.tuples(st.sampled_from([1, 2]), st.integers(0, 3), st.binary(max_size=200))),
    st.lists(st.integers(0, 2_000)),
    st.none() | st.binary(min_size=4, max_size=4),
)
def test_frames_are_handed_on_whole_and_in_order_however_they_are_cut(messages, cuts, mask):
    data = b""
    for opcode, parts, payload in messages:
        at = [len(payload) * part // (parts + 1) for part in range(parts + 2)]
        for number in range(parts + 1):
            first = (0 if number < parts else 0x80) | (opcode if number == 0 else 0)
            data += frame(first, payload[at[number] : at[number + 1]], mask)
            data += frame(PONG, b"", mask)

    async def handed_on():
        link, seen = taken(Transport())
        bounds = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
        for start, end in pairwise(bounds):
            link.data_received(data[start:end])
        return seen

    assert asyncio.run(handed_on()) == [payload for _, _, payload in messages]


@given(st.binary(max_size=300))
def test_garbage_ends_the_link_or_is_a_frame_but_raises_nothing(data):
    async def fed():
        link, _ = taken(Transport())
        link.data_received(data)
        link.connection_lost(None)
        await link.wait_silent()

    asyncio.run(fed())


@pytest.mark.net
async def test_a_frame_is_handed_on_and_one_is_sent(pair):
    link, seen, reader, writer = pair
    writer.write(frame(TEXT, b"one", b"abcd") + frame(0x82, b"two"))
    async with asyncio.timeout(5):
        assert [await seen.get(), await seen.get()] == [b"one", b"two"]
        assert link.send(b"three")
        assert await reader.readexactly(7) == frame(TEXT, b"three")


@pytest.mark.net
async def test_a_ping_is_answered_between_the_parts_of_a_message(pair):
    _link, seen, reader, writer = pair
    writer.write(frame(0x01, b"a") + frame(PING, b"there?") + frame(0x80, b"b"))
    async with asyncio.timeout(5):
        assert await seen.get() == b"ab"
        assert await reader.readexactly(8) == frame(PONG, b"there?")


@pytest.mark.net
async def test_a_goodbye_is_answered_and_the_connection_ends(pair):
    link, seen, reader, writer = pair
    writer.write(frame(TEXT, b"last") + goodbye(1001) + frame(TEXT, b"too late"))
    async with asyncio.timeout(5):
        await link.wait_silent()
        assert await reader.read() == goodbye(1000)
    assert link.closed
    assert seen.get_nowait() == b"last"
    assert seen.empty()
    with pytest.raises(ConnectionError):
        link.send(b"no more")


@pytest.mark.net
async def test_closing_says_goodbye_and_waits_for_the_other_sides(pair):
    link, seen, reader, writer = pair
    closing = asyncio.create_task(link.close(1001))
    async with asyncio.timeout(5):
        assert await reader.readexactly(4) == goodbye(1001)
        assert not closing.done()
        await link.wait_silent()
        writer.write(frame(TEXT, b"dropped") + goodbye(1000))
        await closing
        assert await reader.read() == b""
    assert seen.empty()
    await link.close()


@pytest.mark.net
async def test_closing_does_not_wait_for_ever_for_a_goodbye(pair):
    link, _seen, reader, _writer = pair
    async with asyncio.timeout(5):
        await link.close()
        assert await reader.read() == goodbye(1000)


@pytest.mark.net
@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(TEXT, b"x" * 1_001), 1009),
        (frame(0x01, b"x" * 600) + frame(0x80, b"x" * 600), 1009),
        (frame(0xC1, b"reserved bit"), 1002),
        (frame(0x83, b"unknown opcode"), 1002),
        (frame(0x09, b"a ping in parts"), 1002),
        (frame(0x80, b"the rest of nothing"), 1002),
        (frame(PING, b"x" * 126), 1002),
        (frame(CLOSE, b"x"), 1002),
        (b"GET / HTTP/1.1\r\n\r\n", 1002),
    ],
)
async def test_who_breaks_the_rules_is_told_so_and_the_link_ends(pair, data, code):
    link, seen, reader, writer = pair
    writer.write(data)
    async with asyncio.timeout(5):
        await link.wait_silent()
        assert await reader.read() == goodbye(code)
    assert seen.empty()


@pytest.mark.net
async def test_a_lost_link_is_told_to_who_waits_for_room_and_to_who_had_the_connection(pair):
    link, _seen, _reader, writer = pair
    filled(link, writer)
    waiting = asyncio.create_task(link.wait_for_room())
    await asyncio.sleep(0)
    writer.transport.abort()
    async with asyncio.timeout(5):
        with pytest.raises(ConnectionError):
            await waiting
        await link.wait_silent()
    assert link.closed


@pytest.mark.net
async def test_who_sends_to_a_slow_reader_is_told_to_wait_until_it_reads(pair):
    link, _seen, reader, writer = pair
    sent = filled(link, writer)
    waiting = asyncio.create_task(link.wait_for_room())
    await asyncio.sleep(0)
    assert not waiting.done()
    writer.transport.resume_reading()
    async with asyncio.timeout(5):
        await reader.readexactly(sent)
        await waiting


@pytest.mark.net
async def test_closing_cuts_off_who_does_not_read(pair):
    link, _seen, reader, writer = pair
    sent = filled(link, writer)
    async with asyncio.timeout(5):
        await link.close()
        writer.transport.resume_reading()
        assert len(await reader.read()) < sent, "the rest is dropped"


async def test_of_many_pings_only_the_latest_is_answered_once_the_other_side_reads():
    link, _ = taken(transport := Transport())
    link.pause_writing()
    for number in range(1_000):
        link.data_received(frame(PING, b"%d" % number))
    assert not transport.written, "no heap of answers grows"
    link.resume_writing()
    assert transport.written == frame(PONG, b"999")


async def test_pings_that_came_with_the_end_of_a_connection_are_not_answered():
    link, _ = taken(transport := Transport())
    transport.is_shut = True
    link.data_received(frame(PING, b"a") + frame(PING, b"b") + goodbye(1000))
    assert not transport.written, "asyncio would log each write to a connection that is gone"
    assert link.closed


async def test_a_message_of_just_the_size_that_is_allowed_is_taken():
    largest = b"x" * LIMITS.message_bytes_max
    link, seen = taken(transport := Transport())
    link.data_received(frame(TEXT, largest))
    assert seen == [largest]
    link.data_received(frame(TEXT, largest + b"x"))
    assert transport.written == goodbye(1009)


@pytest.mark.net
@pytest.mark.parametrize("end", ["no more", "goodbye", "broken rule"])
async def test_what_waits_for_who_has_ended_and_does_not_read_is_dropped_soon(pair, end):
    link, _seen, _reader, writer = pair
    filled(link, writer)
    if end == "no more":
        writer.write_eof()
    else:
        writer.write(goodbye(1000) if end == "goodbye" else frame(0x83))
    async with asyncio.timeout(5):
        await link.wait_silent()
        assert not link._before.is_told, "what the other side takes by then still arrives"
        while not link._before.is_told:
            await asyncio.sleep(0)


@pytest.mark.net
async def test_who_sends_no_more_takes_no_answers_either(attached, server):
    reader, writer = await asyncio.open_unix_connection(attached)
    writer.write(UPGRADE % (b"/attach", b"13", KEY))
    await reader.readuntil(b"\r\n\r\n")
    call = b'{"jsonrpc":"2.0","id":1,"method":"hold","params":{}}'
    writer.write(frame(TEXT, call, b"mask"))
    async with asyncio.timeout(5):
        while not any(channel.calls for channel in server.channels):
            await asyncio.sleep(0)
        writer.write_eof()
        while server.channels:
            await asyncio.sleep(0)
        assert await reader.read() == b""
    writer.close()


async def test_what_the_listener_raises_ends_the_link_and_is_told_to_who_waits():
    def broken(data):
        raise ZeroDivisionError

    link, _ = taken(transport := Transport(), listens=False)
    link.listen(broken)
    link.data_received(frame(TEXT, b"x"))
    assert transport.written == goodbye(1011)
    with pytest.raises(ZeroDivisionError):
        await link.wait_silent()


async def test_nothing_is_read_before_somebody_listens_and_what_came_early_comes_first():
    early = frame(TEXT, b"first") + frame(TEXT, b"second")
    link, _ = taken(transport := Transport(), early=early[:-3], listens=False)
    assert not transport.is_reading
    seen = []
    link.listen(seen.append)
    assert transport.is_reading
    link.data_received(early[-3:] + frame(TEXT, b"third"))
    assert seen == [b"first", b"second", b"third"]


async def test_a_heartbeat_asks_who_is_quiet_and_cuts_off_who_does_not_answer():
    limits = ChannelLimits(heartbeat_s=0.1)
    link, _ = taken(transport := Transport(), limits=limits)
    async with asyncio.timeout(5):
        while not transport.written:
            await asyncio.sleep(0)
        assert transport.written == frame(PING)
        link.data_received(frame(PONG))
        while len(transport.written) < 4:
            await asyncio.sleep(0)
        assert not link.closed, "it has answered the first"
        await link.wait_silent()
    assert transport.is_shut


async def test_a_heartbeat_asks_nobody_whose_messages_come():
    limits = ChannelLimits(heartbeat_s=0.3)
    link, _ = taken(transport := Transport(), limits=limits)
    loop = asyncio.get_running_loop()
    until = loop.time() + 0.4
    while loop.time() < until:
        link.data_received(frame(TEXT, b"x"))
        await asyncio.sleep(0)
    assert not transport.written
    link.abort()


UPGRADE = (
    b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive, Upgrade\r\n"
    b"Upgrade: websocket\r\nSec-WebSocket-Version: %b\r\nSec-WebSocket-Key: %b\r\n\r\n"
)


@pytest.fixture
async def server(tmp_path):
    """A server with a control socket."""
    tmp_path.chmod(0o700)
    bench = Bench()
    server = RpcServer(bench.registry)
    await server.start_control(tmp_path / "d.sock")
    yield server
    await server.stop(0.1)


@pytest.fixture
def attached(server, tmp_path):
    """Its control socket."""
    return str(tmp_path / "d.sock")


@pytest.mark.net
async def test_who_is_gone_before_the_upgrade_is_counted_and_no_fault_in_the_log(caplog):
    async def upgrade(request):
        return await server.upgrade(request, Channel, limits=LIMITS, on_open=lambda _: None)

    server = RpcServer(Registry())
    server.add_route("GET", "/l", upgrade, local=False)
    address = await server.start_tcp(LOOPBACK)
    async with asyncio.timeout(10):
        while not server.counters["caller_gone"]:
            caller = socket.create_connection((address.host, address.port))
            caller.send(UPGRADE % (b"/l", b"13", KEY))
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            caller.close()
            await asyncio.sleep(0)
    await server.stop(0.1)
    assert "Error handling request" not in caplog.text


@pytest.mark.net
@pytest.mark.parametrize("cut", [0, 1, 7, 40])
async def test_a_call_in_the_packet_of_the_upgrade_is_answered(attached, cut):
    reader, writer = await asyncio.open_unix_connection(attached)
    call = b'{"jsonrpc":"2.0","id":%d,"method":"echo","params":{"text":"early"}}'
    data = frame(TEXT, call % 1, b"mask") + frame(TEXT, call % 2, b"mask")
    writer.write(UPGRADE % (b"/attach", b"13", KEY) + data[: len(data) - cut])
    async with asyncio.timeout(5):
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        writer.write(data[len(data) - cut :])
        got = b""
        while got.count(b'"text":"early"') < 2:
            got += await reader.read(10_000)
    writer.close()


@pytest.mark.net
@pytest.mark.parametrize(
    "request_", [UPGRADE % (b"/attach", b"12", KEY), UPGRADE % (b"/attach", b"13", b"short")]
)
async def test_an_upgrade_that_is_none_is_refused(attached, request_):
    reader, writer = await asyncio.open_unix_connection(attached)
    writer.write(request_)
    async with asyncio.timeout(5):
        assert b" 400 " in await reader.readuntil(b"\r\n\r\n")
    writer.close()


async def answer_upgrade(reader, writer, after):
    """Accept the upgrade, with `after` in the same packet; returns what then comes."""
    head = await reader.readuntil(b"\r\n\r\n")
    key = next(
        line for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key")
    )
    digest = hashlib.sha1(key.split(b": ")[1] + WS_KEY, usedforsecurity=False).digest()
    writer.write(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Accept: %b\r\n\r\n" % base64.b64encode(digest) + after
    )


@pytest.mark.net
@pytest.mark.parametrize("cut", [0, 1, 30])
async def test_a_call_in_the_packet_of_the_upgrades_answer_is_answered(tmp_path, cut):
    call = frame(TEXT, b'{"jsonrpc":"2.0","id":"first","method":"echo","params":{"text":"x"}}')
    answers = asyncio.Queue()

    async def serve(reader, writer):
        await answer_upgrade(reader, writer, call[: len(call) - cut])
        writer.write(call[len(call) - cut :])
        await answers.put(await reader.read(1_000))
        writer.close()

    server = await asyncio.start_unix_server(serve, tmp_path / "d.sock")
    channel = await connect_channel(str(tmp_path / "d.sock"), methods=Bench().registry)
    async with asyncio.timeout(5):
        oracle = Oracle()
        oracle.feed(await answers.get())
        assert json.loads(oracle.messages[0][1])["id"] == "first"
        await channel.close()
    server.close()


@pytest.mark.net
async def test_a_link_that_speaks_another_protocol_is_none():
    server = RpcServer(Bench().registry)

    async def link(request):
        async def opened(channel):
            pass

        return await server.upgrade(
            request, lambda each: Channel(each, methods=Registry()), limits=LIMITS,
            on_open=opened, protocols=("other",),
        )  # fmt: skip

    server.add_route("GET", "/link", link, local=False)
    address, client = await server.start_tcp(LOOPBACK), RpcClient()
    async with asyncio.timeout(5):
        for protocol, is_spoken in (("mine", False), ("other", True)):
            got = await client.upgrade(
                address, "/link", protocol=protocol, headers={}, limits=LIMITS
            )
            assert (got is not None) is is_spoken
            if got is not None:
                await got.close()
        await client.close()
        await server.stop(0.1)


def test_whoever_is_collected_after_its_loop_has_ended_closes_nothing():
    async def begun():
        link, _ = taken(transport := Transport())
        return link, transport

    loop = asyncio.new_event_loop()
    link, transport = loop.run_until_complete(begun())
    loop.close()
    closing = link.close()
    with pytest.raises(StopIteration):
        closing.send(None)
    assert not transport.written
