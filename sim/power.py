"""The power of the checkers: how many fresh seeds it takes until each planted fault is seen.

Fresh means: from bases that no test uses and that nobody looked at while the checkers were written.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from sim.mutations import MUTATIONS, Mutation
from sim.runner import run
from sim.scenarios import SCENARIOS

RUNS = 5
SEEDS_MAX = 20
BASE = 7_000_000
"""Where the seeds of the published table begin; each further run begins 10,000 seeds later."""
_APART = 10_000
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
        ranked = sorted(self.seeds, key=lambda each: SEEDS_MAX + 1 if each is None else each)
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


def measure(
    mutation: Mutation, *, base: int = BASE, runs: int = RUNS, seeds_max: int = SEEDS_MAX
) -> Power:
    """The power of the checkers against one mutation, in some independent runs."""
    found = [seeds_to_kill(mutation, base + each * _APART, seeds_max) for each in range(runs)]
    invariants = tuple(sorted({invariant for _, invariant in found if invariant}))
    seeds = tuple(number for number, _ in found)
    return Power(mutation.name, mutation.text, mutation.scenario, seeds, invariants)


def table(rows: Sequence[Power]) -> str:
    """All of it as a table in Markdown."""
    lines = [
        "| planted fault | what it does | scenario | median | worst | seen by |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        median = "survived" if row.median is None else f"{row.median:g}"
        worst = "survived" if row.worst is None else f"{row.worst}"
        seen = ", ".join(row.invariants)
        lines.append(
            f"| `{row.mutation}` | {row.text} | {row.scenario} | {median} | {worst} | {seen} |"
        )
    return "\n".join(lines)


def measured(names: Sequence[str], *, base: int, runs: int, seeds_max: int) -> Iterator[Power]:
    """The named mutations one after another, or all of them."""
    for mutation in MUTATIONS:
        if not names or mutation.name in names:
            yield measure(mutation, base=base, runs=runs, seeds_max=seeds_max)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("names", nargs="*", metavar="MUTATION", help="which; all if none is named")
    parser.add_argument("--seeds", type=int, default=SEEDS_MAX, help="seeds tried in each run")
    parser.add_argument("--runs", type=int, default=RUNS, help="independent runs of each")
    parser.add_argument("--base", type=int, default=BASE, help="the first seed of the first run")
    parser.add_argument("--json", action="store_true", help="one JSON object in the last line")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns 1 if a mutation survived a run."""
    parser = argparse.ArgumentParser(
        prog="sim mutations", description="Count the seeds until each planted fault is seen."
    )
    add_arguments(parser)
    return command(parser.parse_args(arguments))


def command(options: argparse.Namespace) -> int:
    """The command with its options read."""
    unknown = set(options.names) - {mutation.name for mutation in MUTATIONS}
    if unknown:
        sys.stderr.write(f"no such mutation: {', '.join(sorted(unknown))}\n")
        return 2
    rows: list[Power] = []
    for row in measured(
        options.names, base=options.base, runs=options.runs, seeds_max=options.seeds
    ):
        rows.append(row)
        sys.stderr.write(f"{row.mutation:<18} {row.seeds} {' '.join(row.invariants)}\n")
    survived = [row.mutation for row in rows if row.worst is None]
    if options.json:
        found = [{**asdict(row), "median": row.median, "worst": row.worst} for row in rows]
        result = {"schema": "meshd.sim.mutations/1", "base": options.base, "mutations": found}
        sys.stdout.write(json.dumps({**result, "survived": survived}) + "\n")
    else:
        sys.stdout.write(table(rows) + "\n")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
