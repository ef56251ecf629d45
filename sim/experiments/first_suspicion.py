"""How long a crash goes unnoticed, beside SWIM's analysis."""

import math
import random
from dataclasses import dataclass
from typing import Any

from meshd.gossip.effects import Effect, MemberChanged
from meshd.model import MemberState
from sim.experiments.arms import FREE, IN_STEP, Arm
from sim.experiments.model import Check, Experiment, Options, Outcome, Progress, Table, judged
from sim.experiments.runs import each
from sim.experiments.statistics import mean, mean_interval, quantile
from sim.faults import Crash
from sim.world import START_S, Host, World

SIZES = (10, 50, 100, 300)
SIZES_QUICK = (10, 50)
SEEDS, SEEDS_QUICK = 1_000, 60
WARM_S = 2.0
WATCHED_S = 30.0
OFF_S = 0.1
SWIM_PERIODS = math.e / (math.e - 1.0)
"""What the periods in step come to in a large mesh: 1.58."""


def free_s(nodes: int) -> float:
    """Mean time to the first suspicion where each node probes at its own moment, T = 1 s.

    Each of m = n - 1 others comes by once in about m periods: the first after m / (m + 1) T. Its
    round then takes one more T.
    """
    others = nodes - 1
    return others / (others + 1) + 1.0


def in_step_periods(nodes: int) -> float:
    """Mean number of periods begun until somebody probes the dead, where all probe in step.

    Each of m = n - 1 others has it anywhere in its round of m: nobody came by in k periods with
    probability (1 - k/m)^m, which tends to e^-k; the sum over k tends to e/(e-1).
    """
    others = nodes - 1
    return sum((1.0 - periods / others) ** others for periods in range(others))


@dataclass(frozen=True, slots=True)
class Noticed:
    """One crash: seconds until the first suspicion, and whole periods begun until its probe."""

    arm: str
    nodes: int
    after_s: float
    periods: int


def run(task: tuple[Arm, int, int]) -> Noticed:
    """One crash at any moment of a period."""
    arm, nodes, seed = task
    rng = random.Random(f"{seed}/first_suspicion")
    victim = rng.randrange(nodes)
    crash_at = START_S + WARM_S + rng.random()
    noticed: list[float] = []
    with arm.applied() as config:
        world = World(nodes, seed, config=config)
        world.start_converged()

        def on_effect(_host: Host, effect: Effect) -> None:
            if isinstance(effect, MemberChanged) and effect.member.state is MemberState.SUSPECT:
                noticed.append(world.now)
                world.is_halted = True

        world.on_effect.append(on_effect)
        world.call_at(crash_at, lambda: Crash(victim).apply(world), "crash")
        world.run(crash_at + WATCHED_S)
    at = noticed[0] if noticed else math.inf
    # In step, periods begin at whole seconds; the round that failed began one before its verdict.
    began = math.floor(at - 1.0 + 1e-6) if noticed else 0
    return Noticed(arm.name, nodes, at - crash_at, began - math.ceil(crash_at) + 1)


def experiment(options: Options, progress: Progress) -> Outcome:
    """Both arms at each size."""
    sizes = SIZES_QUICK if options.quick else SIZES
    seeds = options.seeds_or(SEEDS, SEEDS_QUICK)
    tasks = [
        (arm, nodes, seed) for nodes in sizes for arm in (FREE, IN_STEP) for seed in range(seeds)
    ]
    runs = each(run, tasks, jobs=options.jobs, progress=progress, kept=options.kept)
    rows, checks, cells = [], [], []
    for nodes in sizes:
        free = [r.after_s for r in runs if (r.arm, r.nodes) == (FREE.name, nodes)]
        step = [float(r.periods) for r in runs if (r.arm, r.nodes) == (IN_STEP.name, nodes)]
        row = _row(nodes, free, step)
        rows.append(row)
        checks += _checks(row, enough=not options.quick)
        cells.append(_cells(row))
    columns = ("N", "crashes", "mean T", "expected", "p99 T", "in step: periods", "expected")
    table = Table("From a crash to the first suspicion, in probe periods", columns, tuple(cells))
    return Outcome("first_suspicion", tuple(rows), tuple(checks), (table,))


def _row(nodes: int, free: list[float], step: list[float]) -> dict[str, Any]:
    return {
        "nodes": nodes,
        "crashes": len(free),
        "mean_t": round(mean(free), 3),
        "interval_t": [round(end, 3) for end in mean_interval(free)],
        "expected_t": round(free_s(nodes), 3),
        "p99_t": round(quantile(free, 0.99), 3),
        "in_step_periods": round(mean(step), 3),
        "in_step_expected": round(in_step_periods(nodes), 3),
        "in_step_interval": [round(end, 3) for end in mean_interval(step)],
    }


def _checks(row: dict[str, Any], *, enough: bool) -> list[Check]:
    measured, expected = row["mean_t"], row["expected_t"]
    periods, wanted = row["in_step_periods"], row["in_step_expected"]
    return [
        judged(
            f"N = {row['nodes']}, mean time",
            f"{expected:.2f} T within {OFF_S} T",
            f"{measured:.2f} T",
            met=abs(measured - expected) <= OFF_S,
            enough=enough,
        ),
        judged(
            f"N = {row['nodes']}, periods, in step",
            f"{wanted:.2f} within {OFF_S}",
            f"{periods:.2f}",
            met=abs(periods - wanted) <= OFF_S,
            enough=enough,
        ),
    ]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    low_high, step = row["interval_t"], row["in_step_interval"]
    return (
        str(row["nodes"]),
        str(row["crashes"]),
        f"{row['mean_t']:.2f} ({low_high[0]:.2f} to {low_high[1]:.2f})",
        f"{row['expected_t']:.2f}",
        f"{row['p99_t']:.1f}",
        f"{row['in_step_periods']:.2f} ({step[0]:.2f} to {step[1]:.2f})",
        f"{row['in_step_expected']:.2f}",
    )


FIRST_SUSPICION = Experiment(
    "first_suspicion", "from a crash to the first suspicion, beside SWIM's analysis", experiment
)
