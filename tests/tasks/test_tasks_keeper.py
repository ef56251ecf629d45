"""Tasks that a node accepted: run in turn, kept, fetched, cancelled, and left behind."""

import asyncio

import pytest
from task_fakes import NODE, WORKER, submit

from meshd.errors import (
    BusyError,
    Code,
    DeadlineError,
    MeshError,
    NoCandidateError,
    PeerError,
    UsageError,
)
from meshd.tasks import ended, lanes, table, watcher
from meshd.tasks import keeper as keeper_module
from meshd.tasks.store import SqliteStore
from meshd.work.task import TaskState


async def test_a_task_is_accepted_done_and_kept(make, work):
    tasks = await make()
    record = await submit(tasks, 5)
    assert (record.state, record.id[:16]) == (TaskState.ACCEPTED, NODE)
    ended = await tasks.wait(record.id, 5)
    assert (ended.state, ended.result, ended.node) == (
        TaskState.COMPLETED, {"done": 5}, WORKER,
    )  # fmt: skip
    assert tasks.get(record.id) == ended
    assert work.asked[0]["idempotency_key"] == f"task-{record.id}"
    assert tasks.open == 0


async def test_a_wait_that_is_too_short_tells_how_it_stands(make, work):
    work.hold.clear()
    tasks = await make()
    record = await submit(tasks)
    await work.until(1)
    assert (await tasks.wait(record.id, 0.01)).state is TaskState.WORKING


async def test_what_fails_says_why_and_what_was_late_has_expired(make, work):
    work.answers = [PeerError("broken", definite=False), DeadlineError("too late", definite=False)]
    tasks = await make()
    failed, late = await submit(tasks, 1), await submit(tasks, 2)
    ended = await tasks.wait(failed.id, 5)
    assert ended.state is TaskState.FAILED
    assert str(ended.failure()) == "broken"
    assert not ended.failure().definite
    assert (await tasks.wait(late.id, 5)).state is TaskState.EXPIRED


@pytest.mark.parametrize(
    "error",
    [
        PeerError("it cannot be reached"),
        PeerError("this node stops", code=Code.REJECTED),
        PeerError("it waited for a slot of a node that stops", code=Code.CANCELLED),
        DeadlineError("the link took too long"),
        MeshError("no such method", code=Code.METHOD_NOT_FOUND),
    ],
)
async def test_what_surely_ran_nowhere_waits_and_is_tried_again(make, work, error):
    work.answers = [error]
    tasks = await make()
    record = await submit(tasks)
    assert (await tasks.wait(record.id, 5)).state is TaskState.COMPLETED
    assert len(work.asked) == 2


@pytest.mark.parametrize(
    "error",
    [
        UsageError("no such field"),
        PeerError("it goes in circles", code=Code.CYCLE),
        PeerError("the worker stopped", code=Code.CANCELLED, definite=False),
    ],
)
async def test_what_waiting_does_not_mend_has_failed(make, work, error):
    work.answers = [error]
    tasks = await make()
    record = await submit(tasks)
    assert (await tasks.wait(record.id, 5)).state is TaskState.FAILED
    assert len(work.asked) == 1


async def test_those_that_wait_hold_up_nobody_else(make, work, monkeypatch):
    monkeypatch.setattr(keeper_module, "ACTIVE_MAX", 2)
    work.refused = {"rare"}
    tasks = await make()
    rare = [await tasks.submit("rare", {"capability": "rare", "input": n}) for n in range(9)]
    done = [await submit(tasks, n) for n in range(9)]
    for record in done:
        assert (await tasks.wait(record.id, 5)).state is TaskState.COMPLETED
    work.refused = set()
    for record in rare:
        assert (await tasks.wait(record.id, 5)).state is TaskState.COMPLETED


async def test_a_deadline_ends_who_waits_for_a_turn(make, work, monkeypatch):
    monkeypatch.setattr(keeper_module, "ACTIVE_MAX", 1)
    work.hold.clear()
    tasks = await make()
    await submit(tasks)
    late = await submit(tasks, deadline_ms=50)
    assert (await tasks.wait(late.id, 5)).state is TaskState.EXPIRED
    assert len(work.asked) == 1


async def test_deadlines_of_what_has_ended_take_no_room(make, work, monkeypatch):
    monkeypatch.setattr(keeper_module, "ACTIVE_MAX", 4)
    tasks = await make()
    for number in range(40):
        await tasks.wait((await submit(tasks, number)).id, 5)
    assert len(tasks._deadlines) <= 2 * (keeper_module.ACTIVE_MAX + 1)


