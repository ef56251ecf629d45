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
from meshd.errors import Code, DeadlineError, MeshError, NoCandidateError, PeerError
from meshd.model import Load, MemberState, NodeId
from meshd.routing.call import FINAL, Call, Hedge, Invoker, LocalWork, Running, Trying, Won
from meshd.routing.filters import Reason, eligible
from meshd.routing.need import Need
from meshd.routing.offers import Offer, best_offer
from meshd.routing.request import (
    Attempt,
    DelegatedTo,
    DelegateRequest,
    DelegateResult,
    peer_result,
)
from meshd.routing.resilience import Resilience
from meshd.routing.router import ATTEMPTS_MAX, Candidate, Plan, explain, nobody, plan
from meshd.routing.settings import RoutingSettings
from meshd.routing.signals import Outcome, Outstanding, Rate, load_from_wire
from meshd.sink import Sink
from meshd.view import ClusterView, Peer

BUDGET_MIN_S: Seconds = 0.001
"""Less than this is not worth sending: the wire carries whole milliseconds."""

OFFER_SLACK = 1.5
"""A busy peer's ETA is an estimate: one of up to this times the remaining time is waited for."""

OFFERS_FRACTION = 0.2
OFFERS_S_MAX: Seconds = 1.0
"""How long bids are gathered, of the time that remains."""

WAIT_MIN_S: Seconds = 0.005
WAIT_MAX_S: Seconds = 1.0
ATTEMPTS_KEPT = 64
TURNS_MAX = 1024


