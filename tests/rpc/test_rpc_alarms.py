"""Time limits that share one timer do what `asyncio.timeout` does, one by one."""

import asyncio
import math

import pytest
from rpc_bench import Bench

from meshd.errors import Code, DeadlineError
from meshd.rpc.alarms import IDLE_MAX, Alarm, Alarms
from meshd.rpc.channel import Channel
from meshd.rpc.dispatch import answer
from meshd.rpc.jsonrpc import Request, parse_response
from meshd.rpc.methods import CallContext

pytestmark = pytest.mark.net


@pytest.fixture
async def alarms():
    made = Alarms()
    yield made
    made.close()


async def late(alarms, limit_s):
    with pytest.raises(TimeoutError), Alarm(alarms, limit_s) as alarm:
        await asyncio.Event().wait()
    return alarm


async def test_who_is_late_is_told_so_and_can_go_on(alarms):
    async with asyncio.timeout(5):
        assert (await late(alarms, 0.01)).is_over
        assert (await late(alarms, 0.0)).is_over
        assert (await late(alarms, -1.0)).is_over
        with Alarm(alarms, 5.0) as alarm:
            await asyncio.sleep(0)
    assert not alarm.is_over


async def test_no_limit_is_none(alarms):
    with Alarm(alarms, None) as alarm:
        await late(alarms, 0.01)
    assert not alarm.is_over


async def test_limits_end_in_the_order_of_their_instants_whatever_that_of_their_begin(alarms):
    ended = []

    async def one(limit_s):
        await late(alarms, limit_s)
        ended.append(limit_s)

    limits = (0.03, 0.01, 60.0, 0.02, 0.0)
    tasks = [asyncio.create_task(one(limit_s)) for limit_s in limits]
    async with asyncio.timeout(5):
        await asyncio.gather(*(t for t, limit_s in zip(tasks, limits, strict=True) if limit_s < 1))
    assert ended == [0.0, 0.01, 0.02, 0.03]
    tasks[2].cancel()
    await asyncio.wait((tasks[2],))
    assert tasks[2].cancelled()


async def test_of_two_limits_the_one_that_is_over_says_so(alarms):
    async with asyncio.timeout(5):
        with Alarm(alarms, 60.0) as outer:
            inner = await late(alarms, 0.01)
        assert (outer.is_over, inner.is_over) == (False, True)
        both = Alarm(alarms, 0.01), Alarm(alarms, 60.0)
        with pytest.raises(TimeoutError), both[0] as outer, both[1] as inner:
            await asyncio.Event().wait()
        assert (outer.is_over, inner.is_over) == (True, False)


async def test_who_is_cancelled_by_somebody_else_too_is_cancelled(alarms):
    began = asyncio.Event()

    async def work():
        with Alarm(alarms, 0.0):
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                asyncio.current_task().cancel()

    task = asyncio.create_task(work())
    await asyncio.wait((task,), timeout=5)
    assert task.cancelled()


@pytest.mark.parametrize("error", [None, RuntimeError])
async def test_who_swallows_the_end_of_his_time_keeps_his_own_end(alarms, error):
    async def work():
        with Alarm(alarms, 0.0) as alarm:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if error is not None:
                    raise error from None
        return alarm.is_over

    task = asyncio.create_task(work())
    await asyncio.wait((task,), timeout=5)
    if error is None:
        assert task.result() is True
        assert task.cancelling() == 0
    else:
        assert isinstance(task.exception(), error)


async def test_limits_that_are_over_are_not_kept(alarms):
    held = asyncio.create_task(late(alarms, 0.2))
    for _ in range(10 * IDLE_MAX):
        with Alarm(alarms, 60.0):
            pass
    assert len(alarms.heap) <= 2 * (IDLE_MAX + 2)
    async with asyncio.timeout(5):
        assert (await held).is_over, "and those that are not do end"


async def test_who_is_within_a_limit_while_its_alarms_close_is_still_late(alarms):
    ahead, behind = (asyncio.create_task(late(alarms, limit_s)) for limit_s in (0.02, 60.0))
    await asyncio.sleep(0)
    alarms.close()
    async with asyncio.timeout(5):
        assert (await ahead).is_over
    timer = alarms._timer
    assert not timer.cancelled()
    behind.cancel()
    await asyncio.wait((behind,))
    assert timer.cancelled(), "it was the last"


@pytest.mark.parametrize("limit_s", [math.nan, math.inf])
async def test_a_limit_that_is_no_instant_harms_nobody_elses(alarms, limit_s):
    held = asyncio.create_task(late(alarms, 0.02))
    await asyncio.sleep(0)
    if math.isnan(limit_s):
        with pytest.raises(ValueError, match="must be a number"), Alarm(alarms, limit_s):
            raise AssertionError("it is not entered")
    else:
        with Alarm(alarms, limit_s):
            await held
    async with asyncio.timeout(5):
        assert (await held).is_over


async def test_a_handler_that_answers_after_its_time_is_over_has_answered(alarms):
    bench = Bench()

    async def stubborn(params, context):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "all the same"

    bench.registry.add("stubborn", None, stubborn)

    async def ask(method):
        context = CallContext(deadline_s=0.01)
        request = Request(method, None, 1)
        return parse_response(
            await answer(request, bench.registry, context, alarms, bytes_max=1_000)
        )

    async with asyncio.timeout(5):
        assert (await ask("stubborn")).result == "all the same"
        assert (await ask("hold")).error.code == Code.DEADLINE
        assert (await ask("cancelled")).error.code == Code.CANCELLED


class _Mute:
    """A socket that takes all and says nothing until it is closed."""

    def __init__(self):
        self.closed = False
        self.frames = []
        self._end = asyncio.Event()

    async def send_frame(self, message, opcode):
        self.frames.append(message)

    async def receive(self):
        await self._end.wait()
        raise ConnectionResetError

    async def close(self):
        self.closed = True
        self._end.set()
        return True

    def abort(self):
        raise AssertionError("nobody is cut off here")


async def test_a_channel_that_is_closed_leaves_no_timer():
    channel = Channel(_Mute())
    channel.start()
    call = asyncio.create_task(channel.call("m", timeout_s=3_600.0))
    await asyncio.sleep(0)
    timer = channel._alarms._timer
    assert timer is not None
    await channel.close()
    await asyncio.wait((call,), timeout=5)
    assert timer.cancelled()
    assert channel._alarms._timer is None


async def test_a_call_whose_sink_is_slow_ends_at_its_time_though_the_link_is_lost():
    class Slow:
        async def part(self, value):
            await asyncio.Event().wait()

        def progress(self, fraction, message):
            raise AssertionError("there is none")

    socket = _Mute()
    channel = Channel(socket)
    channel.start()
    call = asyncio.create_task(channel.call("m", timeout_s=0.1, sink=Slow()))
    await asyncio.sleep(0)
    channel._on_message(b'{"jsonrpc":"2.0","method":"part","params":{"id":1,"value":1}}')
    await channel.close()
    assert not call.done()
    async with asyncio.timeout(5):
        with pytest.raises(DeadlineError):
            await call
