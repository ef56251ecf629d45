"""One `delegate` on its way: what it needs, what was tried, what was offered, what runs."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import lru_cache
from typing import Any, Protocol

from meshd.clock import Instant, Seconds
from meshd.deadline import Deadline
from meshd.errors import BusyError, Code, DeadlineError, MeshError, PeerError
from meshd.model import Address, Load, NodeId
from meshd.priority import PRIORITY_DEFAULT
from meshd.routing.breakers import Crossing
from meshd.routing.filters import Reason
from meshd.routing.need import Need
from meshd.routing.request import (
    Attempt,
    DelegateRequest,
    DelegateResult,
    PeerResult,
)
from meshd.routing.router import Plan
from meshd.routing.signals import FAILED, FIGURE_MAX, NEUTRAL, Outcome, Outstanding
from meshd.routing.spend import Purchase
from meshd.routing.terms import Terms
from meshd.sink import Sink
from meshd.structs import Frozen
from meshd.view import ClusterView, Peer

FINAL = frozenset({Code.INVALID_PARAMS, Code.CYCLE, Code.CANCELLED})
"""The call itself is at fault or given up: nobody else would answer otherwise."""

_BLAMELESS = FINAL | {
    Code.BUSY, Code.INVALID_REQUEST, Code.METHOD_NOT_FOUND, Code.NO_CANDIDATE, Code.FORBIDDEN,
    Code.REJECTED, Code.CIRCUIT_OPEN, Code.OVER_BUDGET,
}  # fmt: skip
"""Answers of a healthy peer."""

WAIT_MAX_S: Seconds = 1.0
"""A call that waits looks again each so often, whether it was told to or not."""

ATTEMPTS_KEPT = 64
"""Of one call, the newest; who waits for somebody may make many."""

_OUTCOME_NAMES: Mapping[int, str] = {Code.BUSY: "busy", Code.DEADLINE: "deadline"}


class Invoker(Protocol):
    """Calls a method of a peer; links and the RPC client fit."""

    async def invoke(
        self,
        target: Address,
        method: str,
        params: dict[str, Any],
        *,
        timeout_s: Seconds,
        sink: Sink | None = None,
    ) -> Any:
        """The result of `method` at `target`; `sink` takes partial results and progress before it.

        Raises:
            MeshError: it failed; `definite` says whether it surely had no effect.
        """
        ...


class LocalWork(Protocol):
    """Runs `work` on this node, with the params and the result that a peer would have."""

    def __call__(
        self, params: dict[str, Any], *, timeout_s: Seconds, sink: Sink | None = None
    ) -> Awaitable[Any]:
        """The result of the work. Raises MeshError as an invoker does."""
        ...


Trying = Callable[[Peer], Awaitable[None]]


class Tried(Frozen, frozen=True):
    """How one try ended; written out only for who asks."""

    peer: Peer
    outcome: str
    took_s: Seconds
    error: str | None

    def told(self) -> Attempt:
        """As JSON."""
        entry: Attempt = {
            "node": self.peer.node.hex(), "name": self.peer.name, "outcome": self.outcome,
            "latency_ms": _ms(self.took_s),
        }  # fmt: skip
        if self.error is not None:
            entry["error"] = self.error
        return entry


class Call:
    """One `delegate` on its way: what was tried, what was offered.

    Attributes:
        failed, refused: who is not asked again, or not until the call has waited.
        failed_until: when those who failed may be asked again, for callers who want to wait.
        failures: how many tries have failed so far, refusals apart.
        owes_pause: whether one has failed since the last pause.
        error: of the last failure.
        end: the error after which nothing else may be tried.
        may_have_run: whether a failed try may have had an effect.
        has_probed: whether peers were asked how busy they are: once is enough for one call.
        made: the newest plan.
    """

    def __init__(
        self,
        request: DelegateRequest,
        deadline: Deadline,
        now: Instant,
        sink: Sink | None = None,
        trying: Trying | None = None,
        tried: list[Tried] | None = None,
    ) -> None:
        """`tried` are those of another capability, that this call is the fallback of."""
        self.request = request
        self.trying = trying
        self.sink = None if sink is None else _Passing(sink)
        self.deadline = deadline
        self.started = now
        self.tried: list[Tried] = [] if tried is None else tried
        self.failed: frozenset[NodeId] = frozenset()
        self.refused: frozenset[NodeId] = frozenset()
        self.offer_s: Seconds | None = None
        self.offer: dict[str, Any] = {}
        self.failed_until = now
        self.failures = 0
        self.owes_pause = False
        self.error: MeshError | None = None
        self.end: MeshError | None = None
        self.may_have_run = False
        self.has_probed = False
        self.made: Plan | None = None

    @property
    def has_passed(self) -> bool:
        """Whether the caller has had a partial result: then nobody else may begin anew."""
        return self.sink is not None and self.sink.has_passed

    def need(
        self,
        besides: frozenset[NodeId] = frozenset(),
        *,
        is_idempotent: bool = False,
        terms: Terms | None = None,
    ) -> Need:
        """The need, without those that were tried in vain, or are asked already.

        Where it may have run, or will be asked of two at once (`is_idempotent`), only those are
        asked who say that it may run twice. `terms` are the request's, with what it may cost now.
        """
        request = self.request
        return Need(
            capability=request.capability,
            version=request.version,
            tags=request.tags,
            pinned=request.to,
            hops=request.hops,
            tried=self.failed | self.refused | besides,
            is_idempotent=self.may_have_run or is_idempotent,
            terms=request.terms if terms is None else terms,
            affinity=request.affinity,
        )

    def note_failure(self, running: "Running", error: MeshError, now: Instant) -> None:
        """A try failed, and not by a refusal."""
        self.failed |= {running.peer.node}
        self.failed_until = Instant(now + WAIT_MAX_S)
        self.failures += 1
        self.owes_pause = True
        self.error = error
        self.may_have_run = self.may_have_run or not error.definite
        may_go_on = (error.definite or running.is_idempotent) and not self.has_passed
        if self.end is None and (error.code in FINAL or not may_go_on):
            self.end = error

    def may_wait(self, error: MeshError) -> bool:
        """Whether the caller wants to wait where this is the error, and nothing can have run."""
        is_safe = error.definite and not self.may_have_run and not self.has_passed
        return self.request.is_queued and is_safe and error.code not in FINAL

    def may_fall_back(self, error: MeshError) -> bool:
        """Whether another capability may be tried after this end.

        Not after a refusal that a patient call would have waited out: who asks again later may.
        """
        if error.code == Code.BUSY and not self.request.is_patient:
            return False
        is_the_work = error.code not in FINAL and error.code != Code.DEADLINE
        return error.definite and is_the_work and not self.has_passed

    def ask_anew(self, now: Instant) -> None:
        """It has waited: who was busy may be asked again.

        For a caller who wants to wait, who failed may be too, a while after the last failure:
        not each change of the mesh is worth a call to a worker that was not there a moment ago.
        """
        self.refused = frozenset()
        self.offer_s = None
        if self.request.is_queued and not self.may_have_run and now >= self.failed_until:
            self.failed = frozenset()

    def note_offer(self, data: Mapping[str, Any], guess_s: Seconds) -> None:
        """A busy peer said when it could have the work done, or we guess."""
        eta = data.get("eta_s")
        known = isinstance(eta, int | float) and 0.0 <= eta <= FIGURE_MAX
        eta_s = float(eta) if known and eta is not None else guess_s
        if self.offer_s is None or eta_s < self.offer_s:
            self.offer_s = eta_s
            self.offer = {k: data[k] for k in ("load", "queue") if k in data}

    def note_full(
        self, made: Plan, view: ClusterView, outstanding: Outstanding, now: Instant
    ) -> None:
        """Peers that said they are full are as good as busy: their room is worth waiting for."""
        for rejection in made.rejected:
            if rejection.reason is Reason.FULL:
                peer = view.by_node[rejection.node]
                self.note_offer({}, outstanding.estimate(peer, now).eta_s)

    def note_attempt(
        self, peer: Peer, outcome: str, took_s: Seconds, error: str | None = None
    ) -> None:
        """Keep how one try ended."""
        self.tried.append(Tried(peer, outcome, took_s, error))
        if len(self.tried) > ATTEMPTS_KEPT:
            del self.tried[0]

    def result(
        self, won: "Won", load: Load | None, now: Instant, *, is_here: bool
    ) -> DelegateResult:
        """The answer as the caller gets it; `load` is the newest of who gave it."""
        peer, answer = won.peer, won.answer
        rtt_s = 0.0 if is_here else peer.rtt_s
        result: DelegateResult = {
            "delegated_to": {
                "agent": answer["agent"],
                "node": peer.name,
                "cpu": None if load is None else round(load.cpu_fraction * 100.0, 1),
                "mem": None if load is None else round(load.mem_fraction * 100.0, 1),
                "latency_ms": None if rtt_s is None else _ms(rtt_s),
                "url": _url(peer.address),
            },
            "peer_result": answer,
            "rpc_latency_ms": _ms(now - self.started),
            "attempts": [each.told() for each in self.tried],
        }
        if won.purchase is not None:
            result["cost_usd"] = won.purchase.cost_usd
            if won.purchase.units is not None:
                result["units"] = won.purchase.units
        return result

    def ended(self, error: MeshError) -> MeshError:
        """`error` as this call's end: with its attempts, and definite only if all of them were."""
        error.definite = error.definite and not self.may_have_run
        if error.code == Code.DEADLINE and len(self.tried) > 1:
            # It names the time of the last try, which others had left over.
            error.message += f" (the last of {len(self.tried)} tries)"
        error.data["attempts"] = [each.told() for each in self.tried]
        return error

    def work_params(self, me: NodeId, budget_s: Seconds) -> dict[str, Any]:
        """The params of `work`: the deadline as the time that remains, this node among the hops."""
        request = self.request
        params: dict[str, Any] = {
            "capability": request.capability,
            "input": request.input,
            "deadline_ms": max(1, int(budget_s * 1000.0)),
            "hops": [*request.hops, me.hex()],
        }
        if request.priority != PRIORITY_DEFAULT:
            params["priority"] = request.priority
        if request.idempotency_key:
            params["idempotency_key"] = request.idempotency_key
        if request.trace is not None:
            params["trace"] = request.trace
        if request.only_joins:
            params["only_joins"] = True
        return params

    def too_late(self) -> DeadlineError:
        """No time is left."""
        capability = self.request.capability
        return DeadlineError(
            f"time ran out before {capability!r} could be tried again"
            if self.tried
            else f"no time was left to call {capability!r}",
            hint="give more time with a longer deadline",
        )

    def busy(self, offer_s: Seconds, why: str) -> BusyError:
        """All refused, and the best offer is of no use."""
        return BusyError(
            f"everyone who offers {self.request.capability!r} is busy, and {why}",
            hint=f"the best offer is an answer in {offer_s:.3g} s; try later or give more time",
            data={"eta_s": offer_s, **self.offer},
        )


