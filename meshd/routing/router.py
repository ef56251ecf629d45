"""From a view and a need to an ordered plan, and from the plan to its explanation."""

import difflib
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from heapq import nsmallest
from random import Random
from typing import Any

from meshd.clock import Instant
from meshd.errors import BudgetError, Code, MeshError, NoCandidateError, PeerError, UsageError
from meshd.model import NodeId
from meshd.routing.breaker import BreakerState, Circuit
from meshd.routing.breakers import Admission, Breakers
from meshd.routing.filters import Reason, Rejection, eligible
from meshd.routing.limits import RETRIES_MAX
from meshd.routing.need import Need
from meshd.routing.policies import Factors, Policy, Scene, policy_named
from meshd.routing.settings import DEFAULT, RoutingSettings
from meshd.routing.signals import Outstanding
from meshd.routing.terms import Terms
from meshd.view import ClusterView, Peer

ATTEMPTS_MAX = 1 + RETRIES_MAX
THE_CALL = "the call"
"""Who chose the policy or bounds the cost, where no setting did."""
NAMES_SHOWN = 4
NAMES_COMPARED = 2_000
ONLY_NEW = "it failed everywhere, and only who came since is tried"
NOT_DRAWN = "could serve it, but was not among the few that were drawn or scored best"


@dataclass(frozen=True, slots=True)
class Candidate:
    """An eligible peer with its score: the lower, the sooner it is asked; None if not computed."""

    peer: Peer
    score: float | None
    factors: Factors


@dataclass(frozen=True, slots=True)
class Plan:
    """Whom to ask, in order; who else was eligible; who was left out and why.

    `attempts`, `passed_over` and `rejected` together hold every peer of the view exactly once.
    `scores` are those of the passed over, where they were asked for; `trials` are nodes with
    a half-open circuit, `circuit` is that of the whole capability, where it lets no call pass;
    `policy_from` says who chose the policy.
    """

    need: Need
    policy: str
    attempts: tuple[Candidate, ...]
    passed_over: tuple[Peer, ...]
    rejected: tuple[Rejection, ...]
    scores: Mapping[NodeId, Candidate] = field(default_factory=dict)
    trials: Collection[NodeId] = ()
    circuit: Circuit | None = None
    policy_from: str = DEFAULT

    @property
    def chosen(self) -> Candidate | None:
        """The first to ask, if anyone can be."""
        return self.attempts[0] if self.attempts else None


def plan(
    view: ClusterView,
    need: Need,
    now: Instant,
    *,
    outstanding: Outstanding,
    random: Random,
    settings: RoutingSettings,
    breakers: Breakers | None = None,
    policy: str = "",
    last: NodeId | None = None,
    is_detailed: bool = False,
) -> Plan:
    """Run the pipeline: filter, circuits, sample, rank.

    With `is_detailed`, candidates that were passed over are scored too (for explanations); without
    it they carry no factors, which keeps a plan cheap.

    Raises:
        UsageError: no such policy, or `pinned` without a node; nothing happened.
    """
    chosen = policy_named(policy or settings.policy)
    if chosen.name == "pinned" and not need.pinned:
        raise UsageError("the policy pinned needs a node", hint="say which one with `to`")
    candidates, rejected = eligible(view, need, now, reports=outstanding.reports)
    circuit, admitted = None, Admission(candidates)
    if breakers is not None and candidates:
        circuit, admitted = _through(breakers, candidates, rejected, need, now)
        why = Reason.EJECTED if circuit is None else Reason.CIRCUIT
        rejected += [Rejection(p.node, p.name, why, text) for p, text in admitted.ejected]
    candidates = admitted.kept
    scene = Scene(
        outstanding, random, settings.weights, view.me, last, now, need, settings.tiers,
        settings.shares, breakers, trials=admitted.trials,
    )  # fmt: skip
    if chosen.refuses is not None:
        candidates, refused = _parted(candidates, chosen.refuses, scene)
        rejected += refused
    if chosen.prepare is not None:
        scene = replace(scene, prepared=chosen.prepare(candidates, scene))
    drawn, rest = _sample(candidates, chosen, settings.sample, random)
    attempts = _rank(drawn, chosen, scene)
    if len(attempts) < len(drawn):
        taken = {c.peer.node for c in attempts}
        rest = [p for p in drawn if p.node not in taken]
    scored = [_score(p, chosen, scene) for p in rest] if is_detailed else []
    return Plan(
        need=need,
        policy=chosen.name,
        attempts=tuple(attempts),
        passed_over=tuple(rest),
        rejected=tuple(rejected),
        scores={c.peer.node: c for c in scored},
        trials=admitted.trials,
        circuit=circuit,
        policy_from=THE_CALL if policy else settings.source,
    )


