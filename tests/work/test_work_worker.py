"""The worker: offering, admitting, running, repeating, cancelling, draining and closing."""

import asyncio
import threading

import pytest
from work_fakes import WorkPlatform, begin, shout, turns

from meshd.capability.definition import (
    capability,
)
from meshd.errors import (
    BusyError,
    Code,
    DeadlineError,
    NoCandidateError,
    PeerError,
    UsageError,
)
from meshd.work import worker as worker_module
from meshd.work.idempotency import UNKNOWN_KEY
from meshd.work.origin import ORIGIN, Origin
from meshd.work.run import WorkCounters, size_of
from meshd.work.task import TaskState
from meshd.work.worker import WorkResult

# Running


async def test_work_comes_back_with_agent_result_and_time(make):
    worker = make(shout)
    result = await worker.run("shout", {"text": "a"})
    assert result == WorkResult("me", "A", 0.0)
    assert worker.counters == WorkCounters(done=1)


async def test_the_plain_form_and_bare_values_are_taken_unchanged(make):
    @capability(agent="other")
    def say(message: str) -> str:
        return message

    worker = make(say)
    assert (await worker.run("say", {"text": "a"})) == WorkResult("other", "a", 0.0)
    assert (await worker.run("say", "b")).result == "b"


async def test_the_service_time_is_the_platforms(make, gate):
    platform = WorkPlatform()
    worker = make(gate, platform=platform)
    task = begin(worker, "wait")
    await gate.until(1)
    platform.clock.at += 2.5
    gate.open.set()
    assert (await task).service_s == 2.5
    await turns()
    assert worker.load().service_s == 2.5


async def test_unknown_capabilities_say_what_is_offered(make):
    with pytest.raises(NoCandidateError) as caught:
        await make().run("x", {})
    assert caught.value.hint == "it offers none"
    worker = make(shout)
    with pytest.raises(NoCandidateError, match="no capability 'shuot'") as caught:
        await worker.run("shuot", {})
    assert caught.value.hint == "did you mean 'shout'?"
    assert caught.value.definite
    with pytest.raises(NoCandidateError) as caught:
        await worker.run("zzz", {})
    assert caught.value.hint == "it offers shout"


async def test_work_out_of_the_queue_keeps_its_own_origin(make, gate):
    @capability
    async def whence() -> list[str]:
        return list(ORIGIN.get().hops)

    worker = make(gate, whence, slots=1)
    ORIGIN.set(Origin(("first",)))
    first = begin(worker, "wait")
    await gate.until(1)
    ORIGIN.set(Origin(("second",)))
    second = begin(worker, "whence")
    await turns()
    gate.open.set()
    assert (await second).result == ["second"]
    await first


async def test_wrong_input_takes_no_slot(make):
    worker = make(shout, slots=1)
    with pytest.raises(UsageError, match="missing parameter") as caught:
        await worker.run("shout", {})
    assert caught.value.definite
    assert worker.load().in_flight == 0
    assert worker.tasks() == ()


async def test_a_failure_frees_its_slot_and_counts(make, gate):
    worker = make(gate, slots=1, queue_max=0)
    for _ in range(3):
        with pytest.raises(PeerError, match="ValueError: x") as caught:
            await worker.run("fail", "x")
        await turns()
    assert not caught.value.definite
    assert worker.counters.failed == 3
    assert worker.load().error_fraction == 1.0
    assert worker.load().in_flight == 0


async def test_a_handlers_usage_error_is_no_error_of_the_node(make):
    def picky():
        raise UsageError("not like this")

    worker = make(picky)
    with pytest.raises(UsageError, match="not like this"):
        await worker.run("picky", {})
    await turns()
    assert worker.load().error_fraction == 0.0


async def test_a_fault_of_ours_is_told_and_frees_the_slot(make, monkeypatch):
    async def broken(*_, **__):
        raise KeyError("bug")

    worker = make(shout, slots=1)
    monkeypatch.setattr(worker_module, "execute", broken)
    with pytest.raises(PeerError, match="internal error: KeyError") as caught:
        await worker.run("shout", "a")
    assert caught.value.code == Code.INTERNAL
    assert worker.load().in_flight == 0