class _Passing:
    """Passes partial results on, and knows whether any were: then nobody else may begin anew."""

    def __init__(self, sink: Sink) -> None:
        self.has_passed = False
        self._sink = sink
        self.progress = sink.progress

    async def part(self, value: Any) -> None:
        """Pass one on."""
        self.has_passed = True
        await self._sink.part(value)


class Bound(Protocol):
    """What a try ends by before its answer: its time, or `end`. `meshd.scope.Scope` is one."""

    has_ended: bool

    def end(self) -> None:
        """End it by the next turn of the loop, unless it is over by then."""
        ...


class Running:
    """A try that is under way at a peer.

    `remaining_s` is what the caller still waits; `budget_s` is told to the peer: less the reserve
    for the way back; `is_fair`, it has the time that it needs; `outcome` is what it says about the
    peer. `scope` bounds the wait, once that has begun.
    """

    __slots__ = (
        "budget_s", "call", "crossing", "is_fair", "is_idempotent", "lost", "offered", "outcome",
        "peer",
        "purchase", "remaining_s", "scope", "started",
    )  # fmt: skip

    def __init__(
        self, call: Call, peer: Peer, remaining_s: Seconds, budget_s: Seconds, *, is_fair: bool
    ) -> None:
        self.call = call
        self.peer = peer
        self.scope: Bound | None = None
        self.remaining_s = remaining_s
        self.budget_s = budget_s
        self.is_fair = is_fair
        self.lost = ""
        self.outcome = NEUTRAL
        self.crossing: Crossing | None = None
        self.purchase: Purchase | None = None
        self.started = call.started
        self.offered = peer.offers(call.request.capability)
        self.is_idempotent = self.offered is not None and self.offered.idempotent

    def abandon(self, why: str) -> None:
        """Stop waiting for the answer, at once."""
        if self.scope is not None and not self.scope.has_ended:
            self.lost = why
            self.scope.end()

    def ended_early(self) -> MeshError:
        """The error of a try whose scope was ended: the peer was lost, or time ran out."""
        if self.lost:
            return PeerError(
                f"{self.peer.name} was lost while it had the work: {self.lost}",
                hint="the work may have been done; only idempotent capabilities move on",
                definite=False,
            )
        return DeadlineError(
            f"{self.peer.name} did not answer within {self.remaining_s:.3g} s",
            hint="give more time with a longer deadline",
            definite=False,
        )

    def verdict(self, error: MeshError) -> Outcome:
        """What an error says about the peer."""
        is_late = error.code == Code.DEADLINE and not self.is_fair
        if self.lost or error.code in _BLAMELESS or is_late:
            return NEUTRAL
        return FAILED

    def outcome_name(self, error: MeshError) -> str:
        """How this try is told to have ended."""
        return "lost" if self.lost else _OUTCOME_NAMES.get(error.code, "error")


