"""Partial results on a channel: in order, before the answer, and no faster than they are read."""

import asyncio
import json

import aiohttp
import pytest
from rpc_bench import Bench

from meshd.errors import DeadlineError, PeerError, UsageError
from meshd.rpc.channel import Channel, ChannelLimits
from meshd.rpc.client import connect_channel
from meshd.rpc.flow import WINDOW_BYTES
from meshd.rpc.server import RpcServer

pytestmark = pytest.mark.net


class Kept:
    """A sink that keeps all, and takes no more while `room` is clear."""

    def __init__(self):
        self.parts = []
        self.told = []
        self.room = asyncio.Event()
        self.room.set()
        self.error = None
        self.progress_error = None

    async def part(self, value):
        await self.room.wait()
        if self.error is not None:
            raise self.error
        self.parts.append(value)

    def progress(self, fraction, message):
        if self.progress_error is not None:
            raise self.progress_error
        self.told.append((fraction, message))


class Source:
    """Sends `count` parts of `size` characters, and counts how many have left."""

    def __init__(self):
        self.bench = Bench()
        self.sent = 0
        self.cancelled = asyncio.Event()
        add = self.bench.registry.add
        add("stream", None, self.stream)
        add("steps", None, self.steps)
        add("broken", None, self.broken)

    async def stream(self, params, context):
        try:
            for number in range(params["count"]):
                await context.sink.part([number, "x" * params.get("size", 0)])
                self.sent += 1
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return self.sent

    async def steps(self, params, context):
        for step in range(params["count"]):
            context.sink.progress(step / params["count"], f"step {step}")
            await asyncio.sleep(0)
        await context.sink.part("last")
        context.sink.progress(1.0, "done")
        return "ended"

    async def broken(self, params, context):
        await context.sink.part(1)
        raise PeerError("it broke", definite=False)


@pytest.fixture
async def source(tmp_path):
    tmp_path.chmod(0o700)
    made = Source()
    server = RpcServer(made.bench.registry)
    path = str(tmp_path / "d.sock")
    await server.start_control(path)
    made.channel = await connect_channel(path)
    made.path = path
    yield made
    await made.channel.close()
    await server.stop(1.0)


async def test_parts_come_in_order_and_before_the_result(source):
    sink = Kept()
    assert await source.channel.call("stream", {"count": 100}, sink=sink) == 100
    assert [part[0] for part in sink.parts] == list(range(100))


async def test_progress_is_told_the_newest_before_the_result(source):
    sink = Kept()
    assert await source.channel.call("steps", {"count": 10}, sink=sink) == "ended"
    assert sink.parts == ["last"]
    assert sink.told[-1] == (1.0, "done")
    assert 1 < len(sink.told) <= 11


async def test_a_slow_reader_holds_up_his_own_stream_and_nobody_elses_calls(source):
    sink, size = Kept(), WINDOW_BYTES // 8
    sink.room.clear()
    call = asyncio.create_task(
        source.channel.call("stream", {"count": 64, "size": size}, 10, sink=sink)
    )
    async with asyncio.timeout(5):
        while source.sent < 8:
            await asyncio.sleep(0)
    for _ in range(20):
        assert await source.channel.call("echo", {"text": "beside"}, 5) == {"text": "beside"}
    assert source.sent <= 10, "no more than the window has left"
    sink.room.set()
    assert await call == 64
    assert [part[0] for part in sink.parts] == list(range(64))


async def test_a_part_larger_than_the_window_goes_alone(source):
    sink = Kept()
    params = {"count": 3, "size": 2 * WINDOW_BYTES}
    assert await source.channel.call("stream", params, 10, sink=sink) == 3
    assert len(sink.parts) == 3


async def test_what_came_before_an_error_has_been_taken(source):
    sink = Kept()
    with pytest.raises(PeerError, match="it broke"):
        await source.channel.call("broken", {}, sink=sink)
    assert sink.parts == [1]


