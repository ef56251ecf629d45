"""Many plans, in as many processes as asked for, with results in the order of the plans."""

import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sim.plan import Plan
from sim.report import describe
from sim.runner import run

PLANS_PER_TASK = 4


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one seed: its digest, and the first violation or nothing."""

    seed: int
    digest: str
    violation: str


def outcome(plan: Plan) -> Outcome:
    """Run one plan, and keep what a sweep needs of it."""
    result = run(plan)
    text = describe(result.violations[0]) if result.violations else ""
    return Outcome(plan.seed, result.digest, text)


def outcomes(plans: Sequence[Plan], *, jobs: int = 1) -> Iterator[Outcome]:
    """Run all plans, `jobs` at a time."""
    if jobs <= 1:
        yield from map(outcome, plans)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(outcome, plans, chunksize=PLANS_PER_TASK)
