"""Work whose caller waits in no task: it is told the answer, once, or leaves."""

import asyncio
import gc
import weakref
from contextvars import ContextVar, copy_context

import pytest
from work_fakes import begin, remote, turns

from meshd.capability.definition import capability
from meshd.errors import (
    LINK_LOST,
    BusyError,
    Code,
    DeadlineError,
    MeshError,
    NoCandidateError,
    PeerError,
    UsageError,
)
from meshd.units import charge
from meshd.work.run import WorkCounters, WorkResult


class Caller:
    """One who is told."""

    def __init__(self, worker):
        self.worker = worker
        self.answers = []
        self.busy = []
        self.has_answer = asyncio.Event()

    def told(self, answer):
        self.answers.append(answer)
        self.busy.append(self.worker.load().in_flight)
        self.has_answer.set()

    def begin(self, name, value=None, **options):
        return self.worker.begin(name, value, self.told, context=copy_context(), **options)

    async def answer(self):
        async with asyncio.timeout(5):
            await self.has_answer.wait()
        (answer,) = self.answers
        return answer


@capability
async def echo(text: str) -> str:
    return text


async def test_the_answer_is_told_once_the_slot_is_free_and_not_before_this_returns(make):
    caller = Caller(make(echo, slots=1))
    caller.begin("echo", {"text": "a"})
    assert caller.answers == []
    assert await caller.answer() == WorkResult("me", "a", 0.0)
    await turns()
    assert (len(caller.answers), caller.busy) == (1, [0])
    assert caller.worker.counters == WorkCounters(done=1)


async def test_the_work_sees_the_context_that_it_was_given(make):
    place = ContextVar("place", default="nowhere")

    @capability
    async def where() -> str:
        return place.get()

    caller, context = Caller(make(where)), copy_context()
    context.run(place.set, "there")
    caller.worker.begin("where", None, caller.told, context=context)
    assert (await caller.answer()).result == "there"


@pytest.mark.parametrize(
    ("name", "value", "options", "error"),
    [
        ("ech", {"text": "a"}, {}, NoCandidateError),
        ("echo", {}, {}, UsageError),
        ("echo", {"text": "a"}, {"deadline_s": 0.0}, DeadlineError),
        ("echo", {"text": "a"}, {"priority": 9}, UsageError),
    ],
)
async def test_what_cannot_begin_is_raised_and_not_told(make, name, value, options, error):
    caller = Caller(make(echo))
    with pytest.raises(error) as caught:
        caller.begin(name, value, **options)
    await turns()
    assert caught.value.definite
    assert caller.answers == []
    assert caller.worker.load().in_flight == 0


async def test_a_refusal_is_raised_and_not_told(make, gate):
    worker = make(gate, slots=1, queue_max=0)
    first, second = Caller(worker), Caller(worker)
    first.begin("wait", "a")
    with pytest.raises(BusyError) as caught:
        second.begin("wait", "b")
    assert caught.value.data["load"]["in_flight"] == 1
    gate.open.set()
    await first.answer()
    assert second.answers == []


async def test_what_has_to_wait_is_told_after_its_turn(make, gate):
    worker = make(gate, slots=1)
    first, second = Caller(worker), Caller(worker)
    first.begin("wait", "a")
    second.begin("wait", "b")
    gate.open.set()
    assert [(await each.answer()).result for each in (first, second)] == ["a", "b"]
    assert gate.began == ["a", "b"]


async def test_a_deadline_while_it_waits_is_definite_and_runs_nothing(make, gate):
    worker = make(gate, slots=1)
    first, second = Caller(worker), Caller(worker)
    first.begin("wait", "a")
    second.begin("wait", "b", deadline_s=0.01)
    late = await second.answer()
    assert isinstance(late, DeadlineError)
    assert late.definite
    assert worker.load().queue == 0
    gate.open.set()
    await first.answer()
    assert gate.began == ["a"]


async def test_a_deadline_while_it_runs_is_indefinite_and_cancels(make, gate):
    caller = Caller(make(gate))
    caller.begin("wait", "a", deadline_s=0.01)
    late = await caller.answer()
    assert isinstance(late, DeadlineError)
    assert not late.definite
    await turns()
    assert gate.cancelled == ["a"]
    assert caller.worker.load().in_flight == 0


@pytest.mark.parametrize("why", [None, LINK_LOST])
async def test_who_leaves_ends_the_run_and_is_not_told(make, gate, why):
    caller = Caller(make(gate))
    run = caller.begin("wait", "a")
    await gate.until(1)
    caller.worker.leave(run, caller.told, why)
    await turns()
    assert gate.cancelled == ["a"]
    assert caller.answers == []
    assert caller.worker.load().in_flight == 0
    assert caller.worker.counters == WorkCounters(cancelled=1)


async def test_who_leaves_the_queue_is_not_told_and_begins_nothing(make, gate):
    worker = make(gate, slots=1)
    first, second = Caller(worker), Caller(worker)
    first.begin("wait", "a")
    run = second.begin("wait", "b")
    worker.leave(run, second.told)
    assert worker.load().queue == 0
    gate.open.set()
    await first.answer()
    assert (second.answers, gate.began) == ([], ["a"])


