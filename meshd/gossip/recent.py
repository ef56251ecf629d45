"""Which user events were heard: each is taken once, and handed on for a while to who lacks it."""

import heapq

import msgspec

from meshd.clock import Instant, Seconds
from meshd.gossip.codec import encode_event, event_key
from meshd.gossip.messages import EVENT_HASH_BYTES, UserEvent

RECENT_MAX = 512
"""Events remembered (Serf's buffer has as many slots). What is older than the oldest is refused."""
HAND_ON_S = 60.0
"""How long after it was told an event is still handed to nodes that lack it."""
LET_GO_MAX = 4_096
"""Young events that had to make room, of which only the keys are kept; the first gives way."""
ORIGINS_MAX = 1_024
"""Origins whose rate is watched; past that the one watched longest starts anew."""


class Recent(msgspec.Struct, frozen=True):
    """An event that was heard. `born` is when it was told, by this node's clock."""

    event: UserEvent
    key: bytes
    encoded: bytes
    born: Instant

    @classmethod
    def of(cls, event: UserEvent, born: Instant) -> "Recent":
        """An event with what is kept of it."""
        return cls(event, event_key(event), encode_event(event), born)

    def age_s(self, now: Instant) -> Seconds:
        """The time since it was told, as far as one knows here."""
        return max(0.0, now - self.born)

    def is_current(self, now: Instant) -> bool:
        """Whether others may still want it: it is young, and answers to it would still be taken."""
        question = self.event.question
        lasts_s = HAND_ON_S if question is None else min(HAND_ON_S, question.timeout_ms / 1_000)
        return self.age_s(now) < lasts_s


class RecentEvents:
    """The newest events by Lamport time. None is ever taken twice, however it comes.

    Source: Serf's event buffer: recent events are told apart one by one, and what is older than
    the oldest of them is dropped unseen.
    """

    def __init__(self, floor: int, maximum: int = RECENT_MAX) -> None:
        """Start empty.

        Args:
            floor: the Lamport time up to which everything counts as heard.
            maximum: how many are remembered.
        """
        self.floor = floor
        self._maximum = maximum
        self._by_key: dict[bytes, Recent] = {}
        self._by_time: list[tuple[int, bytes]] = []
        self._let_go: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def is_old(self, event: UserEvent) -> bool:
        """Whether nobody here remembers if it was heard: then it counts as heard."""
        return event.time <= self.floor

    def knows(self, key: bytes) -> bool:
        """Whether the event of this key was heard."""
        return key in self._by_key or key in self._let_go

    def add(self, recent: Recent, wall_ms: int) -> None:
        """Remember an event that is neither old nor known; the oldest makes room for it.

        What is so old that nobody hands it on raises the floor. Of the rest the key is kept for
        long, and not even then it raises the floor above the clock: a member whose times are ahead
        must not make old what all others tell.
        """
        self._by_key[recent.key] = recent
        heapq.heappush(self._by_time, (recent.event.time, recent.key))
        if len(self._by_key) > self._maximum:
            time, key = heapq.heappop(self._by_time)
            del self._by_key[key]
            if time <= wall_ms - HAND_ON_S * 1_000:
                self.floor = max(self.floor, time)
            else:
                self._let_go[key] = time
            if len(self._let_go) > LET_GO_MAX:
                first = self._let_go.pop(next(iter(self._let_go)))
                self.floor = max(self.floor, min(first, wall_ms))

    def current(self, now: Instant) -> list[Recent]:
        """Those that others may still want, the newest first."""
        found = [each for each in self._by_key.values() if each.is_current(now)]
        return sorted(found, key=lambda each: (each.event.time, each.key), reverse=True)

    def hashes(self) -> set[bytes]:
        """The short hash of every event that is known."""
        return {short_hash(key) for keys in (self._by_key, self._let_go) for key in keys}


def short_hash(key: bytes) -> bytes:
    """The part of an event's key that goes into digests."""
    return key[:EVENT_HASH_BYTES]


class Buckets:
    """A token bucket for each origin: so many a second, and so many at once."""

    def __init__(self, per_s: float, burst: int, maximum: int = ORIGINS_MAX) -> None:
        self._per_s = per_s
        self._burst = float(burst)
        self._maximum = maximum
        self._tokens: dict[bytes, tuple[float, Instant]] = {}

    def take(self, origin: bytes, now: Instant) -> bool:
        """Use one token of an origin; false if it has none left."""
        held = self._tokens.get(origin)
        if held is None:
            if len(self._tokens) >= self._maximum:
                del self._tokens[next(iter(self._tokens))]
            held = (self._burst, now)
        tokens = min(self._burst, held[0] + (now - held[1]) * self._per_s)
        has = tokens >= 1
        self._tokens[origin] = (tokens - 1 if has else tokens, now)
        return has


class Waiting(msgspec.Struct):
    """An event that waits to be passed on, and how often it was."""

    recent: Recent
    number: int
    sent: int = 0


class EventQueue:
    """Events to be passed on: the least sent first, then the oldest. Bounded: the most sent goes.

    Events of one name that may be coalesced share a slot, in which the newest stays.
    """

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._waiting: dict[object, Waiting] = {}
        self._count = 0
        self.dropped = 0
        """Events that had to make room before they were sent their number of times."""

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, slot: object, recent: Recent) -> None:
        """Queue an event, in place of an older one of its slot."""
        held = self._waiting.pop(slot, None)
        if held is not None and held.recent.event.time > recent.event.time:
            self._waiting[slot] = held
            return
        self._count += 1
        self._waiting[slot] = Waiting(recent, self._count)
        if len(self._waiting) > self._maximum:
            waiting = self._waiting
            del waiting[max(waiting, key=lambda s: (waiting[s].sent, -waiting[s].number))]
            self.dropped += 1

    def take(self, bytes_free: int, limit: int, count: int, now: Instant) -> list[Recent]:
        """Events that fit into `bytes_free`, each counted as sent once more.

        What nobody would take any more, as after a stop of this process, is dropped.

        Args:
            bytes_free: room in the datagram.
            limit: sends after which an event is dropped.
            count: how many at most.
            now: the present.
        """
        for slot in [s for s, each in self._waiting.items() if not each.recent.is_current(now)]:
            del self._waiting[slot]
        order = sorted(self._waiting.items(), key=lambda item: (item[1].sent, item[1].number))
        taken: list[Recent] = []
        for slot, waiting in order:
            size = len(waiting.recent.encoded)
            if size > bytes_free or len(taken) == count:
                continue
            bytes_free -= size
            taken.append(waiting.recent)
            waiting.sent += 1
            if waiting.sent >= limit:
                del self._waiting[slot]
        return taken

    def clear(self) -> None:
        """Forget all of them: there is nobody to tell."""
        self._waiting.clear()
