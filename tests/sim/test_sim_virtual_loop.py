"""The loop whose time is a number: order, lanes, and what it refuses."""

import asyncio
import socket

import pytest

from sim.whole.loop import Lane, StalledError, VirtualLoop


async def passes(seconds):
    """Virtual time passes: nobody waits."""
    await asyncio.sleep(seconds)  # plays work: a handler's, or the network's, in virtual time


@pytest.fixture
def loop():
    made = VirtualLoop(start_s=100.0)
    yield made
    made.close()


def in_lane(loop, lane, coroutine):
    return loop.create_task(coroutine, context=lane.context())


def test_time_leaps_to_the_next_timer(loop):
    async def sleeps():
        await passes(86_400)
        return loop.time()

    assert loop.run_until_complete(sleeps()) == 100.0 + 86_400


def test_timers_run_in_the_order_of_their_times_and_then_of_their_making(loop):
    seen = []
    for name, delay_s in (("late", 2.0), ("a", 1.0), ("b", 1.0), ("soon", 0.5)):
        loop.call_later(delay_s, seen.append, name)
    loop.run_until(103.0)
    assert seen == ["soon", "a", "b", "late"]
    assert loop.time() == 103.0


def test_waiting_for_what_nobody_will_ever_do_is_told(loop):
    with pytest.raises(StalledError, match="nothing is left to happen"):
        loop.run_until_complete(loop.create_future())


def test_a_frozen_lane_catches_up_in_its_order(loop):
    lane, seen = Lane("one"), []
    context = lane.context()
    loop.freeze(lane)
    for number in range(5):
        loop.call_later(number, seen.append, number, context=context)
    loop.run_until(110.0)
    assert seen == []
    loop.thaw(lane)
    loop.run_until(110.0)
    assert seen == [0, 1, 2, 3, 4]


def test_tasks_made_in_a_lane_belong_to_it(loop):
    lane, seen = Lane("one"), []

    async def child():
        await passes(1)
        seen.append("child")

    async def parent():
        await asyncio.gather(child(), child())

    in_lane(loop, lane, parent())
    loop.run_until(100.5)
    loop.freeze(lane)
    loop.run_until(105.0)
    assert seen == []
    loop.thaw(lane)
    loop.run_until(106.0)
    assert seen == ["child", "child"]


def test_a_lane_that_has_ended_runs_nothing_more_not_even_finally(loop):
    lane, seen = Lane("one"), []

    async def works():
        try:
            await passes(1)
        finally:
            seen.append("finally")

    task = in_lane(loop, lane, works())
    loop.run_until(100.5)
    loop.end(lane)
    loop.run_until(105.0)
    assert seen == []
    assert not task.done()
    loop.bury(lane)
    assert loop.problems == []


def test_other_lanes_go_on_while_one_is_frozen(loop):
    frozen, free, seen = Lane("frozen"), Lane("free"), []
    loop.freeze(frozen)
    loop.call_later(1, seen.append, "frozen", context=frozen.context())
    loop.call_later(1, seen.append, "free", context=free.context())
    loop.call_later(1, seen.append, "world")
    loop.run_until(102.0)
    assert seen == ["free", "world"]


def test_threads_take_no_time(loop):
    async def works():
        before = loop.time()
        answers = [await asyncio.to_thread(sum, (1, 2)), loop.time() - before]
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(divmod, 1, 0)
        return answers

    assert loop.run_until_complete(works()) == [3, 0.0]


def test_a_deadline_counts_virtual_seconds(loop):
    async def waits():
        async with asyncio.timeout(30):
            await passes(60)

    with pytest.raises(TimeoutError):
        loop.run_until_complete(waits())
    assert loop.time() == 130.0


def test_what_nobody_handles_is_kept(loop):
    loop.call_soon(int, "x", context=Lane("one").context())
    loop.run_until(101.0)
    assert len(loop.problems) == 1
    assert "one" in loop.problems[0]
    assert "invalid literal" in loop.problems[0]


def test_real_sockets_are_refused(loop):
    with socket.socket() as real, pytest.raises(TypeError, match="no real sockets"):
        loop.run_until_complete(loop.sock_connect(real, ("127.0.0.1", 1)))
