"""The two-way link: many calls, lost links, cancelled callers."""

import asyncio
import json
import socket
from pathlib import Path

import aiohttp
import pytest
from rpc_bench import Bench

from meshd.errors import (
    NOT_CALLED_OFF,
    BusyError,
    Code,
    DeadlineError,
    MeshError,
    NoDaemonError,
    PeerError,
    UsageError,
)
from meshd.rpc.channel import ChannelLimits
from meshd.rpc.client import connect_channel
from meshd.rpc.limits import ServerLimits
from meshd.rpc.server import RpcServer

pytestmark = pytest.mark.net


class Daemon:
    """A server on a control socket that keeps the channels it was given."""

    def __init__(self, path, **options):
        self.path = str(path)
        self.bench = Bench()
        self.attached = asyncio.Queue()
        self.server = RpcServer(self.bench.registry, on_attach=self.attached.put, **options)

    async def next_channel(self):
        async with asyncio.timeout(5):
            return await self.attached.get()


@pytest.fixture
async def daemon_with(tmp_path):
    tmp_path.chmod(0o700)
    made = []

    async def start(**options):
        daemon = Daemon(tmp_path / "d.sock", **options)
        made.append(daemon)
        await daemon.server.start_control(daemon.path)
        return daemon

    yield start
    for daemon in made:
        daemon.bench.release.set()
        await daemon.server.stop(1.0)


async def test_a_program_calls_the_daemons_methods_control_methods_too(daemon_with):
    daemon = await daemon_with()
    channel = await connect_channel(daemon.path)
    assert await channel.call("echo", {"text": "hi"}) == {"text": "hi"}
    assert (await channel.call("secret"))["local"] is True
    with pytest.raises(MeshError) as caught:
        await channel.call("nope")
    assert caught.value.code == Code.METHOD_NOT_FOUND
    await channel.close()


async def test_the_daemon_calls_the_programs_methods(daemon_with):
    daemon = await daemon_with()
    own = Bench()
    channel = await connect_channel(daemon.path, methods=own.registry)
    far = await daemon.next_channel()
    assert await far.call("echo", ["to the program"]) == {"text": "to the program"}
    with pytest.raises(BusyError) as caught:
        await far.call("refuse")
    assert caught.value.data == {"eta_s": 3}
    await channel.close()


async def test_methods_added_on_attaching_belong_to_that_channel_alone(daemon_with):
    daemon = await daemon_with()
    attached = []

    async def on_attach(channel):
        number = len(attached)
        attached.append(channel)

        async def mine(params, context):
            return number

        channel.methods.add("mine", None, mine)

    daemon.server._on_attach = on_attach
    first, second = await connect_channel(daemon.path), await connect_channel(daemon.path)
    assert [await first.call("mine"), await second.call("mine")] == [0, 1]
    assert daemon.server.channels == tuple(attached)
    await first.close()
    await second.close()


async def test_many_calls_run_at_a_time_and_answers_find_their_callers(daemon_with):
    daemon = await daemon_with()
    channel = await connect_channel(daemon.path)
    held = asyncio.create_task(channel.call("hold"))
    await daemon.bench.started.acquire()
    texts = [f"t{n}" for n in range(200)]
    answers = await asyncio.gather(*(channel.call("echo", [text]) for text in texts))
    assert [answer["text"] for answer in answers] == texts
    assert not held.done()
    daemon.bench.release.set()
    assert await held == "held"
    await channel.close()


async def test_a_notification_runs_and_is_not_answered(daemon_with):
    daemon = await daemon_with()
    channel = await connect_channel(daemon.path)
    await channel.notify("echo", ["quiet"])
    await channel.notify("nope")
    await channel.call("echo", ["loud"])
    assert daemon.bench.seen == ["quiet", "loud"]
    assert channel.late_answers == 0
    await channel.close()


