"""What a policy is, and what it may look at when it judges a peer."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import msgspec

from meshd.clock import Instant
from meshd.model import NodeId
from meshd.routing.breakers import Breakers
from meshd.routing.need import Need
from meshd.routing.settings import SHARES, TIERS
from meshd.routing.signals import Estimate, Outstanding
from meshd.routing.terms import NO_TERMS
from meshd.view import Peer

Factors = dict[str, float]


class Scene(msgspec.Struct, frozen=True, eq=False):
    """What a policy may look at beside the peer itself.

    `tiers` are the success that the policy `quality` asks for, `shares` what `composite` weighs;
    `prepared` is what the policy worked out of all candidates before it judges each; `trials` are
    nodes with a half-open circuit, judged as if nothing had failed there.
    """

    outstanding: Outstanding
    random: Random
    weights: Mapping[str, float]
    me: NodeId
    last: NodeId | None
    """Who got the previous call for this capability, for turns."""
    now: Instant
    need: Need = Need("")
    tiers: Mapping[str, float] = msgspec.field(default_factory=lambda: TIERS)
    shares: Mapping[str, float] = msgspec.field(default_factory=lambda: SHARES)
    breakers: Breakers | None = None
    prepared: Any = None
    trials: Collection[NodeId] = ()
    known: dict[NodeId, Estimate] = {}
    """What was estimated in this scene, which is of one moment."""

    def at(self, now: Instant) -> "Scene":
        """The same scene at another moment."""
        return msgspec.structs.replace(self, now=now, known={})

    def estimate(self, peer: Peer) -> Estimate:
        """What a call to the peer would meet now."""
        node = peer.node
        found = self.known.get(node)
        if found is None:
            self.known[node] = found = self.outstanding.estimate(
                peer, self.now, local=node == self.me, is_pardoned=node in self.trials
            )
        return found

    def estimates(self, peers: Sequence[Peer]) -> list[Estimate]:
        """The same of several. Whom nobody knows is expected to take as long as the others do.

        Taken to be much slower than they it would never be asked, and so never be known.
        """
        found = [self.estimate(peer) for peer in peers]
        told = [each.service_s for each in found if not each.is_guess]
        if told and len(told) < len(found):
            usual_s = sum(told) / len(told)
            for index, each in enumerate(found):
                if each.is_guess:
                    found[index] = self.known[peers[index].node] = each.taking(usual_s)
        return found

    def cost_usd(self, peer: Peer) -> float:
        """What the call is expected to cost there."""
        need = self.need
        offered = peer.offers(need.capability)
        if offered is None:
            return 0.0
        return (need.terms or NO_TERMS).expected_usd(peer.node, offered)

    def is_failing(self, peer: Peer) -> bool:
        """Whether its circuit is open: it gets no calls, or one to see how it is."""
        if self.breakers is None:
            return False
        return self.breakers.is_barred_at(peer, self.need.capability, self.now)

    def success(self, peer: Peer) -> float:
        """The share of calls there that succeed, 0..1."""
        return self.outstanding.history.success(peer, self.now)


@dataclass(frozen=True, slots=True)
class Policy:
    """A named way to order candidates: the lowest cost is asked first.

    `factors` names what the cost was made of; it is called for the few that are shown, `cost` for
    all that are looked at. `is_sampled`: those are a random few, not all. `is_probed`: load
    counts, so the best two are asked for it, and those few are drawn by speed.
    `is_eta`: it is the time until the work would be done, so where nobody can be asked, they are
    drawn by their room. `is_stepped`: the whole part of the cost comes first and no
    load changes it. `prepare` is called once a plan, with all candidates, for what the scene
    then holds as `prepared`. Whom it `refuses` is not asked at all.
    """

    name: str
    summary: str
    cost: Callable[[Peer, Scene], float]
    factors: Callable[[Peer, Scene], Factors]
    is_sampled: bool = False
    is_probed: bool = False
    is_eta: bool = False
    is_stepped: bool = False
    prepare: Callable[[Sequence[Peer], Scene], Any] | None = None
    refuses: Callable[[Peer, Scene], bool] | None = None


def eta_factors(peer: Peer, scene: Scene) -> Factors:
    """What the time until a call there is done is made of."""
    return factors_of(scene.estimate(peer))


def factors_of(e: Estimate) -> Factors:
    """What an estimated time is made of."""
    return {
        "rif": e.rif,
        "slots": e.slots,
        "service_s": e.service_s,
        "rtt_s": e.rtt_s,
        "penalty_s": e.penalty_s,
    }
