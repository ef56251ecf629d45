"""From a view and a need to an ordered plan, and from the plan to its explanation."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from heapq import nsmallest
from random import Random
from typing import Any

import msgspec
from msgspec.structs import replace

from meshd.clock import Instant, Seconds
from meshd.errors import UsageError
from meshd.model import NodeId
from meshd.routing.breaker import Circuit
from meshd.routing.breakers import Admission, Breakers
from meshd.routing.draw import WIDE, by_room, by_speed, some
from meshd.routing.filters import Reason, Rejection, eligible, may_serve, why_not_now
from meshd.routing.limits import RETRIES_MAX
from meshd.routing.need import Need
from meshd.routing.policies import Factors, Policy, Scene, policy_named
from meshd.routing.probes import (
    BIDS,
    NO_EQUAL,
    NO_LOAD,
    ONLY_PLANNED,
    TOO_SHORT,
    Answers,
    Probes,
    is_short,
    others_of,
    probes_of,
)
from meshd.routing.scene import factors_of
from meshd.routing.settings import DEFAULT, RoutingSettings
from meshd.routing.signals import Estimate, Outstanding
from meshd.view import ClusterView, Peer

ATTEMPTS_MAX = 1 + RETRIES_MAX
THE_CALL = "the call"
"""Who chose the policy or bounds the cost, where no setting did."""
WHOLE_MAX = 32
"""Peers of a view up to which every plan accounts for all of them; that is cheap for so many."""
ONLY_NEW = "it failed everywhere, and only who came since is tried"
NOT_DRAWN = "could serve it, but was not among the few that were drawn or scored best"


class Candidate(msgspec.Struct, frozen=True):
    """An eligible peer with its score, which the policy made of the factors; None if not computed.

    The lower, the sooner it is asked, but for those that are drawn by their room. `made_of` are the
    factors, or what they are read from by who wants to know them: most plans are never explained.
    """

    peer: Peer
    score: float | None
    made_of: Factors | Estimate

    @property
    def factors(self) -> Factors:
        """What the score was made of."""
        made_of = self.made_of
        return factors_of(made_of) if isinstance(made_of, Estimate) else made_of

    def later_by(self, turn_s: Seconds) -> "Candidate":
        """The same, done so much later."""
        return Candidate(
            self.peer, (self.score or 0.0) + turn_s, {**self.factors, "turn_s": turn_s}
        )


class Plan(msgspec.Struct, frozen=True, eq=False):
    """Whom to ask, in order; whom to probe first; who else was eligible; who was left out and why.

    `attempts`, `passed_over` and `rejected` together hold every peer of the view exactly once, if
    the plan `is_whole`; else the last two are empty, which keeps it cheap. `scores` are those of
    the passed over, where they were asked for; `trials` are nodes with a half-open circuit,
    `spared` have an open one and are asked all the same, `circuit` is that of the whole capability,
    where it lets no call pass; `policy_from` says who chose the policy. `probes` are whom to ask,
    `asked` who was, `answers` what they said; `scene` is what the scores were made in.
    """

    need: Need
    rule: Policy
    attempts: tuple[Candidate, ...]
    scene: Scene
    passed_over: tuple[Peer, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    scores: Mapping[NodeId, Candidate] = {}
    trials: Collection[NodeId] = ()
    spared: Collection[NodeId] = ()
    circuit: Circuit | None = None
    policy_from: str = DEFAULT
    probes: Probes = Probes()
    asked: tuple[NodeId, ...] = ()
    answers: Answers = {}
    is_whole: bool = True

    @property
    def policy(self) -> str:
        """The policy's name."""
        return self.rule.name

    @property
    def chosen(self) -> Candidate | None:
        """The first to ask, if anyone can be."""
        return self.attempts[0] if self.attempts else None

    def led_by(self, bidder: Peer) -> "Plan":
        """The same with one of its attempts first, which made the best bid."""
        first = [c for c in self.attempts if c.peer.node == bidder.node]
        others = [c for c in self.attempts if c.peer.node != bidder.node]
        return replace(self, attempts=(*first, *others), probes=Probes(why_not=BIDS))

    def after(self, former: "Plan") -> "Plan":
        """The same, made anew after the probes of a former one: nothing was sent since."""
        return replace(self, asked=former.asked, answers=former.answers)

    def unprobed(self, why_not: str) -> "Plan":
        """The same where nobody is asked how busy it is, and why."""
        return replace(self, probes=Probes(why_not=why_not)) if self.probes.nodes else self


