"""Gets one piece of work done: asks the planned peers in turn until one answers or time is up.

Exactly one end per call: a result or one error. Work is sent on only while that surely does no
harm: after definite errors, or where the capability is declared idempotent.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from random import Random
from typing import Any

import msgspec

from meshd.clock import Clock, Instant, Seconds
from meshd.deadline import Deadline
from meshd.errors import Code, DeadlineError, MeshError, PeerError
from meshd.model import MemberState, NodeId
from meshd.routing.bidders import Bidders, LocalOffer
from meshd.routing.breakers import Breakers
from meshd.routing.call import (
    WAIT_MAX_S,
    Call,
    Hedge,
    Invoker,
    LocalWork,
    Running,
    Trying,
    Won,
)
from meshd.routing.decisions import Decisions
from meshd.routing.filters import Reason, eligible
from meshd.routing.need import Need
from meshd.routing.request import Attempt, DelegateRequest, DelegateResult, peer_result
from meshd.routing.resilience import Resilience
from meshd.routing.router import ATTEMPTS_MAX, Plan, explain, nobody, plan
from meshd.routing.settings import RoutingSettings
from meshd.routing.signals import Outcome, Outstanding, Rate, load_from_wire
from meshd.routing.spend import Ledger, units_of
from meshd.routing.waiting import Place, WaitingRoom
from meshd.sink import Sink
from meshd.view import ClusterView, Peer

BUDGET_MIN_S: Seconds = 0.001
"""Less than this is not worth sending: the wire carries whole milliseconds."""

OFFER_SLACK = 1.5
"""A busy peer's ETA is an estimate: one of up to this times the remaining time is waited for."""

