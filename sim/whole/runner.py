"""Runs a plan on whole daemons: start them all, let clients call and faults happen, settle, end."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sim.faults import At
from sim.invariants.checkers import NOBODY, Violation
from sim.metrics import percentile
from sim.network import LOSS_CALM
from sim.plan import Plan
from sim.runner import Result
from sim.trace import NOTE
from sim.whole.checkers import Checker, safety
from sim.whole.endings import Problem, leftovers, spread_wide, tasks_of, views_differ
from sim.whole.fleet import Box
from sim.whole.ledger import Call, End, Listener, Try
from sim.whole.workload import KINDS, Clients, Workplace
from sim.world import START_S

BOOT_S = 8.0
"""So long before the start of the run the daemons begin to look for each other."""
SEEDS = (0, 1, 2)
POLL_S = 0.25
POLL_LARGE_S, LARGE = 1.0, 30
"""With more nodes than this, all of them are looked at less often."""
SETTLED_WITHIN_S = 90.0
"""L3 and L4: from the last fault on; finding the last crash takes most of it."""
IDLE_WITHIN_S = 60.0
"""Q2: from then on; kept connections end after 15 s, those to lost peers later."""
CLOSED_WITHIN_S = 5.0
"""Q4."""
HANG_DEADLINE_S = 60.0

Observe = Callable[[Any], None]


class _Errors(logging.Handler):
    """Collects what daemons log as errors: internal ones, which nobody should ever see."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.told.append(
            record.getMessage() + (f": {record.exc_info[1]!r}" if record.exc_info else "")
        )


class _Lines(Listener):
    """Writes calls and tries into the trace."""

    def __init__(self, place: Workplace) -> None:
        self._place = place

    def on_call(self, call: Call) -> None:
        """A line."""
        self._note(call.by, f"calls {call.work.capability} #{call.work.number}")

    def on_call_end(self, call: Call) -> None:
        """A line."""
        told = "" if call.error is None else f": {call.error}"
        self._note(call.by, f"{call.work.capability} #{call.work.number} is {call.end}{told}")

    def on_try(self, tried: Try) -> None:
        """A line."""
        self._note(tried.by, f"asks node {tried.to} for #{tried.work.number}")

    def _note(self, node: int, text: str) -> None:
        self._place.trace.add(self._place.now, NOTE, node, text.encode(), None)