async def test_a_sink_that_fails_ends_the_call_and_the_work(source):
    sink = Kept()
    sink.error = UsageError("enough")
    with pytest.raises(UsageError, match="enough"):
        await source.channel.call(
            "stream", {"count": 10_000, "size": WINDOW_BYTES // 4}, 10, sink=sink
        )
    async with asyncio.timeout(5):
        await source.cancelled.wait()


async def test_a_sink_that_fails_at_progress_ends_its_call_and_no_other(source):
    sink = Kept()
    sink.progress_error = ZeroDivisionError("mine")
    beside = asyncio.create_task(source.channel.call("hold", {}, 10))
    await source.bench.started.acquire()
    with pytest.raises(ZeroDivisionError, match="mine"):
        await source.channel.call("steps", {"count": 10}, 10, sink=sink)
    source.bench.release.set()
    assert await beside == "held"


async def test_a_sink_that_fails_at_progress_does_not_wait_for_its_parts(source):
    sink = Kept()
    sink.room.clear()
    sink.progress_error = ZeroDivisionError("mine")
    with pytest.raises(ZeroDivisionError, match="mine"):
        await source.channel.call("steps", {"count": 0}, 10, sink=sink)


async def test_whoever_leaves_a_stream_cancels_the_work(source):
    sink = Kept()
    sink.room.clear()
    with pytest.raises(DeadlineError):
        await source.channel.call(
            "stream", {"count": 10_000, "size": WINDOW_BYTES // 4}, 0.2, sink=sink
        )
    async with asyncio.timeout(5):
        await source.cancelled.wait()


@pytest.mark.parametrize("is_lost", [True, False])
async def test_work_that_goes_on_without_its_call_is_let_go_and_told(source, is_lost):
    """It would wait for credit that nobody grants any more."""
    sinks, going_on = [], []

    async def leave(params, context):
        async def stream():
            while True:
                await context.sink.part("x" * (WINDOW_BYTES // 4))

        sinks.append(context.sink)
        going_on.append(asyncio.create_task(stream()))
        await asyncio.Event().wait()

    source.bench.registry.add("leave", None, leave)
    sink = Kept()
    sink.room.clear()
    call = asyncio.create_task(source.channel.call("leave", {}, 10, sink=sink))
    async with asyncio.timeout(5):
        while not sinks or sinks[0]._has_credit.is_set():
            await asyncio.sleep(0)
    if is_lost:
        await source.channel.close()
    call.cancel()
    await asyncio.wait((call,))
    with pytest.raises(PeerError, match="nobody takes"):
        await asyncio.wait_for(going_on[0], 5)
    sinks[0].progress(0.5, "nobody hears it")


async def test_without_a_window_there_is_no_sink(source):
    with pytest.raises(PeerError) as caught:
        await source.channel.call("stream", {"count": 1})
    assert "internal error" in caught.value.message


async def test_a_part_too_large_for_a_message_is_the_handlers_fault(tmp_path, source):
    sink = Kept()
    limits = ChannelLimits()
    params = {"count": 1, "size": limits.message_bytes_max}
    with pytest.raises(UsageError, match="more than"):
        await source.channel.call("stream", params, 10, sink=sink)


@pytest.mark.parametrize(
    "message",
    [
        {"method": "part", "params": {"id": 99, "value": 1}},
        {"method": "part", "params": {"id": "x"}},
        {"method": "progress", "params": {"id": 1, "fraction": "much", "message": ""}},
        {"method": "credit", "params": {"id": 1, "bytes": -5}},
        {"method": "credit", "params": {"id": 1, "bytes": 10**30}},
        {"method": "credit", "params": {"id": [], "bytes": 1}},
        {"method": "credit", "params": {"id": {"a": []}, "bytes": 1}},
        {"method": "cancel", "params": {}},
        {"method": "cancel", "params": {"id": []}},
        {"method": "part", "params": {"id": [], "value": 1}},
        {"method": "progress", "params": {"id": {}, "fraction": 1, "message": ""}},
    ],
)
async def test_notifications_that_fit_no_call_change_nothing(source, message):
    connector = aiohttp.UnixConnector(source.path)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.ws_connect("http://localhost/attach") as link,
    ):
        await link.send_str(json.dumps({"jsonrpc": "2.0", **message}))
        call = {"jsonrpc": "2.0", "id": 1, "method": "echo", "params": {"text": "still"}}
        await link.send_str(json.dumps(call))
        answer = json.loads((await link.receive(5)).data)
    assert answer["result"] == {"text": "still"}


async def test_more_than_was_granted_ends_the_call(source):
    """A peer that ignores the window cannot fill this side's memory."""

    class Flood:
        closed = False

        def __init__(self):
            self.silent = asyncio.Event()

        def send(self, message):
            request = json.loads(message)
            if "window" in request:
                part = {"id": request["id"], "value": "x" * (WINDOW_BYTES // 2)}
                note = json.dumps({"jsonrpc": "2.0", "method": "part", "params": part})
                for _ in range(8):
                    asyncio.get_running_loop().call_soon(self.on_frame, note.encode())
            return True

        def listen(self, on_frame):
            self.on_frame = on_frame

        async def wait_silent(self):
            await self.silent.wait()

        async def close(self):
            self.silent.set()

        def abort(self):
            raise AssertionError("nothing of this is worth the link")

    sink = Kept()
    channel = Channel(Flood())
    channel.start()
    sink.room.clear()
    call = asyncio.create_task(channel.call("stream", {}, 5, sink=sink))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(0.05, sink.room.set)
    with pytest.raises(PeerError, match="more partial results"):
        await call
    await channel.close()