WAIT_MIN_S: Seconds = 0.005
TURNS_MAX = 1024


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
        sleep: Callable[[Seconds], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.outstanding = Outstanding()
        self.resilience = Resilience(random)
        self.decisions = Decisions()
        self._handed_out = Rate()
        self._clock = clock
        self._view = view
        self._invoker = invoker
        self._local = local
        self._bidders = Bidders(clock, invoker, local_offer, self.outstanding)
        self._random = random
        self._settings = settings or RoutingSettings()
        self.ledger = Ledger(self._settings.spend)
        self.breakers = Breakers(self._settings.breaker)
        self._room = WaitingRoom(self._settings.queue_max)
        self._sleep = sleep
        self._running: dict[NodeId, dict[int, Running]] = {}
        self._turns: dict[str, NodeId] = {}
        self._is_closed = False

    @property
    def deadline_s(self) -> Seconds:
        """The deadline of calls that name none."""
        return self._settings.deadline_s

    @property
    def waiting(self) -> int:
        """How many calls wait here for a worker."""
        return len(self._room)

    @property
    def dispatch_per_s(self) -> float:
        """Tasks that this node hands out a second, lately; each try counts."""
        return self._handed_out.per_s(self._clock.now())

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
        self._check_hops(request)
        if not request.is_repeat:
            self.resilience.began(now)
        limit_s = self._settings.deadline_s if request.deadline_s is None else request.deadline_s
        deadline = Deadline.after(limit_s, now)
        attempts: list[Attempt] = []
        names = request.capability, *request.fallback
        for number, capability in enumerate(names, 1):
            is_last = number == len(names)
            wanted = msgspec.structs.replace(
                request, capability=capability, is_queued=request.is_queued and is_last
            )
            call = Call(wanted, deadline, now, sink, trying, attempts)
            try:
                result = await self._delegate(call)
            except MeshError as error:
                self._decided(call, error.message)
                if is_last or not call.may_fall_back(error):
                    raise
            else:
                self._decided(call)
                return result
        raise AssertionError("the last capability ends the call")

    def _decided(self, call: Call, error: str = "") -> None:
        """A call has ended: it is kept among the last decisions."""
        clock, attempts = self._clock, call.attempts
        took_s = clock.now() - call.started
        self.decisions.add(
            call.request.capability, call.made, attempts,
            took_s=took_s, wall_ms=clock.wall_ms(), error=error,
        )  # fmt: skip

    async def _delegate(self, call: Call) -> DelegateResult:
        while True:
            result = await self._ask_candidates(call)
            if result is not None:
                return result
            await self._wait_for_room(call)

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
        return bool(self._running) or self.waiting > 0

    def on_view_change(self, view: ClusterView) -> None:
        """Abandon calls at peers that the new view says are gone; wake who waits for any."""
        self._room.tell_news()
        for node in list(self._running):
            if node == view.me:
                continue
            peer = view.get(node)
            if peer is None or peer.state in {MemberState.DEAD, MemberState.LEFT}:
                self.peer_lost(node, "it is dead or has left")
            elif peer.state is MemberState.SUSPECT or not peer.reachable:
                self.peer_lost(node, "it stopped answering", is_certain=False)
            else:
                self._restarted(node, peer)

    def peer_lost(self, node: NodeId, why: str = "it is gone", *, is_certain: bool = True) -> None:
        """Abandon the calls that run at `node`; they move on or end with an indefinite error.

        Mere doubt (`is_certain` false, as after one missed probe) ends only idempotent calls, and
        only where someone else could take them: the peer may well be about to answer.
        """
        view, now = self._view(), self._clock.now()
        known: dict[Need, bool] = {}
        for running in list(self._running.get(node, {}).values()):
            if not is_certain:
                need = running.call.need()
                need = replace(need, tried=need.tried | {node}, is_idempotent=True)
                if running.is_idempotent and need not in known:
                    found, _ = eligible(view, need, now, reports=self.outstanding.reports)
                    known[need] = bool(found)
                if not known.get(need):
                    continue
            running.abandon(why)

    def _restarted(self, node: NodeId, peer: Peer) -> None:
        for running in list(self._running[node].values()):
            if running.peer.epoch != peer.epoch:
                running.abandon("it was started anew")

    def _check_hops(self, request: DelegateRequest) -> None:
        """Refuse work that goes in circles.

        Raises:
            PeerError: with code CYCLE; nothing ran.
        """
        hops, me = request.hops, self._view().me.hex()
        elsewhere = len(hops)
        while elsewhere and hops[elsewhere - 1] == me:
            elsewhere -= 1  # work that runs here may go on here: no circle, but it counts
        if len(hops) >= self._settings.hops_max or me in hops[:elsewhere]:
            raise PeerError(
                f"{request.capability!r} was passed on {len(hops)} times and came back or never"
                " settled",
                hint=f"a capability may call itself through others; hops: {' > '.join(hops)}",
                code=Code.CYCLE,
            )

    async def _ask_candidates(self, call: Call) -> DelegateResult | None:
        """Ask one after the other, each planned afresh; None where those who could are busy.

        Raises:
            MeshError: nobody is left to ask, and there is no point in waiting for any.
        """
        asked = 0
        while True:
            if self._is_closed:
                raise call.ended(PeerError("this node is stopping", code=Code.CANCELLED))
            # Counted over the whole call: a busy peer among them must not buy it further rounds.
            if call.error is not None and len(call.failed) >= ATTEMPTS_MAX:
                await self._wait_for_somebody(call, call.error)
                asked = 0
                continue
            if asked >= ATTEMPTS_MAX:
                return None
            view = self._view()
            call.made = made = self._plan(call, view, is_detailed=call.request.explain)
            if made.chosen is None:
                if made.circuit is None:
                    self._note_full(call, made, view)
                    if call.offer_s is not None:
                        return None
                await self._wait_for_somebody(call, call.error or self._nobody(call, made, view))
                asked = 0
            elif call.owes_pause:
                await self._back_off(call)
            else:
                peer = await self._bidders.best(call, made, view.me) or made.chosen.peer
                if self._is_overtaken(call, made, peer):
                    continue
                asked += 1
                result = await self._attempt(call, made, peer, view)
                if result is not None:
                    return result

    def _nobody(self, call: Call, made: Plan, view: ClusterView) -> MeshError:
        """The error for a plan without attempts; where a cap leaves too little, that says so."""
        error, request = nobody(made, view), call.request
        if error.code != Code.OVER_BUDGET:
            return error
        asked_usd = error.data["cheapest_usd"]
        now = self._clock.now()
        return self.ledger.refusal(request.caller, request.capability, asked_usd, now) or error

    def _is_overtaken(self, call: Call, made: Plan, peer: Peer) -> bool:
        """Whether another call took the place that a half-open circuit had when this was planned.

        That can be where something was awaited since.
        """
        capability, now = call.request.capability, self._clock.now()
        if not call.request.to and self.breakers.refusal(capability, (peer,), now) is not None:
            return True
        return peer.node in made.trials and self.breakers.is_barred_at(peer, capability, now)

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
                await self._sleep(pause_s)
        elif call.may_wait(error):
            await self._wait_for_somebody(call, error)
        else:
            error.message += " (and this node's budget of retries is used up)"
            raise call.ended(error)

    async def _wait_for_somebody(self, call: Call, error: MeshError) -> None:
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

    async def _wait_for_room(self, call: Call) -> None:
        """Wait for about half of the best ETA, then everyone who was busy may be asked again.

        Half, as a worker's queue has a place long before the work would be done; spread, so that
        not all who wait come back at once.

        Raises:
            BusyError: the best offer is too late, or this node's queue is full.
        """
        now = self._clock.now()
        offer_s, remaining_s = call.offer_s, call.deadline.remaining(now)
        assert offer_s is not None, "who refuses makes an offer"
        if not call.request.is_patient:
            raise call.ended(call.busy(offer_s, "this call does not wait"))
        left_s = remaining_s - self._settings.reserve_s(remaining_s) - BUDGET_MIN_S
        is_too_late = offer_s > OFFER_SLACK * remaining_s and not call.request.is_queued
        if is_too_late or left_s < WAIT_MIN_S:
            raise call.ended(call.busy(offer_s, f"only {remaining_s:.3g} s remain"))
        wait_s = min(max(offer_s * self._random.uniform(0.25, 0.75), WAIT_MIN_S), WAIT_MAX_S)
        if not await self._wait(call, min(wait_s, left_s), left_s, is_for_room=True):
            raise call.ended(call.busy(offer_s, f"{self.waiting} calls wait here already"))
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
        if not self._room.enter(place):
            return False
        try:
            while True:
                sleeping = asyncio.ensure_future(self._sleep(max(0.0, place.due - now)))
                place.wake = sleeping.cancel
                try:
                    await asyncio.wait((sleeping,))
                finally:
                    sleeping.cancel()
                if place.is_woken or self._room.takes_turn(place):
                    break
                now = self._clock.now()
        finally:
            self._room.leave(place)
        return not place.is_displaced

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
        terms = self.ledger.terms(request.terms, request.caller, request.capability, now)
        return plan(
            view,
            call.need(besides, is_idempotent=is_idempotent, terms=terms),
            now,
            outstanding=self.outstanding,
            random=self._random,
            settings=self._settings,
            breakers=self.breakers,
            policy=request.policy_asked,
            last=self._turns.get(request.capability),
            is_detailed=is_detailed,
        )

    def _note_full(self, call: Call, made: Plan, view: ClusterView) -> None:
        """Peers that said they are full are as good as busy: their room is worth waiting for."""
        now = self._clock.now()
        for rejection in made.rejected:
            if rejection.reason is Reason.FULL:
                peer = view.by_node[rejection.node]
                call.note_offer({}, self.outstanding.estimate(peer, now).eta_s)

    async def _attempt(
        self, call: Call, made: Plan, peer: Peer, view: ClusterView
    ) -> DelegateResult | None:
        """One try; None where it failed in a way that lets the call go on elsewhere."""
        started = self._clock.now()
        running = self._prepare(call, peer, started)
        hedge = self._hedge(call, running)
        won: Won | None = None
        try:
            won = await self._tracked(running, view.me)
        except MeshError as error:
            self._note_failure(call, running, error, self._clock.now() - started)
            if hedge is not None:
                won = await hedge.answer()
        finally:
            if hedge is not None:
                hedge.close()
        if won is None:
            if call.end is not None:
                raise call.ended(call.end)
            return None
        now = self._clock.now()
        load = load_from_wire(won.reply.get("load"))
        if load is not None:
            self.outstanding.on_reply(won.peer.node, load, now)
        self.resilience.answered(call.request.capability, now - started)
        call.note_attempt(won.peer, "ok", now - started)
        newest, _ = self.outstanding.newest(won.peer)
        result = call.result(won, newest, now, is_here=won.peer.node == view.me)
        if call.request.explain:
            result["explain"] = explain(made)
        return result

    def _prepare(self, call: Call, peer: Peer, now: Instant) -> Running:
        """A try that has the time that remains.

        Raises:
            DeadlineError: none does.
        """
        remaining_s = call.deadline.remaining(now)
        budget_s = remaining_s - self._settings.reserve_s(remaining_s)
        if budget_s < BUDGET_MIN_S:
            raise call.ended(call.too_late())
        return Running(call, peer, asyncio.timeout(remaining_s), remaining_s, budget_s)

    def _hedge(self, call: Call, first: Running) -> Hedge | None:
        """A second copy for later, of work that may run twice and whose usual time is known."""
        may_run_twice = first.is_idempotent and call.sink is None and not call.request.to
        is_last = len(call.failed) + 1 >= ATTEMPTS_MAX
        if not (may_run_twice and self._settings.is_hedging) or is_last:
            return None
        after_s = self.resilience.hedge_after_s(call.request.capability)
        if after_s is None or after_s >= first.remaining_s:
            return None

        def begin() -> Coroutine[Any, Any, Won] | None:
            view = self._view()
            others = frozenset({first.peer.node})
            made = self._plan(call, view, is_detailed=False, besides=others, is_idempotent=True)
            if self._is_closed or made.chosen is None:
                return None
            if not self.resilience.may_hedge(self._clock.now()):
                return None
            return self._second(call, made, made.chosen.peer, view.me)

        return Hedge(after_s, begin, lambda: first.abandon("a second copy answered before it"))

    async def _second(self, call: Call, made: Plan, peer: Peer, me: NodeId) -> Won:
        started = self._clock.now()
        if self._is_overtaken(call, made, peer):
            raise PeerError("another call is sent there first", code=Code.CIRCUIT_OPEN)
        running = self._prepare(call, peer, started)
        try:
            return await self._tracked(running, me)
        except MeshError as error:
            self._note_failure(call, running, error, self._clock.now() - started)
            raise

    async def _tracked(self, running: Running, me: NodeId) -> Won:
        """The peer's reply, whole and checked, with the try entered in circuits and signals."""
        call, peer = running.call, running.peer
        # Before anything is awaited: a half-open circuit lets one pass, and the plan has just seen
        # that it does.
        crossing = self.breakers.begin(
            peer, call.request.capability, self._clock.now(), is_pinned=bool(call.request.to)
        )
        try:
            if call.trying is not None:
                await call.trying(peer)
            return await self._counted(running, me)
        finally:
            self.breakers.end(crossing, running.outcome, self._clock.now(), self._view)

    async def _counted(self, running: Running, me: NodeId) -> Won:
        peer, started = running.peer, self._clock.now()
        eta_s = self.outstanding.estimate(peer, started, local=peer.node == me).eta_s
        self._take_turn(running.call.request.capability, peer.node)
        self.outstanding.begin(peer, started)
        self._handed_out.count(started)
        capability, caller = running.call.request.capability, running.call.request.caller
        purchase = self.ledger.begin(caller, peer.offers(capability), started)
        is_charged, reply = True, None
        try:
            reply = await self._invoke(running, me)
            answer = peer_result(reply)
            running.outcome = Outcome.OK
            return Won(peer, reply, answer, purchase)
        except MeshError as error:
            running.outcome = running.verdict(error, is_fair=running.remaining_s >= eta_s)
            is_charged = not error.definite
            raise
        finally:
            now = self._clock.now()
            if purchase is not None:
                self.ledger.end(purchase, units_of(reply), now, is_charged=is_charged)
            self.outstanding.end(
                peer.node,
                running.outcome,
                now,
                took_s=now - started,
                deadline_s=running.remaining_s,
            )

    async def _invoke(self, running: Running, me: NodeId) -> Any:
        """The peer's reply, unless time runs out or the peer is lost first."""
        peer, key, sink = running.peer, id(running), running.call.sink
        params = running.call.work_params(me, running.budget_s)
        timeout_s = running.remaining_s
        at_peer = self._running.setdefault(peer.node, {})
        try:
            async with running.scope:
                at_peer[key] = running
                if peer.node == me:
                    return await self._local(params, timeout_s=timeout_s, sink=sink)
                return await self._invoker.invoke(
                    peer.address, "work", params, timeout_s=timeout_s, sink=sink
                )
        except TimeoutError as error:
            if running.lost:
                raise PeerError(
                    f"{peer.name} was lost while it had the work: {running.lost}",
                    hint="the work may have been done; only idempotent capabilities move on",
                    definite=False,
                ) from error
            raise DeadlineError(
                f"{peer.name} did not answer within {timeout_s:.3g} s",
                hint="give more time with a longer deadline",
                definite=False,
            ) from error
        finally:
            running.is_over = True
            at_peer.pop(key, None)
            if not at_peer and self._running.get(peer.node) is at_peer:
                del self._running[peer.node]

    def _note_failure(
        self, call: Call, running: Running, error: MeshError, took_s: Seconds
    ) -> None:
        """Note a failed try, or a refusal with its offer; never raises."""
        peer, now = running.peer, self._clock.now()
        load = load_from_wire(error.data.get("load"))
        if load is not None:
            self.outstanding.on_reply(peer.node, load, now)
        call.note_attempt(peer, running.outcome_name(error), took_s, error.message)
        if error.code == Code.BUSY and error.definite:
            call.refused |= {peer.node}
            call.note_offer(error.data, self.outstanding.estimate(peer, now).eta_s)
        else:
            call.note_failure(running, error, now)

    def _take_turn(self, capability: str, node: NodeId) -> None:
        self._turns.pop(capability, None)
        self._turns[capability] = node
        if len(self._turns) > TURNS_MAX:
            del self._turns[next(iter(self._turns))]
