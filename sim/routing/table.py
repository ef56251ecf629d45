"""The cells of the table, what came of each, and how that stands to what it must."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from sim.routing.calls import Found, Run
from sim.routing.cells import Cell, Kind
from sim.routing.ways import WAYS

OURS, IDEAL, OLD = "adaptive", "everyone", "gossip_least"
KINDS = tuple(kind for kind in Kind if kind is not Kind.SINKHOLE)
NODES, LOADS, PERIODS = (5, 10, 50, 200), (0.7, 0.9, 0.95), (1.0, 10.0)
BASELINE_NODES = 50
"""At other sizes the ideal alone stands beside `adaptive`."""
AGED_KINDS = (Kind.HOMOGENEOUS, Kind.HETEROGENEOUS)
"""With these the news is also let grow old."""
SINKHOLE_LOAD = 0.7
CALLS, CALLS_QUICK = 8_000, 300
MEAN_MAX = {0.7: 1.10, 0.9: 1.20, 0.95: 1.20}
P99_MAX = 1.25
MESSAGES_MAX = 6.0
OLD_SHARE, OLD_PERIOD = 0.2, 10.0
FAILED_MAX = 0.02

Task = tuple[Cell, str, int, int, bool]
"""Cell, way, seed, calls, and whether a failed call is tried elsewhere."""


@dataclass(frozen=True, slots=True)
class Row:
    """One way in one cell, over all seeds."""

    cell: Cell
    way: str
    is_retrying: bool
    runs: tuple[Found, ...]

    def mean_of(self, what: str) -> float:
        """The mean of a figure over the seeds."""
        return float(mean(getattr(each, what) for each in self.runs))

    def told(self) -> dict[str, Any]:
        """For a table; times are in mean service times, in brackets the range over the seeds."""
        means = [each.mean_s for each in self.runs]
        return {
            "kind": str(self.cell.kind),
            "N": self.cell.nodes,
            "load": self.cell.load,
            "T/S": self.cell.period,
            "way": self.way + ("" if self.is_retrying else ", no retry"),
            "mean": f"{mean(means):.3f} ({min(means):.3f}-{max(means):.3f})",
            "p50": round(self.mean_of("p50_s"), 3),
            "p99": round(self.mean_of("p99_s"), 2),
            "messages": round(self.mean_of("messages"), 2),
            "refused": round(self.mean_of("refusals"), 3),
            "failed": round(self.mean_of("failures"), 4),
        }


@dataclass(frozen=True, slots=True)
class Bound:
    """What one figure must not exceed; None where nothing was measured."""

    text: str
    value: float | None
    at_most: float


def work(task: Task) -> Found:
    """One run."""
    cell, way, seed, calls, is_retrying = task
    return Run(cell, WAYS[way](), seed, calls, is_retrying=is_retrying).found()


def tasks(
    *,
    kinds: Sequence[Kind],
    nodes: Sequence[int],
    loads: Sequence[float],
    periods: Sequence[float],
    ways: Sequence[str],
    seeds: int,
    calls: int,
) -> list[Task]:
    """All runs: each cell in each way from each seed."""
    found: list[Task] = []
    for cell in _cells(kinds, nodes, loads, periods):
        for way in ways:
            if way in {OURS, IDEAL} or cell.nodes == BASELINE_NODES or len(nodes) == 1:
                found += [(cell, way, seed, calls, True) for seed in range(seeds)]
                if cell.kind is Kind.SINKHOLE:
                    found += [(cell, way, seed, calls, False) for seed in range(seeds)]
    return found


def _cells(
    kinds: Sequence[Kind],
    nodes: Sequence[int],
    loads: Sequence[float],
    periods: Sequence[float],
) -> Iterable[Cell]:
    for kind in kinds:
        for count in nodes:
            for load in loads:
                for period in periods:
                    is_aged = period != PERIODS[0]
                    is_main = count == BASELINE_NODES or len(nodes) == 1
                    if is_aged and not (is_main and kind in AGED_KINDS):
                        continue
                    if kind is Kind.SINKHOLE and (not is_main or load != SINKHOLE_LOAD):
                        continue
                    yield Cell(kind, count, load, period)


def rows(done: Sequence[Task], found: Sequence[Found]) -> list[Row]:
    """What came of the runs, those of one cell and way together."""
    runs: dict[tuple[Cell, str, bool], list[Found]] = {}
    for (cell, way, _, _, is_retrying), each in zip(done, found, strict=True):
        runs.setdefault((cell, way, is_retrying), []).append(each)
    return [Row(*key, tuple(each)) for key, each in runs.items()]


def bounds(made: Sequence[Row]) -> list[Bound]:
    """How `adaptive` stands to what it must, the worst cell of each sort."""
    by_key = {(row.cell, row.way, row.is_retrying): row for row in made}
    ours = [row for row in made if row.way == OURS and row.is_retrying]
    pairs = [
        (row, by_key[row.cell, IDEAL, True])
        for row in ours
        if (row.cell, IDEAL, True) in by_key and row.cell.kind is not Kind.SINKHOLE
    ]
    told: list[Bound] = []
    for kind, load in sorted({(a.cell.kind, a.cell.load) for a, _ in pairs}):
        chosen = [(a, b) for a, b in pairs if (a.cell.kind, a.cell.load) == (kind, load)]
        for what, name, most in (
            ("mean_s", "mean", MEAN_MAX.get(load, 1.2)), ("p99_s", "p99", P99_MAX),
        ):  # fmt: skip
            ratios = [(a.mean_of(what) / b.mean_of(what), a.cell.nodes) for a, b in chosen]
            worst, count = max(ratios)
            text = f"{kind}, load {load:g}: {name} to the ideal's, worst at N={count}"
            told.append(Bound(text, round(worst, 3), most))
    messages = [row.mean_of("messages") for row in ours]
    told.append(Bound("messages a call, worst cell", _worst(messages), MESSAGES_MAX))
    old = [
        row.mean_of("mean_s") / by_key[row.cell, OLD, True].mean_of("mean_s")
        for row in ours
        if row.cell.period == OLD_PERIOD and (row.cell, OLD, True) in by_key
    ]
    told.append(Bound("T/S=10: mean to that of least loaded by gossip", _worst(old), OLD_SHARE))
    for is_retrying, most in ((False, FAILED_MAX), (True, 0.0)):
        failed = [
            row.mean_of("failures")
            for row in made
            if row.cell.kind is Kind.SINKHOLE and row.way == OURS and row.is_retrying == is_retrying
        ]
        text = f"sinkhole: failed {'with' if is_retrying else 'without'} retry"
        told.append(Bound(text, _worst(failed), most))
    return told


def _worst(values: Sequence[float]) -> float | None:
    return round(max(values), 4) if values else None