class Panic(BaseException):
    """What extensions written in other languages raise where nobody should go on."""


async def test_a_handler_that_raises_what_is_no_exception_is_told_and_frees_the_slot(make):
    async def panics(text: str) -> str:
        raise Panic(text)

    worker = make(panics, shout, slots=1)
    async with asyncio.timeout(5):
        with pytest.raises(PeerError, match="internal error: Panic"):
            await worker.run("panics", "a")
        assert worker.load().in_flight == 0
        assert (await worker.run("shout", "b")).result == "B"
        assert await worker.drain(1.0) == 0


# Admission


async def test_slots_then_queue_then_a_refusal_that_says_when(make, gate):
    worker = make(gate, slots=1, queue_max=1)
    first, second = begin(worker, "wait", "a"), begin(worker, "wait", "b")
    await gate.until(1)
    assert worker.load().full
    with pytest.raises(BusyError, match="queue is full") as caught:
        await worker.run("wait", "c")
    assert caught.value.definite
    data = caught.value.data
    assert (data["reason"], data["queue"], data["eta_s"]) == ("queue_full", 1, 0.0)
    assert data["load"]["in_flight"] == 1
    assert gate.began == ["a"]
    gate.open.set()
    assert [(await first).result, (await second).result] == ["a", "b"]
    assert gate.began == ["a", "b"]
    assert worker.counters == WorkCounters(done=2, refused=1)


async def test_a_capabilitys_own_bound_holds(make, gate):
    @capability(concurrency=1)
    async def alone(text: str) -> str:
        return await gate.wait(text)

    worker = make(alone, slots=2)
    tasks = [begin(worker, "alone", text) for text in "ab"]
    await gate.until(1)
    await turns()
    assert gate.began == ["a"]
    assert worker.load().queue == 1
    gate.open.set()
    assert [(await task).result for task in tasks] == ["a", "b"]


async def test_functions_that_block_leave_the_loop_free(make):
    both = threading.Barrier(2, timeout=10)

    def meet() -> int:
        return both.wait()

    worker = make(meet, slots=2)
    results = await asyncio.gather(worker.run("meet", None), worker.run("meet", None))
    assert sorted(r.result for r in results) == [0, 1]


# Deadlines and cancellation


async def test_a_deadline_that_has_passed_is_definite(make):
    worker = make(shout)
    for deadline_s in (0.0, -1.0, float("nan")):
        with pytest.raises(DeadlineError) as caught:
            await worker.run("shout", "a", deadline_s=deadline_s)
        assert caught.value.definite
    assert worker.counters.expired == 3


async def test_an_endless_deadline_is_bounded(make):
    assert (await make(shout).run("shout", "a", deadline_s=float("inf"))).result == "A"


async def test_a_deadline_while_it_waits_is_definite_and_runs_nothing(make, gate):
    worker = make(gate, slots=1)
    first = begin(worker, "wait", "a")
    await gate.until(1)
    with pytest.raises(DeadlineError, match="waited for a slot") as caught:
        await worker.run("wait", "b", deadline_s=0.01)
    assert caught.value.definite
    assert worker.load().queue == 0
    gate.open.set()
    await first
    assert gate.began == ["a"]


async def test_a_deadline_while_it_runs_is_indefinite_and_cancels(make, gate):
    worker = make(gate, slots=1)
    with pytest.raises(DeadlineError, match=r"while it ran|did not end") as caught:
        await worker.run("wait", "a", deadline_s=0.01)
    assert not caught.value.definite
    await turns()
    assert gate.cancelled == ["a"]
    assert worker.load().in_flight == 0
    assert worker.load().error_fraction == 1.0


async def test_a_capabilitys_timeout_ends_a_run_before_the_deadline(make, gate):
    @capability(timeout_s=0.01)
    async def brief() -> str:
        return await gate.wait("brief")

    worker = make(brief)
    with pytest.raises(DeadlineError, match=r"did not end within 0\.01 s"):
        await worker.run("brief", None, deadline_s=30.0)
    await turns()
    assert gate.cancelled == ["brief"]


