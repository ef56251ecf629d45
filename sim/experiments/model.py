"""What an experiment is, what it is asked, and what it answers."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

Progress = Callable[[int, int], None]
"""Told how many runs of how many are done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How much of an experiment to run.

    Attributes:
        quick: few and small runs: shows that it works and which way it goes, proves nothing.
        seeds: how many seeds each cell gets; the experiment's own number if None.
        jobs: processes at a time.
        kept: a file that keeps each run's result, so that an experiment that was cut off goes on.
    """

    quick: bool = False
    seeds: int | None = None
    jobs: int = 1
    kept: Path | None = None

    def seeds_or(self, full: int, quick: int) -> int:
        """What was asked for, else one of the experiment's own numbers."""
        return self.seeds if self.seeds is not None else quick if self.quick else full


class Verdict(StrEnum):
    """Whether a target was met. `undecided`: so few runs cannot tell."""

    MET = "met"
    MISSED = "missed"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Check:
    """One target: what was asked for, and what was measured."""

    name: str
    target: str
    measured: str
    verdict: Verdict

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against the target."""
        return self.verdict is not Verdict.MISSED


@dataclass(frozen=True, slots=True)
class Table:
    """Text for people: a row of headings, then the rows."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def lines(self) -> list[str]:
        """The table as Markdown, its columns aligned."""
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        ruler = tuple("-" * wide for wide in widths)
        return [
            "| "
            + " | ".join(cell.ljust(wide) for cell, wide in zip(row, widths, strict=True))
            + " |"
            for row in (self.columns, ruler, *self.rows)
        ]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an experiment found: rows for programs, tables for people, and how the targets fared."""

    name: str
    rows: tuple[dict[str, Any], ...]
    checks: tuple[Check, ...]
    tables: tuple[Table, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether no target was missed."""
        return all(check.ok for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """All of it: the schema `meshd.sim.experiment/1`."""
        return {
            "schema": "meshd.sim.experiment/1",
            "experiment": self.name,
            "ok": self.ok,
            "checks": [{**asdict(check), "ok": check.ok} for check in self.checks],
            "rows": [_finite(row) for row in self.rows],
        }

    def as_text(self) -> str:
        """Tables, then targets, then remarks."""
        checks = Table(
            "Targets",
            ("what", "target", "measured", "verdict"),
            tuple((c.name, c.target, c.measured, str(c.verdict)) for c in self.checks),
        )
        blocks = ["\n".join([f"{t.title}:", "", *t.lines()]) for t in (*self.tables, checks)]
        return "\n\n".join([*blocks, *self.notes])


@dataclass(frozen=True, slots=True)
class Experiment:
    """One published result that the simulator must reproduce."""

    name: str
    text: str
    run: Callable[[Options, Progress], Outcome]


def _finite(value: Any) -> Any:
    """What JSON can say: no number, and what is endless, are null."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def judged(name: str, target: str, measured: str, *, met: bool, enough: bool = True) -> Check:
    """A check; where there were not `enough` runs, a target that is not met is undecided."""
    verdict = Verdict.MET if met else Verdict.MISSED if enough else Verdict.UNDECIDED
    return Check(name, target, measured, verdict)


def within(
    name: str, measured: float, wanted: float, share: float, *, enough: bool = True
) -> Check:
    """A check that a figure lies within a share of another."""
    off = measured / wanted - 1.0
    return judged(
        name,
        f"{wanted:.2f} within {share:.0%}",
        f"{measured:.2f} ({off:+.0%})",
        met=abs(off) <= share,
        enough=enough,
    )


def quiet(_done: int, _total: int) -> None:
    """No progress shown."""
