"""Tasks that a node accepted: run in turn, kept, fetched, cancelled, and taken up again."""

import asyncio
import random

import pytest

from meshd.daemon.platform import SystemClock
from meshd.errors import (
    NOT_CALLED_OFF,
    BusyError,
    Code,
    DeadlineError,
    MeshError,
    NoCandidateError,
    PeerError,
    UsageError,
)
from meshd.tasks import ended, lanes, table, tries, watcher
from meshd.tasks import keeper as keeper_module
from meshd.tasks.keeper import Tasks
from meshd.tasks.record import TaskRecord
from meshd.tasks.store import MemoryStore, SqliteStore
from meshd.work.idempotency import UNKNOWN_KEY
from meshd.work.task import TaskState

NODE = "a" * 16
WORKER = "b" * 16


class Work:
    """What tasks are delegated to: answers, raises or waits as a test wants."""

    def __init__(self):
        self.asked = []
        self.answers = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.news = asyncio.Condition()
        self.sinks = []
        self.flags = []
        self.marks = True
        self.refused = set()

    async def __call__(self, params, *, deadline_s, sink, trying, is_repeat, only_joins):
        self.flags.append((is_repeat, only_joins))
        if self.marks:
            await trying(WORKER, 7)
        self.sinks.append(sink)
        self.asked.append(params)
        async with self.news:
            self.news.notify_all()
        await self.hold.wait()
        if params["capability"] in self.refused:
            raise NoCandidateError("nobody")
        answer = self.answers.pop(0) if self.answers else {"done": params["input"]}
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def until(self, count):
        async with asyncio.timeout(5), self.news:
            await self.news.wait_for(lambda: len(self.asked) >= count)


@pytest.fixture
async def work():
    return Work()


@pytest.fixture
async def make(work):
    made = []

    async def start(store=None, **options):
        tasks = Tasks(
            node=NODE, clock=SystemClock(), random=random.Random(1), delegate=work,
            store=store, **options,
        )  # fmt: skip
        made.append(tasks)
        await tasks.start()
        return tasks

    yield start
    work.hold.set()
    for tasks in made:
        await tasks.close()


async def submit(tasks, value=1, **params):
    return await tasks.submit("echo", {"capability": "echo", "input": value, **params})


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


# Over a restart


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
    work.hold.clear()
    before = await make(SqliteStore(tmp_path / "t.sqlite"))
    record = await submit(before)
    await work.until(1)
    await before.close()
    work.hold.set()
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
    work.hold.clear()
    before = await make(SqliteStore(tmp_path / "t.sqlite"))
    record = await submit(before)
    await work.until(1)
    await before.close()
    work.hold.set()
    looks = iter([False, False])
    after = await make(
        SqliteStore(tmp_path / "t.sqlite"),
        lives=lambda node, epoch: node == WORKER and next(looks, True),
    )
    assert (await after.wait(record.id, 5)).state is TaskState.COMPLETED
    assert work.asked[1]["to"] == WORKER


async def test_work_that_its_worker_has_forgotten_is_not_run_again(make, work, tmp_path):
    work.hold.clear()
    before = await make(SqliteStore(tmp_path / "t.sqlite"))
    record = await submit(before)
    await work.until(1)
    await before.close()
    work.hold.set()
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


class Shaky(MemoryStore):
    """Takes a record when a test lets it, or fails."""

    def __init__(self):
        self.put_now = asyncio.Event()
        self.put_now.set()
        self.asked = asyncio.Event()
        self.puts = []
        self.refuses = lambda record: False

    async def put(self, record: TaskRecord):
        self.asked.set()
        await self.put_now.wait()
        if self.refuses(record):
            raise OSError("no space left")
        self.puts.append(record.state)


@pytest.fixture
def store():
    return Shaky()


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
