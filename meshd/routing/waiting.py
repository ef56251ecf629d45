"""Calls that wait for a worker: how many may, whose turn it is, and who gives way."""

from collections.abc import Callable
from dataclasses import dataclass

from meshd.clock import Instant


def _stay() -> None:
    """Nothing sleeps yet."""


@dataclass(slots=True, eq=False)
class Place:
    """One call that waits; made by `WaitingRoom.enter`.

    Attributes:
        capability: what it waits for.
        priority: 1 .. 5, the most urgent.
        is_for_room: whether it waits until a busy worker has room; else for anybody at all.
        due: when it asks again of itself.
        latest: after this it has no time to give to others.
        wake: what tells it to ask again.
        is_woken: whether it was told so.
        is_displaced: whether it lost its place to a more urgent call.
    """

    capability: str
    priority: int
    is_for_room: bool
    due: Instant
    latest: Instant
    wake: Callable[[], object] = _stay
    is_woken: bool = False
    is_displaced: bool = False


class WaitingRoom:
    """The calls of one node that wait, the most urgent first, then first come, first served.

    Of a full room the last of the least urgent gives way to what is more urgent.
    """

    def __init__(self, places_max: int) -> None:
        self._places_max = places_max
        self._places: list[Place] = []
        self.refused = 0
        """How many found no place, or lost it."""

    def __len__(self) -> int:
        return len(self._places)

    def enter(self, place: Place) -> bool:
        """Take a place; false if all are taken by calls as urgent."""
        if len(self._places) >= self._places_max:
            self.refused += 1
            last = self._places[-1] if self._places else None
            if last is None or last.priority >= place.priority:
                return False
            self._places.pop()
            last.is_displaced = True
            _wake(last)
        before = sum(each.priority >= place.priority for each in self._places)
        self._places.insert(before, place)
        return True

    def leave(self, place: Place) -> None:
        """It waits no more; nothing if it had lost its place."""
        if place in self._places:
            self._places.remove(place)

    def takes_turn(self, place: Place) -> bool:
        """Whether `place`, which is due, asks now.

        Else one before it, that waits for room for the same capability, goes in its stead, and
        `place` has that one's time from now on: each time is used once, by who is first then.
        """
        if not place.is_for_room or place.due >= place.latest:
            return True
        for first in self._places[: self._places.index(place)]:
            if first.is_for_room and first.capability == place.capability and first.due > place.due:
                first.due, place.due = place.due, min(first.due, place.latest)
                _wake(first)
                return False
        return True

    def tell_news(self) -> None:
        """The mesh has changed: all who wait for anybody ask again, in their order."""
        for place in self._places:
            if not place.is_for_room:
                _wake(place)


def _wake(place: Place) -> None:
    place.is_woken = True
    place.wake()