class _Asked(msgspec.Struct, frozen=True, eq=False):
    """What a plan is made from."""

    view: ClusterView
    rule: Policy
    scene: Scene
    sample: int
    policy_from: str

    @property
    def size(self) -> int:
        """How many peers a sampling policy draws at first."""
        return WIDE if self.rule.is_probed else self.sample


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
    named: Callable[[str], Policy] = policy_named,
    last: NodeId | None = None,
    is_detailed: bool = False,
) -> Plan:
    """Run the pipeline: filter, circuits, sample, shortlist, rank.

    With `is_detailed` everybody is accounted for, and candidates that were passed over are scored
    too (for explanations). `named` finds a policy by its name.

    Raises:
        UsageError: no such policy, or `pinned` without a node; nothing happened.
    """
    chosen = named(policy or settings.policy)
    if chosen.name == "pinned" and not need.pinned:
        raise UsageError("the policy pinned needs a node", hint="say which one with `to`")
    scene = Scene(
        outstanding, random, settings.weights, view.me, last, now, need, settings.tiers,
        settings.shares, breakers,
    )  # fmt: skip
    policy_from = THE_CALL if policy else settings.source
    asked = _Asked(view, chosen, scene, settings.sample, policy_from)
    is_large = len(view.by_node) > WHOLE_MAX
    if is_large and chosen.is_sampled and not is_detailed and not need.pinned:
        made = _quick_plan(asked)
        if made is not None:
            return made
    return _whole_plan(asked, is_detailed=is_detailed)


def _quick_plan(asked: _Asked) -> Plan | None:
    """A plan that looks at no more peers than it needs; None where it has to look at all.

    That is where the whole capability fails, where there are few who can serve it, and where of
    those that are drawn so many have open circuits that some of them might have to be asked.
    """
    view, scene = asked.view, asked.scene
    need, now, reports = scene.need, scene.now, scene.outstanding.reports
    breakers, capability = scene.breakers, need.capability
    if breakers is not None and breakers.is_barred(capability, now):
        return None
    is_wanted = may_serve(view, need, now, reports)
    drawn = some(view.offering(capability), asked.size, is_wanted, scene.random)
    if len(drawn) < asked.size:
        return None
    admitted = Admission(drawn)
    if breakers is not None:
        admitted = breakers.admit(drawn, capability, now)
        if admitted.spared:
            return None
        if admitted.trials:
            asked = replace(asked, scene=replace(scene, trials=admitted.trials))
    attempts, probes = _ordered(admitted.kept, asked)
    return Plan(
        need, asked.rule, attempts, asked.scene, trials=admitted.trials,
        policy_from=asked.policy_from, probes=probes, is_whole=False,
    )  # fmt: skip


