"""Policies that judge by speed, price, success, skill or a key; each counts own calls in flight."""

from collections.abc import Mapping, Sequence

from meshd.capability.manifest import PROFICIENCY_DEFAULT
from meshd.model import NodeId
from meshd.routing.affinity import Share, ranks
from meshd.routing.scene import Factors, Policy, Scene, eta_factors
from meshd.view import Peer

DIFFICULTY_DEFAULT = 0.5
"""Of work of which nothing is said, for the policy `skill`."""

BALANCE = 0.05
"""What equals differ by while they have free slots, at most: little against skill."""

OPEN_CIRCUIT_SHARE = 0.3
"""Of its availability, that a node keeps in the policy `composite` while it fails."""


def squashed(value: float) -> float:
    """0 and more, as a fraction below 1 of the same order: it settles ties of whole numbers."""
    return value / (1.0 + value)


def _fastest(peer: Peer, scene: Scene) -> float:
    """The time that the work takes there and on its way; where no slot is free, its turn, too."""
    e = scene.estimate(peer)
    return e.service_s * max(1.0, (e.rif + 1) / e.slots) + e.rtt_s + e.penalty_s


def _prices(peers: Sequence[Peer], scene: Scene) -> Mapping[float, int]:
    """Every price among the candidates, and its place from the cheapest on."""
    prices = sorted({scene.cost_usd(peer) for peer in peers})
    return {price: place for place, price in enumerate(prices)}


def _cheapest(peer: Peer, scene: Scene) -> float:
    return float(scene.prepared[scene.cost_usd(peer)]) + squashed(scene.estimate(peer).eta_s)


def _cheapest_factors(peer: Peer, scene: Scene) -> Factors:
    return {"cost_usd": scene.cost_usd(peer), **eta_factors(peer, scene)}


def _tier(peer: Peer, scene: Scene) -> int:
    success, tiers = scene.success(peer), scene.tiers
    return 0 if success > tiers["preferred"] else 1 if success > tiers["fallback"] else 2


def _quality(peer: Peer, scene: Scene) -> float:
    return _tier(peer, scene) + squashed(scene.estimate(peer).eta_s)


def _quality_factors(peer: Peer, scene: Scene) -> Factors:
    factors = {"success": scene.success(peer), "tier": float(_tier(peer, scene))}
    return {**factors, **eta_factors(peer, scene)}


def _is_unreliable(peer: Peer, scene: Scene) -> bool:
    return scene.success(peer) < scene.tiers["least"]


def _highest_price(peers: Sequence[Peer], scene: Scene) -> float:
    return max((scene.cost_usd(peer) for peer in peers), default=0.0)


def _composite(peer: Peer, scene: Scene) -> float:
    """1 less the weighed sum of what speaks for it."""
    factors = _composite_factors(peer, scene)
    return 1.0 - sum(scene.shares.get(name, 0.0) * value for name, value in factors.items())


def _composite_factors(peer: Peer, scene: Scene) -> Factors:
    """Match, trust, availability and cost, each 0..1, the more the better.

    Trust is the share of calls that succeed; match, how close skill is to what is needed.
    """
    e = scene.estimate(peer)
    availability = e.slots / (e.slots + e.rif)
    if scene.is_failing(peer):
        availability *= OPEN_CIRCUIT_SHARE
    highest_usd = scene.prepared
    return {
        "match": 1.0 - abs(_surplus(peer, scene)) if _is_skill_asked(scene) else 1.0,
        "trust": scene.success(peer),
        "availability": availability,
        "cost": 1.0 - scene.cost_usd(peer) / highest_usd if highest_usd else 1.0,
    }


def _is_skill_asked(scene: Scene) -> bool:
    return scene.need.terms is not None and scene.need.terms.difficulty is not None


def _difficulty(scene: Scene) -> float:
    terms = scene.need.terms
    if terms is None or terms.difficulty is None:
        return DIFFICULTY_DEFAULT
    return terms.difficulty


def _surplus(peer: Peer, scene: Scene) -> float:
    """How much more proficient it is than the work needs; below 0, less."""
    offered = peer.offers(scene.need.capability)
    proficiency = PROFICIENCY_DEFAULT if offered is None else offered.proficiency
    return proficiency - _difficulty(scene)


def _skill(peer: Peer, scene: Scene) -> float:
    """The least proficient that is competent; of simple work the price counts, too.

    Who has no slot free costs as much more as work waits for each: an idle expert goes before a
    generalist whose queue is as long as the skill between them. Who is not competent comes last.
    """
    e, surplus, highest_usd = scene.estimate(peer), _surplus(peer, scene), scene.prepared
    above = surplus if surplus >= 0.0 else 1.0 - surplus
    if highest_usd:
        above += (1.0 - _difficulty(scene)) * scene.cost_usd(peer) / highest_usd
    waiting = max(0.0, (e.rif + 1) / e.slots - 1.0)
    return above + waiting + BALANCE * squashed(e.rif)


def _skill_factors(peer: Peer, scene: Scene) -> Factors:
    e = scene.estimate(peer)
    highest_usd = scene.prepared
    return {
        "surplus": _surplus(peer, scene),
        "price": scene.cost_usd(peer) / highest_usd if highest_usd else 0.0,
        "waiting": max(0.0, (e.rif + 1) / e.slots - 1.0),
        "rif": e.rif,
    }


def _places(peers: Sequence[Peer], scene: Scene) -> Mapping[NodeId, int]:
    """The candidates in the order of the call's key, those with room first; nothing without one."""
    if not scene.need.affinity:
        return {}
    shares = []
    for peer in peers:
        load, rif, _ = scene.outstanding.requests(peer)
        shares.append(Share(peer.node, rif, 1 if load is None else max(1, load.slots)))
    return ranks(scene.need.affinity, shares)


def _sticky(peer: Peer, scene: Scene) -> float:
    """Its place in the order of the key; for calls without one, when it would be done."""
    place = scene.prepared.get(peer.node)
    return scene.estimate(peer).eta_s if place is None else float(place)


def _sticky_factors(peer: Peer, scene: Scene) -> Factors:
    place = scene.prepared.get(peer.node)
    factors = eta_factors(peer, scene)
    return factors if place is None else {"place": float(place), **factors}


JUDGING: tuple[Policy, ...] = (
    Policy(
        "fastest",
        "shortest service time plus round trip",
        _fastest,
        eta_factors,
        is_probed=True,
    ),
    Policy(
        "cheapest",
        "lowest price of the call, then soonest done",
        _cheapest,
        _cheapest_factors,
        is_probed=True,
        is_stepped=True,
        prepare=_prices,
    ),
    Policy(
        "quality",
        "most reliable tier (over 95 %, over 90 %, never below 70 %), then soonest done",
        _quality,
        _quality_factors,
        is_probed=True,
        is_stepped=True,
        refuses=_is_unreliable,
    ),
    Policy(
        "composite",
        "0.35 match + 0.35 trust + 0.15 availability + 0.15 cost",
        _composite,
        _composite_factors,
        is_probed=True,
        prepare=_highest_price,
    ),
    Policy(
        "skill",
        "least proficient that is competent for the difficulty, and has room",
        _skill,
        _skill_factors,
        is_probed=True,
        prepare=_highest_price,
    ),
    Policy(
        "sticky",
        "one node for each affinity key, within 1.25 times the average load",
        _sticky,
        _sticky_factors,
        prepare=_places,
    ),
)
