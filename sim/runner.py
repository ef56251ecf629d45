"""From a plan to a result: build the world, let it run, let it settle, and judge."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from meshd.gossip.config import profile
from sim.faults import At
from sim.invariants.checkers import NOBODY, Violation, safety
from sim.invariants.eventual import Eventual, ViewsConverge
from sim.invariants.hostile import under_fire
from sim.invariants.liveness import liveness
from sim.invariants.replies import wire
from sim.metrics import Metrics
from sim.network import LOSS_CALM
from sim.plan import Plan
from sim.world import START_S, World

POLL_SMALL_S = 0.25
POLL_LARGE_S = 1.0
LARGE_MESH = 200
SHRINK_RUNS_MAX = 100


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a plan. Same plan, same result, on any machine."""

    plan: Plan
    digest: str
    violations: tuple[Violation, ...]
    metrics: dict[str, Any]
    tail: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether an invariant was broken."""
        return bool(self.violations)


class Judge:
    """Follows a world in small steps; asks what must hold in the end whenever it is quiet."""

    def __init__(self, plan: Plan, observe: "Observe | None" = None) -> None:
        self.plan = plan
        self._observe = observe
        self.violations: list[Violation] = []
        config = profile(plan.profile)
        self.world = World(
            plan.nodes, plan.seed, shape=plan.shape, config=config, meshes=plan.meshes
        )
        self._poll_s = POLL_SMALL_S if plan.nodes <= LARGE_MESH else POLL_LARGE_S
        self._checkers = [
            *safety(self.world, self._found),
            *wire(self.world, self._found),
            *under_fire(self.world, self._found),
            *liveness(self.world, self._found),
        ]
        self.metrics = Metrics(self.world)
        self._eventual = [each for each in self._checkers if isinstance(each, Eventual)]
        self._open: list[Eventual] = []
        self._quiet_since = -1.0
        self._differed_at = -1.0

    @property
    def planned_end_at(self) -> float:
        """When the last planned fault is over and settling begins, on the world's clock."""
        return max(START_S + self.plan.duration_s, self._last_fault_at)

    def _found(self, violation: Violation) -> None:
        self.violations.append(violation)
        self.world.is_halted = True

    def run(self) -> None:
        """Run the plan, then let the world settle."""
        world, plan = self.world, self.plan
        if plan.shape.loss > LOSS_CALM:
            world.disturb("loss")
        world.start_converged(plan.converged)
        for each in plan.faults:
            self._schedule(each)
        if self._observe is not None:
            self._observe(self)
        self._run_until(self.planned_end_at)
        world.end_faults()
        while not world.is_halted:
            self._advance(world.now + self._poll_s)
            if not self._open:
                return

    @property
    def _last_fault_at(self) -> float:
        return START_S + max((each.at_s for each in self.plan.faults), default=0.0)

    def _schedule(self, each: At) -> None:
        at = START_S + each.at_s
        self.world.call_at(at, lambda: each.fault.apply(self.world), str(each.fault))

    def _run_until(self, end: float) -> None:
        while self.world.now < end and not self.world.is_halted:
            self._advance(min(end, self.world.now + self._poll_s))

    def _advance(self, until: float) -> None:
        world = self.world
        try:
            world.run(until)
        # Whatever a core raises is what we are looking for: a core never does.
        except Exception as error:  # noqa: BLE001
            text = f"the machine raised {type(error).__name__}: {error}"
            self._found(Violation("V", world.now, NOBODY, NOBODY, text))
        quiet_since = max(world.calm_since, world.changed_at)
        if quiet_since != self._quiet_since:
            self._quiet_since = quiet_since
            self._open = list(self._eventual)
        if quiet_since <= world.now and self._open and not world.is_halted:
            self._ask()
        if self._observe is not None:
            self._observe(self)

    def _ask(self) -> None:
        """Close what holds by now."""
        views_differ = any(isinstance(each, ViewsConverge) for each in self._open)
        still: list[Eventual] = []
        for each in self._open:
            if each.waits_for_views and views_differ:
                self._differed_at = self.world.now
                each.quiet_again()
                still.append(each)
            elif self._is_open(each):
                still.append(each)
        self._open = still

    def _is_open(self, each: Eventual) -> bool:
        problem = each.problem()
        quiet_s = self.world.now - self._quiet_since
        if problem is None:
            if isinstance(each, ViewsConverge) and self._quiet_since > START_S:
                self.metrics.converged_after_s.append(quiet_s)
            return False
        # What waits for the views has its time from when they agree: they may take long.
        since = max(self._quiet_since, self._differed_at if each.waits_for_views else 0.0)
        if self.world.now - since > each.bound_s():
            observer, subject, text = problem
            each.fail(observer, subject, f"{text}, {quiet_s:.1f} s into quiet")
        return True


Observe = Callable[[Judge], None]
"""Looks on at the start and after each poll. It may read all and must change nothing."""
OnTry = Callable[[int, int], None]


def run(plan: Plan, observe: Observe | None = None) -> Result:
    """Run a plan with all checkers; `observe` looks on and has no influence.

    A plan of whole daemons is run by level 2, which is imported only then.
    """
    if plan.whole:
        from sim.whole.runner import run as run_whole

        return run_whole(plan, observe)
    with _collected_afterwards():
        return _run(plan, observe)


def _run(plan: Plan, observe: Observe | None) -> Result:
    judge = Judge(plan, observe)
    judge.run()
    violations = tuple(judge.violations)
    tail: tuple[str, ...] = ()
    if violations:
        first = violations[0]
        who = [index for index in (first.observer, first.subject) if index >= 0]
        tail = judge.world.trace.tail(*who)
    digest = judge.world.digest()
    return Result(plan, digest, violations, judge.metrics.summary(), tail)


@contextmanager
def _collected_afterwards() -> Iterator[None]:
    """Search for cycles once, when the run is over: it keeps millions of objects and drops none."""
    if not gc.isenabled():
        yield
        return
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()
        gc.unfreeze()


def shrink(result: Result, on_try: OnTry | None = None) -> Result:
    """The smallest plan found that breaks the same invariant: drop faults, first many, then few.

    `on_try` hears before each run how many there were, and how many faults are left.
    """
    if not result.violations:
        return result
    invariant = result.violations[0].invariant
    runs = 0
    size = max(1, len(result.plan.faults) // 2)
    while size and runs < SHRINK_RUNS_MAX:
        index = 0
        while index < len(result.plan.faults) and runs < SHRINK_RUNS_MAX:
            faults = result.plan.faults
            fewer = replace(result.plan, faults=faults[:index] + faults[index + size :])
            if on_try is not None:
                on_try(runs, len(faults))
            tried = run(fewer)
            runs += 1
            if tried.violations and tried.violations[0].invariant == invariant:
                result = tried
            else:
                index += size
        size //= 2
    return result
