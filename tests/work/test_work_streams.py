"""Partial results and progress: of generators, programs and threads, one by one or in one."""

import asyncio
import sys
import threading

import pytest
from work_fakes import WorkPlatform, begin, remote, turns

from meshd import progress
from meshd.capability.definition import CapabilityDefinition, CommandHandler, capability
from meshd.capability.manifest import Manifest
from meshd.errors import LINK_LOST, BusyError, DeadlineError, PeerError, UsageError
from meshd.work import streams


class Kept:
    """A sink that keeps all, and takes no more while `room` is clear."""

    def __init__(self):
        self.parts = []
        self.told = []
        self.room = asyncio.Event()
        self.room.set()
        self.news = asyncio.Event()

    async def part(self, value):
        await self.room.wait()
        self.parts.append(value)
        self.news.set()

    def progress(self, fraction, message):
        self.told.append((fraction, message))
        self.news.set()


@capability
async def count(to: int):
    for number in range(to):
        yield number


@capability
def count_in_thread(to: int):
    yield from range(to)


@pytest.mark.parametrize("name", ["count", "count_in_thread"])
async def test_parts_go_to_the_sink_one_by_one_and_the_result_is_nothing(make, name):
    worker, sink = make(count, count_in_thread), Kept()
    done = await worker.run(name, {"to": 3}, sink=sink)
    assert sink.parts == [0, 1, 2]
    assert done.result is None


@pytest.mark.parametrize("name", ["count", "count_in_thread"])
async def test_without_a_sink_the_result_is_the_list_of_all(make, name):
    assert (await make(count, count_in_thread).run(name, {"to": 3})).result == [0, 1, 2]


async def test_with_a_key_the_sink_gets_the_parts_and_a_repeat_gets_the_list(make):
    worker, sink = make(count), Kept()
    first = await worker.run("count", {"to": 3}, idempotency_key="k", sink=sink)
    again = await worker.run("count", {"to": 3}, idempotency_key="k")
    assert sink.parts == first.result == again.result == [0, 1, 2]
    assert worker.counters.repeated == 1


@pytest.mark.parametrize("is_thread", [False, True])
async def test_a_slow_sink_holds_the_generator_up(make, is_thread):
    made = []

    async def quick():
        for number in range(100):
            made.append(number)
            yield number

    def threaded():
        for number in range(100):
            made.append(number)
            yield number

    chosen = threaded if is_thread else quick
    worker, sink = make(chosen), Kept()
    sink.room.clear()
    task = begin(worker, chosen.__name__, sink=sink)
    async with asyncio.timeout(5):
        while not made:
            await asyncio.sleep(0)
    await turns(20)
    assert len(made) <= 2
    sink.room.set()
    await task
    assert sink.parts == list(range(100))


async def test_a_cancelled_stream_closes_its_generator(make):
    closed = threading.Event()

    def endless():
        try:
            while True:
                yield 1
        finally:
            closed.set()

    worker, sink = make(endless), Kept()
    task = begin(worker, "endless", sink=sink)
    await asyncio.wait_for(sink.news.wait(), 5)
    sink.room.clear()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(worker.drain(5), 5)
    assert closed.is_set()


async def test_a_stream_that_fails_or_yields_no_json_says_so_after_what_came_before(make):
    async def breaks():
        yield 1
        raise RuntimeError("half way")

    def yields_no_json():
        yield object()

    worker, sink = make(breaks, yields_no_json), Kept()
    with pytest.raises(PeerError, match="half way") as caught:
        await worker.run("breaks", {}, sink=sink)
    assert not caught.value.definite
    assert sink.parts == [1]
    with pytest.raises(PeerError, match="not JSON"):
        await worker.run("yields_no_json", {}, sink=sink)


async def test_all_parts_in_one_are_bounded(make, monkeypatch):
    monkeypatch.setattr(streams, "COLLECTED_BYTES_MAX", 10)
    with pytest.raises(PeerError, match="more than 10 bytes") as caught:
        await make(count).run("count", {"to": 100})
    assert "--stream" in caught.value.hint


async def test_progress_is_told_from_the_loop_and_from_a_thread(make):
    async def on_loop():
        progress(0.5, "half")
        progress(7.0)

    def in_thread():
        progress(message="at it")

    worker, sink = make(on_loop, in_thread), Kept()
    await worker.run("on_loop", {}, sink=sink)
    await worker.run("in_thread", {}, sink=sink)
    await turns()
    assert sink.told == [(0.5, "half"), (1.0, ""), (None, "at it")]
    await worker.run("on_loop", {})
    progress(0.1, "nobody looks on")


