"""Lifeguard's table as ratios: plain SWIM, each of its parts alone, and the whole."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sim.experiments.arms import LIFEGUARD, LIFEGUARD_ARMS, MESHD, SWIM, Arm
from sim.experiments.cell import BLOCKED, KINSHIP, Cell, Found, run
from sim.experiments.model import Check, Experiment, Options, Outcome, Progress, Table, judged
from sim.experiments.runs import each
from sim.experiments.statistics import count_interval, mean, quantile, ratio_interval, resampled

SEEDS, SEEDS_QUICK = 200, 3
SEEDS_BLOCKED = 40
QUICK = Cell(nodes=30, ill=3, duration_s=50.0)
QUICK_BLOCKED = replace(BLOCKED, nodes=32, ill=2, duration_s=45.0)
ALL_ARMS = (*LIFEGUARD_ARMS, MESHD)
ENDS = (SWIM, LIFEGUARD)
"""What the targets compare; the parts between get fewer seeds."""
PARTS_FEWER = 4
FOLD = 40.0
FOLD_PAPER = 50.0
"""The paper's "50 to 100 times fewer"."""
DETECTION_OFF = 0.10
PACKETS_MORE = 0.15
PAPER = {
    "SWIM": (100.0, 100.0, 100.0, 100.0),
    "LHA-Probe": (67.72, 32.88, 98.46, 90.03),
    "LHA-Suspicion": (3.00, 6.71, 111.31, 106.52),
    "Buddy": (94.08, 44.57, 100.07, 99.01),
    "Lifeguard": (1.53, 1.89, 110.59, 97.97),
}
"""FP, FP-, messages and bytes in percent of SWIM's. Source: Lifeguard (arXiv 1707.00788): 128
agents, some of which had their messages held back; sums over many lengths of that."""


def experiment(options: Options, progress: Progress) -> Outcome:
    """All arms in kinship's cell."""
    cell = QUICK if options.quick else KINSHIP
    seeds = options.seeds_or(SEEDS, SEEDS_QUICK)
    rows, tables = _over(cell, seeds, options, progress)
    enough = not options.quick
    checks = [*_checks(rows, FOLD, enough=enough), _messages(rows, enough=enough)]
    return Outcome("lifeguard", tuple(rows.values()), tuple(checks), tables)


def experiment_blocked(options: Options, progress: Progress) -> Outcome:
    """All arms with an anomaly of the paper's kind."""
    cell = QUICK_BLOCKED if options.quick else BLOCKED
    seeds = options.seeds_or(SEEDS_BLOCKED, 1)
    rows, tables = _over(cell, seeds, options, progress)
    checks = _checks(rows, FOLD_PAPER, enough=not options.quick)
    return Outcome("lifeguard_blocked", tuple(rows.values()), tuple(checks), tables)


