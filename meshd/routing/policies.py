"""The named policies: each is a cost function over the same candidates; the lowest cost wins."""

import difflib
import math
from collections.abc import Mapping

from meshd.clock import Seconds
from meshd.errors import UsageError
from meshd.routing.judging import JUDGING
from meshd.routing.scene import Factors, Policy, Scene, eta_factors
from meshd.routing.signals import UNKNOWN_RTT_S
from meshd.view import Peer

__all__ = ["POLICIES", "Factors", "Policy", "Scene", "policy_named"]

LATENCY_SCALE_S: Seconds = 0.1
"""The round trip that counts as the worst latency, 1.0, in the policy `weighted`."""

NEAR_S: Seconds = 0.000_5
"""Round trips up to this are all the same to the policy `nearest`: what differs is chance."""
NEAR_RATIO = 1.2
"""Longer ones are the same in steps of a fifth, within which coordinates are not to be trusted."""

_HERE, _UNKNOWN = -1.0, 1e6
_ID_SPACE = 1 << 64


def _eta(peer: Peer, scene: Scene) -> float:
    return scene.estimate(peer).eta_s


def _requests_per_slot(peer: Peer, scene: Scene) -> float:
    load, rif, _ = scene.outstanding.requests(peer)
    return rif if load is None else rif / max(1, load.slots) + load.cpu_fraction


def _requests_factors(peer: Peer, scene: Scene) -> Factors:
    load, rif, _ = scene.outstanding.requests(peer)
    if load is None:
        return {"rif": rif, "slots": 1, "cpu": 0.0}
    return {"rif": rif, "slots": max(1, load.slots), "cpu": load.cpu_fraction}


def _weighted(peer: Peer, scene: Scene) -> float:
    cpu, mem, latency = _weighed(peer, scene)
    of = scene.weights.get
    return of("cpu", 0.0) * cpu + of("mem", 0.0) * mem + of("latency", 0.0) * latency


def _weighted_factors(peer: Peer, scene: Scene) -> Factors:
    cpu, mem, latency = _weighed(peer, scene)
    return {"cpu": cpu, "mem": mem, "latency": latency}


def _weighed(peer: Peer, scene: Scene) -> tuple[float, float, float]:
    """CPU, memory and latency as fractions; CPU above 1 where our own calls queue.

    A CPU report does not yet show what we sent since: each such call counts as a slot's worth.
    """
    load, _, own = scene.outstanding.requests(peer)
    away_s = peer.distance_s
    rtt_s = UNKNOWN_RTT_S if away_s is None else away_s
    latency = 0.0 if peer.node == scene.me else min(1.0, rtt_s / LATENCY_SCALE_S)
    if load is None:
        return float(max(0, own)), 0.0, latency
    return load.cpu_fraction + max(0, own) / max(1, load.slots), load.mem_fraction, latency


def _nearest(peer: Peer, scene: Scene) -> float:
    """The step of its round trip, and as a fraction how busy it is; 1 step is no load's worth."""
    per_slot = _requests_per_slot(peer, scene)
    return _step_of(peer, scene) + per_slot / (1.0 + per_slot)


def _step_of(peer: Peer, scene: Scene) -> float:
    if peer.node == scene.me:
        return _HERE
    away_s = peer.distance_s
    if away_s is None:
        return _UNKNOWN
    return float(math.floor(math.log(max(1.0, away_s / NEAR_S), NEAR_RATIO)))


def _nearest_factors(peer: Peer, scene: Scene) -> Factors:
    factors = _requests_factors(peer, scene)
    if peer.node == scene.me:
        factors = {"rtt_s": 0.0, "estimated": 0.0, **factors}
    elif (away_s := peer.distance_s) is not None:
        factors = {"rtt_s": away_s, "estimated": float(peer.rtt_s is None), **factors}
    return factors


def _turn(peer: Peer, scene: Scene) -> float:
    last = -1 if scene.last is None else int.from_bytes(scene.last)
    return (int.from_bytes(peer.node) - last - 1) % _ID_SPACE


def _turn_factors(peer: Peer, scene: Scene) -> Factors:
    return {"turn": _turn(peer, scene) / _ID_SPACE}


def _draw(peer: Peer, scene: Scene) -> float:
    del peer
    return scene.random.random()


def _nothing(peer: Peer, scene: Scene) -> Factors:
    del peer, scene
    return {}


def _same(peer: Peer, scene: Scene) -> float:
    del peer, scene
    return 0.0


POLICIES: Mapping[str, Policy] = {
    policy.name: policy
    for policy in (
        Policy(
            name="adaptive",
            summary="soonest done of a random few, own calls counted",
            cost=_eta,
            factors=eta_factors,
            is_sampled=True,
            is_probed=True,
            is_eta=True,
        ),
        Policy(
            "least_loaded",
            "fewest requests per slot plus CPU",
            _requests_per_slot,
            _requests_factors,
            is_sampled=True,
            is_probed=True,
        ),
        Policy(
            "nearest",
            "shortest round trip, measured or estimated; then fewest requests per slot",
            _nearest,
            _nearest_factors,
            is_probed=True,
            is_stepped=True,
        ),
        Policy(
            "weighted",
            "0.7 CPU + 0.3 latency, or your weights",
            _weighted,
            _weighted_factors,
            is_sampled=True,
            is_probed=True,
        ),
        Policy("round_robin", "one after the other, by node id", _turn, _turn_factors),
        Policy(
            name="random",
            summary="anyone eligible",
            cost=_draw,
            factors=_nothing,
            is_sampled=True,
        ),
        Policy("pinned", "the node that the caller names", _same, _nothing),
        *JUDGING,
    )
}


def policy_named(name: str) -> Policy:
    """The policy of this name.

    Raises:
        UsageError: there is none; the hint lists all, nearest first where one is near.
    """
    policy = POLICIES.get(name)
    if policy is not None:
        return policy
    near = difflib.get_close_matches(name[:64], POLICIES, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    raise UsageError(
        f"there is no policy {name[:64]!r}", hint=f"{meant}policies: {', '.join(POLICIES)}"
    )
