"""Bids: when workers say that they would be done, asked before one of them is given the work."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from meshd.clock import Seconds
from meshd.model import Load
from meshd.routing.signals import FIGURE_MAX, load_from_wire
from meshd.view import Peer

ACCEPT, COUNTER, REJECT = "accept", "counter", "reject"
"""It would take it now; not now, but it says when; not at all."""
_ANSWERS = (ACCEPT, COUNTER, REJECT)


@dataclass(frozen=True, slots=True)
class Offer:
    """One worker's bid: the work would be done in `eta_s` from now, `queue` others wait there."""

    peer: Peer
    answer: str
    eta_s: Seconds
    queue: int
    load: Load | None

    @classmethod
    def of(cls, peer: Peer, told: Any) -> "Offer | None":
        """A bid as it came over the wire; None if it is none."""
        if not isinstance(told, Mapping):
            return None
        answer, eta_s, queue = told.get("answer"), told.get("eta_s"), told.get("queue")
        is_known = answer in _ANSWERS and isinstance(queue, int)
        if not is_known or not isinstance(eta_s, int | float) or not abs(eta_s) <= FIGURE_MAX:
            return None
        load = load_from_wire(told.get("load"))
        return cls(peer, str(answer), float(eta_s), int(queue or 0), load)


def best_offer(offers: Iterable[Offer]) -> Offer | None:
    """Who would be done first of those who would take it; None if nobody would."""
    taking = [offer for offer in offers if offer.answer == ACCEPT]
    return min(taking, key=lambda offer: offer.eta_s, default=None)