def _parted(
    candidates: list[Peer], refuses: Callable[[Peer, Scene], bool], scene: Scene
) -> tuple[list[Peer], list[Rejection]]:
    """Whom the policy takes, and whom it does not."""
    taken: list[Peer] = []
    refused: list[Rejection] = []
    for peer in candidates:
        if refuses(peer, scene):
            success = f"{scene.success(peer):.0%} of its calls succeed"
            refused.append(Rejection(peer.node, peer.name, Reason.UNRELIABLE, success))
        else:
            taken.append(peer)
    return taken, refused


def _through(
    breakers: Breakers,
    candidates: list[Peer],
    rejected: list[Rejection],
    need: Need,
    now: Instant,
) -> tuple[Circuit | None, Admission]:
    """Whom circuits let pass, and the circuit that lets nobody pass, if one does.

    Who names a node wants that one tried, whatever happened elsewhere.
    """
    circuit = None if need.pinned else breakers.refusal(need.capability, candidates, now)
    if circuit is not None:
        return circuit, Admission([], ejected=[(peer, circuit) for peer in candidates])
    passing = candidates if need.pinned else breakers.passing(need.capability, candidates, now)
    if len(passing) == len(candidates):
        return None, breakers.admit(candidates, need.capability, now, rejected)
    new = {peer.node for peer in passing}
    old = [(peer, ONLY_NEW) for peer in candidates if peer.node not in new]
    return None, Admission([*passing], ejected=old)


def _sample(
    candidates: list[Peer], policy: Policy, size: int, random: Random
) -> tuple[list[Peer], list[Peer]]:
    """Whom the policy looks at, in random order or at least from a random start, and the rest.

    The order settles ties; a fixed one would send every dispatcher's ties to the same node.
    """
    count = len(candidates)
    if count < 2:
        return candidates, []
    if not policy.is_sampled:
        start = random.randrange(count)
        return candidates[start:] + candidates[:start], []
    indices = random.sample(range(count), min(size, count))
    out = set(indices)
    rest = [p for i, p in enumerate(candidates) if i not in out]
    return [candidates[i] for i in indices], rest


def _rank(drawn: list[Peer], policy: Policy, scene: Scene) -> list[Candidate]:
    """The best few, in order. Equal scores keep the order in which they were drawn."""
    costs = [policy.cost(peer, scene) for peer in drawn]
    best = nsmallest(ATTEMPTS_MAX, range(len(drawn)), key=costs.__getitem__)
    return [Candidate(drawn[i], costs[i], policy.factors(drawn[i], scene)) for i in best]


def _score(peer: Peer, policy: Policy, scene: Scene) -> Candidate:
    return Candidate(peer, policy.cost(peer, scene), policy.factors(peer, scene))


def explain(made: Plan) -> dict[str, Any]:
    """The plan as JSON: who was chosen by which factors, who was left out and why."""
    first = made.chosen
    return {
        "policy": made.policy,
        "policy_from": made.policy_from,
        "capability": made.need.capability,
        "chosen": None if first is None else _label(first.peer.node, first.peer.name),
        "candidates": [_row(c) for c in made.attempts],
        "left_out": [
            *({**_label(r.node, r.name), "why": r.why} for r in made.rejected),
            *(
                {**_row(made.scores.get(p.node) or Candidate(p, None, {})), "why": NOT_DRAWN}
                for p in made.passed_over
            ),
        ],
    }


def _row(c: Candidate) -> dict[str, Any]:
    return {**_label(c.peer.node, c.peer.name), "score": c.score, "factors": dict(c.factors)}


def _label(node: NodeId, name: str) -> dict[str, str]:
    return {"node": node.hex(), "name": name}