def lines(source: str, **options) -> CapabilityDefinition:
    handler = CommandHandler((sys.executable, "-u", "-S", "-c", source), is_stream=True, **options)
    return CapabilityDefinition(Manifest(name="lines", streaming=True), handler)


async def test_lines_of_a_program_are_parts_as_they_come(make):
    source = "print(1); print('{\"a\": 2}'); print('text'); print('', end='last')"
    worker, sink = make(lines(source)), Kept()
    assert (await worker.run("lines", {}, sink=sink)).result is None
    assert sink.parts == [1, {"a": 2}, "text", "last"]
    assert (await worker.run("lines", {})).result == sink.parts


async def test_a_program_that_writes_more_than_is_read_waits(make):
    source = "for n in range(20000): print('x' * 1000)"
    worker, sink = make(lines(source)), Kept()
    sink.room.clear()
    task = begin(worker, "lines", sink=sink)
    await turns(200)
    sink.room.set()
    await asyncio.wait_for(task, 20)
    assert len(sink.parts) == 20_000


async def test_a_program_gets_no_more_memory_than_it_may(make):
    handler = CommandHandler(
        (sys.executable, "-S", "-c", "x = bytearray(300 * 1024 * 1024); print(len(x))"),
        memory_bytes=100 * 1024 * 1024,
    )
    worker = make(CapabilityDefinition(Manifest(name="greedy"), handler))
    with pytest.raises(PeerError, match="MemoryError"):
        await worker.run("greedy", {})
    free = CommandHandler(handler.argv, memory_bytes=2_000 * 1024 * 1024)
    worker = make(CapabilityDefinition(Manifest(name="greedy"), free))
    assert (await worker.run("greedy", {})).result == 300 * 1024 * 1024


async def test_work_inside_work_tells_nothing_to_the_callers_caller(make):
    async def inner():
        progress(0.9, "inner")
        return 1

    async def outer():
        progress(0.1, "outer")
        return (await worker.run("inner", {})).result

    worker, sink = make(inner, outer), Kept()
    assert (await worker.run("outer", {}, sink=sink)).result == 1
    await turns()
    assert sink.told == [(0.1, "outer")]


# Priorities, rates, lost callers


async def test_urgent_work_takes_the_place_of_what_waits_and_that_may_go_elsewhere(make, gate):
    platform = WorkPlatform()
    worker = make(gate, slots=1, queue_max=1, platform=platform)
    usual = begin(worker, "wait")
    await gate.until(1)
    platform.clock.at += 2.0
    gate.open.set()
    await usual
    gate.open.clear()
    running = begin(worker, "wait")
    await gate.until(2)
    waiting = begin(worker, "wait", priority=1)
    await turns()
    urgent = begin(worker, "wait", priority=5)
    with pytest.raises(BusyError, match="more urgent") as caught:
        await waiting
    assert caught.value.definite
    assert caught.value.data["reason"] == "displaced"
    assert caught.value.data["eta_s"] == 6.0, "after the one that runs and the urgent one"
    gate.open.set()
    await asyncio.gather(running, urgent)
    with pytest.raises(UsageError, match="priority must be 1 to 5"):
        await worker.run("wait", None, priority=6)


async def test_what_is_called_too_often_is_refused_and_told_when(make):
    calls = []

    @capability(rate_per_s=2)
    async def rare():
        calls.append(1)

    worker = make(rare)
    await worker.run("rare", {})
    await worker.run("rare", {})
    bid = worker.offer("rare", 10.0)
    assert (bid["answer"], bid["reason"]) == ("counter", "rate")
    assert 0 < bid["eta_s"] <= 0.5
    with pytest.raises(BusyError, match="more often") as caught:
        await worker.run("rare", {})
    assert caught.value.data["reason"] == "rate"
    assert 0 < caught.value.data["eta_s"] <= 0.5
    assert len(calls) == 2


async def test_bids_and_refusals_do_not_count_as_calls(make, gate):
    @capability(rate_per_s=1)
    async def rare():
        pass

    worker = make(gate, rare, slots=1, queue_max=0)
    for _ in range(3):
        assert worker.offer("rare", 10.0)["answer"] == "accept"
    running = begin(worker, "wait")
    await gate.until(1)
    for _ in range(3):
        with pytest.raises(BusyError, match="the queue is full"):
            await worker.run("rare", {})
    gate.open.set()
    await running
    await turns()
    await worker.run("rare", {})
    with pytest.raises(BusyError, match="more often"):
        await worker.run("rare", {})