async def test_while_nobody_can_it_waits_and_news_of_the_mesh_wake_it(make, work, monkeypatch):
    monkeypatch.setattr(lanes, "PAUSE_MIN_S", 60.0)
    monkeypatch.setattr(lanes, "PAUSE_MAX_S", 60.0)
    work.answers = [NoCandidateError("nobody"), BusyError("all busy")]
    tasks = await make()
    record = await submit(tasks)
    for count in (1, 2):
        await work.until(count)
        async with asyncio.timeout(5):
            while not tasks.get(record.id).message.startswith("waits"):
                await asyncio.sleep(0)
        tasks.look_again()
    assert (await tasks.wait(record.id, 5)).state is TaskState.COMPLETED


async def test_its_deadline_ends_the_waiting(make, work):
    work.answers = [NoCandidateError("nobody")] * 100
    tasks = await make()
    record = await submit(tasks, deadline_ms=150)
    ended = await tasks.wait(record.id, 5)
    assert ended.state is TaskState.EXPIRED
    assert ended.error["code"] == Code.DEADLINE


async def test_a_task_is_cancelled_wherever_it_stands(make, work, monkeypatch):
    monkeypatch.setattr(keeper_module, "ACTIVE_MAX", 1)
    work.hold.clear()
    tasks = await make()
    running, waiting = await submit(tasks, 1), await submit(tasks, 2)
    await work.until(1)
    for record in (waiting, running):
        assert (await tasks.cancel(record.id)).state is TaskState.CANCELLED
    assert (await tasks.cancel(running.id)).state is TaskState.CANCELLED
    work.hold.set()
    third = await submit(tasks, 3)
    assert (await tasks.wait(third.id, 5)).state is TaskState.COMPLETED
    assert len(work.asked) == 2, "who was cancelled while it waited never ran"


async def test_the_most_urgent_has_the_next_turn(make, work, monkeypatch):
    monkeypatch.setattr(keeper_module, "ACTIVE_MAX", 1)
    work.hold.clear()
    tasks = await make()
    first = await submit(tasks, 0)
    await work.until(1)
    records = [await submit(tasks, p, priority=p) for p in (1, 5, 3)]
    work.hold.set()
    for record in (first, *records):
        await tasks.wait(record.id, 5)
    assert [params["input"] for params in work.asked] == [0, 5, 3, 1]


async def test_a_repeated_key_is_the_same_task(make, work):
    work.hold.clear()
    tasks = await make()
    first = await submit(tasks, 1, idempotency_key="k")
    again = await submit(tasks, 1, idempotency_key="k")
    assert first.id == again.id
    with pytest.raises(UsageError, match="another input"):
        await submit(tasks, 2, idempotency_key="k")
    work.hold.set()
    await tasks.wait(first.id, 5)
    assert (await submit(tasks, 1, idempotency_key="k")).state is TaskState.COMPLETED
    assert len(work.asked) == 1


async def test_bounds_hold_and_say_so(make, work, monkeypatch):
    monkeypatch.setattr(table, "OPEN_MAX", 2)
    work.hold.clear()
    tasks = await make()
    records = [await submit(tasks, 1), await submit(tasks, 2)]
    with pytest.raises(BusyError, match="2 tasks are open") as caught:
        await submit(tasks, 3)
    assert caught.value.definite
    work.hold.set()
    for record in records:
        await tasks.wait(record.id, 5)
    monkeypatch.setattr(table, "OPEN_BYTES_MAX", 10_000)
    with pytest.raises(BusyError, match="bytes") as caught:
        await submit(tasks, "x" * 10_000)
    assert caught.value.definite
    assert [r.id for r in tasks.list()] == [records[1].id, records[0].id]
    assert tasks.list(["failed"]) == []
    assert len(tasks.list(limit=1)) == 1


async def until_gone(tasks, task_id):
    async with asyncio.timeout(5):
        while task_id in [record.id for record in tasks.list()]:
            await asyncio.sleep(0)


async def test_results_are_kept_as_long_as_there_is_room_and_those_not_fetched_stay(
    make, work, monkeypatch
):
    tasks = await make()
    old, new = await submit(tasks, 1), await submit(tasks, 2)
    while tasks.open:
        await asyncio.sleep(0)
    tasks.get(new.id)
    monkeypatch.setattr(ended, "ENDED_BYTES_MAX", 4_000)
    third = await submit(tasks, "x" * 1_000)
    await until_gone(tasks, new.id)
    assert tasks.get(old.id).result == {"done": 1}, "nobody had fetched it"
    assert tasks.get(third.id).params == {}, "what was handed in is not kept beyond the end"


