"""What happened in this node's eyes, in order; a bounded log whose readers learn what they lost."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from meshd.gossip.effects import MemberChanged
from meshd.gossip.history import RESTARTED
from meshd.happening import Event, Kind
from meshd.model import MemberState

LOG_MAX = 4_096
"""Events kept; the oldest makes room. Whoever reads later than that is told how many it lost."""
READ_MAX = 500
"""Events in one answer."""


class Page(NamedTuple):
    """Some events in order, where to read on after them, and how many before them are lost."""

    events: tuple[Event, ...]
    next: int
    lost: int


class EventLog:
    """A ring of events with one cursor a reader. Any thread may write, any may read."""

    def __init__(self, maximum: int = LOG_MAX) -> None:
        """Start empty.

        Args:
            maximum: how many are kept.
        """
        self._ring: deque[Event] = deque(maxlen=maximum)
        self._last = 0
        self._lock = threading.Lock()

    @property
    def last(self) -> int:
        """The sequence number of the newest event; 0 before the first."""
        return self._last

    def add(self, kind: Kind, node: str, wall_ms: int, **fields: Any) -> Event:
        """Append an event under the next number."""
        with self._lock:
            self._last += 1
            found = Event(self._last, wall_ms, kind.value, node, **fields)
            self._ring.append(found)
        return found

    def read(self, after: int, wanted: Callable[[Event], bool], limit: int = READ_MAX) -> Page:
        """The first `limit` events past number `after` that are wanted.

        `lost` counts events of any kind: what is gone cannot be asked whether it was wanted.
        """
        with self._lock:
            kept = list(self._ring)
        first = kept[0].seq if kept else self._last + 1
        lost = max(0, first - 1 - after)
        found: list[Event] = []
        upto = max(after, first - 1)
        for each in kept[max(0, after + 1 - first) :]:
            if len(found) == limit:
                break
            upto = each.seq
            if wanted(each):
                found.append(each)
        return Page(tuple(found), upto, lost)

    def after_last(self, count: int, wanted: Callable[[Event], bool]) -> int:
        """The number after which the last `count` wanted events come."""
        with self._lock:
            kept = list(self._ring)
        fitting = [each.seq for each in kept if wanted(each)]
        if count == 0 or not fitting:
            return self._last
        return fitting[-count:][0] - 1


def kind_of(effect: MemberChanged) -> Kind:
    """What a change of a member's record means."""
    state, before = effect.member.state, effect.before
    if state is MemberState.DEAD:
        return Kind.DEAD
    if state is MemberState.LEFT:
        return Kind.LEFT
    if before is None:
        return Kind.JOINED
    if effect.reason == RESTARTED:
        return Kind.RESTARTED
    if state is MemberState.SUSPECT:
        return Kind.SUSPECT
    return {MemberState.ALIVE: Kind.UPDATED, MemberState.SUSPECT: Kind.REFUTED}.get(
        before, Kind.ALIVE
    )
