"""The worker of a node: it offers capabilities, admits work, runs it and keeps account."""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from contextvars import Context, copy_context
from functools import partial
from typing import Any, Final

import msgspec

from meshd.bucket import TokenBucket
from meshd.capability.definition import CapabilityDefinition
from meshd.capability.manifest import Manifest
from meshd.clock import Instant, Seconds
from meshd.errors import (
    LINK_LOST,
    BusyError,
    Code,
    DeadlineError,
    MeshError,
    NoCandidateError,
    PeerError,
    UsageError,
)
from meshd.platform import Platform
from meshd.priority import PRIORITY_DEFAULT
from meshd.sink import SINK, LoopSink, Sink
from meshd.units import CHARGE
from meshd.work.admission import (
    QUEUE_DEFAULT,
    Admission,
    Decision,
    Queue,
    Reason,
    Refuse,
    Ticket,
    WorkLoad,
    check_priority,
)
from meshd.work.executors import Forward, Tools, execute, prepare, runnable
from meshd.work.idempotency import KEPT_S, UNKNOWN_KEY, Memory, Remembered, check_key
from meshd.work.offers import Offers
from meshd.work.pools import Pools
from meshd.work.run import (
    Answer,
    Answered,
    Run,
    RunKey,
    WorkCounters,
    WorkResult,
    check_digest,
    deliver,
    digest_of,
    size_of,
)
from meshd.work.task import Task, TaskState, advance

__all__ = ["WorkCounters", "WorkLoad", "WorkResult", "Worker"]

SLOTS_DEFAULT = 4
DEADLINE_DEFAULT_S = 300.0
DEADLINE_MAX_S = 7 * 86_400.0
TASKS_KEPT = 256
"""How many ended tasks can still be listed."""

CLOSE_S: Seconds = 2.0
"""How long `close` waits for cancelled runs, twice: some ignore it, threads cannot be stopped."""


