"""Tasks outlive what goes wrong: restarts, callers who leave, disks that refuse, our own faults."""

import asyncio

import pytest
from task_fakes import WORKER, submit

from meshd.errors import NOT_CALLED_OFF, BusyError, Code, NoCandidateError, PeerError
from meshd.tasks import lanes, tries
from meshd.tasks.store import SqliteStore
from meshd.work.idempotency import UNKNOWN_KEY
from meshd.work.task import TaskState

# Over a restart


async def left_running(make, work, tmp_path):
    """A task that a worker had when the process that accepted it ended."""
    work.hold.clear()
    before = await make(SqliteStore(tmp_path / "t.sqlite"))
    record = await submit(before)
    await work.until(1)
    await before.close()
    work.hold.set()
    return record


async def test_what_was_accepted_is_done_by_the_next_process(make, work, tmp_path):
    work.hold.clear()
    before = await make(SqliteStore(tmp_path / "t.sqlite"), may_repeat=lambda _: True)
    record = await submit(before, 9)
    await work.until(1)
    await before.close()
    work.hold.set()
    after = await make(SqliteStore(tmp_path / "t.sqlite"), may_repeat=lambda _: True)
    ended = await after.wait(record.id, 5)
    assert (ended.state, ended.result) == (TaskState.COMPLETED, {"done": 9})
    await after.close()
    last = await make(SqliteStore(tmp_path / "t.sqlite"))
    assert last.get(record.id).result == {"done": 9}, "what has ended is kept, too"
    assert len(work.asked) == 2


@pytest.mark.parametrize("lives", [True, False])
async def test_work_that_may_not_run_twice_is_joined_at_its_worker_only(
    make, work, tmp_path, lives, monkeypatch
):
    monkeypatch.setattr(tries, "RECOVERY_S", 0.1)
    record = await left_running(make, work, tmp_path)
    after = await make(SqliteStore(tmp_path / "t.sqlite"), lives=lambda node, epoch: lives)
    ended = await after.wait(record.id, 5)
    if lives:
        assert ended.state is TaskState.COMPLETED
        assert (work.asked[1]["to"], work.asked[1]["idempotency_key"]) == (WORKER, record.key)
        assert work.flags == [(False, False), (True, True)]
    else:
        assert ended.state is TaskState.FAILED
        assert not ended.failure().definite
        assert len(work.asked) == 1


async def test_a_worker_that_is_seen_a_little_later_is_asked_all_the_same(make, work, tmp_path):
    record = await left_running(make, work, tmp_path)
    looks = iter([False, False])
    after = await make(
        SqliteStore(tmp_path / "t.sqlite"),
        lives=lambda node, epoch: node == WORKER and next(looks, True),
    )
    assert (await after.wait(record.id, 5)).state is TaskState.COMPLETED
    assert work.asked[1]["to"] == WORKER


async def test_work_that_its_worker_has_forgotten_is_not_run_again(make, work, tmp_path):
    record = await left_running(make, work, tmp_path)
    work.answers = [
        BusyError("not now"),
        NoCandidateError("no such key", data={"reason": UNKNOWN_KEY}),
    ]
    after = await make(SqliteStore(tmp_path / "t.sqlite"), lives=lambda node, epoch: True)
    ended = await after.wait(record.id, 5)
    assert ended.state is TaskState.FAILED
    assert not ended.failure().definite
    assert "may have been done" in ended.failure().message
    assert [params["to"] for params in work.asked[1:]] == [WORKER] * 2
    assert work.flags[1:] == [(True, True)] * 2, "a busy worker does not make it anybody's"


async def test_whether_it_may_run_twice_is_known_although_nobody_offers_it_now(
    make, work, tmp_path
):
    work.hold.clear()
    before = await make(SqliteStore(tmp_path / "t.sqlite"), may_repeat=lambda _: True)
    record = await submit(before)
    await work.until(1)
    await before.close()
    work.hold.set()
    after = await make(SqliteStore(tmp_path / "t.sqlite"))
    assert (await after.wait(record.id, 5)).state is TaskState.COMPLETED
    assert work.flags[1] == (True, False)


