"""Lifeguard's table as ratios: plain SWIM, each of its parts alone, and the whole."""

from collections.abc import Sequence
from typing import Any

from sim.experiments.arms import LHA_SUSPICION, LIFEGUARD, LIFEGUARD_ARMS, SWIM, Arm
from sim.experiments.cell import KINSHIP, Cell, Found, run
from sim.experiments.model import Check, Experiment, Options, Outcome, Progress, Table, judged
from sim.experiments.runs import each
from sim.experiments.statistics import count_interval, mean, quantile, ratio_interval, resampled

SEEDS, SEEDS_QUICK = 200, 3
QUICK = Cell(nodes=30, starved=3, duration_s=50.0)
ENDS = (SWIM, LIFEGUARD)
"""What the targets compare; the parts between get fewer seeds."""
PARTS_FEWER = 4
FOLD = 40.0
DETECTION_OFF = 0.10
PACKETS_LOW, PACKETS_HIGH = 1.05, 1.15
PAPER = {
    "SWIM": (100.0, 100.0, 100.0, 100.0),
    "LHA-Probe": (67.72, 32.88, 98.46, 90.03),
    "LHA-Suspicion": (3.00, 6.71, 111.31, 106.52),
    "Buddy": (94.08, 44.57, 100.07, 99.01),
    "Lifeguard": (1.53, 1.89, 110.59, 97.97),
}
"""FP, FP-, messages and bytes in percent of SWIM's. Source: Lifeguard (arXiv 1707.00788), with
anomalies of another kind: 128 agents whose messages were held back now and then."""


def experiment(options: Options, progress: Progress) -> Outcome:
    """All arms in kinship's cell."""
    cell = QUICK if options.quick else KINSHIP
    seeds = options.seeds_or(SEEDS, SEEDS_QUICK)
    tasks = [
        (arm, cell, seed)
        for arm in LIFEGUARD_ARMS
        for seed in range(seeds if arm in ENDS else max(1, seeds // PARTS_FEWER))
    ]
    found = each(run, tasks, jobs=options.jobs, progress=progress)
    rows = {}
    for arm in LIFEGUARD_ARMS:
        runs = [one for task, one in zip(tasks, found, strict=True) if task[0] is arm]
        rows[arm.name] = summary(cell, arm, runs)
    checks = _checks(rows, enough=not options.quick)
    tables = (_counts(cell, rows), _shares(rows))
    return Outcome("lifeguard", tuple(rows.values()), tuple(checks), tables)


def summary(cell: Cell, arm: Arm, runs: Sequence[Found]) -> dict[str, Any]:
    """One arm in one cell, over all its seeds."""
    deaths = sum(each.false_deaths for each in runs)
    detected = [run.detected_s for run in runs]
    pooled = [value for run in detected for value in run]
    return {
        "nodes": cell.nodes,
        "starved": cell.starved,
        "loss": cell.loss,
        "arm": arm.name,
        "runs": len(runs),
        "false_deaths": deaths,
        "false_deaths_interval": [round(end, 2) for end in count_interval(deaths)],
        "runs_with_false_death": sum(each.false_deaths > 0 for each in runs),
        "false_deaths_healthy": sum(each.false_deaths_healthy for each in runs),
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
    """A check that false deaths became at least so many times as rare."""
    low, high = ratio_interval(before, after)
    shown = f"{before / after:.0f}" if after else "no"
    text = f"{before} to {after}: {shown}-fold" if after else f"{before} to none"
    return judged(
        name,
        f"at least {wanted:.0f}-fold",
        f"{text} (95 %: {low:.0f} to {high:.0f})",
        met=before >= wanted * after and before > 0 and high >= wanted,
        enough=enough and before > 0,
    )


def _checks(rows: dict[str, dict[str, Any]], *, enough: bool) -> list[Check]:
    swim, whole = rows[SWIM.name], rows[LIFEGUARD.name]
    packets = {name: row["packets"] / swim["packets"] for name, row in rows.items()}
    detection = whole["detected_p50_s"] / swim["detected_p50_s"]
    part = packets[LHA_SUSPICION.name]
    return [
        fold("false deaths", swim["false_deaths"], whole["false_deaths"], FOLD, enough=enough),
        fold(
            "false death events, healthy about healthy",
            swim["death_events_healthy"],
            whole["death_events_healthy"],
            FOLD,
            enough=enough,
        ),
        judged(
            "median detection",
            f"within {DETECTION_OFF:.0%} of SWIM's",
            f"{detection - 1.0:+.1%}",
            met=abs(detection - 1.0) <= DETECTION_OFF,
            enough=enough,
        ),
        judged(
            "messages of the part that costs some (LHA-Suspicion)",
            f"{PACKETS_LOW - 1:+.0%} to {PACKETS_HIGH - 1:+.0%}",
            f"{part - 1.0:+.1%}",
            met=PACKETS_LOW <= part <= PACKETS_HIGH,
            enough=enough,
        ),
        judged(
            "messages of the whole",
            f"at most {PACKETS_HIGH - 1:+.0%}",
            f"{packets[LIFEGUARD.name] - 1.0:+.1%}",
            met=packets[LIFEGUARD.name] <= PACKETS_HIGH,
            enough=enough,
        ),
    ]


def _counts(cell: Cell, rows: dict[str, dict[str, Any]]) -> Table:
    cells = tuple(
        (
            name,
            str(row["runs"]),
            f"{row['false_deaths'] / row['runs']:.3f} ({_per_run(row)})",
            f"{row['death_events'] / row['runs']:.2f}",
            f"{row['death_events_healthy'] / row['runs']:.2f}",
            f"{row['false_suspicions'] / row['runs']:.0f}",
            f"{row['detected_p50_s']:.2f}",
            f"{row['detected_p99_s']:.2f}",
        )
        for name, row in rows.items()
    )
    columns = (
        "arm", "runs", "false deaths (95 %)", "death events", "healthy", "false suspicions",
        "p50 s", "p99 s",
    )  # fmt: skip
    return Table(f"{cell}, {cell.duration_s:g} s; counts a run", columns, cells)


def _per_run(row: dict[str, Any]) -> str:
    low, high = row["false_deaths_interval"]
    return f"{low / row['runs']:.3f} to {high / row['runs']:.3f}"


def _shares(rows: dict[str, dict[str, Any]]) -> Table:
    swim = _a_run(rows[SWIM.name])
    cells = []
    for name, row in rows.items():
        ours = map(_percent, _a_run(row), swim)
        paper = [f"{share:.1f}" for share in PAPER[name]]
        cells.append((name, *[text for pair in zip(ours, paper, strict=True) for text in pair]))
    columns = (
        "arm", "events", "paper: FP", "healthy", "paper: FP-", "messages", "paper", "bytes",
        "paper",
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
