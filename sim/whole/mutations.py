"""Faults planted into calls and work on purpose, each of which a checker has to catch.

As `sim.mutations` has them for gossip: each replaces one function of the production code for as
long as its context lasts.
"""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import meshd.routing.filters as filters_module
from meshd.clock import Instant
from meshd.errors import NoCandidateError
from meshd.routing.breaker import Breaker
from meshd.routing.breakers import Breakers
from meshd.routing.call import Call
from meshd.routing.direct import Direct
from meshd.routing.dispatcher import Dispatcher
from meshd.routing.filters import Reason
from meshd.rpc.server import RpcServer
from meshd.view import ClusterView
from meshd.work.admission import Admission, Outcome
from meshd.work.once import Once
from meshd.work.worker import Worker
from sim.mutations import Mutation
from sim.whole.loop import LANE
from sim.whole.machine import LaneRunner, VirtualPlatform

ENDLESS = 1_000_000


def _nothing(_original: Any) -> Any:
    def nothing(*_args: Any, **_options: Any) -> None:
        return None

    return nothing


def _retries_all(original: Any) -> Any:
    def note_failure(self: Call, running: Any, *args: Any) -> None:
        running.is_idempotent = True
        original(self, running, *args)
        self.may_have_run = False

    return note_failure


def _says_definite(original: Any) -> Any:
    def ended(self: Any, error: Any) -> Any:
        self.may_have_run = False
        error.definite = True
        return original(self, error)

    return ended


def _whole_deadline(original: Any) -> Any:
    def params(call: Any, *args: Any) -> Any:
        return {**original(call, *args), "deadline_ms": 30_000}

    return params


def _hops_forgotten(original: Any) -> Any:
    def params(call: Any, *args: Any) -> Any:
        made = original(call, *args)
        return {**made, "hops": made["hops"][-1:]}

    return params


def _passes(*passed: Reason) -> Callable[[Any], Any]:
    """A filter that lets peers through that it should leave out for one of these reasons."""

    def make(original: Any) -> Any:
        def judge(*args: Any) -> Any:
            reason = original(*args)
            return None if reason in passed else reason

        return judge

    return make


def _forgets_keys(_original: Any) -> Any:
    async def run(_self: Any, _key: Any, _value: Any, work: Any, **_options: Any) -> Any:
        return await work()

    return run


def _drains_nothing(_original: Any) -> Any:
    async def drain(self: Worker, _timeout_s: float) -> int:
        self._admission.is_draining = True
        return 0

    return drain


def _endless(_original: Any) -> Any:
    return lambda _self, _call: ENDLESS


def _loses_replies(original: Any) -> Any:
    def on_view_change(self: Dispatcher, view: ClusterView) -> None:
        original(self, view)
        for node in [node for node in self._tries.running if node != view.me]:
            self.peer_lost(node)

    return on_view_change


def _all_try_at_once(_original: Any) -> Any:
    def is_barred(self: Breaker, now: float) -> bool:
        return self.until is not None and now < self.until

    return is_barred


def _refuses_too_soon(original: Any) -> Any:
    def end_whole(self: Breakers, crossing: Any, outcome: Any, now: Instant, view: Any) -> None:
        original(self, crossing, outcome, now, view)
        whole = crossing.whole
        if whole.breaker.streak > 1 and whole.breaker.until is None:
            whole.known = {peer.node: peer.epoch for peer in view().by_node.values()}
            whole.breaker._lasts_s = 10.0  # noqa: SLF001 - a fault is planted inside
            whole.breaker._open(now, 10.0)  # noqa: SLF001 - as above

    return end_whole


def _goes_not_on(_original: Any) -> Any:
    def go_on(_self: Direct, work: Any) -> None:
        work.close()

    return go_on


def _refuses_every_other(original: Any) -> Any:
    asked = itertools.count()

    async def delegate(self: Dispatcher, request: Any, *more: Any) -> Any:
        if next(asked) % 2:
            raise NoCandidateError("nobody wants to")
        return await original(self, request, *more)

    return delegate