async def test_when_the_daemon_goes_every_waiting_call_ends_indefinitely(daemon_with):
    daemon = await daemon_with()
    channel = await connect_channel(daemon.path)
    calls = [asyncio.create_task(channel.call("hold")) for _ in range(3)]
    for _ in calls:
        await daemon.bench.started.acquire()
    gone = []
    channel.on_closed(gone.append)
    await daemon.server.stop(0.1)
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert all(type(error) is PeerError and not error.definite for error in errors)
    assert len({id(error) for error in errors}) == 3
    await channel.wait_closed()
    assert gone == [channel]
    assert channel.closed
    with pytest.raises(PeerError) as caught:
        await channel.call("echo")
    assert caught.value.definite
    with pytest.raises(PeerError):
        await channel.notify("echo")
    await channel.close()


async def test_when_the_program_goes_its_running_calls_are_cancelled_and_its_end_is_told(
    daemon_with,
):
    daemon = await daemon_with()
    channel = await connect_channel(daemon.path)
    far = await daemon.next_channel()
    gone = asyncio.Queue()
    far.on_closed(gone.put_nowait)
    call = asyncio.create_task(channel.call("hold"))
    await daemon.bench.started.acquire()
    await channel.close()
    with pytest.raises(PeerError):
        await call
    await daemon.bench.ended.acquire()
    async with asyncio.timeout(5):
        await far.wait_closed()
        assert await gone.get() is far
    while daemon.server.channels:
        await asyncio.sleep(0)


async def test_a_call_past_its_time_is_an_indefinite_deadline_and_is_called_off(daemon_with):
    daemon = await daemon_with()
    channel = await connect_channel(daemon.path)
    with pytest.raises(DeadlineError) as caught:
        await channel.call("hold", timeout_s=0.05)
    assert not caught.value.definite
    async with asyncio.timeout(5):
        await daemon.bench.ended.acquire()
    assert await channel.call("echo", ["still here"]) == {"text": "still here"}
    await channel.close()


async def test_a_cancelled_call_cancels_the_other_sides_work_and_no_other(daemon_with):
    daemon = await daemon_with()
    channel = await connect_channel(daemon.path)
    calls = [asyncio.create_task(channel.call("hold")) for _ in range(2)]
    for _ in calls:
        await daemon.bench.started.acquire()
    calls[0].cancel()
    async with asyncio.timeout(5):
        await daemon.bench.ended.acquire()
    daemon.bench.release.set()
    assert await calls[1] == "held"
    assert calls[0].cancelled()
    assert channel.late_answers == 0
    await channel.close()


async def test_a_call_that_somebody_else_will_ask_for_is_not_called_off(daemon_with):
    daemon = await daemon_with()
    channel = await connect_channel(daemon.path)
    call = asyncio.create_task(channel.call("hold"))
    await daemon.bench.started.acquire()
    call.cancel(NOT_CALLED_OFF)
    await asyncio.wait((call,))
    assert await channel.call("echo", ["after a cancellation would have come"])
    assert daemon.bench.ended.locked(), "it goes on"
    await channel.close()
    async with asyncio.timeout(5):
        await daemon.bench.ended.acquire()


async def test_whoever_asks_late_to_be_told_of_the_end_is_told_at_once(daemon_with):
    daemon = await daemon_with()
    channel = await connect_channel(daemon.path)
    await channel.close()
    gone = []
    channel.on_closed(gone.append)
    assert gone == [channel]


async def test_a_call_of_the_other_side_ends_at_the_longest_time(daemon_with):
    daemon = await daemon_with(channel_limits=ChannelLimits(call_timeout_s=0.05))
    channel = await connect_channel(daemon.path)
    with pytest.raises(DeadlineError, match="not done within"):
        await channel.call("hold")
    await daemon.bench.ended.acquire()
    await channel.close()


async def test_own_waiting_calls_are_bounded(daemon_with):
    daemon = await daemon_with()
    channel = await connect_channel(daemon.path, limits=ChannelLimits(outgoing_max=1))
    held = asyncio.create_task(channel.call("hold"))
    await daemon.bench.started.acquire()
    with pytest.raises(BusyError) as caught:
        await channel.call("echo")
    assert caught.value.definite
    daemon.bench.release.set()
    await held
    await channel.close()