async def test_who_leaves_after_the_answer_changes_nothing(make):
    caller = Caller(make(echo))
    run = caller.begin("echo", "a")
    await caller.answer()
    caller.worker.leave(run, caller.told)
    await turns()
    assert caller.worker.counters == WorkCounters(done=1)


class Panic(BaseException):
    """What extensions written in other languages raise where nobody should go on."""


@pytest.mark.parametrize(
    ("fault", "code", "text"),
    [
        (Panic("x"), Code.INTERNAL, "internal error: Panic"),
        (SystemExit(3), Code.UPSTREAM, "SystemExit"),
        (asyncio.CancelledError(), Code.UPSTREAM, "cancelled itself"),
        (MeshError("mine", code=-32_050), -32_050, "mine"),
        (StopIteration("x"), Code.UPSTREAM, "coroutine raised StopIteration"),
    ],
)
async def test_whatever_a_handler_raises_is_told_and_frees_its_slot(make, fault, code, text):
    @capability
    async def breaks() -> None:
        raise fault

    caller = Caller(make(breaks, slots=1))
    caller.begin("breaks")
    error = await caller.answer()
    assert isinstance(error, MeshError)
    assert (error.code, error.definite) == (code, False)
    assert text in error.message
    assert caller.worker.load().in_flight == 0
    assert caller.worker.counters == WorkCounters(failed=1)


async def test_a_result_that_is_no_json_is_told_as_an_error(make):
    @capability
    async def odd():
        return object()

    caller = Caller(make(odd))
    caller.begin("odd")
    error = await caller.answer()
    assert isinstance(error, PeerError)
    assert "not JSON" in error.message
    assert not error.definite


async def test_the_units_of_a_run_are_told(make):
    @capability
    async def scan(pages: int) -> int:
        charge(pages)
        charge(0.5)
        return pages

    worker = make(scan)
    several = [Caller(worker) for _ in range(2)]
    for number, caller in enumerate(several):
        caller.begin("scan", number)
    assert [(await caller.answer()).units for caller in several] == [0.5, 1.5]


async def test_a_drain_waits_for_what_was_begun_and_refuses_more(make, gate):
    worker = make(gate)
    first, second = Caller(worker), Caller(worker)
    first.begin("wait", "a")
    await gate.until(1)
    draining = asyncio.create_task(worker.drain(5.0))
    await turns()
    with pytest.raises(BusyError, match="draining"):
        second.begin("wait", "b")
    assert not draining.done()
    gate.open.set()
    assert await draining == 0
    assert (await first.answer()).result == "a"


async def test_whoever_loses_its_place_to_more_urgent_work_is_told(make, gate):
    worker = make(gate, slots=1, queue_max=1)
    first, second, urgent = (Caller(worker) for _ in range(3))
    first.begin("wait", "a")
    second.begin("wait", "b", priority=1)
    urgent.begin("wait", "c", priority=5)
    refusal = await second.answer()
    assert isinstance(refusal, BusyError)
    assert refusal.data["reason"] == "displaced"
    gate.open.set()
    assert (await urgent.answer()).result == "c"
    assert gate.began == ["a", "c"]


async def test_the_end_of_a_program_is_told_to_those_who_wait_and_whose_work_runs(make):
    async def never(*_):
        await asyncio.Event().wait()

    worker = make(slots=1)
    worker.add([remote("far", never, "program")])
    first, second = Caller(worker), Caller(worker)
    first.begin("far")
    second.begin("far")
    await turns()
    assert worker.remove_owner("program") == ("far",)
    assert [(await each.answer()).definite for each in (first, second)] == [False, True]


async def test_a_runner_that_others_cancel_before_its_first_step_is_told_of(make, gate):
    caller = Caller(make(gate, slots=1))
    before = asyncio.all_tasks()
    caller.begin("wait", "a")
    (runner,) = asyncio.all_tasks() - before
    runner.cancel()
    error = await caller.answer()
    assert isinstance(error, PeerError)
    assert "this node is stopping" in error.message
    assert caller.worker.load().in_flight == 0
    assert gate.began == []


async def test_a_call_costs_one_task(make, gate):
    caller = Caller(make(gate))
    before = asyncio.all_tasks()
    caller.begin("wait", "a")
    await gate.until(1)
    assert len(asyncio.all_tasks() - before) == 1
    gate.open.set()
    await caller.answer()


class Thing:
    """An input that can be looked for."""


async def test_nothing_of_a_run_is_left_for_the_collector(make):
    async def far(*_):
        return "done"

    worker = make()
    worker.add([remote("far", far, "program")])
    told, awaited = Thing(), Thing()
    gone = [weakref.ref(told), weakref.ref(awaited)]
    gc.disable()
    try:
        caller = Caller(worker)
        caller.begin("far", told)
        await caller.answer()
        await begin(worker, "far", awaited)
        del told, awaited
        await turns()
        assert [ref() for ref in gone] == [None, None]
    finally:
        gc.enable()
