"""Gets one piece of work done: asks the planned peers in turn until one answers or time is up.

Exactly one end per call: a result or one error. Work is sent on only while that surely does no
harm: after definite errors, or where the capability is declared idempotent.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from random import Random
from typing import Any, Protocol

from meshd.clock import Clock, Instant, Seconds
from meshd.deadline import Deadline
from meshd.errors import BusyError, Code, DeadlineError, MeshError, PeerError
from meshd.model import Address, Load, MemberState, NodeId
from meshd.routing.filters import Reason, eligible
from meshd.routing.need import Need
from meshd.routing.request import (
    Attempt,
    DelegatedTo,
    DelegateRequest,
    DelegateResult,
    PeerResult,
    peer_result,
)
from meshd.routing.router import ATTEMPTS_MAX, Plan, explain, nobody, plan
from meshd.routing.settings import RoutingSettings
from meshd.routing.signals import Outcome, Outstanding, Rate, load_from_wire
from meshd.view import ClusterView, Peer

BUDGET_MIN_S: Seconds = 0.001
"""Less than this is not worth sending: the wire carries whole milliseconds."""

OFFER_SLACK = 1.5
"""A busy peer's ETA is an estimate: one of up to this times the remaining time is waited for."""

WAIT_MIN_S: Seconds = 0.005
WAIT_MAX_S: Seconds = 1.0
ATTEMPTS_KEPT = 64
TURNS_MAX = 1024

_FINAL = frozenset({Code.INVALID_PARAMS, Code.CYCLE, Code.CANCELLED})
"""The call itself is at fault or given up: nobody else would answer otherwise."""

_BLAMELESS = _FINAL | {
    Code.BUSY, Code.INVALID_REQUEST, Code.METHOD_NOT_FOUND, Code.NO_CANDIDATE, Code.FORBIDDEN,
    Code.REJECTED, Code.CIRCUIT_OPEN,
}  # fmt: skip
"""Answers of a healthy peer."""


_OUTCOME_NAMES: Mapping[int, str] = {Code.BUSY: "busy", Code.DEADLINE: "deadline"}


class Invoker(Protocol):
    """Calls a method of a peer; the RPC client fits."""

    async def invoke(
        self, target: Address, method: str, params: dict[str, Any], *, timeout_s: Seconds
    ) -> Any:
        """The result of `method` at `target`.

        Raises:
            MeshError: it failed; `definite` says whether it surely had no effect.
        """
        ...


class LocalWork(Protocol):
    """Runs `work` on this node, with the params and the result that a peer would have."""

    def __call__(self, params: dict[str, Any], *, timeout_s: Seconds) -> Awaitable[Any]:
        """The result of the work. Raises MeshError as an invoker does."""
        ...


class _Call:
    """One `delegate` on its way: what was tried, what was offered."""

    def __init__(self, request: DelegateRequest, deadline: Deadline, now: Instant) -> None:
        self.request = request
        self.deadline = deadline
        self.started = now
        self.attempts: list[Attempt] = []
        self.failed: frozenset[NodeId] = frozenset()
        self.refused: frozenset[NodeId] = frozenset()
        self.offer_s: Seconds | None = None
        self.offer: dict[str, Any] = {}
        self.error: MeshError | None = None
        self.may_have_run = False

    def need(self) -> Need:
        """The need, without those that were tried in vain."""
        request = self.request
        return Need(
            capability=request.capability,
            version=request.version,
            tags=request.tags,
            pinned=request.to,
            hops=request.hops,
            tried=self.failed | self.refused,
        )

    def note_offer(self, data: Mapping[str, Any], guess_s: Seconds) -> None:
        """A busy peer said when it could have the work done, or we guess."""
        eta = data.get("eta_s")
        known = isinstance(eta, int | float) and math.isfinite(eta) and eta >= 0
        eta_s = float(eta) if known and eta is not None else guess_s
        if self.offer_s is None or eta_s < self.offer_s:
            self.offer_s = eta_s
            self.offer = {k: data[k] for k in ("load", "queue") if k in data}

    def ended(self, error: MeshError) -> MeshError:
        """`error` as this call's end: with its attempts, and definite only if all of them were."""
        error.definite = error.definite and not self.may_have_run
        if error.code == Code.DEADLINE and len(self.attempts) > 1:
            # It names the time of the last try, which others had left over.
            error.message += f" (the last of {len(self.attempts)} tries)"
        error.data["attempts"] = self.attempts
        return error


class _Running:
    """A try that is under way at a peer."""

    def __init__(self, call: _Call, peer: Peer, scope: asyncio.Timeout) -> None:
        self.call = call
        self.peer = peer
        self.scope = scope
        self.lost = ""
        summary = peer.offers(call.request.capability)
        self.is_idempotent = summary is not None and summary.idempotent

    def abandon(self, why: str) -> None:
        """Stop waiting for the answer, at once."""
        if not self.scope.expired():
            self.lost = why
            self.scope.reschedule(asyncio.get_running_loop().time())