async def test_the_other_sides_running_calls_are_bounded(daemon_with):
    daemon = await daemon_with(channel_limits=ChannelLimits(incoming_max=1))
    channel = await connect_channel(daemon.path)
    held = asyncio.create_task(channel.call("hold"))
    await daemon.bench.started.acquire()
    await channel.notify("echo", ["dropped"])
    with pytest.raises(BusyError):
        await channel.call("echo", ["refused"])
    assert daemon.bench.seen == []
    daemon.bench.release.set()
    assert await held == "held"
    await channel.close()


async def test_messages_are_bounded_on_both_sides(daemon_with):
    daemon = await daemon_with(channel_limits=ChannelLimits(message_bytes_max=1_000))
    careful = await connect_channel(daemon.path, limits=ChannelLimits(message_bytes_max=500))
    with pytest.raises(UsageError, match="more than 500"):
        await careful.call("echo", ["x" * 600])
    with pytest.raises(MeshError, match="more than the 1000"):
        await careful.call("big", {"size": 2_000})
    await careful.close()
    careless = await connect_channel(daemon.path)
    with pytest.raises(PeerError) as caught:
        await careless.call("echo", ["x" * 2_000])
    assert not caught.value.definite
    await careless.close()


async def test_parameters_that_are_no_json_are_refused_before_sending(daemon_with):
    daemon = await daemon_with()
    channel = await connect_channel(daemon.path)
    with pytest.raises(UsageError):
        await channel.call("echo", {"text": object()})
    await channel.close()


def foreign(path):
    """Another WebSocket client's session."""
    return aiohttp.ClientSession("http://localhost", connector=aiohttp.UnixConnector(path))


async def raw_exchange(path, *frames):
    """Send frames by a foreign client; return as many answers."""
    async with foreign(path) as session, session.ws_connect("/attach") as link:
        answers = []
        for frame in frames:
            await link.send_str(frame)
            answers.append(json.loads(await link.receive_str(timeout=5)))
        return answers


async def test_broken_frames_are_answered_and_do_not_end_the_link(daemon_with):
    daemon = await daemon_with()
    good = '{"jsonrpc":"2.0","method":"echo","id":"x"}'
    answers = await raw_exchange(daemon.path, "{", "[]", "1", "[" * 50_000, good)
    codes = [answer.get("error", {}).get("code") for answer in answers]
    assert codes == [Code.PARSE, Code.INVALID_REQUEST, Code.INVALID_REQUEST, Code.PARSE, None]
    assert answers[-1] == {"jsonrpc": "2.0", "id": "x", "result": {"text": ""}}


async def test_answers_to_nothing_are_counted_and_never_answered(daemon_with):
    daemon = await daemon_with()
    async with foreign(daemon.path) as session, session.ws_connect("/attach") as link:
        far = await daemon.next_channel()
        call = asyncio.create_task(far.call("ask"))
        assert (await link.receive_json())["id"] == 1
        for forged in ("1.0", "true", "null", '"1"', "99"):
            await link.send_str(f'{{"jsonrpc":"2.0","id":{forged},"result":"forged"}}')
        await link.send_str('{"jsonrpc":"2.0","id":1,"result":"true one"}')
        assert await call == "true one"
        assert far.late_answers == 5


async def test_a_link_whose_other_side_is_mute_is_closed_by_the_heartbeat(daemon_with):
    daemon = await daemon_with(channel_limits=ChannelLimits(heartbeat_s=0.1, close_timeout_s=0.1))
    with socket.socket(socket.AF_UNIX) as mute:
        mute.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(mute, daemon.path)
        upgrade = (
            "GET /attach HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        await loop.sock_sendall(mute, upgrade.encode())
        far = await daemon.next_channel()
        with pytest.raises(PeerError) as caught:
            await far.call("work", timeout_s=5)
        assert not caught.value.definite


async def test_attached_programs_are_bounded(daemon_with):
    daemon = await daemon_with(limits=ServerLimits(channels_max=1))
    first = await connect_channel(daemon.path)
    await daemon.next_channel()
    with pytest.raises(PeerError, match="cannot attach"):
        await connect_channel(daemon.path)
    await first.close()


async def test_attaching_without_an_upgrade_is_refused(daemon_with):
    daemon = await daemon_with()
    async with foreign(daemon.path) as session, session.get("/attach") as response:
        assert response.status == 400
        assert (await response.json())["error"]["code"] == Code.INVALID_REQUEST


async def test_attaching_says_what_is_wrong(tmp_path):
    tmp_path.chmod(0o700)
    with pytest.raises(NoDaemonError, match="no daemon answers"):
        await connect_channel(str(tmp_path / "none.sock"))
    stale = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(stale))
    with pytest.raises(NoDaemonError, match="no daemon answers"):
        await connect_channel(str(stale))
    mute = tmp_path / "mute.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(mute))
        listener.listen()
        with pytest.raises(PeerError, match="cannot attach"):
            await connect_channel(str(mute), timeout_s=0.05)


