"""What a worker offers comes and goes; a worker drains and closes."""

import asyncio
import threading

import pytest
from work_fakes import WorkPlatform, begin, one, remote, shout, turns

from meshd.errors import BusyError, PeerError, UsageError
from meshd.work import worker as worker_module
from meshd.work.offers import CAPABILITIES_MAX
from meshd.work.run import WorkCounters
from meshd.work.task import TaskState


async def test_capabilities_come_and_go_with_word_of_it(make, gate):
    changes = []
    worker = make(gate, on_change=lambda: changes.append(1))
    task = begin(worker, "wait", "a")
    await gate.until(1)
    assert worker.add([one(shout)]) == ("shout",)
    assert [m.name for m in worker.manifests()] == ["fail", "fail_once", "shout", "wait"]
    assert worker.remove(["wait", "wait", "zzz"]) == ("wait",)
    assert worker.manifest("wait") is None
    assert worker.manifest("shout") is not None
    assert worker.remove(["wait"]) == ()
    assert len(changes) == 2
    gate.open.set()
    assert (await task).result == "a"


async def test_replacing_tells_what_changed_and_keeps_attached_programs(make, gate):
    async def call(name, value, timeout_s, sink):
        return value

    worker = make(gate)
    worker.add([remote("far", call, "p")])
    same = [d for name in ("wait", "fail") if (d := worker._offers.get(name))]
    assert worker.replace([*same, one(shout)]) == ("fail_once", "shout")
    assert [m.name for m in worker.manifests()] == ["fail", "far", "shout", "wait"]
    assert worker.replace([*same, one(shout)][:2]) == ("shout",)
    assert worker.replace(same) == ()


async def test_a_taken_name_changes_nothing(make, gate):
    worker = make(gate, shout)
    before = worker.manifests()
    for change in (worker.add, worker.replace):
        with pytest.raises(UsageError, match="offered here already"):
            change([one(shout), one(shout)])
    with pytest.raises(UsageError, match="at most"):
        worker.add([remote(f"c{i}", None, "p") for i in range(CAPABILITIES_MAX)])
    assert worker.manifests() == before


async def test_what_others_cannot_be_told_of_is_not_offered(make, gate):
    def refuse():
        raise UsageError("too much")

    worker = make(gate, shout, on_change=refuse)
    before = worker.manifests()
    with pytest.raises(UsageError, match="too much"):
        worker.add([remote("far", None, "p")])
    with pytest.raises(UsageError, match="too much"):
        worker.replace([one(shout)])
    assert worker.manifests() == before


async def test_a_lost_program_takes_its_capabilities_and_ends_its_runs(make, gate):
    async def call(name, value, timeout_s, sink):
        return await gate.wait(value)

    worker = make(gate, slots=2)
    worker.add([remote("far", call, "p1", agent="theirs"), remote("other", call, "p2")])
    running, beside = begin(worker, "far", "a"), begin(worker, "other", "b")
    await gate.until(2)
    waiting = begin(worker, "far", "c")
    await turns()
    assert worker.remove_owner("p1") == ("far",)
    assert worker.manifest("other") is not None
    with pytest.raises(PeerError, match="went away") as caught:
        await running
    assert not caught.value.definite
    with pytest.raises(PeerError, match="went away") as caught:
        await waiting
    assert caught.value.definite
    await turns()
    assert gate.cancelled == ["a"]
    gate.open.set()
    assert (await beside).result == "b"
    assert worker.remove_owner("p1") == ()
    assert (worker.counters.failed, worker.counters.refused) == (1, 1)


async def test_attached_programs_answer_for_their_agent(make):
    async def call(name, value, timeout_s, sink):
        return {"got": value, "within": timeout_s}

    worker = make()
    worker.add([remote("far", call, "p", agent="theirs", timeout_s=7.0)])
    result = await worker.run("far", {"n": 1}, deadline_s=30.0)
    assert (result.agent, result.result) == ("theirs", {"got": {"n": 1}, "within": 7.0})


# The end


async def test_draining_refuses_new_work_and_waits_for_the_old(make, gate):
    worker = make(gate)
    task = begin(worker, "wait", "a")
    await gate.until(1)
    assert await worker.drain(0.01) == 1
    assert worker.load().draining
    with pytest.raises(BusyError, match="draining"):
        await worker.run("wait", "b")
    gate.open.set()
    assert await worker.drain(10.0) == 0
    assert (await task).result == "a"
    worker.resume()
    assert (await worker.run("wait", "c")).result == "c"


async def test_closing_ends_everything_in_order(make, gate):
    worker = make(gate, slots=2)
    tasks = [begin(worker, "wait", text) for text in "abc"]
    await gate.until(2)
    await worker.close()
    assert gate.cancelled == ["a", "b"]
    for task, definite in zip(tasks, (False, False, True), strict=True):
        with pytest.raises(PeerError, match="stopping") as caught:
            await task
        assert caught.value.definite is definite
    worker.resume()
    with pytest.raises(BusyError):
        await worker.run("wait", "d")
    await worker.close()


async def test_closing_does_not_wait_for_ever(make, monkeypatch):
    monkeypatch.setattr(worker_module, "CLOSE_S", 0.02)
    platform, may_end, began = WorkPlatform(), threading.Event(), threading.Event()

    def stuck() -> None:
        began.set()
        may_end.wait(10)

    worker = make(stuck, platform=platform)
    task = begin(worker, "stuck")
    await asyncio.to_thread(began.wait, 10)
    await worker.close()
    assert not may_end.is_set()
    with pytest.raises(PeerError, match="stopping"):
        await task
    may_end.set()
    platform.threads[0].shutdown(wait=True)


async def test_a_runner_cancelled_from_outside_still_answers(make, gate):
    worker = make(gate)
    task = begin(worker, "wait", "a", task_id="t1")
    await gate.until(1)
    runner = worker._runs["t1"].runner
    assert runner is not None
    runner.cancel()
    with pytest.raises(PeerError, match="stopping"):
        await task
    assert worker.load().in_flight == 0


def test_only_ends_are_counted():
    with pytest.raises(AssertionError):
        WorkCounters().count(TaskState.WORKING)
