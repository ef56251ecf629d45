"""Waits for the calls of one node: until a busy worker has room, or anybody at all can take one."""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

from meshd.clock import Clock, Instant, Seconds
from meshd.errors import MeshError
from meshd.routing.call import WAIT_MAX_S, Call
from meshd.routing.waiting import Place, WaitingRoom

WAIT_MIN_S: Seconds = 0.005

OFFER_SLACK = 1.5
"""A busy peer's ETA is an estimate: one of up to this times the remaining time is waited for."""


class Patience:
    """The waiting room, and the clock by which calls leave it."""

    def __init__(
        self,
        clock: Clock,
        random: Random,
        sleep: Callable[[Seconds], Awaitable[None]],
        places_max: int,
    ) -> None:
        self.room = WaitingRoom(places_max)
        self.sleep = sleep
        self._clock = clock
        self._random = random

    async def for_somebody(self, call: Call, error: MeshError) -> None:
        """Wait for the mesh to change, for callers who asked for that; then all are asked anew.

        Raises:
            MeshError: the given one, where there is no point in waiting, or no place.
        """
        now = self._clock.now()
        left_s = call.deadline.remaining(now)
        if left_s <= WAIT_MIN_S or not call.may_wait(error):
            raise call.ended(error)
        wait_s = max(WAIT_MIN_S, call.failed_until - now) if call.failed else WAIT_MAX_S
        if not await self._wait(call, min(wait_s, left_s), left_s, is_for_room=False):
            raise call.ended(error)
        call.ask_anew(self._clock.now())

    async def for_room(self, call: Call, *, kept_s: Seconds) -> None:
        """Wait for about half of the best ETA, then everyone who was busy may be asked again.

        Half, as a worker's queue has a place long before the work would be done; spread, so that
        not all who wait come back at once. `kept_s` of what remains is for the try itself.

        Raises:
            BusyError: the best offer is too late, or this node's queue is full.
        """
        now = self._clock.now()
        offer_s, remaining_s = call.offer_s, call.deadline.remaining(now)
        assert offer_s is not None, "who refuses makes an offer"
        if not call.request.is_patient:
            raise call.ended(call.busy(offer_s, "this call does not wait"))
        left_s = remaining_s - kept_s
        is_too_late = offer_s > OFFER_SLACK * remaining_s and not call.request.is_queued
        if is_too_late or left_s < WAIT_MIN_S:
            raise call.ended(call.busy(offer_s, f"only {remaining_s:.3g} s remain"))
        wait_s = min(max(offer_s * self._random.uniform(0.25, 0.75), WAIT_MIN_S), WAIT_MAX_S)
        if not await self._wait(call, min(wait_s, left_s), left_s, is_for_room=True):
            raise call.ended(call.busy(offer_s, f"{len(self.room)} calls wait here already"))
        call.ask_anew(self._clock.now())

    async def _wait(
        self, call: Call, wait_s: Seconds, left_s: Seconds, *, is_for_room: bool
    ) -> bool:
        """Wait so long, or until it is this call's turn; false if there is no place for it."""
        now, request = self._clock.now(), call.request
        place = Place(
            request.capability,
            request.priority,
            is_for_room,
            due=Instant(now + wait_s),
            latest=Instant(now + left_s),
        )
        if not self.room.enter(place):
            return False
        try:
            while True:
                sleeping = asyncio.ensure_future(self.sleep(max(0.0, place.due - now)))
                place.wake = sleeping.cancel
                try:
                    await asyncio.wait((sleeping,))
                finally:
                    sleeping.cancel()
                if place.is_woken or self.room.takes_turn(place):
                    break
                now = self._clock.now()
        finally:
            self.room.leave(place)
        return not place.is_displaced
