"""The power of the checkers: how many fresh seeds it takes until each planted fault is seen.

Fresh means: from bases that no test uses and that nobody looked at while the checkers were written.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sim.mutations import MUTATIONS, Mutation
from sim.runner import run
from sim.scenarios import SCENARIOS

_APART = 10_000
"""Seeds between the first ones of two runs."""
SIZES = {"steady": 20, "crash": 30, "join_storm": 40, "starved": 20, "churn": 15, "loads": 12}
"""Smaller than usual where that does."""


@dataclass(frozen=True, slots=True)
class Power:
    """How one mutation fared: seeds to its first violation in each run, None where none came."""

    mutation: str
    text: str
    scenario: str
    seeds: tuple[int | None, ...]
    invariants: tuple[str, ...]

    @property
    def median(self) -> float | None:
        """Of the seeds needed; None if it survived in half of the runs."""
        ranked = sorted(self.seeds, key=lambda each: math.inf if each is None else each)
        middle = ranked[(len(ranked) - 1) // 2 : len(ranked) // 2 + 1]
        known = [each for each in middle if each is not None]
        return statistics.mean(known) if len(known) == len(middle) else None

    @property
    def worst(self) -> int | None:
        """The most seeds that a run needed; None if it survived one."""
        known = [each for each in self.seeds if each is not None]
        return max(known) if len(known) == len(self.seeds) else None


def seeds_to_kill(mutation: Mutation, first: int, seeds_max: int) -> tuple[int | None, str]:
    """Run the mutation's scenario with seed after seed until an invariant breaks.

    Returns:
        How many seeds it took and which invariant broke; None and nothing if none did.
    """
    scenario = SCENARIOS[mutation.scenario]
    size = SIZES.get(scenario.name, scenario.nodes)
    with mutation.planted():
        for number in range(seeds_max):
            plan = scenario.make(size, first + number, scenario.duration_s, 0.0)
            violations = run(plan).violations
            if violations:
                return number + 1, violations[0].invariant
    return None, ""


def measure(mutation: Mutation, *, base: int, runs: int, seeds_max: int) -> Power:
    """The power of the checkers against one mutation, in some independent runs."""
    found = [seeds_to_kill(mutation, base + each * _APART, seeds_max) for each in range(runs)]
    invariants = tuple(sorted({invariant for _, invariant in found if invariant}))
    seeds = tuple(number for number, _ in found)
    return Power(mutation.name, mutation.text, mutation.scenario, seeds, invariants)


def measured(names: Sequence[str], *, base: int, runs: int, seeds_max: int) -> Iterator[Power]:
    """The named mutations one after another, or all of them."""
    for mutation in MUTATIONS:
        if not names or mutation.name in names:
            yield measure(mutation, base=base, runs=runs, seeds_max=seeds_max)


def as_line(row: Power) -> str:
    """How one mutation fared, while others are still to come."""
    seeds = " ".join("-" if number is None else str(number) for number in row.seeds)
    return f"{row.mutation:<18} {seeds:<20} {' '.join(row.invariants)}"


def table(rows: Sequence[Power]) -> Iterator[str]:
    """The lines of a table in Markdown."""
    yield "| planted fault | what it does | scenario | median | worst | seen by |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for row in rows:
        median = "survived" if row.median is None else f"{row.median:g}"
        worst = "survived" if row.worst is None else f"{row.worst}"
        seen = ", ".join(row.invariants)
        yield f"| `{row.mutation}` | {row.text} | {row.scenario} | {median} | {worst} | {seen} |"


def as_result(rows: Sequence[Power], base: int) -> dict[str, Any]:
    """All of it: the schema `meshd.sim.mutations/1`."""
    return {
        "schema": "meshd.sim.mutations/1",
        "base": base,
        "mutations": [{**asdict(row), "median": row.median, "worst": row.worst} for row in rows],
        "survived": [row.mutation for row in rows if row.worst is None],
    }
