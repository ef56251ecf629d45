"""Tasks that a node accepted: run in turn, kept, fetched, cancelled, and taken up again."""

import asyncio
import random

import pytest

from meshd.daemon.platform import SystemClock
from meshd.errors import BusyError, Code, DeadlineError, NoCandidateError, PeerError, UsageError
from meshd.tasks import keeper as keeper_module
from meshd.tasks.keeper import Tasks
from meshd.tasks.record import TaskRecord
from meshd.tasks.store import SqliteStore
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

    async def __call__(self, params, *, deadline_s, sink, trying):
        await trying(WORKER, 7)
        self.sinks.append(sink)
        self.asked.append(params)
        async with self.news:
            self.news.notify_all()
        await self.hold.wait()
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
    work.answers = [PeerError("broken", definite=False), DeadlineError("too late")]
    tasks = await make()
    failed, late = await submit(tasks, 1), await submit(tasks, 2)
    ended = await tasks.wait(failed.id, 5)
    assert ended.state is TaskState.FAILED
    assert str(ended.failure()) == "broken"
    assert not ended.failure().definite
    assert (await tasks.wait(late.id, 5)).state is TaskState.EXPIRED


async def test_while_nobody_can_it_waits_and_news_of_the_mesh_wake_it(make, work, monkeypatch):
    monkeypatch.setattr(keeper_module, "PAUSE_MIN_S", 60.0)
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
    monkeypatch.setattr(keeper_module, "OPEN_MAX", 2)
    monkeypatch.setattr(keeper_module, "ENDED_MAX", 2)
    work.hold.clear()
    tasks = await make()
    records = [await submit(tasks, 1), await submit(tasks, 2)]
    with pytest.raises(BusyError, match="2 tasks are open") as caught:
        await submit(tasks, 3)
    assert caught.value.definite
    work.hold.set()
    for record in records:
        await tasks.wait(record.id, 5)
    records.append(await submit(tasks, 3))
    await tasks.wait(records[2].id, 5)
    with pytest.raises(NoCandidateError, match="no task"):
        tasks.get(records[0].id)
    assert [r.id for r in tasks.list()] == [records[2].id, records[1].id]
    assert tasks.list(["failed"]) == []
    assert len(tasks.list(limit=1)) == 1


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
    monkeypatch.setattr(keeper_module, "EVENTS_MAX", 2)
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


async def test_who_leaves_lets_end_what_is_with_workers_and_takes_no_more(make, work, monkeypatch):
    monkeypatch.setattr(keeper_module, "ACTIVE_MAX", 1)
    work.hold.clear()
    tasks = await make()
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
    assert tasks.get(waiting.id).state is TaskState.ACCEPTED
    tasks.resume()
    assert (await tasks.wait(waiting.id, 5)).state is TaskState.COMPLETED


async def test_what_waits_for_somebody_does_not_hold_up_who_leaves(make, work, monkeypatch):
    monkeypatch.setattr(keeper_module, "PAUSE_MIN_S", 60.0)
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
async def test_work_that_may_not_run_twice_is_asked_for_at_its_worker_only(
    make, work, tmp_path, lives, monkeypatch
):
    monkeypatch.setattr(keeper_module, "RECOVERY_S", 0.3)
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


async def test_a_task_that_the_disk_does_not_take_is_not_accepted(make, work):
    class Full:
        async def load(self):
            return []

        async def put(self, record: TaskRecord):
            raise OSError("no space left")

        async def remove(self, ids):
            pass

        async def close(self):
            pass

    tasks = await make(Full())
    with pytest.raises(PeerError, match="no space left") as caught:
        await submit(tasks)
    assert caught.value.definite
    assert tasks.open == 0
    assert work.asked == []
