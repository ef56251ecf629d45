"""The journal of tasks: what it took is there after a crash; a damaged one is refused."""

import asyncio
import sqlite3

import pytest

from meshd.errors import UsageError
from meshd.tasks.record import TaskRecord
from meshd.tasks.store import MemoryStore, SqliteStore


def record(number=1, **changes):
    made = {
        "id": f"{'a' * 16}-{number:016x}", "capability": "echo", "params": {"input": [number]},
        "submitted_ms": number, "updated_ms": number, "deadline_ms": 10**13,
    }  # fmt: skip
    return TaskRecord(**{**made, **changes})


async def test_what_was_put_is_there_again_and_what_was_removed_is_not(tmp_path):
    store = SqliteStore(tmp_path / "t.sqlite")
    assert await store.load() == []
    await asyncio.gather(*(store.put(record(n)) for n in range(50)))
    await store.put(record(3, result={"x": 1}))
    await store.remove([record(4).id])
    await store.close()
    again = SqliteStore(tmp_path / "t.sqlite")
    found = {each.id: each for each in await again.load()}
    await again.close()
    assert len(found) == 49
    assert found[record(3).id].result == {"x": 1}
    assert record(4).id not in found
    assert (tmp_path / "t.sqlite").stat().st_mode & 0o777 == 0o600


async def test_many_puts_at_once_are_few_writes(tmp_path):
    store = SqliteStore(tmp_path / "t.sqlite")
    await store.load()
    writes = []
    write = store._write
    store._write = lambda due: (writes.append(len(due)), write(due))
    await asyncio.gather(*(store.put(record(n)) for n in range(200)))
    await store.close()
    assert sum(writes) == 200
    assert len(writes) <= 3


@pytest.mark.parametrize("damage", ["text", "other", "later"])
async def test_what_is_no_journal_of_ours_is_left_alone(tmp_path, damage):
    path = tmp_path / "t.sqlite"
    if damage == "text":
        path.write_bytes(b"this is no database, but long enough to be read as a header" * 20)
    else:
        with sqlite3.connect(path) as db:
            if damage == "later":
                db.execute("PRAGMA user_version = 99")
            else:
                db.execute("CREATE TABLE tasks (id TEXT PRIMARY KEY, record BLOB NOT NULL)")
                db.execute("INSERT INTO tasks VALUES ('x', 'no json')")
    before = path.read_bytes()
    store = SqliteStore(path)
    with pytest.raises(UsageError, match="cannot be used"):
        await store.load()
    await store.close()
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


async def test_a_journal_that_was_not_closed_is_read_with_its_newest_writes(tmp_path):
    store = SqliteStore(tmp_path / "t.sqlite")
    await store.load()
    await store.put(record(1))
    for each in list(tmp_path.iterdir()):
        (tmp_path / f"copy{each.name[1:]}").write_bytes(each.read_bytes())
    again = SqliteStore(tmp_path / "copy.sqlite")
    assert await again.load() == [record(1)]
    await store.close()
    await again.close()


async def test_a_disk_that_refuses_is_told_to_who_waits_and_the_next_put_goes_on(tmp_path):
    store = SqliteStore(tmp_path / "t.sqlite")
    await store.load()
    write = store._write

    def refuse(_due):
        raise sqlite3.OperationalError("disk is full")

    store._write = refuse
    with pytest.raises(OSError, match="disk is full"):
        await store.put(record(1))
    store._write = write
    await store.put(record(2))
    await store.close()


async def test_memory_keeps_nothing_for_the_next_process():
    store = MemoryStore()
    await store.put(record())
    await store.remove([record().id])
    assert await store.load() == []
    await store.close()


def test_a_record_tells_its_error_and_only_if_it_has_one():
    assert record().failure() is None
    error = {"code": -32018, "message": "broken", "data": {"definite": False, "hint": "mend it"}}
    failure = record(error=error).failure()
    assert (failure.message, failure.hint, failure.definite) == ("broken", "mend it", False)