def _keeps_slots(original: Any) -> Any:
    def finish(self: Admission, ticket: str, service_s: float, outcome: Outcome) -> Any:
        if outcome is Outcome.TIMED_OUT:
            return ()
        return original(self, ticket, service_s, outcome)

    return finish


def _waits_for_handlers(_original: Any) -> Any:
    async def close(self: Worker, *_grace: float) -> None:
        await self._idle.wait()

    return close


def _silent_changes(original: Any) -> Any:
    def remove(self: Worker, names: Any) -> Any:
        tell = self._on_change
        self._on_change = None  # type: ignore[misc]
        try:
            return original(self, names)
        finally:
            self._on_change = tell  # type: ignore[misc]

    return remove


def _keeps_serving(_original: Any) -> Any:
    async def stop(_self: RpcServer, *_grace: float) -> None:
        await asyncio.sleep(0)

    return stop


def _one_thread(_original: Any) -> Any:
    async def run_protocol(self: VirtualPlatform, start: Any) -> LaneRunner:
        main = LANE.get()
        assert main is not None
        runner = LaneRunner(self._wires.loop, main)
        await runner.start(start)
        return runner

    return run_protocol


MUTATIONS = tuple(
    Mutation(*row)
    for row in (
        ("retries_all", "tries elsewhere also after an indefinite error",
         Call, "note_failure", _retries_all, "delegate_failing"),
        ("says_definite", "calls every error definite",
         Call, "ended", _says_definite, "delegate_failing"),
        ("whole_deadline", "does not pass the remaining time on",
         Call, "work_params", _whole_deadline, "delegate_steady"),
        ("hops_forgotten", "does not say where work came from",
         Call, "work_params", _hops_forgotten, "delegate_steady"),
        ("hops_unchecked", "sends work back to who passed it on",
         filters_module, "_unsuitable", _passes(Reason.VISITED), "delegate_steady"),
        ("dead_candidates", "asks nodes that are dead or suspect",
         filters_module, "_unavailable", _passes(Reason.DEAD, Reason.SUSPECT), "delegate_split"),
        ("unreachable_candidates", "asks nodes that did not answer the last probe",
         filters_module, "_unavailable", _passes(Reason.UNREACHABLE), "delegate_split"),
        ("keys_forgotten", "does not remember idempotency keys",
         Once, "run", _forgets_keys, "delegate_steady"),
        ("no_drain", "leaves without finishing its work",
         Worker, "drain", _drains_nothing, "rolling_restart"),
        ("loses_replies", "gives up on calls whenever its view changes",
         Dispatcher, "on_view_change", _loses_replies, "delegate_even"),
        ("tries_without_end", "has no budget for tries",
         Dispatcher, "_attempts_max", _endless, "delegate_failing"),
        ("refuses", "says of every other call that nobody could take it",
         Dispatcher, "delegate", _refuses_every_other, "delegate_steady"),
        ("forgets_failures", "does not go on with a call whose first try failed the short way",
         Direct, "go_on", _goes_not_on, "delegate_brief"),
        ("waits_for_ever", "ends no try that has no task, when its time is over or its peer lost",
         Direct, "_end", _nothing, "delegate_brief"),
        ("never_ejects", "goes on asking who fails",
         Breaker, "_open", _nothing, "delegate_failing"),
        ("no_half_open", "sends everything to who may be well again",
         Breaker, "is_barred", _all_try_at_once, "delegate_ejected"),
        ("refuses_too_soon", "ends calls at once after the second failure",
         Breakers, "_end_whole", _refuses_too_soon, "delegate_failing"),
        ("silent_changes", "does not tell what it offers no more",
         Worker, "remove", _silent_changes, "delegate_seasons"),
        ("keeps_slots", "does not free the slot of a run that took too long",
         Admission, "finish", _keeps_slots, "delegate_steady"),
        ("waits_for_handlers", "waits for its handlers when it is to end at once",
         Worker, "close", _waits_for_handlers, "delegate_steady"),
        ("keeps_serving", "does not close its server in the end",
         RpcServer, "stop", _keeps_serving, "delegate_steady"),
        ("one_thread", "runs gossip on the main loop",
         VirtualPlatform, "run_protocol", _one_thread, "delegate_blocked"),
    )
)  # fmt: skip