class Won:
    """An answer: whose, whole, and checked; and what it costs, if it is not free."""

    def __init__(
        self, peer: Peer, reply: Any, answer: PeerResult, purchase: Purchase | None = None
    ) -> None:
        self.peer = peer
        self.reply = reply
        self.answer = answer
        self.purchase = purchase


class Hedge:
    """A second copy of a call that begins later, if the first has not answered by then."""

    def __init__(
        self,
        after_s: Seconds,
        begin: Callable[[], Coroutine[Any, Any, Won] | None],
        on_win: Callable[[], None],
    ) -> None:
        self._begin = begin
        self._on_win = on_win
        self._copy: asyncio.Task[Won] | None = None
        self._timer = asyncio.get_running_loop().call_later(after_s, self._start)

    def _start(self) -> None:
        work = self._begin()
        if work is not None:
            self._copy = asyncio.create_task(work, name="meshd-hedge")
            self._copy.add_done_callback(self._ended)

    def _ended(self, copy: asyncio.Task[Won]) -> None:
        if not copy.cancelled() and copy.exception() is None:
            self._on_win()

    async def answer(self) -> Won | None:
        """What the second copy comes to, where there is one and it comes to something."""
        if self._copy is None:
            return None
        await asyncio.wait((self._copy,))
        is_good = not self._copy.cancelled() and self._copy.exception() is None
        return self._copy.result() if is_good else None

    async def last_word(self) -> Won | None:
        """The same, after which it is over."""
        try:
            return await self.answer()
        finally:
            self.close()

    def close(self) -> None:
        """No second copy, or no longer."""
        self._timer.cancel()
        if self._copy is not None:
            self._copy.cancel()


@lru_cache(maxsize=1024)
def _url(address: Address) -> str:
    return f"http://{address}"


def _ms(seconds: Seconds) -> float:
    return round(seconds * 1000.0, 3)