async def test_what_is_too_old_goes_by_itself(make, work, monkeypatch):
    monkeypatch.setattr(ended, "ENDED_S", 0.05)
    tasks = await make()
    record = await submit(tasks, 1)
    await tasks.wait(record.id, 5)
    await until_gone(tasks, record.id)
    with pytest.raises(NoCandidateError, match="no task"):
        tasks.get(record.id)


async def test_who_looks_on_is_told_all_and_of_the_end(make, work):
    work.hold.clear()
    tasks = await make()
    record = await submit(tasks)
    await work.until(1)
    seen = []

    async def look():
        async for event in tasks.watch(record.id):
            seen.append(event)  # noqa: PERF401 - looked at while it goes on

    looking = asyncio.create_task(look())
    while not seen:
        await asyncio.sleep(0)
    work.sinks[0].progress(0.5, "half")
    await work.sinks[0].part("first")
    work.hold.set()
    await asyncio.wait_for(looking, 5)
    assert [event["state"] for event in seen] == ["working"] * 3 + ["completed"]
    assert (seen[1]["fraction"], seen[1]["message"]) == (0.5, "half")
    assert (seen[2]["part"], seen[2]["parts"]) == ("first", 1)
    assert seen[-1]["result"] == {"done": 1}


async def test_a_slow_onlooker_misses_some_and_is_told_so(make, work, monkeypatch):
    monkeypatch.setattr(watcher, "EVENTS_MAX", 2)
    work.hold.clear()
    tasks = await make()
    record = await submit(tasks)
    await work.until(1)
    events = tasks.watch(record.id)
    await anext(events)
    for step in range(5):
        work.sinks[0].progress(step / 5, "")
    assert (await anext(events))["fraction"] == 0.0
    assert (await anext(events))["fraction"] == 0.2
    work.sinks[0].progress(1.0, "")
    assert (await anext(events))["missed"] == 3
    await events.aclose()


@pytest.mark.parametrize("has_journal", [True, False])
async def test_who_leaves_lets_end_what_nobody_else_would_take_up(
    make, work, monkeypatch, tmp_path, has_journal
):
    monkeypatch.setattr(keeper_module, "ACTIVE_MAX", 1)
    work.hold.clear()
    tasks = await make(SqliteStore(tmp_path / "t.sqlite") if has_journal else None)
    running, waiting = await submit(tasks, 1), await submit(tasks, 2)
    await work.until(1)
    draining = asyncio.create_task(tasks.drain())
    await asyncio.sleep(0)
    with pytest.raises(PeerError, match="leaving") as caught:
        await submit(tasks, 3)
    assert caught.value.definite
    work.hold.set()
    await asyncio.wait_for(draining, 5)
    assert tasks.get(running.id).state is TaskState.COMPLETED
    left = TaskState.ACCEPTED if has_journal else TaskState.COMPLETED
    assert tasks.get(waiting.id).state is left
    tasks.resume()
    assert (await tasks.wait(waiting.id, 5)).state is TaskState.COMPLETED


async def test_what_is_left_without_a_journal_ends_and_who_waits_is_told(make, work, monkeypatch):
    monkeypatch.setattr(keeper_module, "ACTIVE_MAX", 1)
    work.hold.clear()
    tasks = await make()
    running, waiting = await submit(tasks, 1), await submit(tasks, 2)
    await work.until(1)
    waits = [asyncio.create_task(tasks.wait(each.id, 60)) for each in (running, waiting)]
    events = tasks.watch(waiting.id)
    await anext(events)
    await tasks.close()
    cut, never = await asyncio.wait_for(asyncio.gather(*waits), 5)
    assert (cut.state, cut.failure().definite) == (TaskState.CANCELLED, False)
    assert (never.state, never.failure().definite) == (TaskState.REJECTED, True)
    assert [event["state"] async for event in events] == ["rejected"]
    assert len(work.asked) == 1, "nothing is begun that late"


async def test_what_waits_for_somebody_does_not_hold_up_who_leaves(make, work, monkeypatch):
    monkeypatch.setattr(lanes, "PAUSE_MIN_S", 60.0)
    monkeypatch.setattr(lanes, "PAUSE_MAX_S", 60.0)
    work.answers = [NoCandidateError("nobody")]
    tasks = await make()
    record = await submit(tasks)
    async with asyncio.timeout(5):
        while not tasks.get(record.id).message.startswith("waits"):
            await asyncio.sleep(0)
    await asyncio.wait_for(tasks.drain(), 5)
    assert tasks.get(record.id).node == "", "it surely ran nowhere"
    tasks.resume()
    assert (await tasks.wait(record.id, 5)).state is TaskState.COMPLETED