class WholeJudge:
    """Follows a place of work from its start to its end. Looks like `sim.runner.Judge`."""

    def __init__(self, plan: Plan, observe: Observe | None = None) -> None:
        self.plan = plan
        self.violations: list[Violation] = []
        self.metrics: dict[str, Any] = {}
        self.world = Workplace(
            plan.nodes, plan.seed, start_s=START_S - BOOT_S, shape=plan.shape, profile=plan.profile
        )
        self._observe = observe
        self._errors = _Errors()
        self.world.ledger.listen(_Lines(self.world))
        self._checkers: list[Checker] = safety(self.world, self._found)
        self._clients = Clients(self.world, plan.calls_per_s)
        self._tasks_idle = 0
        self._poll_s = POLL_S if plan.nodes <= LARGE else POLL_LARGE_S

    @property
    def planned_end_at(self) -> float:
        """When the last planned fault is over and settling begins, on the world's clock."""
        last_s = max((each.at_s for each in self.plan.faults), default=0.0)
        return START_S + max(self.plan.duration_s, last_s)

    def _found(self, violation: Violation) -> None:
        self.violations.append(violation)
        self.world.halt()

    def _fail(self, problem: Problem) -> None:
        invariant, observer, subject, text = problem
        self._found(Violation(invariant, self.world.now, observer, subject, text))

    def run(self) -> None:
        """Run the plan to its end."""
        log = logging.getLogger("meshd")
        passes_on = log.propagate
        log.addHandler(self._errors)
        log.propagate = False
        try:
            self._start()
            self._run_until(self.planned_end_at)
            self._settle()
            self._measure()
            self._close()
        finally:
            log.removeHandler(self._errors)
            silent = logging.NullHandler()  # killed processes complain of that
            log.addHandler(silent)
            self.world.close()
            log.removeHandler(silent)
            log.propagate = passes_on

    def _start(self) -> None:
        world, plan = self.world, self.plan
        if plan.shape.loss > LOSS_CALM:
            world.disturb("loss")
        for box in world.boxes[: plan.converged]:
            world.start(box, SEEDS[: plan.nodes])
        self._run_until(START_S)
        self._tasks_idle = max((len(tasks_of(box)) for box in world.members()), default=0)
        for each in plan.faults:
            self._schedule(each)
        self._clients.begin()
        if self._observe is not None:
            self._observe(self)

    def _schedule(self, each: At) -> None:
        world: Any = self.world
        world.call_at(START_S + each.at_s, lambda: each.fault.apply(world), str(each.fault))

    def _run_until(self, end: float) -> None:
        while self.world.now < end and not self.world.is_halted:
            self._advance(min(end, self.world.now + self._poll_s))

    def _advance(self, until: float) -> None:
        world = self.world
        world.run(until)
        for checker in self._checkers:
            if not world.is_halted:
                checker.look()
        if self._errors.told and not world.is_halted:
            self._fail(("Q3", NOBODY, NOBODY, self._errors.told[0]))
        if self._observe is not None:
            self._observe(self)

    def _settle(self) -> None:
        """No more faults and calls: views agree, calls end, and what they held is given back."""
        world = self.world
        world.end_faults()
        self._clients.is_over = True
        agreed_at: float | None = None
        while not world.is_halted:
            self._advance(world.now + self._poll_s)
            problem = views_differ(world)
            quiet_since = max(world.calm_since, world.changed_at)
            if problem is not None:
                agreed_at, bound_at = None, quiet_since + SETTLED_WITHIN_S
            else:
                agreed_at = world.now if agreed_at is None else agreed_at
                bound_at = max(agreed_at, quiet_since) + IDLE_WITHIN_S
                problem = leftovers(world, self._tasks_idle)
            if problem is None and not self._clients.open:
                return
            if problem is not None and world.now > bound_at and not world.is_halted:
                self._fail(problem)

    def _close(self) -> None:
        """Q4: everybody hangs in calls, the network is gone, and all are asked to stop at once."""
        world = self.world
        if world.is_halted:
            return
        up = world.members()
        for capability in ("work_again", "hang"):  # connections that are kept, and some in use
            for box in up:
                kind = KINDS[capability]
                work = world.ledger.want(capability, is_idempotent=kind.is_idempotent)
                world.hang(box, work, HANG_DEADLINE_S)
            self._advance(world.now + POLL_S)
        world.network.shape = replace(world.network.shape, loss=1.0)
        world.disturb("end")
        world.is_closing = True
        asked_at = world.now
        for box in up:
            world.leave(box, 0.0)
        while not world.is_halted and any(box.is_up for box in up):
            self._advance(world.now + POLL_S)
            if world.now - asked_at > CLOSED_WITHIN_S and not world.is_halted:
                late = next((box.index for box in up if box.is_up), NOBODY)
                text = f"has not ended {world.now - asked_at:.1f} s after it was asked to"
                self._fail(("Q4", late, NOBODY, text))
        self._look_at_rest(up)

    def _look_at_rest(self, boxes: list[Box]) -> None:
        for box in boxes:
            left = tasks_of(box)
            if (left or box.machine.open_sockets) and not self.world.is_halted:
                text = f"ended, and left {box.machine.open_sockets} sockets and {left}"
                self._fail(("Q4", box.index, NOBODY, text))

    def _measure(self) -> None:
        world = self.world
        calls = list(world.ledger.calls())
        took = [call.ended - call.began for call in calls if call.end is End.DONE]
        factor, problem = spread_wide(world)
        if problem is not None and not world.is_halted:
            self._fail(problem)
        half, most = percentile(took, 0.5), percentile(took, 0.99)
        ended = {f"calls_{end}": sum(1 for call in calls if call.end is end) for end in End}
        self.metrics = {
            "events": world.trace.events,
            "virtual_s": round(world.now - START_S, 3),
            "calls": len(calls),
            **ended,
            "tries": sum(len(work.tries) for work in world.ledger.works.values()),
            "executions": world.ledger.executions,
            "answer_p50_s": None if half is None else round(half, 4),
            "answer_p99_s": None if most is None else round(most, 4),
            "spread": round(factor, 3),
        }  # fmt: skip


def run(plan: Plan, observe: Observe | None = None) -> Result:
    """Run a plan on whole daemons, with all checkers; `observe` looks on."""
    judge = WholeJudge(plan, observe)
    judge.run()
    violations = tuple(judge.violations[:1])
    tail: tuple[str, ...] = ()
    if violations:
        first = violations[0]
        who = [index for index in (first.observer, first.subject) if index >= 0]
        tail = judge.world.trace.tail(*who)
    return Result(plan, judge.world.digest(), violations, judge.metrics, tail)
