"""kinship's grid: SWIM and what is shipped, over loss and starved nodes."""

import math
from typing import Any

from sim.experiments.arms import LIFEGUARD, SWIM
from sim.experiments.cell import Cell, run
from sim.experiments.lifeguard import fold, summary
from sim.experiments.model import Check, Experiment, Options, Outcome, Progress, Table, judged
from sim.experiments.runs import each
from sim.experiments.statistics import quantile

SEEDS, SEEDS_QUICK = 20, 1
NODES, NODES_LARGE = 50, 200
SEEDS_LARGE = 3
LOSSES = (0.01, 0.03, 0.05)
STARVED_SHARES = (0.0, 0.01, 0.05, 0.10)
QUICK = (Cell(25, 0, 0.03, 40.0), Cell(25, 3, 0.05, 40.0))
LARGE = (Cell(NODES_LARGE, 0, 0.01), Cell(NODES_LARGE, 2, 0.01), Cell(NODES_LARGE, 10, 0.03))
FOLD = 20.0
DETECTION_OFF = 0.10
PUBLISHED = {50: ((8.4, 8.8), (11.7, 14.0)), 200: ((10.9, 11.3), (14.1, 16.6))}
"""kinship's own p50 and p99 of detection over its grid, in seconds, for its lan profile."""
ARMS = (SWIM, LIFEGUARD)


def cells(nodes: int) -> tuple[Cell, ...]:
    """The grid for a mesh of this size: at least one starved node where any is."""
    ill = [math.ceil(share * nodes) for share in STARVED_SHARES]
    return tuple(Cell(nodes, count, loss) for count in ill for loss in LOSSES)


def experiment(options: Options, progress: Progress) -> Outcome:
    """The grid at N = 50."""
    chosen = QUICK if options.quick else cells(NODES)
    return _over("grid", chosen, options.seeds_or(SEEDS, SEEDS_QUICK), options, progress)


def experiment_large(options: Options, progress: Progress) -> Outcome:
    """A few cells at N = 200."""
    chosen = QUICK[:1] if options.quick else LARGE
    return _over("grid_large", chosen, options.seeds_or(SEEDS_LARGE, 1), options, progress)


def _over(
    name: str, chosen: tuple[Cell, ...], seeds: int, options: Options, progress: Progress
) -> Outcome:
    tasks = [(arm, cell, seed) for cell in chosen for arm in ARMS for seed in range(seeds)]
    found = each(run, tasks, jobs=options.jobs, progress=progress)
    rows = []
    for index, (cell, arm) in enumerate((cell, arm) for cell in chosen for arm in ARMS):
        rows.append(summary(cell, arm, found[index * seeds : (index + 1) * seeds]))
    pooled = {
        arm.name: [
            value
            for (task_arm, _, _), one in zip(tasks, found, strict=True)
            if task_arm is arm
            for value in one.detected_s
        ]
        for arm in ARMS
    }
    checks = _checks(rows, pooled, enough=not options.quick)
    return Outcome(name, tuple(rows), tuple(checks), (_table(rows, seeds),))


def _checks(
    rows: list[dict[str, Any]], pooled: dict[str, list[float]], *, enough: bool
) -> list[Check]:
    deaths = {
        arm.name: sum(row["false_deaths"] for row in rows if row["arm"] == arm.name) for arm in ARMS
    }
    half = {name: quantile(values, 0.5) for name, values in pooled.items()}
    off = half[LIFEGUARD.name] / half[SWIM.name] - 1.0
    return [
        fold(
            "false deaths over all cells", deaths[SWIM.name], deaths[LIFEGUARD.name], FOLD,
            enough=enough,
        ),
        judged(
            "median detection over all cells",
            f"within {DETECTION_OFF:.0%} of SWIM's",
            f"{half[SWIM.name]:.2f} s to {half[LIFEGUARD.name]:.2f} s ({off:+.1%})",
            met=abs(off) <= DETECTION_OFF,
            enough=enough,
        ),
    ]  # fmt: skip


def _table(rows: list[dict[str, Any]], seeds: int) -> Table:
    lines = []
    for swim, whole in zip(rows[::2], rows[1::2], strict=True):
        lines.append(
            (
                str(swim["ill"]),
                f"{swim['loss']:.0%}",
                *[f"{row['false_deaths'] / row['runs']:.3f}" for row in (swim, whole)],
                *[f"{row['false_suspicions'] / row['runs']:.0f}" for row in (swim, whole)],
                *[f"{row['detected_p50_s']:.2f}" for row in (swim, whole)],
                *[f"{row['detected_p99_s']:.2f}" for row in (swim, whole)],
                *[_percent(whole[key], swim[key]) for key in ("packets", "bytes")],
            )
        )
    columns = (
        "starved", "loss", "deaths SWIM", "ours", "suspicions SWIM", "ours", "p50 s SWIM", "ours",
        "p99 s SWIM", "ours", "messages", "bytes",
    )  # fmt: skip
    nodes = rows[0]["nodes"]
    title = f"N = {nodes}, {seeds} seeds a cell; false deaths and suspicions a run"
    if nodes in PUBLISHED:
        half, most = PUBLISHED[nodes]
        title += f" (kinship's p50 {half[0]} to {half[1]} s, p99 {most[0]} to {most[1]} s)"
    return Table(title, columns, tuple(lines))


def _percent(part: float, whole: float) -> str:
    return f"{part / whole - 1.0:+.0%}" if whole else "-"


GRID = Experiment("grid", "SWIM and what is shipped, over loss and starved nodes", experiment)
GRID_LARGE = Experiment("grid_large", "some cells of the same with 200 nodes", experiment_large)
