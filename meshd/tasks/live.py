"""A task in memory: its newest record, where it stands among others, and who looks on."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from meshd.clock import Clock
from meshd.errors import MeshError
from meshd.tasks.lanes import Turn
from meshd.tasks.record import TaskRecord, told
from meshd.tasks.watcher import Watcher

RECORD_BYTES = 1_024
"""What a record takes beside what is in it, about."""


@dataclass(slots=True, eq=False)
class Live:
    """A task in memory; what the keeper knows of it beside its record."""

    record: TaskRecord
    turn: Turn
    size: int
    is_safe: bool = True
    """Whether the store has it: until then nobody is told of it."""
    accepting: asyncio.Task[MeshError | None] | None = None
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once it has ended, or this node stops."""
    was_sent: bool = False
    """Whether an earlier process of this node had sent it to a worker."""
    is_marked: bool = False
    """Whether the store says that a worker may have it."""
    was_tried: bool = False
    is_refused: bool = False
    """Whether its present try surely came to nothing."""
    lane: bytes = b""
    is_in_lane: bool = False
    job: asyncio.Task[None] | None = None
    watchers: list[Watcher] = field(default_factory=list)

    def tell(
        self, watchers: Iterable[Watcher] | None = None, extra: dict[str, Any] | None = None
    ) -> None:
        """Tell these how it stands, or all who look on."""
        to = self.watchers if watchers is None else watchers
        if not to:
            return
        event = {**told(self.record), **(extra or {})}
        size = len(msgspec.json.encode(event))
        for watcher in to:
            if self.record.has_ended:
                watcher.end(event, size)
            else:
                watcher.tell(event, size)

    def note(self, now_ms: int, **changes: Any) -> None:
        """A change that need not outlive the process."""
        self.record = self.record.advanced(self.record.state, now_ms, **changes)
        self.tell()

    def lane_key(self) -> bytes:
        """What tells apart tasks of which one may be taken while another has to wait."""
        own = {"input", "idempotency_key", "priority", "trace"}
        wanted = {name: value for name, value in self.record.params.items() if name not in own}
        at = self.record.node if self.was_sent else ""
        return msgspec.json.encode([at, self.record.capability, wanted], order="sorted")


class Looking:
    """The sink of a task's own call: keeps how far it is, and passes all on to who looks on."""

    def __init__(self, live: Live, clock: Clock) -> None:
        self._live = live
        self._clock = clock

    async def part(self, value: Any) -> None:
        """One more partial result."""
        live = self._live
        if live.record.has_ended:
            return
        live.record = msgspec.structs.replace(live.record, parts=live.record.parts + 1)
        live.tell(extra={"part": value})

    def progress(self, fraction: float | None, message: str) -> None:
        """How far it is."""
        if not self._live.record.has_ended:
            self._live.note(self._clock.wall_ms(), fraction=fraction, message=message)


def size_of(record: TaskRecord) -> int:
    """Roughly how many bytes a record takes to keep."""
    return RECORD_BYTES + len(msgspec.json.encode(record))
