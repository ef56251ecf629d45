"""Whose turn it is: tasks that want the same share a lane, which learns how many may be out.

A lane whose task was refused gives the turn to others, and lets out no more than are out already;
after a pause it tries a few more. Source: a window that grows until it meets a refusal, as in TCP's
congestion control (RFC 5681).
"""

import heapq
from dataclasses import dataclass, field

from meshd.clock import Instant, Seconds

WINDOW_FIRST = 256
"""How many of a lane may be out before anything was refused."""
PAUSE_MIN_S: Seconds = 0.1
PAUSE_MAX_S: Seconds = 5.0
"""After a refusal; it doubles with each further one. News of the mesh end it early."""
NEWS_PAUSE_S: Seconds = 0.1
"""But not sooner than this after a refusal: news come in bursts."""
TRIES_PER_S = 100.0
"""Of all lanes that pause together, about; the more there are, the longer each pauses."""

GONE_MAX = 64
"""Of a lane's entries that want no turn any more, or half of all: then they are taken out."""

Key = bytes
Turn = tuple[int, int, str]
"""Priority with a minus, the order in which they came, and the id."""

_LONG_AGO = Instant(0.0)


@dataclass(slots=True, eq=False)
class _Lane:
    """Tasks that want the same."""

    ready: list[Turn] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)
    """Ids among these that want no turn any more; never the first."""
    out: int = 0
    window: int = WINDOW_FIRST
    refusals: int = 0
    refused_at: Instant = _LONG_AGO
    grows_at: Instant | None = None
    has_news: bool = False
    """Whether the mesh has changed since one of those that are out went out."""

    @property
    def may_begin(self) -> bool:
        return bool(self.ready) and self.out < self.window

    def pop(self) -> None:
        """The first is out; the next that still wants a turn is the first."""
        heapq.heappop(self.ready)
        self.clean()

    def clean(self) -> None:
        """Forget who wants no turn, where he stands first or is one of too many."""
        while self.ready and self.ready[0][2] in self.gone:
            self.gone.discard(heapq.heappop(self.ready)[2])
        if len(self.gone) > max(GONE_MAX, len(self.ready) // 2):
            self.ready = [turn for turn in self.ready if turn[2] not in self.gone]
            heapq.heapify(self.ready)
            self.gone.clear()


class Lanes:
    """All that wait for a turn; at most one entry for each task, and one lane for each entry."""

    def __init__(self) -> None:
        self._lanes: dict[Key, _Lane] = {}
        self._heads: list[tuple[Turn, Key]] = []
        self._pauses: list[tuple[Instant, Key]] = []

    @property
    def next_at(self) -> Instant | None:
        """When a pause ends."""
        while self._pauses:
            at, key = self._pauses[0]
            lane = self._lanes.get(key)
            if lane is not None and lane.grows_at == at:
                return at
            heapq.heappop(self._pauses)
        return None

    def put(self, key: Key, turn: Turn) -> None:
        """One more waits in this lane."""
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane()
        heapq.heappush(lane.ready, turn)
        self._show(key, lane)

    def take(self) -> tuple[str, Key] | None:
        """The most urgent that may go out now, and its lane; out until `back` or `refused`."""
        while self._heads:
            turn, key = heapq.heappop(self._heads)
            lane = self._lanes.get(key)
            if lane is None or not lane.may_begin or lane.ready[0] != turn:
                continue
            lane.pop()
            lane.out += 1
            self._show(key, lane)
            return turn[2], key
        return None

    def drop(self, key: Key, task_id: str) -> None:
        """One that waits in this lane wants no turn any more."""
        lane = self._lanes[key]
        lane.gone.add(task_id)
        lane.clean()
        self._tidy(key, lane)

    def back(self, key: Key, *, is_done: bool = False) -> None:
        """One that was out is so no more; done, it shows that the lane moves."""
        lane = self._lanes[key]
        lane.out -= 1
        if is_done:
            lane.refusals = 0
        self._tidy(key, lane)

    def refused(self, key: Key, turn: Turn, chance: float, now: Instant) -> None:
        """One that was out surely came to nothing: it waits again, and its lane pauses.

        `chance` of 0.5 .. 1 shortens the pause, so that not all nodes ask at once.
        """
        lane = self._lanes[key]
        lane.out -= 1
        lane.window = lane.out
        lane.refusals += 1
        lane.refused_at = now
        heapq.heappush(lane.ready, turn)
        longest_s = min(PAUSE_MAX_S, PAUSE_MIN_S * 2 ** min(lane.refusals - 1, 16))
        pause_s = chance * max(longest_s, len(self._lanes) / TRIES_PER_S)
        if lane.has_news:
            lane.has_news, pause_s = False, min(pause_s, NEWS_PAUSE_S)
        self._grow_at(key, lane, now + pause_s)

    def hurry(self, now: Instant) -> None:
        """The mesh has changed: lanes that pause may try again; their next pause is no shorter."""
        for key, lane in self._lanes.items():
            lane.has_news = lane.out > 0
            if lane.grows_at is not None:
                soon = max(now, lane.refused_at + NEWS_PAUSE_S)
                if soon < lane.grows_at:
                    self._grow_at(key, lane, soon)

    def on_time(self, now: Instant) -> None:
        """Lanes whose pause is over let a few more out, and again a little later."""
        while (at := self.next_at) is not None and at <= now:
            _, key = heapq.heappop(self._pauses)
            lane = self._lanes[key]
            lane.grows_at = None
            lane.window += max(1, lane.window // 2)
            if lane.ready and lane.window < WINDOW_FIRST:
                self._grow_at(key, lane, now + PAUSE_MIN_S)
            self._show(key, lane)

    def _grow_at(self, key: Key, lane: _Lane, at: float) -> None:
        lane.grows_at = Instant(at)
        heapq.heappush(self._pauses, (lane.grows_at, key))

    def _tidy(self, key: Key, lane: _Lane) -> None:
        if lane.ready or lane.out:
            self._show(key, lane)
        else:
            del self._lanes[key]

    def _show(self, key: Key, lane: _Lane) -> None:
        if lane.may_begin:
            heapq.heappush(self._heads, (lane.ready[0], key))
