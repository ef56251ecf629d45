"""Asks the first few candidates for bids, and says which of them would be done first."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from meshd.clock import Clock, Seconds
from meshd.errors import MeshError
from meshd.model import NodeId
from meshd.routing.call import Call, Invoker
from meshd.routing.offers import Offer, best_offer
from meshd.routing.router import Candidate, Plan
from meshd.routing.signals import Outstanding
from meshd.view import Peer

OFFERS_FRACTION = 0.2
OFFERS_S_MAX: Seconds = 1.0
"""How long bids are gathered, of the time that remains."""

LocalOffer = Callable[[dict[str, Any]], Awaitable[Any]]


class Bidders:
    """Gathers bids for the calls of one node."""

    def __init__(
        self, clock: Clock, invoker: Invoker, local_offer: LocalOffer, outstanding: Outstanding
    ) -> None:
        self._clock = clock
        self._invoker = invoker
        self._local_offer = local_offer
        self._outstanding = outstanding

    async def best(self, call: Call, made: Plan, me: NodeId) -> Peer | None:
        """Who offers to be done first, for calls that ask for bids; None if nobody does.

        Every bid brings the load of whoever made it.
        """
        wanted = made.attempts[: call.request.offers]
        if len(wanted) < 2:
            return None
        remaining_s = call.deadline.remaining(self._clock.now())
        timeout_s = min(OFFERS_S_MAX, OFFERS_FRACTION * remaining_s)
        asking = (self._bid(call, each, me, remaining_s, timeout_s) for each in wanted)
        offers = [offer for offer in await asyncio.gather(*asking) if offer is not None]
        for offer in offers:
            if offer.load is not None:
                self._outstanding.on_reply(offer.peer.node, offer.load, self._clock.now())
        best = best_offer(offers)
        return None if best is None else best.peer

    async def _bid(
        self, call: Call, candidate: Candidate, me: NodeId, remaining_s: Seconds, timeout_s: Seconds
    ) -> Offer | None:
        peer, request = candidate.peer, call.request
        params = {
            "capability": request.capability, "deadline_ms": max(1, int(remaining_s * 1_000)),
            "priority": request.priority,
        }  # fmt: skip
        try:
            if peer.node == me:
                return Offer.of(peer, await self._local_offer(params))
            answer = await self._invoker.invoke(peer.address, "offer", params, timeout_s=timeout_s)
            return Offer.of(peer, answer)
        except MeshError:
            return None
