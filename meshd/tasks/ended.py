"""Which ended tasks are still kept, and which have to go."""

from dataclasses import dataclass

from meshd.clock import Seconds

ENDED_S: Seconds = 3_600.0
ENDED_BYTES_MAX = 64 * 1_048_576
"""What has ended is kept so long and so large, at most."""


@dataclass(frozen=True, slots=True)
class _Kept:
    size: int
    at_ms: int


class Ended:
    """Ids in the order in which they ended. Where room is scarce, what was fetched goes first."""

    def __init__(self) -> None:
        self.bytes = 0
        self._kept: dict[str, _Kept] = {}
        self._fetched: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def next_ms(self) -> int | None:
        """When the oldest grows too old, in wall-clock milliseconds."""
        if not self._kept:
            return None
        return next(iter(self._kept.values())).at_ms + int(ENDED_S * 1_000)

    def add(self, task_id: str, size: int, now_ms: int) -> None:
        """One more has ended, of about `size` bytes."""
        self._kept[task_id] = _Kept(size, now_ms)
        self.bytes += size

    def fetched(self, task_id: str) -> None:
        """Somebody has seen how it ended."""
        if task_id in self._kept:
            self._fetched[task_id] = None

    def remove(self, task_id: str) -> None:
        """It is kept no more; nothing if it was not."""
        kept = self._kept.pop(task_id, None)
        self._fetched.pop(task_id, None)
        if kept is not None:
            self.bytes -= kept.size

    def overdue(self, now_ms: int) -> list[str]:
        """Take out those that are too old, or more than there is room for."""
        gone = []
        while (next_ms := self.next_ms) is not None and (
            next_ms <= now_ms or self.bytes > ENDED_BYTES_MAX
        ):
            is_old = next_ms <= now_ms
            victim = next(iter(self._kept if is_old or not self._fetched else self._fetched))
            self.remove(victim)
            gone.append(victim)
        return gone