async def test_a_handler_that_ignores_cancellation_keeps_its_slot_not_its_caller(make):
    may_end = asyncio.Event()

    async def stubborn() -> None:
        while not may_end.is_set():
            try:
                await may_end.wait()
            except asyncio.CancelledError:
                continue

    worker = make(stubborn, slots=1, queue_max=0)
    with pytest.raises(DeadlineError):
        await worker.run("stubborn", None, deadline_s=0.01)
    assert worker.load().in_flight == 1
    with pytest.raises(BusyError):
        await worker.run("stubborn", None)
    may_end.set()
    assert await worker.drain(10.0) == 0
    assert worker.load().in_flight == 0


async def test_a_thread_past_its_deadline_keeps_its_slot_until_it_ends(make):
    may_end = threading.Event()

    def slow() -> None:
        may_end.wait(10)

    worker = make(slow, slots=1, queue_max=0)
    with pytest.raises(DeadlineError) as caught:
        await worker.run("slow", None, deadline_s=0.05)
    assert not caught.value.definite
    assert worker.load().in_flight == 1
    may_end.set()
    assert await worker.drain(10.0) == 0
    assert worker.load().in_flight == 0
    assert worker.counters == WorkCounters(expired=1)


async def test_a_cancelled_caller_cancels_its_run(make, gate):
    worker = make(gate)
    task = begin(worker, "wait", "a")
    await gate.until(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await turns()
    assert gate.cancelled == ["a"]
    assert worker.counters == WorkCounters(cancelled=1)
    assert worker.load().error_fraction == 0.0


async def test_a_caller_cancelled_at_once_leaks_no_slot(make, gate):
    worker = make(gate, slots=1)
    task = begin(worker, "wait", "a")
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await turns()
    assert worker.load().in_flight == 0
    assert worker.counters == WorkCounters(cancelled=1)


async def test_a_run_cancelled_before_its_first_step_gives_its_slot_to_the_next(make, gate):
    worker = make(gate, slots=1)
    first, second = (begin(worker, "wait", text, task_id=text) for text in "ab")
    await asyncio.sleep(0)
    assert worker.cancel("a")
    with pytest.raises(PeerError, match="it was cancelled"):
        await first
    await gate.until(1)
    gate.open.set()
    assert (await second).result == "b"
    assert gate.began == ["b"]
    assert worker.load().in_flight == 0


async def test_a_run_whose_task_others_cancel_before_its_first_step_answers_and_frees_its_slot(
    make, gate
):
    worker = make(gate, slots=1)
    before = asyncio.all_tasks()
    caller = begin(worker, "wait", "a", task_id="a")
    await asyncio.sleep(0)
    (runner,) = (t for t in asyncio.all_tasks() - before if t.get_name() == "work a")
    runner.cancel()
    async with asyncio.timeout(5):
        with pytest.raises(PeerError, match="this node is stopping"):
            await caller
        assert worker.load().in_flight == 0
    assert gate.began == []


async def test_the_slot_is_free_once_the_answer_is_there(make):
    async def echo(text: str) -> str:
        return text

    worker = make(echo, slots=1)
    await worker.run("echo", "a")
    assert worker.load().in_flight == 0


async def test_a_cancelled_caller_in_the_queue_leaves_it(make, gate):
    worker = make(gate, slots=1)
    first, second = begin(worker, "wait", "a"), begin(worker, "wait", "b")
    await gate.until(1)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    assert worker.load().queue == 0
    gate.open.set()
    await first
    assert gate.began == ["a"]


async def test_tasks_are_listed_and_cancelled_by_id(make, gate):
    worker = make(gate, slots=1)
    first = begin(worker, "wait", "a", task_id="t1")
    second = begin(worker, "wait", "b", task_id="t2")
    await gate.until(1)
    assert [(t.id, t.state) for t in worker.tasks()] == [
        ("t1", TaskState.WORKING),
        ("t2", TaskState.ACCEPTED),
    ]
    with pytest.raises(UsageError, match="in use"):
        await worker.run("wait", "c", task_id="t1")
    assert worker.cancel("t2")
    assert worker.cancel("t1")
    assert not worker.cancel("t1")
    assert not worker.cancel("nobody")
    for task, definite in ((first, False), (second, True)):
        with pytest.raises(PeerError, match="it was cancelled") as caught:
            await task
        assert caught.value.code == Code.CANCELLED
        assert caught.value.definite is definite
    assert {t.id: t.state for t in worker.tasks()} == dict.fromkeys(
        ("t1", "t2"), TaskState.CANCELLED
    )


# Repeated requests


async def test_a_repeated_key_joins_the_run_and_then_returns_its_answer(make, gate):
    worker = make(gate)
    tasks = [begin(worker, "wait", "a", idempotency_key="k") for _ in range(2)]
    await gate.until(1)
    gate.open.set()
    results = [await task for task in tasks] + [await worker.run("wait", "a", idempotency_key="k")]
    assert results[0] is results[1] is results[2]
    assert gate.began == ["a"]
    assert worker.counters == WorkCounters(done=1, repeated=2)


async def test_a_run_goes_on_while_anybody_waits_for_it(make, gate):
    worker = make(gate)
    one_caller, other = (begin(worker, "wait", "a", idempotency_key="k") for _ in range(2))
    await gate.until(1)
    one_caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await one_caller
    with pytest.raises(DeadlineError):
        await worker.run("wait", "a", idempotency_key="k", deadline_s=0.01)
    gate.open.set()
    assert (await other).result == "a"
    assert gate.cancelled == []


async def test_the_last_who_waits_ends_a_run_at_his_own_deadline(make, gate):
    worker = make(gate)
    first = begin(worker, "wait", "a", idempotency_key="k")
    await gate.until(1)
    second = begin(worker, "wait", "a", idempotency_key="k", deadline_s=0.05)
    await turns()
    first.cancel()
    with pytest.raises(DeadlineError, match="while it ran") as caught:
        await second
    assert not caught.value.definite
    await turns()
    assert gate.cancelled == ["a"]
    assert worker.counters == WorkCounters(expired=1, repeated=1)


async def test_what_is_only_to_be_joined_never_begins(make, gate):
    worker = make(gate)
    with pytest.raises(NoCandidateError, match="no run under this key") as caught:
        await worker.run("wait", "a", idempotency_key="k", only_joins=True)
    assert (caught.value.definite, caught.value.data["reason"]) == (True, UNKNOWN_KEY)
    first = begin(worker, "wait", "a", idempotency_key="k")
    await gate.until(1)
    joined = begin(worker, "wait", "a", idempotency_key="k", only_joins=True)
    gate.open.set()
    assert (await first).result == (await joined).result == "a"
    again = await worker.run("wait", "a", idempotency_key="k", only_joins=True)
    assert again.result == "a"
    assert gate.began == ["a"]


async def test_a_key_with_another_input_is_refused(make):
    worker = make(shout)
    await worker.run("shout", {"text": "a"}, idempotency_key="k")
    with pytest.raises(UsageError, match="used with another input"):
        await worker.run("shout", {"text": "b"}, idempotency_key="k")


async def test_an_indefinite_failure_is_repeated_unless_running_twice_is_harmless(make, gate):
    worker = make(gate)
    for _ in range(2):
        with pytest.raises(PeerError):
            await worker.run("fail_once", "a", idempotency_key="k")
        with pytest.raises(PeerError):
            await worker.run("fail", "b", idempotency_key="k")
    assert sorted(gate.began) == ["a", "b", "b"]


async def test_a_refusal_is_not_remembered(make, gate):
    worker = make(gate, slots=1, queue_max=0)
    first = begin(worker, "wait", "a")
    await gate.until(1)
    with pytest.raises(BusyError):
        await worker.run("wait", "b", idempotency_key="k")
    gate.open.set()
    await first
    await turns()
    assert (await worker.run("wait", "b", idempotency_key="k")).result == "b"


async def test_keys_are_bounded_and_their_inputs_are_json(make):
    worker = make(shout)
    for key in ("", "k" * 129):
        with pytest.raises(UsageError, match="1 to 128"):
            await worker.run("shout", "a", idempotency_key=key)
    with pytest.raises(UsageError, match="must be JSON"):
        await worker.run("shout", object(), idempotency_key="k")


def test_what_is_no_json_counts_for_nothing():
    assert size_of(WorkResult("a", object(), 0.0)) == 0
