"""How fast one rumour reaches all, beside Serf's convergence formula."""

import math
import random
from dataclasses import dataclass
from functools import partial
from typing import Any

from meshd.gossip.inputs import StateSet
from meshd.model import Member
from sim.experiments.arms import AS_SHIPPED, PURE_GOSSIP, Arm
from sim.experiments.model import (
    Check,
    Experiment,
    Options,
    Outcome,
    Progress,
    Table,
    judged,
    within,
)
from sim.experiments.runs import each
from sim.experiments.statistics import quantile, resampled
from sim.world import START_S, Host, World

SIZES = {30: 200, 100: 100, 1_000: 20}
"""Nodes, and seeds: about as many deliveries each."""
SIZES_QUICK = {30: 30, 100: 10, 300: 2}
WARM_S = 1.0
WATCHED_S = 4.0
SHARES = (0.5, 0.99)
SHARE_OFF = 0.20
INTERVAL_S, FANOUT = 0.2, 3
"""Serf's LAN defaults, which are the lan profile's."""


def formula_s(nodes: int, share: float) -> float:
    """When `share` of the nodes have a rumour.

    Source: serf's convergence simulator: n / (1 + (n + 1) e^(-fanout x)) after x intervals.
    """
    rounds = math.log((nodes + 1) * share / (1.0 - share)) / FANOUT
    return rounds * INTERVAL_S


@dataclass(frozen=True, slots=True)
class Spread:
    """After how many seconds each node had the rumour, and how many nodes never got it."""

    arm: str
    nodes: int
    after_s: tuple[float, ...]
    missed: int


def run(task: tuple[Arm, int, int]) -> Spread:
    """One rumour, from one node of a mesh without any other news."""
    arm, nodes, seed = task
    rng = random.Random(f"{seed}/dissemination")
    origin = rng.randrange(nodes)
    at = START_S + WARM_S + rng.random()
    heard: dict[int, float] = {}
    with arm.applied() as config:
        world = World(nodes, seed, config=config)
        world.start_converged()

        def on_change(host: Host, _before: Member | None, after: Member) -> None:
            if after.state_version:
                heard.setdefault(host.index, world.now - at)
                world.is_halted = len(heard) == nodes

        world.on_change.append(on_change)
        news = StateSet({"news": b"1"})
        world.call_at(at, lambda: world.step(world.hosts[origin], news), "news")
        world.run(at + WATCHED_S)
    return Spread(arm.name, nodes, tuple(heard.values()), nodes - len(heard))


def experiment(options: Options, progress: Progress) -> Outcome:
    """Both arms at each size."""
    sizes = SIZES_QUICK if options.quick else SIZES
    tasks = [
        (arm, nodes, seed)
        for nodes, usual in sizes.items()
        for arm in (PURE_GOSSIP, AS_SHIPPED)
        for seed in range(options.seeds or usual)
    ]
    runs = each(run, tasks, jobs=options.jobs, progress=progress, kept=options.kept)
    rows = []
    checks: list[Check] = []
    for nodes in sizes:
        for arm in (PURE_GOSSIP, AS_SHIPPED):
            row = _row(nodes, arm, [r for r in runs if (r.arm, r.nodes) == (arm.name, nodes)])
            rows.append(row)
            checks += _checks(row, enough=not options.quick)
    return Outcome("dissemination", tuple(rows), tuple(checks), (_table(rows),))


def _row(nodes: int, arm: Arm, runs: list[Spread]) -> dict[str, Any]:
    # A node without the rumour counts as one that gets it after all others.
    late = [(*run.after_s, *[math.inf] * run.missed) for run in runs]
    pooled = [value for run in late for value in run]
    figures = {}
    for share in SHARES:
        low, high = resampled(late, partial(quantile, share=share))
        figures[f"p{share * 100:.0f}"] = {
            "s": round(quantile(pooled, share), 3),
            "interval_s": [round(low, 3), round(high, 3)],
            "formula_s": round(formula_s(nodes, share), 3),
        }
    return {
        "nodes": nodes,
        "arm": arm.name,
        "runs": len(runs),
        "missed": sum(run.missed for run in runs),
        **figures,
    }


def _checks(row: dict[str, Any], *, enough: bool) -> list[Check]:
    checks = []
    for key in ("p50", "p99"):
        figure = row[key]
        name = f"N = {row['nodes']}, {key}, {row['arm']}"
        if row["arm"] == PURE_GOSSIP.name:
            checks.append(within(name, figure["s"], figure["formula_s"], SHARE_OFF, enough=enough))
        else:
            checks.append(
                judged(
                    name,
                    f"at most {(1.0 + SHARE_OFF) * figure['formula_s']:.2f}",
                    f"{figure['s']:.3f}",
                    met=figure["s"] <= figure["formula_s"] * (1.0 + SHARE_OFF),
                    enough=enough,
                )
            )
    return checks


def _table(rows: list[dict[str, Any]]) -> Table:
    cells = []
    for row in rows:
        figures = [row["p50"], row["p99"]]
        shown = [
            f"{f['s']:.3f} ({f['interval_s'][0]:.3f} to {f['interval_s'][1]:.3f})" for f in figures
        ]
        wanted = [f"{f['formula_s']:.2f}" for f in figures]
        cells.append(
            (str(row["nodes"]), str(row["arm"]), str(row["runs"]), shown[0], wanted[0], shown[1],
             wanted[1], str(row["missed"]))
        )  # fmt: skip
    columns = ("N", "arm", "runs", "50 % s", "formula", "99 % s", "formula", "missed")
    return Table("Seconds until half, and 99 %, of the nodes have a rumour", columns, tuple(cells))


DISSEMINATION = Experiment(
    "dissemination", "one rumour's way to all, beside Serf's convergence formula", experiment
)