class Dispatcher:
    """Delegates work from this node. All methods belong to one event loop."""

    def __init__(
        self,
        *,
        clock: Clock,
        view: Callable[[], ClusterView],
        invoker: Invoker,
        local: LocalWork,
        random: Random,
        settings: RoutingSettings | None = None,
        sleep: Callable[[Seconds], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.outstanding = Outstanding()
        self.waiting = 0
        self._handed_out = Rate()
        self._clock = clock
        self._view = view
        self._invoker = invoker
        self._local = local
        self._random = random
        self._settings = settings or RoutingSettings()
        self._sleep = sleep
        self._running: dict[NodeId, dict[int, _Running]] = {}
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

    async def delegate(self, request: DelegateRequest) -> DelegateResult:
        """Have the work done by the best peer, or by the next best that can.

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
        limit_s = self._settings.deadline_s if request.deadline_s is None else request.deadline_s
        call = _Call(request, Deadline.after(limit_s, now), now)
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
        call = _Call(request, Deadline(now), now)
        return self._plan(call, self._view(), is_detailed=is_detailed)

    def close(self) -> None:
        """This node stops: nothing is sent any more, and calls end when their present try does."""
        self._is_closed = True

    @property
    def is_busy(self) -> bool:
        """Whether calls run at peers, which a new view may tell to be gone."""
        return bool(self._running)

    def on_view_change(self, view: ClusterView) -> None:
        """Abandon calls at peers that the new view says are gone."""
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

    async def _ask_candidates(self, call: _Call) -> DelegateResult | None:
        """Ask one after the other, each planned afresh; None where none of them answered."""
        for _ in range(ATTEMPTS_MAX):
            if self._is_closed:
                raise call.ended(PeerError("this node is stopping", code=Code.CANCELLED))
            view = self._view()
            made = self._plan(call, view, is_detailed=call.request.explain)
            if made.chosen is None:
                self._note_full(call, made, view)
                if call.offer_s is None:
                    raise call.ended(call.error or nobody(made, view))
                return None
            result = await self._attempt(call, made, made.chosen.peer, view)
            if result is not None:
                return result
        return None

    def _plan(self, call: _Call, view: ClusterView, *, is_detailed: bool) -> Plan:
        capability = call.request.capability
        return plan(
            view,
            call.need(),
            self._clock.now(),
            outstanding=self.outstanding,
            random=self._random,
            settings=self._settings,
            policy="pinned" if call.request.to else call.request.policy,
            last=self._turns.get(capability),
            is_detailed=is_detailed,
        )

    def _note_full(self, call: _Call, made: Plan, view: ClusterView) -> None:
        """Peers that said they are full are as good as busy: their room is worth waiting for."""
        now = self._clock.now()
        for rejection in made.rejected:
            if rejection.reason is Reason.FULL:
                peer = view.by_node[rejection.node]
                call.note_offer({}, self.outstanding.estimate(peer, now).eta_s)

    async def _attempt(
        self, call: _Call, made: Plan, peer: Peer, view: ClusterView
    ) -> DelegateResult | None:
        """One try; None where it failed in a way that lets the call go on elsewhere."""
        started = self._clock.now()
        remaining_s = call.deadline.remaining(started)
        budget_s = remaining_s - self._settings.reserve_s(remaining_s)
        if budget_s < BUDGET_MIN_S:
            raise call.ended(_too_late(call))
        running = _Running(call, peer, asyncio.timeout(remaining_s))
        params = _work_params(call, view.me, budget_s)
        try:
            reply, answer = await self._tracked(running, view.me, params, remaining_s)
        except MeshError as error:
            self._on_failure(call, running, error, self._clock.now() - started)
            return None
        now = self._clock.now()
        load = load_from_wire(reply.get("load"))
        if load is not None:
            self.outstanding.on_reply(peer.node, load, now)
        self._note_attempt(call, peer, "ok", now - started)
        return self._result(call, made, peer, answer, view.me, now)

    async def _tracked(
        self, running: _Running, me: NodeId, params: dict[str, Any], remaining_s: Seconds
    ) -> tuple[Any, PeerResult]:
        """The peer's reply, whole and checked, with the try entered in the signals."""
        peer, started = running.peer, self._clock.now()
        eta_s = self.outstanding.estimate(peer, started, local=peer.node == me).eta_s
        self._take_turn(running.call.request.capability, peer.node)
        self.outstanding.begin(peer, started)
        self._handed_out.count(started)
        outcome = Outcome.NEUTRAL
        try:
            reply = await self._invoke(running, me, params, remaining_s)
            answer = peer_result(reply)
            outcome = Outcome.OK
            return reply, answer
        except MeshError as error:
            outcome = _verdict(error, running, is_fair=remaining_s >= eta_s)
            raise
        finally:
            now = self._clock.now()
            self.outstanding.end(
                peer.node, outcome, now, took_s=now - started, deadline_s=remaining_s
            )

    async def _invoke(
        self, running: _Running, me: NodeId, params: dict[str, Any], timeout_s: Seconds
    ) -> Any:
        """The peer's reply, unless time runs out or the peer is lost first."""
        peer, key = running.peer, id(running)
        at_peer = self._running.setdefault(peer.node, {})
        try:
            async with running.scope:
                at_peer[key] = running
                if peer.node == me:
                    return await self._local(params, timeout_s=timeout_s)
                return await self._invoker.invoke(peer.address, "work", params, timeout_s=timeout_s)
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
            at_peer.pop(key, None)
            if not at_peer and self._running.get(peer.node) is at_peer:
                del self._running[peer.node]

    def _on_failure(
        self, call: _Call, running: _Running, error: MeshError, took_s: Seconds
    ) -> None:
        """Note a failed try.

        Raises:
            MeshError: the given one, where the call must not go on.
        """
        peer, now = running.peer, self._clock.now()
        load = load_from_wire(error.data.get("load"))
        if load is not None:
            self.outstanding.on_reply(peer.node, load, now)
        self._note_attempt(call, peer, _outcome_name(error, running), took_s, error)
        if error.code == Code.BUSY and error.definite:
            call.refused |= {peer.node}
            call.note_offer(error.data, self.outstanding.estimate(peer, now).eta_s)
            return
        call.failed |= {peer.node}
        call.error = error
        call.may_have_run = call.may_have_run or not error.definite
        may_go_on = error.definite or running.is_idempotent
        # Counted over the whole call: a busy peer among them must not buy it further rounds.
        if error.code in _FINAL or not may_go_on or len(call.failed) >= ATTEMPTS_MAX:
            raise call.ended(error)

    async def _wait_for_room(self, call: _Call) -> None:
        """Wait for about half of the best ETA, then everyone who was busy may be asked again.

        Raises:
            MeshError: nobody offered anything: the last try's error.
            BusyError: the best offer is too late, or this node's queue is full.
        """
        now = self._clock.now()
        offer_s, remaining_s = call.offer_s, call.deadline.remaining(now)
        if offer_s is None:
            raise call.ended(call.error or _too_late(call))
        left_s = remaining_s - self._settings.reserve_s(remaining_s) - BUDGET_MIN_S
        if offer_s > OFFER_SLACK * remaining_s or left_s < WAIT_MIN_S:
            raise call.ended(_busy(call, offer_s, f"only {remaining_s:.3g} s remain"))
        if self.waiting >= self._settings.queue_max:
            raise call.ended(_busy(call, offer_s, f"{self.waiting} calls wait here already"))
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

    def _note_attempt(
        self,
        call: _Call,
        peer: Peer,
        outcome: str,
        took_s: Seconds,
        error: MeshError | None = None,
    ) -> None:
        entry = Attempt(
            node=peer.node.hex(), name=peer.name, outcome=outcome, latency_ms=_ms(took_s)
        )
        if error is not None:
            entry["error"] = error.message
        call.attempts.append(entry)
        del call.attempts[:-ATTEMPTS_KEPT]

    def _result(
        self, call: _Call, made: Plan, peer: Peer, answer: PeerResult, me: NodeId, now: Instant
    ) -> DelegateResult:
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


def _work_params(call: _Call, me: NodeId, budget_s: Seconds) -> dict[str, Any]:
    """The params of `work`: the deadline as the time that remains, this node among the hops."""
    request = call.request
    params: dict[str, Any] = {
        "capability": request.capability,
        "input": request.input,
        "deadline_ms": max(1, int(budget_s * 1000.0)),
        "hops": [*request.hops, me.hex()],
    }
    if request.idempotency_key:
        params["idempotency_key"] = request.idempotency_key
    if request.trace is not None:
        params["trace"] = request.trace
    return params


def _verdict(error: MeshError, running: _Running, *, is_fair: bool) -> Outcome:
    """What an error says about the peer. `is_fair`: it had the time that it needs."""
    if running.lost or error.code in _BLAMELESS or (error.code == Code.DEADLINE and not is_fair):
        return Outcome.NEUTRAL
    return Outcome.FAILED


def _outcome_name(error: MeshError, running: _Running) -> str:
    if running.lost:
        return "lost"
    return _OUTCOME_NAMES.get(error.code, "error")


def _too_late(call: _Call) -> DeadlineError:
    return DeadlineError(
        f"time ran out before {call.request.capability!r} could be tried again"
        if call.attempts
        else f"no time was left to call {call.request.capability!r}",
        hint="give more time with a longer deadline",
    )


def _busy(call: _Call, offer_s: Seconds, why: str) -> BusyError:
    return BusyError(
        f"everyone who offers {call.request.capability!r} is busy, and {why}",
        hint=f"the best offer is an answer in {offer_s:.3g} s; try later or give more time",
        data={"eta_s": offer_s, **call.offer},
    )


def _ms(seconds: Seconds) -> float:
    return round(seconds * 1000.0, 3)
