"""The tasks that a node keeps, by id and by key, and how much of them there may be."""

import itertools
from collections.abc import Iterable, Iterator

from meshd.errors import BusyError, NoCandidateError, UsageError
from meshd.tasks.ended import ENDED_S, Ended
from meshd.tasks.live import Live, size_of
from meshd.tasks.record import TaskRecord

OPEN_MAX = 10_000
OPEN_BYTES_MAX = 256 * 1_048_576
"""Tasks that have not ended, and what was handed in with them; one more is refused."""


class Table:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self.ended = Ended()
        self._tasks: dict[str, Live] = {}
        self._by_key: dict[tuple[str, str], str] = {}
        self._open_bytes = 0
        self._numbers = itertools.count()

    def __iter__(self) -> Iterator[Live]:
        return iter(tuple(self._tasks.values()))

    @property
    def open(self) -> int:
        """How many have not ended."""
        return len(self._tasks) - len(self.ended)

    def room(self, size: int) -> None:
        """Look whether one more may be taken in.

        Raises:
            BusyError: it may not; definite.
        """
        if self.open >= OPEN_MAX:
            raise BusyError(
                f"{self.open} tasks are open on this node", hint="submit to another node, or later"
            )
        if self._open_bytes + size > OPEN_BYTES_MAX:
            raise BusyError(
                f"the tasks that are open on this node take {self._open_bytes} bytes",
                hint="hand in references to large data, or submit to another node, or later",
            )

    def enter(self, record: TaskRecord, size: int) -> Live:
        """One more that is open, or ended in an earlier process."""
        turn = (-record.priority, next(self._numbers), record.id)
        live = self._tasks[record.id] = Live(record, turn, size)
        key = record.params.get("idempotency_key")
        if key:
            self._by_key[record.capability, key] = record.id
        if not record.has_ended:
            self._open_bytes += size
        return live

    def retire(self, live: Live) -> None:
        """It has ended just now: its record says so."""
        self._open_bytes -= live.size
        live.size = size_of(live.record)
        self.ended.add(live.record.id, live.size, live.record.updated_ms)

    def drop(self, task_id: str) -> None:
        """Keep it no more."""
        live = self._tasks.pop(task_id)
        if not live.record.has_ended:
            self._open_bytes -= live.size
        self.ended.remove(task_id)
        key = live.record.params.get("idempotency_key")
        if key:
            self._by_key.pop((live.record.capability, key), None)

    def get(self, task_id: str) -> Live | None:
        """It, if it is kept."""
        return self._tasks.get(task_id)

    def find(self, task_id: str) -> Live:
        """It, if it is kept and safe.

        Raises:
            NoCandidateError: it is not known, or not any more.
        """
        live = self._tasks.get(task_id)
        if live is None or not live.is_safe:
            raise NoCandidateError(
                f"no task {task_id[:80]!r} is kept here",
                hint=f"ended ones are kept for {ENDED_S:g} s at most; see meshd task list",
            )
        return live

    def known(self, capability: str, key: str, digest: str) -> Live | None:
        """The task that was handed in under the same key.

        Raises:
            UsageError: with other input.
        """
        live = self._tasks.get(self._by_key.get((capability, key), "")) if key else None
        if live is not None and live.record.digest != digest:
            raise UsageError(
                f"{capability}: idempotency key {key!r} was used with another input",
                hint="use a new key for each new request",
            )
        return live

    def newest(self, states: Iterable[str], limit: int) -> list[TaskRecord]:
        """The newest records, of these states if any are given."""
        wanted = set(states)
        found = (
            live.record
            for live in reversed(self._tasks.values())
            if live.is_safe and (not wanted or live.record.state in wanted)
        )
        return list(itertools.islice(found, limit))