def _whole_plan(asked: _Asked, *, is_detailed: bool) -> Plan:
    """A plan that accounts for every peer of the view."""
    rule, scene = asked.rule, asked.scene
    need, now, breakers = scene.need, scene.now, scene.breakers
    candidates, rejected = eligible(asked.view, need, now, reports=scene.outstanding.reports)
    circuit, admitted = None, Admission(candidates)
    if breakers is not None and candidates and not breakers.is_calm(need.capability):
        circuit, admitted = _through(breakers, candidates, rejected, need, now)
        why = Reason.EJECTED if circuit is None else Reason.CIRCUIT
        rejected += [Rejection(p.node, p.name, why, text) for p, text in admitted.ejected]
    candidates = admitted.kept
    if admitted.trials:
        scene = replace(scene, trials=admitted.trials)
    if rule.refuses is not None:
        candidates, refused = _parted(candidates, rule.refuses, scene)
        rejected += refused
    if rule.prepare is not None:
        scene = replace(scene, prepared=rule.prepare(candidates, scene))
    if scene is not asked.scene:
        asked = replace(asked, scene=scene)
    drawn, rest = _sample(candidates, asked)
    attempts, probes = _ordered(drawn, asked)
    if len(attempts) < len(drawn):
        taken = {c.peer.node for c in attempts}
        rest += [p for p in drawn if p.node not in taken]
    scored = [_score(p, rule, scene) for p in rest] if is_detailed else []
    return Plan(
        need=need,
        rule=rule,
        attempts=attempts,
        scene=scene,
        passed_over=tuple(rest),
        rejected=tuple(rejected),
        scores={c.peer.node: c for c in scored},
        trials=admitted.trials,
        spared=admitted.spared,
        circuit=circuit,
        policy_from=asked.policy_from,
        probes=probes,
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
    admitted = breakers.admit([*passing], need.capability, now, rejected)
    return None, replace(admitted, ejected=[*admitted.ejected, *old])


def _sample(candidates: list[Peer], asked: _Asked) -> tuple[list[Peer], list[Peer]]:
    """Whom the policy looks at, in random order or at least from a random start, and the rest.

    The order settles ties; a fixed one would send every dispatcher's ties to the same node.
    """
    random, count = asked.scene.random, len(candidates)
    if count < 2:
        return candidates, []
    if count <= asked.size and asked.rule.is_probed and asked.rule.is_sampled:
        return candidates, []  # they are drawn by speed or room
    if not asked.rule.is_sampled:
        start = random.randrange(count)
        return candidates[start:] + candidates[:start], []
    indices = random.sample(range(count), min(asked.size, count))
    out = set(indices)
    rest = [p for i, p in enumerate(candidates) if i not in out]
    return [candidates[i] for i in indices], rest


def _ordered(drawn: list[Peer], asked: _Asked) -> tuple[tuple[Candidate, ...], Probes]:
    """The attempts among those that were drawn, in order, and whom to probe first.

    A policy that samples and probes ranks a few of them, drawn by speed, and asks the best of
    these. Where work is too short to be worth a probe, `adaptive` takes them as they are drawn by
    room: a rank by old reports would send all dispatchers to the same few.
    """
    rule, scene = asked.rule, asked.scene
    if not rule.is_probed:
        return _rank(drawn, rule, scene), Probes(why_not=NO_LOAD)
    if not rule.is_sampled:
        attempts = _rank(drawn, rule, scene)
        first, *others = attempts or (None,)
        if rule.is_stepped and first and others and _step(first) != _step(others[0]):
            return attempts, Probes(why_not=NO_EQUAL)
        best = {c.peer.node: scene.estimate(c.peer) for c in attempts}
        return attempts, probes_of(best, scene.me, is_by_time=False)
    estimates = scene.estimates(drawn)
    if rule.is_eta and is_short(estimates):
        return _by_room(drawn, estimates, asked), Probes(why_not=TOO_SHORT)
    few = by_speed(estimates, asked.sample, scene.random)
    attempts = _rank([drawn[i] for i in few], rule, scene)
    known = {drawn[i].node: estimates[i] for i in few}
    ranked = {c.peer.node: known[c.peer.node] for c in attempts}
    probes = probes_of(ranked, scene.me, is_by_time=rule.is_eta)
    if probes.why_not == TOO_SHORT and rule.is_eta:
        attempts = _by_room(drawn, estimates, asked)
    return attempts, probes


def _step(candidate: Candidate) -> int:
    return math.floor(candidate.score or 0.0)


def _by_room(drawn: list[Peer], estimates: list[Estimate], asked: _Asked) -> tuple[Candidate, ...]:
    few = by_room(estimates, asked.sample, asked.scene.random)
    return tuple(Candidate(drawn[i], estimates[i].eta_s, estimates[i]) for i in few)


def _rank(drawn: Sequence[Peer], rule: Policy, scene: Scene) -> tuple[Candidate, ...]:
    """The best few, in order. Equal scores keep the order in which they were drawn."""
    costs = [rule.cost(peer, scene) for peer in drawn]
    best = nsmallest(ATTEMPTS_MAX, range(len(drawn)), key=costs.__getitem__)
    return tuple(Candidate(drawn[i], costs[i], _made_of(drawn[i], rule, scene)) for i in best)


def _score(peer: Peer, rule: Policy, scene: Scene) -> Candidate:
    return Candidate(peer, rule.cost(peer, scene), _made_of(peer, rule, scene))


def _made_of(peer: Peer, rule: Policy, scene: Scene) -> Factors | Estimate:
    return scene.estimate(peer) if rule.is_eta else rule.factors(peer, scene)


def reranked(
    made: Plan, asked: Collection[NodeId], answers: Answers, view: ClusterView, now: Instant
) -> Plan:
    """The plan in the order that further answers give it; `asked` are those who were asked now.

    The plan's signals have been told the answers, `view` is what is believed at `now`: who may not
    be asked any more is left out. By time, who is not known to have room counts as done later by
    what a task takes on average, `turn_s`: what is thought of it is old, and a slot that stands
    idle meanwhile is everybody's loss.
    """
    need, rule, scene = made.need, made.rule, made.scene.at(now)
    told = {**made.answers, **answers}
    scored: list[Candidate] = []
    rejected: list[Rejection] = []
    for peer in (c.peer for c in made.attempts):
        why = why_not_now(view, need, peer, now, scene.outstanding.reports)
        if why is None:
            scored.append(_score(peer, rule, scene))
        else:
            rejected.append(Rejection(peer.node, peer.name, why))
    if rule.is_eta and scored:
        turn_s = sum(scene.estimate(c.peer).service_s for c in scored) / len(scored)
        scored = [c if _is_known_free(c.peer, told, scene) else c.later_by(turn_s) for c in scored]
    return replace(
        made,
        attempts=tuple(sorted(scored, key=lambda c: c.score or 0.0)),
        rejected=(*made.rejected, *rejected),
        asked=(*made.asked, *asked),
        answers=told,
        scene=scene,
    )


def second_look(made: Plan) -> Probes:
    """The probes for the others of a plan, where the best of it is not known to have room.

    A policy that goes by something else than time has its own reasons for the first two.
    """
    scene, best = made.scene, made.chosen
    if not (made.asked and made.rule.is_eta and best is not None):
        return Probes()
    if _is_known_free(best.peer, made.answers, scene):
        return Probes()
    others = [c.peer for c in made.attempts if c.peer.node not in made.asked]
    return others_of({peer.node: scene.estimate(peer) for peer in others}, made.probes, scene.me)


def _is_known_free(peer: Peer, answers: Answers, scene: Scene) -> bool:
    """Whether it has told just now, or is this node itself, and would begin at once."""
    if peer.node != scene.me and peer.node not in answers:
        return False
    estimate = scene.estimate(peer)
    return estimate.rif < estimate.slots


def explain(made: Plan) -> dict[str, Any]:
    """The plan as JSON: who was chosen by which factors, who was left out and why."""
    first = made.chosen
    not_probed = made.probes.why_not or ONLY_PLANNED
    return {
        "policy": made.policy,
        "policy_from": made.policy_from,
        "capability": made.need.capability,
        "chosen": None if first is None else _label(first.peer.node, first.peer.name),
        "candidates": [_row(c) for c in made.attempts],
        "probes": [_probe_row(made, node) for node in made.asked],
        "not_probed": None if made.asked else not_probed,
        "is_whole": made.is_whole,
        "left_out": [
            *({**_label(r.node, r.name), "why": r.why} for r in made.rejected),
            *(
                {**_row(made.scores.get(p.node) or Candidate(p, None, {})), "why": NOT_DRAWN}
                for p in made.passed_over
            ),
        ],
    }


def _probe_row(made: Plan, node: NodeId) -> dict[str, Any]:
    """Who was asked how busy it is, and what it said: requests in flight and waiting."""
    answer = made.answers.get(node)
    told: dict[str, Any] = {"answered": answer is not None, "rtt_s": None, "rif": None}
    if answer is not None:
        rtt_s, load = answer
        told.update(rtt_s=round(rtt_s, 6), rif=load.in_flight + load.queue)
    names = {c.peer.node: c.peer.name for c in made.attempts}
    names |= {r.node: r.name for r in made.rejected}
    return {**_label(node, names.get(node, "")), **told}


def _row(c: Candidate) -> dict[str, Any]:
    return {**_label(c.peer.node, c.peer.name), "score": c.score, "factors": dict(c.factors)}


def _label(node: NodeId, name: str) -> dict[str, str]:
    return {"node": node.hex(), "name": name}