LocalOffer = Callable[[dict[str, Any]], Awaitable[Any]]


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
        self.waiting = 0
        self._news = asyncio.Event()
        self._handed_out = Rate()
        self._clock = clock
        self._view = view
        self._invoker = invoker
        self._local = local
        self._local_offer = local_offer
        self._random = random
        self._settings = settings or RoutingSettings()
        self._sleep = sleep
        self._running: dict[NodeId, dict[int, Running]] = {}
        self._turns: dict[str, NodeId] = {}
        self._is_closed = False

    @property
    def deadline_s(self) -> Seconds:
        """The deadline of calls that name none."""
        return self._settings.deadline_s

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
            BusyError: all refused, and the best ETA is too late or too many wait here already.
            DeadlineError: time ran out.
            UsageError: bad policy or input; nothing ran.
            PeerError: the peer failed and the work may not be sent elsewhere, or all failed; or
                this node stops.
        """
        now = self._clock.now()
        self._check_hops(request)
        self.resilience.began(now)
        limit_s = self._settings.deadline_s if request.deadline_s is None else request.deadline_s
        deadline = Deadline.after(limit_s, now)
        for capability in (request.capability, *request.fallback):
            last = capability == (request.capability, *request.fallback)[-1]
            wanted = msgspec.structs.replace(
                request, capability=capability, is_queued=request.is_queued and last
            )
            try:
                return await self._delegate(Call(wanted, deadline, now, sink, trying))
            except NoCandidateError as error:
                if last or not error.definite:
                    raise
        raise AssertionError("the last capability ends the call")

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
        if self.waiting:
            self._news.set()
            self._news = asyncio.Event()
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
                need = replace(need, tried=need.tried | {node})
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
        """Ask one after the other, each planned afresh; None where none of them answered."""
        for _ in range(ATTEMPTS_MAX):
            if self._is_closed:
                raise call.ended(PeerError("this node is stopping", code=Code.CANCELLED))
            view = self._view()
            made = self._plan(call, view, is_detailed=call.request.explain)
            if made.chosen is None:
                self._note_full(call, made, view)
                if call.offer_s is None:
                    error = call.error or nobody(made, view)
                    if await self._wait_for_somebody(call, error):
                        continue
                    raise call.ended(error)
                return None
            peer = await self._best_bidder(call, made, view) or made.chosen.peer
            failures = len(call.failed)
            result = await self._attempt(call, made, peer, view)
            if result is not None:
                return result
            if len(call.failed) > failures:
                await self._back_off(call)
        return None

    async def _back_off(self, call: Call) -> None:
        """Pause after a failure, if one more try is within the node's budget.

        Raises:
            MeshError: the failure, where it is not.
        """
        now = self._clock.now()
        error = call.error
        assert error is not None, "a call that has failed has an error"
        if not self.resilience.may_retry(now):
            error.message += " (and this node's budget of retries is used up)"
            raise call.ended(error)
        pause_s = min(self.resilience.pause_s(len(call.failed)), call.deadline.remaining(now))
        if pause_s > 0:
            await self._sleep(pause_s)

    async def _wait_for_somebody(self, call: Call, error: MeshError) -> bool:
        """Wait for the mesh to change, for callers who asked for that; false if there is no point.

        Only while nothing can have run: `error` is definite.
        """
        now = self._clock.now()
        left_s = call.deadline.remaining(now)
        is_worth_it = isinstance(error, NoCandidateError) and not call.may_have_run
        if not (call.request.is_queued and is_worth_it and left_s > WAIT_MIN_S):
            return False
        if self.waiting >= self._settings.queue_max:
            return False
        news = self._news
        self.waiting += 1
        try:
            async with asyncio.timeout(min(WAIT_MAX_S, left_s)):
                await news.wait()
        except TimeoutError:
            pass
        finally:
            self.waiting -= 1
        return True

    async def _best_bidder(self, call: Call, made: Plan, view: ClusterView) -> Peer | None:
        """Of the first few candidates the one that offers to be done first, for calls that ask."""
        wanted = made.attempts[: call.request.offers]
        if len(wanted) < 2:
            return None
        remaining_s = call.deadline.remaining(self._clock.now())
        timeout_s = min(OFFERS_S_MAX, OFFERS_FRACTION * remaining_s)
        asking = (self._bid(call, each, view.me, remaining_s, timeout_s) for each in wanted)
        offers = [offer for offer in await asyncio.gather(*asking) if offer is not None]
        for offer in offers:
            if offer.load is not None:
                self.outstanding.on_reply(offer.peer.node, offer.load, self._clock.now())
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

    def _plan(
        self,
        call: Call,
        view: ClusterView,
        *,
        is_detailed: bool,
        besides: frozenset[NodeId] = frozenset(),
    ) -> Plan:
        capability = call.request.capability
        return plan(
            view,
            call.need(besides),
            self._clock.now(),
            outstanding=self.outstanding,
            random=self._random,
            settings=self._settings,
            policy="pinned" if call.request.to else call.request.policy,
            last=self._turns.get(capability),
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
        try:
            won = await self._tracked(running, view.me)
        except MeshError as error:
            second = None if hedge is None else await hedge.answer()
            if second is None:
                self._on_failure(call, running, error, self._clock.now() - started)
                return None
            self._note_attempt(call, running, error, self._clock.now() - started)
            won = second
        finally:
            if hedge is not None:
                hedge.close()
        now = self._clock.now()
        load = load_from_wire(won.reply.get("load"))
        if load is not None:
            self.outstanding.on_reply(won.peer.node, load, now)
        self.resilience.answered(call.request.capability, now - started)
        self._note_success(call, won.peer, now - started)
        return self._result(call, made, won, view.me, now)

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
            made = self._plan(call, view, is_detailed=False, besides=frozenset({first.peer.node}))
            if self._is_closed or made.chosen is None:
                return None
            if not self.resilience.may_hedge(self._clock.now()):
                return None
            return self._second(call, made.chosen.peer, view.me)

        return Hedge(after_s, begin, lambda: first.abandon("a second copy answered before it"))

    async def _second(self, call: Call, peer: Peer, me: NodeId) -> Won:
        started = self._clock.now()
        running = self._prepare(call, peer, started)
        try:
            return await self._tracked(running, me)
        except MeshError as error:
            call.failed |= {peer.node}
            self._note_attempt(call, running, error, self._clock.now() - started)
            raise

    async def _tracked(self, running: Running, me: NodeId) -> Won:
        """The peer's reply, whole and checked, with the try entered in the signals."""
        call, peer = running.call, running.peer
        if call.trying is not None:
            await call.trying(peer)
        started = self._clock.now()
        eta_s = self.outstanding.estimate(peer, started, local=peer.node == me).eta_s
        self._take_turn(call.request.capability, peer.node)
        self.outstanding.begin(peer, started)
        self._handed_out.count(started)
        outcome = Outcome.NEUTRAL
        try:
            reply = await self._invoke(running, me)
            answer = peer_result(reply)
            outcome = Outcome.OK
            return Won(peer, reply, answer)
        except MeshError as error:
            outcome = running.verdict(error, is_fair=running.remaining_s >= eta_s)
            raise
        finally:
            now = self._clock.now()
            self.outstanding.end(
                peer.node, outcome, now, took_s=now - started, deadline_s=running.remaining_s
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

    def _on_failure(self, call: Call, running: Running, error: MeshError, took_s: Seconds) -> None:
        """Note a failed try.

        Raises:
            MeshError: the given one, where the call must not go on.
        """
        peer, now = running.peer, self._clock.now()
        load = load_from_wire(error.data.get("load"))
        if load is not None:
            self.outstanding.on_reply(peer.node, load, now)
        self._note_attempt(call, running, error, took_s)
        if error.code == Code.BUSY and error.definite:
            call.refused |= {peer.node}
            call.note_offer(error.data, self.outstanding.estimate(peer, now).eta_s)
            return
        call.failed |= {peer.node}
        call.error = error
        call.may_have_run = call.may_have_run or not error.definite
        has_begun = call.sink is not None and call.sink.has_passed
        may_go_on = (error.definite or running.is_idempotent) and not has_begun
        # Counted over the whole call: a busy peer among them must not buy it further rounds.
        if error.code in FINAL or not may_go_on or len(call.failed) >= ATTEMPTS_MAX:
            raise call.ended(error)

    async def _wait_for_room(self, call: Call) -> None:
        """Wait for about half of the best ETA, then everyone who was busy may be asked again.

        Raises:
            MeshError: nobody offered anything: the last try's error.
            BusyError: the best offer is too late, or this node's queue is full.
        """
        now = self._clock.now()
        offer_s, remaining_s = call.offer_s, call.deadline.remaining(now)
        if offer_s is None:
            raise call.ended(call.error or call.too_late())
        left_s = remaining_s - self._settings.reserve_s(remaining_s) - BUDGET_MIN_S
        if offer_s > OFFER_SLACK * remaining_s or left_s < WAIT_MIN_S:
            raise call.ended(call.busy(offer_s, f"only {remaining_s:.3g} s remain"))
        if self.waiting >= self._settings.queue_max:
            raise call.ended(call.busy(offer_s, f"{self.waiting} calls wait here already"))
        wait_s = offer_s * self._random.uniform(0.25, 0.75)
        self.waiting += 1
        try:
            await self._sleep(min(max(wait_s, WAIT_MIN_S), WAIT_MAX_S, left_s))
        finally:
            self.waiting -= 1
        call.refused = frozenset()
        call.offer_s = None

    def _take_turn(self, capability: str, node: NodeId) -> None:
        self._turns.pop(capability, None)
        self._turns[capability] = node
        if len(self._turns) > TURNS_MAX:
            del self._turns[next(iter(self._turns))]

    def _note_success(self, call: Call, peer: Peer, took_s: Seconds) -> None:
        self._note(call, _entry(peer, "ok", took_s))

    def _note_attempt(
        self, call: Call, running: Running, error: MeshError, took_s: Seconds
    ) -> None:
        entry = _entry(running.peer, running.outcome_name(error), took_s)
        entry["error"] = error.message
        self._note(call, entry)

    def _note(self, call: Call, entry: Attempt) -> None:
        call.attempts.append(entry)
        del call.attempts[:-ATTEMPTS_KEPT]

    def _result(self, call: Call, made: Plan, won: Won, me: NodeId, now: Instant) -> DelegateResult:
        peer, answer = won.peer, won.answer
        load: Load | None = self.outstanding.newest(peer)[0]
        is_here = peer.node == me
        rtt_s = 0.0 if is_here else peer.rtt_s
        result = DelegateResult(
            delegated_to=DelegatedTo(
                agent=answer["agent"],
                node=peer.name,
                cpu=None if load is None else round(load.cpu_fraction * 100.0, 1),
                mem=None if load is None else round(load.mem_fraction * 100.0, 1),
                latency_ms=None if rtt_s is None else _ms(rtt_s),
                url=f"http://{peer.address}",
            ),
            peer_result=answer,
            rpc_latency_ms=_ms(now - call.started),
            attempts=call.attempts,
        )
        if call.request.explain:
            result["explain"] = explain(made)
        return result


def _entry(peer: Peer, outcome: str, took_s: Seconds) -> Attempt:
    return Attempt(node=peer.node.hex(), name=peer.name, outcome=outcome, latency_ms=_ms(took_s))


def _ms(seconds: Seconds) -> float:
    return round(seconds * 1000.0, 3)