def nobody(made: Plan, view: ClusterView) -> PeerError:
    """The error for a plan without attempts: whom we considered, and names that are near.

    Where only nodes that passed this work on could take it, that is a cycle: waiting is of no use.
    """
    need = made.need
    if made.circuit is not None:
        return _refused(made.circuit)
    by_reason: dict[Reason, list[str]] = {}
    by_why: dict[str, list[str]] = {}
    for rejection in made.rejected:
        by_reason.setdefault(rejection.reason, []).append(rejection.name)
        if rejection.reason is not Reason.NOT_OFFERED:
            by_why.setdefault(rejection.why, []).append(rejection.name)
    offering = [r for r in by_reason if r is not Reason.NOT_OFFERED]
    parts = [f"{_names(names)}: {why}" for why, names in by_why.items()]
    if not offering:
        parts.append(f"none of {len(made.rejected)} nodes offers it")
    near = _similar(need.capability, view)
    if near:
        parts.append(f"similar: {', '.join(near)}")
    data = {"left_out": {str(r): len(names) for r, names in by_reason.items()}}
    if set(offering) - {Reason.NOT_PINNED} == {Reason.VISITED}:
        message = f"{need.capability!r} would go in a circle"
        return PeerError(message, hint="; ".join(parts), code=Code.CYCLE, data=data)
    if set(by_reason) == {Reason.NOT_PINNED}:
        known = _names(by_reason[Reason.NOT_PINNED])
        message = f"no node is called {need.pinned!r}"
        return NoCandidateError(message, hint=f"known nodes: {known}", data=data)
    if Reason.TOO_EXPENSIVE in offering and set(offering) <= _LASTING:
        return _too_expensive(made, view, "; ".join(parts), data)
    return NoCandidateError(
        f"nobody can take {need.capability!r} now",
        hint="; ".join(parts),
        data=data,
    )


_LASTING = frozenset({
    Reason.NOT_PINNED, Reason.VERSION, Reason.TAGS, Reason.REGION, Reason.LABELS, Reason.SCOPE,
    Reason.TOO_HARD, Reason.TOO_EXPENSIVE, Reason.NOT_IDEMPOTENT, Reason.TRIED, Reason.VISITED,
    Reason.DEAD, Reason.LEFT,
})  # fmt: skip
"""Reasons that leave the price as what is in the way: waiting for the others is of no use."""


def _too_expensive(made: Plan, view: ClusterView, hint: str, data: dict[str, Any]) -> BudgetError:
    """The error where somebody would, for more than the call may cost."""
    need, terms = made.need, made.need.terms
    assert terms is not None, "the terms say what it may cost"
    left_out = (r.node for r in made.rejected if r.reason is Reason.TOO_EXPENSIVE)
    offers = ((node, view.by_node[node].offers(need.capability)) for node in left_out)
    cheapest_usd = min(terms.expected_usd(node, offer) for node, offer in offers if offer)
    return BudgetError(
        f"nobody takes {need.capability!r} for at most ${terms.cost_usd_max:g}",
        hint=f"the cheapest asks ${cheapest_usd:g}; {hint}",
        data={**data, "cost_usd_max": terms.cost_usd_max, "cheapest_usd": cheapest_usd},
    )


def least_bound_usd(terms: Terms | None, settings: RoutingSettings) -> float:
    """What a call may cost by its own terms and by settings, whatever is left to spend."""
    return min(_own_bound_usd(terms), settings.cost_usd_max)


def with_source(error: MeshError, terms: Terms | None, settings: RoutingSettings) -> MeshError:
    """An error about the price, that says whose bound it is: the call's own or that of settings.

    Args:
        error: is changed.
        terms: that the call itself asks for.
        settings: what holds for its capability.
    """
    is_own = _own_bound_usd(terms) <= settings.cost_usd_max
    error.data["bound_from"] = THE_CALL if is_own else settings.source
    if not is_own:
        error.message += f", the cost_usd_max of this node's settings ({settings.source})"
    return error


def _own_bound_usd(terms: Terms | None) -> float:
    return math.inf if terms is None or terms.cost_usd_max is None else terms.cost_usd_max


def _refused(circuit: Circuit) -> PeerError:
    left_s = circuit.left_s
    is_tried = circuit.state is BreakerState.HALF_OPEN
    when = f"{'by one call now, and else ' if is_tried else ''}again in {left_s:.3g} s"
    return PeerError(
        f"{circuit.capability!r} is not called while it fails everywhere: {circuit}",
        hint=f"it is tried {when}; till then give a fallback, name a node, or wait",
        code=Code.CIRCUIT_OPEN,
        data={"retry_after_s": round(left_s, 3)},
    )


def _names(names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:NAMES_SHOWN])
    more = len(names) - NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _similar(capability: str, view: ClusterView) -> list[str]:
    """Other capability names in the view that are spelt nearly like this one."""
    names: dict[str, None] = {}
    for peer in view.by_node.values():
        for offered in peer.capabilities:
            if offered.name != capability and len(names) < NAMES_COMPARED:
                names[offered.name] = None
    return difflib.get_close_matches(capability[:64], names, n=3)
