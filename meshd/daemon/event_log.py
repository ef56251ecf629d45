"""What happened in this node's eyes, in order; a bounded log whose readers learn what they lost."""

import base64
import threading
from collections import deque
from collections.abc import Callable
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from meshd.errors import UsageError
from meshd.gossip.effects import MemberChanged
from meshd.gossip.history import RESTARTED
from meshd.model import MemberState

LOG_MAX = 4_096
"""Events kept; the oldest makes room. Whoever reads later than that is told how many it lost."""
READ_MAX = 500
"""Events in one answer."""


class Kind(StrEnum):
    """The types of events."""

    JOINED = "joined"
    ALIVE = "alive"
    SUSPECT = "suspect"
    REFUTED = "refuted"
    DEAD = "dead"
    LEFT = "left"
    RESTARTED = "restarted"
    UPDATED = "updated"
    CONFLICT = "conflict"
    HEALTH = "health"
    EVENT = "event"


LOST = "lost"
"""The type of what a reader is shown in place of events that it missed."""


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that happened.

    Attributes:
        seq: 1, 2, 3 ... within one run of the daemon.
        wall_ms: when, in milliseconds since 1970.
        type: one of `Kind`.
        node: whom it is about, in hex; of a user's event, who told it.
        name: that node's name, where it was known.
        incarnation: of the record that it is about.
        reason: in words.
        accuser: whose failed probe stands behind it, in hex, or empty.
        event: of a user's event its name.
        payload: of a user's event, as text; or `payload_base64` where it is no text.
        lamport: of a user's event its Lamport time.
        age_s: of a user's event how long before it was told.
        accuser_name: the accuser's name, where it is known.
        lost: for a reader in whose place `type` is "lost": how many events it missed here.
    """

    seq: int
    wall_ms: int
    type: str
    node: str
    name: str = ""
    incarnation: int | None = None
    reason: str = ""
    accuser: str = ""
    event: str = ""
    payload: str | None = None
    payload_base64: str | None = None
    lamport: int | None = None
    age_s: float | None = None
    accuser_name: str = ""
    lost: int = 0

    @property
    def data(self) -> bytes:
        """The payload of a user's event."""
        return payload_from(self.payload, self.payload_base64)


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


def payload_shape(payload: bytes) -> dict[str, str]:
    """A payload as JSON: text where it is text, else base64."""
    try:
        return {"payload": payload.decode()}
    except UnicodeDecodeError:
        return {"payload_base64": base64.b64encode(payload).decode()}


def payload_from(text: str | None, encoded: str | None) -> bytes:
    """The payload that JSON stands for.

    Raises:
        UsageError: both forms are given, or it is no base64.
    """
    if encoded is None:
        return (text or "").encode()
    if text is not None:
        raise UsageError("give payload or payload_base64, not both")
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise UsageError(f"payload_base64 is no base64: {error}") from error