async def test_closing_twice_is_once(daemon_with):
    daemon = await daemon_with()
    channel = await connect_channel(daemon.path)
    await channel.close()
    await channel.close()
    assert Path(daemon.path).exists()
    await daemon.server.stop()
    assert not Path(daemon.path).exists()


async def upgraded(path):
    """A raw connection that has become a link, and from now on reads nothing."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(
        b"GET /attach HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
        b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    await reader.readuntil(b"\r\n\r\n")
    reader._transport.pause_reading()
    return writer


def masked(data):
    """One text frame of a client, under a mask of zeros."""
    return b"\x81\xff" + len(data).to_bytes(8, "big") + bytes(4) + data


async def test_who_is_refused_and_does_not_read_is_cut_off(daemon_with):
    daemon = await daemon_with()
    writer = await upgraded(daemon.path)
    far = await daemon.next_channel()
    # Each of these is answered by an error of over 100 bytes.
    writer.write(masked(b"\x1e1\n" * 80_000))
    async with asyncio.timeout(10):
        await far.wait_closed()
    writer.transport.abort()


async def many_large_calls(channel) -> list[asyncio.Task]:
    """More than the system takes from who sends to one that does not read."""
    calls = [
        asyncio.create_task(channel.call("work", {"x": "x" * 1_000_000}, timeout_s=60))
        for _ in range(20)
    ]
    await asyncio.sleep(0)
    return calls


async def test_a_link_whose_other_side_does_not_read_is_closed_in_time(daemon_with):
    daemon = await daemon_with(channel_limits=ChannelLimits(close_timeout_s=0.1))
    writer = await upgraded(daemon.path)
    far = await daemon.next_channel()
    calls = await many_large_calls(far)
    async with asyncio.timeout(5):
        await far.close()
    for error in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(error, PeerError)
    writer.transport.abort()


async def test_refusals_are_sent_while_the_other_side_does_not_read(daemon_with):
    """Two ends that wait for each other to read before they read themselves never would."""
    daemon = await daemon_with(channel_limits=ChannelLimits(incoming_max=1))
    writer = await upgraded(daemon.path)
    far = await daemon.next_channel()
    calls = await many_large_calls(far)
    refused = b'{"jsonrpc":"2.0","id":%d,"method":"hold"}'
    for number in range(3):
        writer.write(masked(refused % number))
    writer.write(masked(b'{"jsonrpc":"2.0","id":1,"result":"read all the same"}'))
    assert await asyncio.wait_for(calls[0], 5) == "read all the same"
    writer.transport.abort()
    await asyncio.gather(*calls, return_exceptions=True)


async def test_answers_that_are_done_have_left_before_a_link_is_closed(daemon_with):
    daemon = await daemon_with()
    channel = await connect_channel(daemon.path)
    far = await daemon.next_channel()
    calls = [
        asyncio.create_task(channel.call("big", {"size": 1_000_000}, timeout_s=10))
        for _ in range(20)
    ]
    async with asyncio.timeout(5):
        while far.turnover < len(calls):
            await asyncio.sleep(0)
        await far.drain(5.0)
        await far.close()
    assert [len(answer) for answer in await asyncio.gather(*calls)] == [1_000_000] * len(calls)