class Worker:
    """Runs capabilities on this node, on the event loop that calls it.

    Functions that block run in `slots` threads lent by the platform, async ones on the loop.
    `name` is the agent of capabilities that name none. `on_change` is called after every change of
    what is offered; if it raises a UsageError, the change is taken back.
    """

    def __init__(
        self,
        platform: Platform,
        definitions: Iterable[CapabilityDefinition] = (),
        *,
        name: str,
        slots: int = SLOTS_DEFAULT,
        queue_max: int = QUEUE_DEFAULT,
        forward: Forward | None = None,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        """`queue_max` tasks may wait for one of the `slots`.

        Raises:
            UsageError: a number is out of its range, or two definitions share a name.
        """
        self._admission: Final = Admission(slots=slots, queue_max=queue_max)
        self._offers: Final = Offers()
        self._offers.add(runnable(definitions))
        self._clock: Final = platform.clock
        self._chance: Final = platform.random("work")
        self._tools: Final = Tools(Pools(platform.executor(slots), slots), forward)
        self._name: Final = name
        self._on_change: Final = on_change
        self._runs: Final[dict[str, Run]] = {}
        self._joinable: Final[dict[RunKey, Run]] = {}
        self._memory: Final[Memory[Answer]] = Memory()
        self._rates: Final[dict[str, TokenBucket]] = {}
        self._ended: Final[deque[Task]] = deque(maxlen=TASKS_KEPT)
        self._idle: Final = asyncio.Event()
        self._idle.set()
        self._is_closed = False
        self.counters: Final = WorkCounters()

    def manifests(self) -> tuple[Manifest, ...]:
        """Manifests of all that is offered, by name."""
        return self._offers.manifests()

    def manifest(self, capability: str) -> Manifest | None:
        """One manifest, if the capability is offered."""
        found = self._offers.get(capability)
        return None if found is None else found.manifest

    def add(self, definitions: Iterable[CapabilityDefinition]) -> tuple[str, ...]:
        """Offer more; return their names.

        Raises:
            UsageError: a name is taken, there are too many, or others cannot be told; nothing
                changed.
        """
        return self._change(lambda: self._offers.add(runnable(definitions)))

    def remove(self, names: Iterable[str]) -> tuple[str, ...]:
        """Offer these no more; return those that were. What is accepted already still runs."""
        return self._change(lambda: self._offers.remove(names))

    def replace(self, definitions: Iterable[CapabilityDefinition]) -> tuple[str, ...]:
        """Offer exactly these beside those of attached programs; return the names that changed.

        Raises:
            UsageError: a name is taken, there are too many, or others cannot be told; nothing
                changed.
        """
        return self._change(lambda: self._offers.replace(runnable(definitions)))

    def remove_owner(self, owner: Hashable) -> tuple[str, ...]:
        """An attached program is gone: so are its capabilities, and its runs end with an error.

        The error is indefinite for runs that had begun, definite for those that waited.
        """
        gone = self.remove(self._offers.owned_by(owner))
        for run in [run for run in self._runs.values() if run.owner == owner]:
            why = f"{run.task.capability}: the program that offers it went away"
            if run.task.has_started:
                self._stop(run, TaskState.FAILED, PeerError(why, definite=False))
            else:
                error = PeerError(why, code=Code.REJECTED, definite=True)
                self._stop(run, TaskState.REJECTED, error)
        return gone

    async def run(
        self,
        capability: str,
        value: Any,
        *,
        deadline_s: Seconds = DEADLINE_DEFAULT_S,
        idempotency_key: str | None = None,
        task_id: str | None = None,
        priority: int = PRIORITY_DEFAULT,
        sink: Sink | None = None,
        only_joins: bool = False,
    ) -> WorkResult:
        """Do one piece of work within `deadline_s` seconds from now.

        Partial results and progress go to `sink`; without one, or with a key, partial results are
        the result.

        A repeated `idempotency_key` (1..128 characters, for each capability on its own) joins the
        run that is under way or returns its first answer. If the caller is cancelled, and nobody
        else waits for the same run, the run is cancelled too. With `only_joins` nothing begins.

        Raises:
            NoCandidateError: the capability is not offered here, or it was only to be joined and
                the key is not known, or not any more; definite.
            UsageError: the input or the key is wrong; definite.
            BusyError: refused, with `reason`, `eta_s`, `queue`, `load` in its data; definite.
            DeadlineError: time ran out; definite while it waited, indefinite once it ran.
            PeerError: the handler failed; indefinite unless it surely never ran.
        """
        definition = self._offers.find(capability)
        deadline_s = self._time_for(capability, deadline_s)
        key, digest = None, b""
        if idempotency_key is not None:
            key, digest = (capability, check_key(idempotency_key)), digest_of(value)
            first = self._recall(key, digest)
            if isinstance(first, Run):
                self._bound(first, deadline_s)
                return await self._await(first, deadline_s)
            if first is not None:
                return deliver(first.value)
        if only_joins:
            raise NoCandidateError(
                f"{capability}: no run under this key is known here",
                hint=f"first answers are kept for {KEPT_S:g} s at most",
                data={"reason": UNKNOWN_KEY},
            )
        run = self._new_run(
            task_id or self._new_id(), definition, value, deadline_s, priority, copy_context()
        )
        run.key, run.digest, run.sink = key, digest, sink
        self._submit(run, deadline_s)
        return await self._await(run, deadline_s)

    def begin(
        self,
        capability: str,
        value: Any,
        answered: Answered,
        *,
        deadline_s: Seconds = DEADLINE_DEFAULT_S,
        priority: int = PRIORITY_DEFAULT,
        context: Context,
    ) -> Run:
        """`run`, without a key or a sink, for a caller that waits in no task.

        `answered(answer)` is called once, after this has returned, and not after `leave`. `context`
        is that of the work, and of nothing else.

        Raises:
            MeshError: as `run` before anything has begun; `answered` is not called then.
        """
        definition = self._offers.find(capability)
        deadline_s = self._time_for(capability, deadline_s)
        run = self._new_run(self._new_id(), definition, value, deadline_s, priority, context)
        run.waiting.append(answered)
        self._submit(run, deadline_s)
        return run

    def leave(self, run: Run, answered: Answered, why: object = None) -> None:
        """Wait for a run's answer no longer; nothing if it is there. The last to leave ends it.

        But a run with a key goes on for a caller whose link got lost (`why` is `LINK_LOST`): he may
        come back for it.
        """
        if run.answer is not None:
            return
        run.waiting.remove(answered)
        may_return = run.key is not None and why == LINK_LOST
        if not (run.waiting or may_return):
            self._stop(run, TaskState.CANCELLED, run.cancelled("its caller went away"))

    def offer(
        self, capability: str, deadline_s: Seconds, *, priority: int = PRIORITY_DEFAULT
    ) -> dict[str, Any]:
        """What this worker would answer if the work came now; nothing is taken or promised.

        Returns:
            `answer`: accept, counter (not now, but by then) or reject; `eta_s`: seconds until it
            would be done; `queue`: how many wait; of a refusal the `reason`.

        Raises:
            NoCandidateError: the capability is not offered here.
            UsageError: no such priority.
        """
        manifest = self._offers.find(capability).manifest
        ticket = Ticket("", capability, manifest.concurrency, check_priority(priority))
        over_rate = self._over_rate(ticket, manifest.rate_per_s)
        decision = over_rate or self._admission.decide(ticket, deadline_s)
        bid = {"eta_s": round(decision.eta_s, 6), "queue": self._admission.load().queue}
        if not isinstance(decision, Refuse):
            return {"answer": "accept", **bid}
        is_final = decision.reason is Reason.DRAINING
        answer = "reject" if is_final else "counter"
        return {"answer": answer, **bid, "reason": decision.reason.name.lower()}

    def cancel(self, task_id: str) -> bool:
        """Cancel a task that waits or runs, for all who wait for it; false if there is none."""
        run = self._runs.get(task_id)
        if run is None or run.task.has_ended:
            return False
        self._stop(run, TaskState.CANCELLED, run.cancelled("it was cancelled"))
        return True

    def tasks(self) -> tuple[Task, ...]:
        """The last tasks that ended, then those that run and wait, oldest first."""
        return (*self._ended, *(r.task for r in self._runs.values() if not r.task.has_ended))

    def load(self) -> WorkLoad:
        """How busy this worker is."""
        return self._admission.load()

    async def drain(self, timeout_s: Seconds) -> int:
        """Refuse what comes and let end what was accepted; return how many runs are left."""
        self._admission.is_draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return len(self._runs)
        return 0

    def resume(self) -> None:
        """Take work again after `drain`; nothing once closed."""
        self._admission.is_draining = self._is_closed

    async def close(self, grace_s: Seconds = CLOSE_S) -> None:
        """Cancel all runs, oldest first, and give threads and processes back. Idempotent.

        Runs that do not end are waited for twice `grace_s` seconds.
        """
        self._is_closed = True
        self._admission.is_draining = True
        for run in list(self._runs.values()):
            self._stop(run, TaskState.CANCELLED, run.cancelled("this node is stopping"))
        for _ in range(2):
            runners = [run.runner for run in self._runs.values() if run.runner is not None]
            if runners:
                await asyncio.wait(runners, timeout=grace_s)
            for runner in runners:
                runner.cancel()
        await self._tools.pools.close()

    def _change(self, change: Callable[[], tuple[str, ...]]) -> tuple[str, ...]:
        """Change what is offered and tell it; where that is refused, all is as it was."""
        before = self._offers.all()
        names = change()
        if names and self._on_change is not None:
            try:
                self._on_change()
            except UsageError:
                self._offers.restore(before)
                raise
        for name in names:
            if self._offers.get(name) is None:
                self._admission.forget(name)
                self._rates.pop(name, None)
        return names

    def _new_id(self) -> str:
        return self._chance.getrandbits(64).to_bytes(8, "big").hex()

    def _time_for(self, capability: str, deadline_s: Seconds) -> Seconds:
        """How long a request may take that says so of itself."""
        if not deadline_s > 0:
            self.counters.expired += 1
            raise DeadlineError(f"{capability}: the deadline had passed on arrival", definite=True)
        return min(deadline_s, DEADLINE_MAX_S)

    def _new_run(
        self,
        task_id: str,
        definition: CapabilityDefinition,
        value: Any,
        deadline_s: Seconds,
        priority: int,
        context: Context,
    ) -> Run:
        manifest = definition.manifest
        prepared = prepare(definition, value)
        loop = asyncio.get_running_loop()
        # Accepted, or else nobody sees it.
        task = Task(task_id, manifest.name, self._clock.now(), TaskState.ACCEPTED)
        return Run(
            task,
            definition,
            prepared,
            check_priority(priority),
            manifest.timeout_s,
            loop,
            loop.time() + deadline_s,
            context,
        )

    def _recall(self, key: RunKey, digest: bytes) -> Run | Remembered[Answer] | None:
        """The run under this key, or what is remembered of it."""
        first = self._joinable.get(key) or self._memory.get(key, self._clock.now())
        if first is None:
            return None
        check_digest(key, first.digest, digest)
        self.counters.repeated += 1
        return first

    def _submit(self, run: Run, deadline_s: Seconds) -> None:
        task, ticket = run.task, run.ticket
        if task.id in self._runs:
            raise UsageError(f"task id {task.id[:80]!r} is in use")
        rate_per_s = run.definition.manifest.rate_per_s
        over_rate = self._over_rate(ticket, rate_per_s) if rate_per_s else None
        decision: Decision | None = over_rate
        if over_rate is None and not self._admission.enter(ticket, deadline_s):
            decision = self._admission.submit(ticket, deadline_s)
        if isinstance(decision, Refuse):
            self.counters.count(TaskState.REJECTED)
            raise self._busy(task.capability, decision)
        if rate_per_s:
            self._rates[task.capability].take(self._clock.now())
        self._runs[task.id] = run
        self._idle.clear()
        if run.key is not None:
            self._joinable[run.key] = run
        if not isinstance(decision, Queue):
            self._start(run)
            return
        self._bound(run, deadline_s)
        if decision.displaced:
            self._displace(self._runs[decision.displaced])

    def _bound(self, run: Run, deadline_s: Seconds) -> None:
        """Let a run that waits in the queue do so no longer than any of those who wait for it.

        Its callers need not be there for that: they may have lost their link.
        """
        run.ends_at = max(run.ends_at, run.loop.time() + deadline_s)
        if not run.task.has_started:
            if run.alarm is not None:
                run.alarm.cancel()
            run.alarm = run.loop.call_at(run.ends_at, self._waited_too_long, run)

    def _over_rate(self, ticket: Ticket, rate_per_s: float) -> Refuse | None:
        """The refusal of what is called more often than it may be; nothing is counted yet."""
        if not rate_per_s or self._admission.is_draining:
            return None
        bucket = self._rates.get(ticket.capability)
        if bucket is None or bucket.rate_per_s != rate_per_s:
            bucket = TokenBucket(rate_per_s, max(1.0, rate_per_s))
            self._rates[ticket.capability] = bucket
        now = self._clock.now()
        wait_s = bucket.wait_s(now)
        if not wait_s:
            return None
        eta_s = wait_s + self._admission.eta_s(ticket)
        return Refuse(Reason.RATE, eta_s, self._admission.load().queue)

    def _displace(self, run: Run) -> None:
        """A run that waited has lost its place to a more urgent one; its ticket is withdrawn."""
        eta_s, queue = self._admission.eta_s(run.ticket), self._admission.load().queue
        refusal = Refuse(Reason.DISPLACED, eta_s, queue)
        error = self._busy(run.task.capability, refusal)
        self._end(run, TaskState.REJECTED, error, self._clock.now())
        self._forget(run)
        run.tell()

    def _busy(self, capability: str, refusal: Refuse) -> BusyError:
        return BusyError(
            f"{capability}: not now, {refusal.reason}",
            hint="ask another node, or this one later",
            data={
                "reason": refusal.reason.name.lower(),
                "eta_s": round(refusal.eta_s, 6),
                "queue": refusal.queue,
                "load": msgspec.to_builtins(self.load()),
            },
        )

    async def _await(self, run: Run, deadline_s: Seconds) -> WorkResult:
        """Wait for a run's answer; cancelled, it leaves."""
        waiting: asyncio.Future[Answer | None] = run.loop.create_future()
        answered = partial(_settle, waiting)
        run.waiting.append(answered)
        # Without a key nobody joins it, and its own alarm goes off at its only caller's deadline.
        timer = None if run.key is None else run.loop.call_later(deadline_s, answered, None)
        try:
            await waiting
        except asyncio.CancelledError as cancelled:
            self.leave(run, answered, cancelled.args[0] if cancelled.args else None)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if run.answer is not None:
            return deliver(run.answer)
        run.waiting.remove(answered)
        late = run.too_late()
        if not run.waiting:
            self._stop(run, TaskState.EXPIRED, late)
        return deliver(late)

    def _start(self, run: Run) -> None:
        run.task = advance(run.task, TaskState.WORKING, self._clock.now())
        loop = run.loop
        if run.alarm is not None:
            run.alarm.cancel()
        left_s = run.ends_at - loop.time()
        if left_s < run.timeout_s:
            run.timeout_s = max(0.0, left_s)
        run.alarm = loop.call_later(run.timeout_s, self._overran, run)
        run.runner = loop.create_task(
            self._work(run), name=f"work {run.task.id}", context=run.context
        )
        run.after = partial(self._after, run)
        run.runner.add_done_callback(run.after)

    async def _work(self, run: Run) -> None:
        """Run the handler. The slot is free when this ends; the answer may have come before."""
        # Also where nobody looks on: a handler's own work here is not the work of its caller.
        if run.sink is not None or SINK.get() is not None:
            SINK.set(None if run.sink is None else LoopSink(run.sink))
        CHARGE.set(run.charge)
        try:
            value = await execute(
                run.definition, run.prepared, self._tools, timeout_s=run.timeout_s, sink=run.sink,
                is_whole=run.key is not None,
            )  # fmt: skip
        except asyncio.CancelledError:
            # By us, and then it has its answer; or the loop is being torn down.
            why = run.cancelled("this node is stopping")
            self._finish(run, TaskState.CANCELLED, why, self._clock.now())
            raise
        except MeshError as error:
            self._finish(run, TaskState.FAILED, error, self._clock.now())
        else:
            now = self._clock.now()
            agent, service_s = run.definition.manifest.agent, run.task.service_s(now)
            result = WorkResult(agent or self._name, value, service_s, run.charge.units)
            self._finish(run, TaskState.COMPLETED, result, now)

    def _waited_too_long(self, run: Run) -> None:
        self._stop(run, TaskState.EXPIRED, run.too_late())

    def _overran(self, run: Run) -> None:
        self._stop(run, TaskState.EXPIRED, run.too_long())

    def _stop(self, run: Run, state: TaskState, error: MeshError) -> None:
        """End a run before its time; nothing if it has its answer."""
        if run.answer is not None:
            return
        self._end(run, state, error, self._clock.now())
        if run.runner is None:
            self._admission.withdraw(run.task.id)
            self._forget(run)
        else:
            run.runner.cancel()
        run.tell()

    def _after(self, run: Run, runner: asyncio.Task[None]) -> None:
        """See to what the runner could not: it was cancelled before its first step, or broke."""
        if self._runs.get(run.task.id) is not run:
            return
        error = None if runner.cancelled() else runner.exception()
        if error is None:
            state, why = TaskState.CANCELLED, run.cancelled("this node is stopping")
        else:
            state, why = TaskState.FAILED, run.broken(error)
        self._finish(run, state, why, self._clock.now())

    def _finish(self, run: Run, state: TaskState, answer: Answer, now: Instant) -> None:
        """The runner ends, and with it the run, unless that had its answer before."""
        self._end(run, state, answer, now)
        self._release(run, now)
        run.tell()

    def _end(self, run: Run, state: TaskState, answer: Answer, now: Instant) -> None:
        """Settle the answer, unless there is one; it is told once all else is in order."""
        if run.answer is not None:
            return
        if run.alarm is not None:
            run.alarm.cancel()
        run.answer = answer
        run.task = advance(run.task, state, now)
        self._ended.append(run.task)
        self.counters.count(state)
        if run.key is not None:
            del self._joinable[run.key]
            if run.is_final(answer):
                self._memory.put(run.key, answer, digest=run.digest, size=size_of(answer), now=now)

    def _release(self, run: Run, now: Instant) -> None:
        """The slot of a run whose runner ends goes to those who wait."""
        self._forget(run)
        if run.runner is not None and run.after is not None:
            # All is seen to: the loop need not come back to it.
            run.runner.remove_done_callback(run.after)
            run.after = None
        # Until now and not until the answer: a run that went on after it held the slot as well.
        started_at = run.task.started_at
        assert started_at is not None, "a runner's task has started"
        held_s = max(0.0, now - started_at)
        for task_id in self._admission.finish(run.task.id, held_s, run.outcome()):
            self._start(self._runs[task_id])

    def _forget(self, run: Run) -> None:
        del self._runs[run.task.id]
        if not self._runs:
            self._idle.set()


def _settle(waiting: asyncio.Future[Answer | None], answer: Answer | None) -> None:
    if not waiting.done():
        waiting.set_result(answer)
