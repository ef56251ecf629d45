"""Gets one piece of work done: asks the planned peers in turn until one answers or time is up.

Exactly one end per call: a result or one error. Work is sent on only while that surely does no
harm: after definite errors, or where the capability is declared idempotent.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from random import Random
from typing import Any

import msgspec

from meshd.clock import Clock, Instant, Seconds
from meshd.deadline import Deadline
from meshd.errors import Code, MeshError, PeerError, UsageError
from meshd.model import Address, NodeId
from meshd.priority import PRIORITY_DEFAULT
from meshd.routing.bidders import Bidders, LocalOffer
from meshd.routing.breakers import Breakers
from meshd.routing.call import (
    Call,
    Hedge,
    Invoker,
    LocalWork,
    Running,
    Tried,
    Trying,
    Won,
)
from meshd.routing.custom import Policies
from meshd.routing.decisions import Decisions
from meshd.routing.direct import Answered, Direct, Wire, no_wire
from meshd.routing.filters import why_not_now
from meshd.routing.hops import check_hops
from meshd.routing.nobody import why_nobody
from meshd.routing.patience import Patience
from meshd.routing.probes import NOT_FIRST
from meshd.routing.probing import Prober, Probing
from meshd.routing.request import DelegateRequest, DelegateResult
from meshd.routing.resilience import Resilience
from meshd.routing.router import Plan, explain, plan
from meshd.routing.rules import Rules
from meshd.routing.settings import RoutingSettings
from meshd.routing.signals import Outstanding
from meshd.routing.spend import Ledger
from meshd.routing.standing import Standings
from meshd.routing.tries import Tries
from meshd.sink import Sink
from meshd.view import ClusterView, Peer

OVERTAKEN_S: Seconds = 0.01
"""How long a call pauses whose plans were overtaken three times before they could be sent."""

BUDGET_MIN_S: Seconds = 0.001
"""Less than this is not worth sending: the wire carries whole milliseconds."""


class Dispatcher:
    """Delegates work from this node. All methods belong to one event loop."""

    def __init__(
        self,
        *,
        clock: Clock,
        view: Callable[[], ClusterView],
        invoker: Invoker,
        local: LocalWork,
        local_offer: LocalOffer,
        random: Random,
        settings: RoutingSettings | None = None,
        wires: Callable[[Address], Wire | None] = no_wire,
        prober: Prober | None = None,
        policies: Policies | None = None,
        sleep: Callable[[Seconds], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.outstanding = Outstanding()
        self.resilience = Resilience(random)
        self._counters: Counter[str] = Counter(calls=0, refusals=0)
        self.decisions = Decisions()
        self._clock = clock
        self._view = view
        self._probing = Probing(clock, prober, self.outstanding)
        self._policies = policies or Policies()
        self._bidders = Bidders(clock, invoker, local_offer, self.outstanding)
        self._random = random
        self._standings = Standings(random, self.outstanding)
        self._settings = settings or RoutingSettings()
        self._rules = Rules(self._settings)
        self.ledger = Ledger(self._settings.spend)
        self.breakers = Breakers(lambda capability: self.settings_for(capability).breaker)
        self._tries = Tries(
            clock=clock, view=view, invoker=invoker, local=local, outstanding=self.outstanding,
            breakers=self.breakers, ledger=self.ledger,
        )  # fmt: skip
        self._wires = wires
        self._patience = Patience(clock, random, sleep, self._settings.queue_max)
        self._is_closed = False

    def settings_for(self, capability: str) -> RoutingSettings:
        """What holds for calls of this capability."""
        return self._rules.of(capability)

    def use(self, settings: RoutingSettings) -> None:
        """Go on by these settings; calls under way do so from their next try.

        `queue_max` stays as it was.

        Raises:
            UsageError: those of a capability are out of range; nothing changed.
        """
        self._rules = Rules(settings)
        self._settings = settings
        self.ledger.cap(settings.spend)

    @property
    def waiting(self) -> int:
        """How many calls wait here for a worker."""
        return len(self._patience.room)

    @property
    def dispatch_per_s(self) -> float:
        """Tasks that this node hands out a second, lately; each try counts."""
        return self._tries.handed_out.per_s(self._clock.now())

    @property
    def counters(self) -> Mapping[str, int]:
        """Calls, tries and refusals so far; probes sent, answered, and left out over the budget.

        A probe and a refusal are two messages each: what calls cost beyond themselves.
        """
        return {**self._counters, "tries": self._tries.count, **self._probing.counters}

    async def delegate(
        self,
        request: DelegateRequest,
        sink: Sink | None = None,
        trying: Trying | None = None,
    ) -> DelegateResult:
        """Have the work done by the best peer, or by the next best that can.

        `sink` takes partial results and progress. Once it has had a part, no other peer is tried.
        `trying(peer)` is awaited before each peer is sent the work.

        Raises:
            NoCandidateError: nobody can do it now; the hint says why each was left out.
            BusyError: all refused, and the best ETA is too late for who does not want to wait, or
                too many wait here already.
            DeadlineError: time ran out.
            UsageError: bad policy or input; nothing ran.
            PeerError: the peer failed and the work may not be sent elsewhere, or all failed; or
                the capability fails everywhere (CIRCUIT_OPEN, nothing ran); or this node stops.
        """
        now = self._clock.now()
        if request.hops:
            check_hops(request, self._view().me, self._settings.hops_max)
        if not request.is_repeat:
            self._count()
        usual_s = self.settings_for(request.capability).deadline_s
        limit_s = usual_s if request.deadline_s is None else request.deadline_s
        deadline = Deadline.after(limit_s, now)
        tried: list[Tried] = []
        names = request.capability, *request.fallback
        for number, capability in enumerate(names, 1):
            is_last = number == len(names)
            wanted = request
            if request.fallback:
                wanted = msgspec.structs.replace(
                    request, capability=capability, is_queued=request.is_queued and is_last
                )
            call = Call(wanted, deadline, now, sink, trying, tried)
            try:
                return await self._to_its_end(call)
            except MeshError as error:
                if is_last or not call.may_fall_back(error):
                    raise
        raise AssertionError("the last capability ends the call")

    def begin(
        self,
        capability: str,
        value: Any,
        answered: Answered,
        *,
        deadline_s: Seconds,
        caller: str,
        priority: int = PRIORITY_DEFAULT,
        is_bare: bool = False,
    ) -> Direct | None:
        """Have work done the short way: sent at once, without a task, to whom a plan stands for.

        None where that cannot be: then `delegate` is the way; nothing was sent, or counted.
        `answered(result or error)` is called once, maybe at once, unless the call is cancelled
        before. `is_bare`: it takes what the peer made of the work, and not the whole envelope.
        """
        now, view, settings = self._clock.now(), self._view(), self.settings_for(capability)
        budget_s = deadline_s - self._settings.reserve_s(deadline_s)
        is_calm = not self._is_closed and self._is_calm(capability, caller, settings, now)
        if not is_calm or settings.fallback or budget_s < BUDGET_MIN_S:
            return None
        request = DelegateRequest(
            capability=capability, input=value, deadline_s=deadline_s, priority=priority,
            caller=caller,
        )  # fmt: skip
        call = Call(request, Deadline(Instant(now + deadline_s)), now)
        made = self._standings.plan(capability, view, settings, now)
        if made is None and self._standings.may_stand(capability, now):
            try:
                made = self._plan(call, view, is_detailed=False)
            except UsageError:
                return None  # a policy of one's own fails: `delegate` says so
            if not self._standings.keep(made, view, settings, now):
                return None
        if made is None or made.chosen is None:
            return None
        call.made, peer = made, made.chosen.peer
        wire = None if peer.node == view.me else self._wires(peer.address)
        if wire is None:
            self._standings.give_back(capability, made)
            return None
        direct = Direct(
            call, peer, deadline_s, budget_s, is_fair=deadline_s >= (made.chosen.score or 0.0),
            wire=wire, tries=self._tries, clock=self._clock,
            done=self._direct_ended, answered=answered, is_bare=is_bare,
        )  # fmt: skip
        self._count()
        direct.begin(view.me, now)
        if not direct.has_ended:
            direct.hedge = self._hedge(call, direct)
        return direct

    def _direct_ended(self, direct: Direct, end: Won | Exception, now: Instant) -> None:
        call, hedge = direct.call, direct.hedge
        if isinstance(end, Won):
            if hedge is not None:
                hedge.close()
            self._note_success(call, end, direct.started, now)
            self._decided(call, now)
            if not direct.is_bare:
                direct.answered(self._result(call, end, now))
            return
        if not isinstance(end, MeshError):
            direct.answered(end)  # a fault of ours
            return
        self._note_failure(call, direct, end, now - direct.started)
        if hedge is not None or call.end is None:
            direct.go_on(self._to_its_end(call, 1, hedge, direct.started))
        else:
            error = call.ended(call.end)
            self._decided(call, now, error.message)
            direct.answered(error)

    def _count(self) -> None:
        """A client's call came."""
        self.resilience.began()
        self._counters["calls"] += 1
        self._probing.messages.began()

    async def _to_its_end(
        self, call: Call, asked: int = 0, hedge: Hedge | None = None, began: Instant | None = None
    ) -> DelegateResult:
        """Ask until somebody answers; so many were `asked` before, with a `hedge` since `began`."""
        result = None
        try:
            if hedge is not None and began is not None:
                result = self._came_to(call, await hedge.last_word(), began)
            if result is None:
                result = await self._delegate(call, asked)
        except MeshError as error:
            self._decided(call, self._clock.now(), error.message)
            raise
        self._decided(call, self._clock.now())
        return result

    def _decided(self, call: Call, now: Instant, error: str = "") -> None:
        """A call has ended: it is kept among the last decisions."""
        self.decisions.add(
            call.request.capability, call.made, call.tried,
            took_s=now - call.started, wall_ms=self._clock.wall_ms(), error=error,
        )  # fmt: skip

    async def _delegate(self, call: Call, asked: int) -> DelegateResult:
        while True:
            result = await self._ask_candidates(call, asked)
            asked = 0
            if result is not None:
                return result
            remaining_s = call.deadline.remaining(self._clock.now())
            kept_s = self._settings.reserve_s(remaining_s) + BUDGET_MIN_S
            await self._patience.for_room(call, kept_s=kept_s)

    def plan(self, request: DelegateRequest, *, is_detailed: bool = False) -> Plan:
        """The plan that this request would get now, without calling anyone.

        Raises:
            UsageError: no such policy, or `pinned` without a node.
        """
        now = self._clock.now()
        call = Call(request, Deadline(now), now)
        return self._plan(call, self._view(), is_detailed=is_detailed)

    def close(self) -> None:
        """This node stops: nothing is sent any more, and calls end when their present try does."""
        self._is_closed = True

    @property
    def is_busy(self) -> bool:
        """Whether calls run at peers or wait for one, of which a new view may tell."""
        return bool(self._tries.running) or self.waiting > 0

    def on_view_change(self, view: ClusterView) -> None:
        """Abandon calls at peers that the new view says are gone; wake who waits for any."""
        self._patience.room.tell_news()
        self._tries.on_view_change(view)

    def peer_lost(self, node: NodeId, why: str = "it is gone", *, is_certain: bool = True) -> None:
        """Abandon the calls that run at `node`; they move on or end with an indefinite error."""
        self._tries.peer_lost(node, why, is_certain=is_certain)

    async def _ask_candidates(self, call: Call, asked: int) -> DelegateResult | None:
        """Ask one after the other, each planned afresh; None where those who could are busy.

        Raises:
            MeshError: nobody is left to ask, and there is no point in waiting for any.
        """
        overtaken = 0
        while True:
            attempts_max = self._attempts_max(call)
            if self._is_closed:
                raise call.ended(PeerError("this node is stopping", code=Code.CANCELLED))
            # Counted over the whole call: a busy peer among them must not buy it further rounds.
            if call.error is not None and len(call.failed) >= attempts_max:
                await self._patience.for_somebody(call, call.error)
                asked = 0
                continue
            if asked >= attempts_max:
                return None
            view = self._view()
            former = call.made
            try:
                made = self._standing_or_plan(call, view)
            except UsageError as error:
                raise call.ended(error) from error
            if former is not None and call.has_probed and not call.tried:
                made = made.after(former)
            call.made = made
            if made.chosen is None:
                if made.circuit is None:
                    call.note_full(made, view, self.outstanding, self._clock.now())
                    if call.offer_s is not None:
                        return None
                why = call.error or self._nobody(call, made, view)
                await self._patience.for_somebody(call, why)
                asked = 0
            elif call.owes_pause:
                await self._back_off(call)
            else:
                is_asked_first = bool(made.probes.nodes or call.request.offers)
                if is_asked_first:
                    call.made = made = await self._chosen(call, made, view.me)
                if made.chosen is None or (is_asked_first and self._is_overtaken(call, made)):
                    # What the next plan sees is what overtook this one. If it does not, it must
                    # not turn in place: by then time is up.
                    overtaken += 1
                    await self._patience.sleep(0.0 if overtaken < 3 else OVERTAKEN_S)
                    if call.deadline.remaining(self._clock.now()) <= 0.0:
                        raise call.ended(call.too_late())
                    continue
                asked += 1
                result = await self._attempt(call, made.chosen.peer, view)
                if result is not None:
                    return result

    async def _chosen(self, call: Call, made: Plan, me: NodeId) -> Plan:
        """The plan in the order of bids, or else of probes; without attempts if none are left.

        Raises:
            UsageError: a policy of one's own fails.
        """
        bidder = await self._bidders.best(call, made, me)
        if bidder is not None:
            return made.led_by(bidder)
        if call.has_probed:
            return made.unprobed(NOT_FIRST)
        if not made.probes.nodes:
            return made
        call.has_probed = True  # once is enough: a refusal tells as much, and costs as much
        try:
            return await self._probing.look(made, call.deadline, self._view)
        except UsageError as error:
            raise call.ended(error) from error

    def _attempts_max(self, call: Call) -> int:
        return 1 + self.settings_for(call.request.capability).retries

    def _nobody(self, call: Call, made: Plan, view: ClusterView) -> MeshError:
        settings = self.settings_for(call.request.capability)
        return why_nobody(made, view, call.request, settings, self.ledger, self._clock.now())

    def _is_overtaken(self, call: Call, made: Plan) -> bool:
        """Whether what this call needs was lost since it was planned, while something was awaited.

        That is the peer itself, a closed circuit, the place at a half-open one, or what the caller
        might spend; or this node stops.
        """
        assert made.chosen is not None, "somebody is about to be asked"
        peer, request, view = made.chosen.peer, call.request, self._view()
        capability, now = request.capability, self._clock.now()
        if self._is_closed or why_not_now(view, made.need, peer, now, self.outstanding.reports):
            return True
        if self.ledger.is_short(request.caller, peer.node, peer.offers(capability), now):
            return True
        if not request.to and self.breakers.refusal(capability, (peer,), now) is not None:
            return True
        is_barred = self.breakers.is_barred_at(peer, capability, now)
        return is_barred and peer.node not in made.spared

    async def _back_off(self, call: Call) -> None:
        """Pause after a failure, if one more try is within the node's budget.

        Raises:
            MeshError: the failure, where it is not, and the caller does not want to wait.
        """
        now = self._clock.now()
        error = call.error
        assert error is not None, "a call that has failed has an error"
        if self.resilience.may_retry(now, is_patient=call.may_wait(error)):
            call.owes_pause = False
            pause_s = min(self.resilience.pause_s(call.failures), call.deadline.remaining(now))
            if pause_s > 0:
                await self._patience.sleep(pause_s)
        elif call.may_wait(error):
            await self._patience.for_somebody(call, error)
        else:
            error.message += " (and this node's budget of retries is used up)"
            raise call.ended(error)

    def _plan(
        self,
        call: Call,
        view: ClusterView,
        *,
        is_detailed: bool,
        besides: frozenset[NodeId] = frozenset(),
        is_idempotent: bool = False,
    ) -> Plan:
        request, now = call.request, self._clock.now()
        settings = self.settings_for(request.capability)
        terms = self.ledger.terms(
            request.terms, request.caller, request.capability, now, settings.cost_usd_max
        )
        self._probing.look_here(view, request.capability)
        return plan(
            view,
            call.need(besides, is_idempotent=is_idempotent, terms=terms),
            now,
            outstanding=self.outstanding,
            random=self._random,
            settings=settings,
            breakers=self.breakers,
            policy=request.policy_asked,
            named=self._policies.named,
            last=self._tries.turns.get(request.capability),
            is_detailed=is_detailed,
        )

    def _standing_or_plan(self, call: Call, view: ClusterView) -> Plan:
        """The plan that stands, for a call that asks for nothing of its own; else one for it alone.

        Raises:
            UsageError: as `plan` does.
        """
        request, now = call.request, self._clock.now()
        capability, caller = request.capability, request.caller
        settings = self.settings_for(capability)
        wishes = request.explain or request.policy_asked or request.offers
        is_usual = (
            not wishes and call.need().is_bare and self._is_calm(capability, caller, settings, now)
        )
        if is_usual:
            stands = self._standings.plan(capability, view, settings, now)
            if stands is not None:
                return stands
        made = self._plan(call, view, is_detailed=request.explain)
        if is_usual:
            self._standings.keep(made, view, settings, now)
        return made

    def _is_calm(
        self, capability: str, caller: str, settings: RoutingSettings, now: Instant
    ) -> bool:
        """Whether no circuit and no cost stands in the way of any call of this capability."""
        terms = self.ledger.terms(None, caller, capability, now, settings.cost_usd_max)
        return terms is None and self.breakers.is_calm(capability)

    async def _attempt(self, call: Call, peer: Peer, view: ClusterView) -> DelegateResult | None:
        """One try; None where it failed in a way that lets the call go on elsewhere."""
        started = self._clock.now()
        running = self._prepare(call, peer, started, view.me)
        hedge = self._hedge(call, running)
        won: Won | None = None
        try:
            try:
                won = await self._tries.run(running, view.me)
            except MeshError as error:
                self._note_failure(call, running, error, self._clock.now() - started)
            if won is None and hedge is not None:
                won = await hedge.answer()
        finally:
            if hedge is not None:
                hedge.close()
        return self._came_to(call, won, started)

    def _came_to(self, call: Call, won: Won | None, started: Instant) -> DelegateResult | None:
        """What a try and its second copy came to; None where the call goes on, else its error."""
        if won is None:
            if call.end is not None:
                raise call.ended(call.end)
            return None
        now = self._clock.now()
        self._note_success(call, won, started, now)
        result = self._result(call, won, now)
        if call.request.explain and call.made is not None:
            result["explain"] = explain(call.made)
        return result

    def _result(self, call: Call, won: Won, now: Instant) -> DelegateResult:
        newest, _ = self.outstanding.newest(won.peer)
        return call.result(won, newest, now, is_here=won.peer.node == self._view().me)

    def _prepare(self, call: Call, peer: Peer, now: Instant, me: NodeId) -> Running:
        """A try that has the time that remains.

        Raises:
            DeadlineError: none does.
        """
        remaining_s = call.deadline.remaining(now)
        budget_s = remaining_s - self._settings.reserve_s(remaining_s)
        if budget_s < BUDGET_MIN_S:
            raise call.ended(call.too_late())
        eta_s = self.outstanding.estimate(peer, now, local=peer.node == me).eta_s
        return Running(call, peer, remaining_s, budget_s, is_fair=remaining_s >= eta_s)

    def _hedge(self, call: Call, first: Running) -> Hedge | None:
        """A second copy for later, of work that may run twice and whose usual time is known."""
        if not first.is_idempotent or call.sink is not None or call.request.to:
            return None
        is_last = len(call.failed) + 1 >= self._attempts_max(call)
        is_hedging = self.settings_for(call.request.capability).is_hedging
        if not is_hedging or is_last:
            return None
        after_s = self.resilience.hedge_after_s(call.request.capability)
        if after_s is None or after_s >= first.remaining_s:
            return None

        def begin() -> Coroutine[Any, Any, Won] | None:
            view = self._view()
            others = frozenset({first.peer.node})
            try:
                made = self._plan(call, view, is_detailed=False, besides=others, is_idempotent=True)
            except UsageError:
                return None  # a policy of one's own fails; the first copy goes on
            if self._is_closed or made.chosen is None:
                return None
            if not self.resilience.may_hedge(self._clock.now()):
                return None
            return self._second(call, made, made.chosen.peer, view.me)

        return Hedge(after_s, begin, lambda: first.abandon("a second copy answered before it"))

    async def _second(self, call: Call, made: Plan, peer: Peer, me: NodeId) -> Won:
        started = self._clock.now()
        if self._is_overtaken(call, made):
            raise PeerError("another call was sent first", code=Code.CIRCUIT_OPEN)
        running = self._prepare(call, peer, started, me)
        try:
            return await self._tries.run(running, me)
        except MeshError as error:
            self._note_failure(call, running, error, self._clock.now() - started)
            raise

    def _note_success(self, call: Call, won: Won, started: Instant, now: Instant) -> None:
        self.resilience.answered(call.request.capability, now - started)
        call.note_attempt(won.peer, "ok", now - started)

    def _note_failure(
        self, call: Call, running: Running, error: MeshError, took_s: Seconds
    ) -> None:
        """Note a failed try, or a refusal with its offer; never raises."""
        peer, now = running.peer, self._clock.now()
        self._standings.drop(call.request.capability)
        call.note_attempt(peer, running.outcome_name(error), took_s, error.message)
        if error.code == Code.BUSY and error.definite:
            self._counters["refusals"] += 1
            self._probing.messages.spend(1)
            call.refused |= {peer.node}
            call.note_offer(error.data, self.outstanding.estimate(peer, now).eta_s)
        else:
            call.note_failure(running, error, now)
