"""kinship's grid: what is shipped beside memberlist's LAN formulas, over loss and starved nodes."""

import math
from typing import Any

from sim.experiments.arms import LIFEGUARD, MESHD
from sim.experiments.cell import Cell, run
from sim.experiments.lifeguard import summary
from sim.experiments.model import Check, Experiment, Options, Outcome, Progress, Table, judged
from sim.experiments.runs import each
from sim.experiments.statistics import count_interval

SEEDS, SEEDS_QUICK = 200, 1
NODES, NODES_LARGE = 50, 200
SEEDS_LARGE = 20
BASELINE_FEWER = 5
"""The formulas to be beaten are known: they get so many times fewer seeds where nodes are starved.
Elsewhere bytes differ by a hundredth: there both run the same seeds."""
LOSSES = (0.01, 0.03, 0.05)
STARVED_SHARES = (0.0, 0.01, 0.05, 0.10)
QUICK = (Cell(25, 0, 0.03, 40.0), Cell(25, 3, 0.05, 40.0))
DETECTION_SHARE = 0.6
FALSE_DEATHS_A_RUN = 0.03
"""kinship's with Lifeguard, over its starved cells: 108 of 3,600 runs had one."""
BYTES_MORE_STARVED = 2.0
PUBLISHED = {50: ((8.4, 8.8), (11.7, 14.0)), 200: ((10.9, 11.3), (14.1, 16.6))}
"""kinship's own p50 and p99 of detection over its grid, in seconds, for its lan profile."""
ARMS = (LIFEGUARD, MESHD)


def cells(nodes: int) -> tuple[Cell, ...]:
    """The grid for a mesh of this size: at least one starved node where any is."""
    ill = [math.ceil(share * nodes) for share in STARVED_SHARES]
    return tuple(Cell(nodes, count, loss) for count in ill for loss in LOSSES)


def experiment(options: Options, progress: Progress) -> Outcome:
    """The grid at N = 50."""
    chosen = QUICK if options.quick else cells(NODES)
    return _over("grid", chosen, options.seeds_or(SEEDS, SEEDS_QUICK), options, progress)


def experiment_large(options: Options, progress: Progress) -> Outcome:
    """The grid at N = 200."""
    chosen = QUICK[:1] if options.quick else cells(NODES_LARGE)
    return _over("grid_large", chosen, options.seeds_or(SEEDS_LARGE, 1), options, progress)


def _over(
    name: str, chosen: tuple[Cell, ...], seeds: int, options: Options, progress: Progress
) -> Outcome:
    tasks = [
        (arm, cell, seed)
        for cell in chosen
        for arm in ARMS
        for seed in range(
            seeds if arm is MESHD or not cell.ill else math.ceil(seeds / BASELINE_FEWER)
        )
    ]
    found = each(run, tasks, jobs=options.jobs, progress=progress, kept=options.kept)
    rows = []
    for cell in chosen:
        for arm in ARMS:
            pairs = zip(tasks, found, strict=True)
            runs = [one for task, one in pairs if task[0] is arm and task[1] is cell]
            rows.append(summary(cell, arm, runs))
    checks = _checks(rows, enough=not options.quick)
    return Outcome(name, tuple(rows), tuple(checks), (_table(rows),))


def _checks(rows: list[dict[str, Any]], *, enough: bool) -> list[Check]:
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    shares = [ours["detected_p50_s"] / theirs["detected_p50_s"] for theirs, ours in pairs]
    starved = [ours for _, ours in pairs if ours["ill"]]
    runs = sum(row["runs"] for row in starved)
    deaths = sum(row["false_deaths"] for row in starved)
    low, high = (end / max(1, runs) for end in count_interval(deaths))
    more: dict[bool, float] = {False: 0.0, True: 0.0}
    for theirs, ours in pairs:
        is_ill = bool(ours["ill"])
        more[is_ill] = max(more[is_ill], ours["bytes"] / theirs["bytes"])
    checks = [
        judged(
            "median detection in every cell",
            f"at most {DETECTION_SHARE} of the formulas'",
            f"{min(shares):.2f} to {max(shares):.2f}",
            met=max(shares) <= DETECTION_SHARE,
            enough=enough,
        ),
        judged(
            "bytes without starved nodes",
            "at most the formulas'",
            f"{more[False]:.2f} times at most",
            met=more[False] <= 1.0,
            enough=enough,
        ),
    ]
    if runs:
        checks += [
            judged(
                "false deaths a starved run",
                f"at most {FALSE_DEATHS_A_RUN}",
                f"{deaths} in {runs} runs: {deaths / runs:.4f} (95 %: {low:.4f} to {high:.4f})",
                met=deaths / runs <= FALSE_DEATHS_A_RUN,
                enough=enough,
            ),
            judged(
                "bytes with starved nodes",
                f"at most {BYTES_MORE_STARVED:g} times the formulas'",
                f"{more[True]:.2f} times at most",
                met=more[True] <= BYTES_MORE_STARVED,
                enough=enough,
            ),
        ]
    return checks


def _table(rows: list[dict[str, Any]]) -> Table:
    lines = []
    for theirs, ours in zip(rows[::2], rows[1::2], strict=True):
        pair = (theirs, ours)
        lines.append(
            (
                str(ours["ill"]),
                f"{ours['loss']:.0%}",
                f"{theirs['runs']}, {ours['runs']}",
                *[f"{row['false_deaths'] / row['runs']:.3f}" for row in pair],
                *[f"{row['false_suspicions'] / row['runs']:.0f}" for row in pair],
                *[f"{row['detected_p50_s']:.2f}" for row in pair],
                *[f"{row['detected_p99_s']:.2f}" for row in pair],
                *[_percent(ours[key], theirs[key]) for key in ("packets", "bytes")],
            )
        )
    columns = (
        "starved", "loss", "runs", "deaths L", "ours", "suspicions L", "ours", "p50 s L", "ours",
        "p99 s L", "ours", "messages", "bytes",
    )  # fmt: skip
    nodes = rows[0]["nodes"]
    title = f"N = {nodes}; L is memberlist's LAN formulas; false deaths and suspicions a run"
    if nodes in PUBLISHED:
        half, most = PUBLISHED[nodes]
        title += f" (kinship's p50 {half[0]} to {half[1]} s, p99 {most[0]} to {most[1]} s)"
    return Table(title, columns, tuple(lines))


def _percent(part: float, whole: float) -> str:
    return f"{part / whole - 1.0:+.0%}" if whole else "-"


GRID = Experiment(
    "grid", "what is shipped beside memberlist's formulas: loss, starved nodes", experiment
)
GRID_LARGE = Experiment("grid_large", "the same with 200 nodes", experiment_large)
