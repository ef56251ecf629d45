"""Where tasks are kept: in memory, or in a file that outlives the process."""

import asyncio
import sqlite3
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import msgspec

from meshd.errors import UsageError
from meshd.tasks.record import TaskRecord

_SCHEMA = "CREATE TABLE IF NOT EXISTS tasks (id TEXT PRIMARY KEY, record BLOB NOT NULL)"
_PUT = "INSERT OR REPLACE INTO tasks (id, record) VALUES (?, ?)"
_VERSION = 1


class Store(Protocol):
    """Keeps records by id."""

    @property
    def is_lasting(self) -> bool:
        """Whether the next process finds them."""
        ...

    async def load(self) -> list[TaskRecord]:
        """All that is kept, the oldest first."""
        ...

    async def put(self, record: TaskRecord) -> None:
        """Keep a record, in place of an older one of its id; returns once it is safe.

        Raises:
            OSError: it cannot be kept.
        """
        ...

    async def remove(self, ids: Iterable[str]) -> None:
        """Keep these no more."""
        ...

    async def close(self) -> None:
        """Finish, and let go of everything. Idempotent."""
        ...


class MemoryStore:
    """Keeps nothing beyond the process: the records that are in use are in memory anyway."""

    is_lasting = False

    async def load(self) -> list[TaskRecord]:
        """Nothing."""
        return []

    async def put(self, record: TaskRecord) -> None:
        """It is in memory."""

    async def remove(self, ids: Iterable[str]) -> None:
        """There is nothing to remove."""

    async def close(self) -> None:
        """There is nothing to close."""


class SqliteStore:
    """A journal in one SQLite file, written by a thread of its own.

    What comes while a write is under way is written together in the next (group commit): many
    tasks a second cost few writes to the disk.
    """

    is_lasting = True

    def __init__(self, path: Path) -> None:
        """Nothing is opened yet."""
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="meshd-journal")
        self._db: sqlite3.Connection | None = None
        self._due: dict[str, bytes | None] = {}
        self._waiters: list[asyncio.Future[None]] = []
        self._writer: asyncio.Task[None] | None = None

    async def load(self) -> list[TaskRecord]:
        """Open the file; all that is kept.

        Raises:
            UsageError: it is no journal of ours, or cannot be opened; the file is as it was.
        """
        try:
            rows = await self._in_thread(self._read)
            records = [msgspec.json.decode(row, type=TaskRecord) for row in rows]
            await self._in_thread(self._open)
            return records
        except (sqlite3.Error, msgspec.DecodeError) as error:
            raise UsageError(
                f"the journal {self._path} cannot be used: {error}",
                hint="move it away to begin a new one, or turn the journal off",
            ) from error

    async def put(self, record: TaskRecord) -> None:
        """Write it, with whatever else is due; returns once the disk has it.

        Raises:
            OSError: the disk refused.
        """
        self._due[record.id] = msgspec.json.encode(record)
        await self._written()

    async def remove(self, ids: Iterable[str]) -> None:
        """Write that these are no more."""
        self._due.update(dict.fromkeys(ids))
        if self._due:
            await self._written()

    async def close(self) -> None:
        """Write what is due, and close the file. Idempotent."""
        if self._writer is not None:
            await asyncio.wait((self._writer,))
        if self._db is not None:
            await self._in_thread(self._db.close)
            self._db = None
        self._thread.shutdown(wait=False)

    async def _in_thread(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def _read(self) -> list[bytes]:
        """All rows; a file that is none of ours is left as it was."""
        if not self._path.exists():
            return []
        with closing(sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version == 0 and not db.execute("SELECT name FROM sqlite_master").fetchall():
                return []
            if version != _VERSION:
                raise sqlite3.DatabaseError(f"it is of version {version}, this is {_VERSION}")
            return [row[0] for row in db.execute("SELECT record FROM tasks ORDER BY rowid")]

    def _open(self) -> None:
        self._db = db = sqlite3.connect(self._path, check_same_thread=False)
        self._path.chmod(0o600)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        with db:
            db.execute(_SCHEMA)
            db.execute(f"PRAGMA user_version = {_VERSION}")

    async def _written(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_all(), name="meshd-journal")
        await waiter

    async def _write_all(self) -> None:
        try:
            while self._waiters:
                due, waiters = self._due, self._waiters
                self._due, self._waiters = {}, []
                error: Exception | None = None
                try:
                    await self._in_thread(self._write, due)
                except sqlite3.Error as failed:
                    error = OSError(f"the journal {self._path} cannot be written: {failed}")
                for waiter in waiters:
                    if not waiter.done():
                        if error is None:
                            waiter.set_result(None)
                        else:
                            waiter.set_exception(error)
        finally:
            self._writer = None

    def _write(self, due: dict[str, bytes | None]) -> None:
        assert self._db is not None, "the journal is open"
        with self._db as db:
            db.executemany(_PUT, [(id_, body) for id_, body in due.items() if body is not None])
            gone = [(id_,) for id_, body in due.items() if body is None]
            db.executemany("DELETE FROM tasks WHERE id = ?", gone)
