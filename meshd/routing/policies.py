"""The named policies: each is a cost function over the same candidates; the lowest cost wins."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from meshd.clock import Instant, Seconds
from meshd.errors import UsageError
from meshd.model import NodeId
from meshd.routing.signals import Estimate, Outstanding
from meshd.view import Peer

LATENCY_SCALE_S: Seconds = 0.1
"""The round trip that counts as the worst latency, 1.0, in the policy `weighted`."""

_ID_SPACE = 1 << 64


@dataclass(frozen=True, slots=True)
class Scene:
    """What a policy may look at beside the peer itself."""

    outstanding: Outstanding
    random: Random
    weights: Mapping[str, float]
    me: NodeId
    last: NodeId | None
    """Who got the previous call for this capability, for turns."""
    now: Instant

    def estimate(self, peer: Peer) -> Estimate:
        """What a call to the peer would meet now."""
        return self.outstanding.estimate(peer, self.now, local=peer.node == self.me)


Factors = dict[str, float]
Score = Callable[[Peer, Scene], tuple[float, Factors]]


@dataclass(frozen=True, slots=True)
class Policy:
    """A named way to order candidates. `sampled`: it looks at a random few, not at all of them."""

    name: str
    summary: str
    score: Score
    sampled: bool = False


def _adaptive(peer: Peer, scene: Scene) -> tuple[float, Factors]:
    e = scene.estimate(peer)
    return e.eta_s, {
        "eta_s": e.eta_s,
        "rif": e.rif,
        "slots": e.slots,
        "service_s": e.service_s,
        "rtt_s": e.rtt_s,
        "penalty_s": e.penalty_s,
    }


def _least_loaded(peer: Peer, scene: Scene) -> tuple[float, Factors]:
    e = scene.estimate(peer)
    cpu = _fraction(peer, scene, "cpu")
    return e.rif / e.slots + cpu, {"rif": e.rif, "slots": e.slots, "cpu": cpu}


def _weighted(peer: Peer, scene: Scene) -> tuple[float, Factors]:
    e = scene.estimate(peer)
    latency = min(1.0, e.rtt_s / LATENCY_SCALE_S)
    own = max(0, e.own) / e.slots  # the CPU that a report does not show yet: our own calls
    factors = {
        "cpu": _fraction(peer, scene, "cpu") + own,
        "mem": _fraction(peer, scene, "mem"),
        "latency": latency,
    }
    return sum(scene.weights.get(name, 0.0) * value for name, value in factors.items()), factors


def _round_robin(peer: Peer, scene: Scene) -> tuple[float, Factors]:
    last = -1 if scene.last is None else int.from_bytes(scene.last)
    distance = (int.from_bytes(peer.node) - last - 1) % _ID_SPACE
    return distance, {"turn": distance / _ID_SPACE}


def _random(peer: Peer, scene: Scene) -> tuple[float, Factors]:
    del peer
    draw = scene.random.random()
    return draw, {"draw": draw}


def _pinned(peer: Peer, scene: Scene) -> tuple[float, Factors]:
    del peer, scene
    return 0.0, {}


def _fraction(peer: Peer, scene: Scene, name: str) -> float:
    load = scene.outstanding.newest(peer)[0]
    if load is None:
        return 0.0
    return load.cpu_fraction if name == "cpu" else load.mem_fraction


POLICIES: Mapping[str, Policy] = {
    policy.name: policy
    for policy in (
        Policy("adaptive", "soonest done of a random few, own calls counted", _adaptive, True),
        Policy("least_loaded", "fewest requests per slot plus CPU", _least_loaded),
        Policy("weighted", "0.7 CPU + 0.3 latency, or your weights", _weighted),
        Policy("round_robin", "one after the other, by node id", _round_robin),
        Policy("random", "anyone eligible", _random, True),
        Policy("pinned", "the node that the caller names", _pinned),
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