async def test_a_bid_promises_nothing_and_says_what_the_answer_would_be(make, gate):
    worker = make(gate, slots=1, queue_max=1)
    assert worker.offer("wait", 10.0)["answer"] == "accept"
    running = begin(worker, "wait")
    await gate.until(1)
    assert worker.offer("wait", 10.0)["queue"] == 0
    queued = begin(worker, "wait")
    await turns()
    bid = worker.offer("wait", 10.0)
    assert (bid["answer"], bid["reason"], bid["queue"]) == ("counter", "queue_full", 1)
    assert worker.offer("wait", 10.0, priority=5)["answer"] == "accept"
    gate.open.set()
    await asyncio.gather(running, queued)
    await worker.drain(1)
    assert worker.offer("wait", 10.0)["answer"] == "reject"


async def test_work_with_a_key_outlives_a_lost_link_but_not_a_caller_who_calls_off(make, gate):
    worker = make(gate)
    lost = begin(worker, "wait", idempotency_key="k")
    await gate.until(1)
    lost.cancel(LINK_LOST)
    await turns()
    again = begin(worker, "wait", idempotency_key="k")
    await turns()
    gate.open.set()
    await again
    assert worker.counters.repeated == 1
    gate.open.clear()
    called_off = begin(worker, "wait", idempotency_key="other")
    await gate.until(2)
    called_off.cancel()
    await turns()
    assert worker.counters.cancelled == 1


async def test_work_without_a_key_ends_when_its_link_is_lost(make, gate):
    worker = make(gate)
    lost = begin(worker, "wait")
    await gate.until(1)
    lost.cancel(LINK_LOST)
    await turns()
    assert worker.counters.cancelled == 1
    assert worker.load().in_flight == 0


class Gone(Kept):
    """A sink whose reader leaves after `count` parts."""

    def __init__(self, count):
        super().__init__()
        self.count = count

    async def part(self, value):
        if len(self.parts) == self.count:
            raise PeerError("the link is closed; nothing was sent")
        await super().part(value)


@pytest.mark.parametrize("name", ["count", "count_in_thread"])
async def test_a_stream_with_a_key_goes_on_when_its_reader_is_gone(make, name):
    worker, sink = make(count, count_in_thread), Gone(2)
    whole = await worker.run(name, {"to": 5}, idempotency_key="k", sink=sink)
    again = await worker.run(name, {"to": 5}, idempotency_key="k")
    assert whole.result == again.result == [0, 1, 2, 3, 4]
    assert sink.parts == [0, 1]
    with pytest.raises(PeerError, match="link is closed"):
        await worker.run(name, {"to": 5}, sink=Gone(2))


async def test_work_with_a_key_that_waits_ends_with_its_deadline_though_its_link_is_lost(
    make, gate
):
    worker = make(gate, slots=1)
    running = begin(worker, "wait", "runs")
    await gate.until(1)
    lost = begin(worker, "wait", "waits", idempotency_key="k", deadline_s=0.02)
    await turns()
    lost.cancel(LINK_LOST)
    await turns()
    assert worker.load().queue == 1
    async with asyncio.timeout(5):
        while worker.load().queue:
            await asyncio.sleep(0)
    assert worker.counters.expired == 1
    gate.open.set()
    await running
    assert gate.began == ["runs"]


async def test_who_joins_work_that_waits_lends_it_his_own_deadline(make, gate):
    worker = make(gate, slots=1)
    running = begin(worker, "wait", "runs")
    await gate.until(1)
    lost = begin(worker, "wait", "waits", idempotency_key="k", deadline_s=0.02)
    await turns()
    lost.cancel(LINK_LOST)
    joined = begin(worker, "wait", "waits", idempotency_key="k", deadline_s=30.0)
    with pytest.raises(DeadlineError):
        await worker.run("wait", "later", deadline_s=0.02)
    gate.open.set()
    assert (await joined).result == "waits"
    await running


async def test_work_out_of_the_queue_has_the_time_that_is_left(make, gate):
    async def call(name, value, timeout_s, sink):
        return timeout_s

    worker = make(gate, slots=1)
    worker.add([remote("far", call, "p")])
    running = begin(worker, "wait")
    await gate.until(1)
    queued = begin(worker, "far", deadline_s=30.0)
    await turns()
    gate.open.set()
    await running
    assert (await queued).result < 30.0