async def test_a_node_that_stops_with_a_journal_calls_nothing_off(make, work, tmp_path):
    cancellations = []

    async def wait():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as cancelled:
            cancellations.append(cancelled.args)
            raise

    for store in (SqliteStore(tmp_path / "t.sqlite"), None):
        work.hold.wait = wait
        tasks = await make(store)
        await submit(tasks)
        await work.until(len(cancellations) + 1)
        await tasks.close()
    assert cancellations == [(NOT_CALLED_OFF,), ()]


# A store that is slow or fails


async def test_a_submit_whose_caller_leaves_is_done_all_the_same(make, work, store):
    tasks = await make(store)
    store.put_now.clear()
    submitting = asyncio.create_task(submit(tasks, 5, idempotency_key="k"))
    await asyncio.wait_for(store.asked.wait(), 5)
    assert tasks.list() == [], "nobody is told of what is not safe yet"
    submitting.cancel()
    await asyncio.wait((submitting,))
    store.put_now.set()
    again = await submit(tasks, 5, idempotency_key="k")
    assert (await tasks.wait(again.id, 5)).state is TaskState.COMPLETED
    assert len(work.asked) == 1


@pytest.mark.parametrize("is_full", [True, False])
async def test_who_repeats_a_submit_hears_no_sooner_that_it_is_safe(make, work, store, is_full):
    tasks = await make(store)
    store.put_now.clear()
    store.refuses = lambda record: is_full
    both = [asyncio.create_task(submit(tasks, 5, idempotency_key="k")) for _ in range(2)]
    await asyncio.wait_for(store.asked.wait(), 5)
    for _ in range(10):
        await asyncio.sleep(0)
    assert not any(each.done() for each in both)
    store.put_now.set()
    found = await asyncio.gather(*both, return_exceptions=True)
    if is_full:
        assert all(isinstance(each, PeerError) and each.definite for each in found)
        assert tasks.open == 0
    else:
        assert found[0].id == found[1].id


async def test_a_cancel_whose_caller_leaves_is_done_all_the_same(make, work):
    work.hold.clear()
    tasks = await make()
    record = await submit(tasks)
    await work.until(1)
    cancelling = asyncio.create_task(tasks.cancel(record.id))
    await asyncio.sleep(0)
    cancelling.cancel()
    assert (await tasks.wait(record.id, 5)).state is TaskState.CANCELLED


async def test_a_write_that_fails_holds_a_task_up_and_no_more(make, work, store):
    failing = iter([True])
    store.refuses = lambda record: record.state is TaskState.WORKING and next(failing, False)
    tasks = await make(store)
    record = await submit(tasks)
    assert (await tasks.wait(record.id, 5)).state is TaskState.COMPLETED
    assert len(work.asked) == 1, "nothing is sent that is not written down"


async def test_an_end_that_cannot_be_written_is_told_once(make, work, store):
    store.refuses = lambda record: record.has_ended
    tasks = await make(store)
    work.hold.clear()
    record = await submit(tasks)
    events = tasks.watch(record.id)
    work.hold.set()
    seen = [event async for event in events]
    assert [event["state"] for event in seen].count("completed") == 1
    assert "not in the journal" in tasks.get(record.id).message


async def test_a_fault_of_ours_ends_the_task(make, work):
    faults = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    work.answers = [RuntimeError("a bug")]
    tasks = await make()
    record = await submit(tasks)
    ended = await tasks.wait(record.id, 5)
    assert (ended.state, ended.error["code"]) == (TaskState.FAILED, Code.INTERNAL)
    assert not ended.failure().definite
    assert len(faults) == 1


async def test_waiting_for_the_same_reason_is_written_once(make, work, store, monkeypatch):
    monkeypatch.setattr(lanes, "PAUSE_MAX_S", 0.001)
    work.answers = [NoCandidateError("nobody")] * 4
    work.marks = False
    tasks = await make(store)
    record = await submit(tasks)
    assert (await tasks.wait(record.id, 5)).state is TaskState.COMPLETED
    assert work.flags == [(False, False)] + [(True, False)] * 4
    assert store.puts == [TaskState.ACCEPTED, TaskState.COMPLETED]


async def test_a_task_that_the_disk_does_not_take_is_not_accepted(make, work, store):
    store.refuses = lambda record: True
    tasks = await make(store)
    with pytest.raises(PeerError, match="no space left") as caught:
        await submit(tasks)
    assert caught.value.definite
    assert tasks.open == 0
    assert work.asked == []