def _over(
    cell: Cell, seeds: int, options: Options, progress: Progress
) -> tuple[dict[str, dict[str, Any]], tuple[Table, ...]]:
    tasks = [
        (arm, cell, seed)
        for arm in ALL_ARMS
        for seed in range(seeds if arm in ENDS else max(1, seeds // PARTS_FEWER))
    ]
    found = each(run, tasks, jobs=options.jobs, progress=progress, kept=options.kept)
    rows = {}
    for arm in ALL_ARMS:
        runs = [one for task, one in zip(tasks, found, strict=True) if task[0] is arm]
        rows[arm.name] = summary(cell, arm, runs)
    return rows, (_counts(cell, rows), _shares(rows))


def summary(cell: Cell, arm: Arm, runs: Sequence[Found]) -> dict[str, Any]:
    """One arm in one cell, over all its seeds."""
    healthy = sum(each.false_deaths_healthy for each in runs)
    detected = [run.detected_s for run in runs]
    pooled = [value for run in detected for value in run]
    return {
        "nodes": cell.nodes,
        "ill": cell.ill,
        "kind": "held back" if cell.blocked_s else "starved",
        "loss": cell.loss,
        "arm": arm.name,
        "runs": len(runs),
        "false_deaths": sum(each.false_deaths for each in runs),
        "runs_with_false_death": sum(each.false_deaths > 0 for each in runs),
        "false_deaths_healthy": healthy,
        "false_deaths_healthy_interval": [round(end, 2) for end in count_interval(healthy)],
        "death_events": sum(each.death_events for each in runs),
        "death_events_healthy": sum(each.death_events_healthy for each in runs),
        "false_suspicions": sum(each.false_suspicions for each in runs),
        "detected_p50_s": round(quantile(pooled, 0.5), 3),
        "detected_p50_interval_s": [
            round(end, 3) for end in resampled(detected, lambda v: quantile(v, 0.5))
        ],
        "detected_p99_s": round(quantile(pooled, 0.99), 3),
        "missed": sum(each.missed for each in runs),
        "packets": round(mean([each.packets for each in runs])),
        "bytes": round(mean([each.sent_bytes for each in runs])),
    }


def fold(name: str, before: int, after: int, wanted: float, *, enough: bool) -> Check:
    """A check that false deaths became at least so many times as rare.

    Where none is left, it takes as many before as would meet the target with one left.
    """
    low, high = ratio_interval(before, after)
    shown = f"{before / after:.0f}" if after else "no"
    text = f"{before} to {after}: {shown}-fold" if after else f"{before} to none"
    return judged(
        name,
        f"at least {wanted:.0f}-fold",
        f"{text} (95 %: {low:.0f} to {high:.0f})",
        met=before >= wanted * max(1, after),
        enough=enough and after > 0,
    )


def _checks(rows: dict[str, dict[str, Any]], wanted: float, *, enough: bool) -> list[Check]:
    swim, whole = rows[SWIM.name], rows[LIFEGUARD.name]
    before, after = swim["false_deaths_healthy"], whole["false_deaths_healthy"]
    detection = whole["detected_p50_s"] / swim["detected_p50_s"] - 1.0
    return [
        fold("false deaths of healthy nodes", before, after, wanted, enough=enough),
        judged(
            "median detection",
            f"within {DETECTION_OFF:.0%} of SWIM's",
            f"{detection:+.1%}",
            met=abs(detection) <= DETECTION_OFF,
            enough=enough,
        ),
    ]


def _messages(rows: dict[str, dict[str, Any]], *, enough: bool) -> Check:
    more = rows[LIFEGUARD.name]["packets"] / rows[SWIM.name]["packets"] - 1.0
    return judged(
        "messages",
        f"at most {PACKETS_MORE:+.0%}",
        f"{more:+.1%}",
        met=more <= PACKETS_MORE,
        enough=enough,
    )


def _counts(cell: Cell, rows: dict[str, dict[str, Any]]) -> Table:
    cells = tuple(
        (
            name,
            str(row["runs"]),
            f"{row['false_deaths_healthy'] / row['runs']:.3f} ({_per_run(row)})",
            f"{(row['false_deaths'] - row['false_deaths_healthy']) / row['runs']:.3f}",
            f"{row['death_events'] / row['runs']:.2f}",
            f"{row['death_events_healthy'] / row['runs']:.2f}",
            f"{row['false_suspicions'] / row['runs']:.0f}",
            f"{row['detected_p50_s']:.2f}",
            f"{row['detected_p99_s']:.2f}",
        )
        for name, row in rows.items()
    )
    columns = (
        "arm", "runs", "healthy held dead (95 %)", "ill held dead", "FP events", "FP-",
        "false suspicions", "p50 s", "p99 s",
    )  # fmt: skip
    return Table(f"{cell}, {cell.duration_s:g} s; counts a run", columns, cells)


def _per_run(row: dict[str, Any]) -> str:
    low, high = row["false_deaths_healthy_interval"]
    return f"{low / row['runs']:.3f} to {high / row['runs']:.3f}"


def _shares(rows: dict[str, dict[str, Any]]) -> Table:
    swim = _a_run(rows[SWIM.name])
    cells = []
    for name, row in rows.items():
        ours = map(_percent, _a_run(row), swim)
        paper = [f"{share:.1f}" for share in PAPER[name]] if name in PAPER else ["-"] * 4
        cells.append((name, *[text for pair in zip(ours, paper, strict=True) for text in pair]))
    columns = (
        "arm", "FP", "paper", "FP-", "paper", "messages", "paper", "bytes", "paper",
    )  # fmt: skip
    return Table("Percent of SWIM's, beside the paper's", columns, tuple(cells))


def _a_run(row: dict[str, Any]) -> tuple[float, ...]:
    """What the paper gives in percent, as means over runs."""
    events = [row[key] / row["runs"] for key in ("death_events", "death_events_healthy")]
    return (*events, row["packets"], row["bytes"])


def _percent(part: float, whole: float) -> str:
    return f"{100.0 * part / whole:.1f}" if whole else "-"


LIFEGUARD_TABLE = Experiment(
    "lifeguard", "false deaths of SWIM, of each part of Lifeguard, and of the whole", experiment
)
LIFEGUARD_BLOCKED = Experiment(
    "lifeguard_blocked", "the same with an anomaly of the paper's kind", experiment_blocked
)
