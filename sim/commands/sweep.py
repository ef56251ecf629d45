"""`sweep`: many seeds, and the first one that fails."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sim.commands.options import (
    FAILED,
    INTERRUPTED,
    OK,
    SEED_MAX,
    Chosen,
    Progress,
    emit,
    emit_json,
    examples,
    json_option,
    note,
    out_option,
    paint,
    plan_options,
    scenario_argument,
)
from sim.commands.run import Finished, finish, tell

if TYPE_CHECKING:
    from sim.plan import Plan
    from sim.sweep import Outcome

DEFAULT_SEEDS = 100
SEEDS_MAX = 10_000_000
JOBS_MAX = 256
FAILED_MAX = 1_000
"""So many failed seeds are named in the JSON object; the others are counted."""
NAMED_MAX = 10


@click.command(
    "sweep",
    short_help="Run a scenario with many seeds.",
    epilog=examples(
        "meshd sim sweep --seeds 1000 --jobs 2",
        "meshd sim sweep churn --nodes 30 --loss 0.03 --fail-fast",
        "meshd sim sweep my-network.toml --seeds 200 --json",
    ),
)
@scenario_argument(metavar="[SCENARIO]", default="swarm")
@click.option(
    "--seeds",
    "count",
    type=click.IntRange(1, SEEDS_MAX),
    default=DEFAULT_SEEDS,
    metavar="N",
    help=f"How many seeds, from --seed on (default {DEFAULT_SEEDS}).",
)
@click.option(
    "--jobs",
    type=click.IntRange(1, JOBS_MAX),
    default=1,
    metavar="N",
    help="How many processes at a time (default 1). The results do not depend on it.",
)
@click.option("-x", "--fail-fast", is_flag=True, help="End with the first seed that fails.")
@plan_options
@out_option("Record the lowest seed that fails in this new directory.")
@json_option
def sweep_command(
    scenario: str,
    count: int,
    jobs: int,
    out: str | None,
    *,
    fail_fast: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Run SCENARIO (default: swarm, drawn from the seed) with many seeds.

    The lowest seed that fails is shrunk and told in full, with the command that replays it. Exit
    code 1 if any failed. Ctrl-C ends it early with what is known so far.
    """
    chosen = Chosen(scenario, **options)
    first = _first_seed(chosen)
    if first + count - 1 > SEED_MAX:
        raise click.BadParameter(f"the last seed would be above {SEED_MAX}", param_hint="--seed")
    if out is not None:
        from sim.recording import prepare

        prepare(Path(out))
    tally = Tally(chosen.scenario, first, count)
    _go_through(chosen, tally, jobs=jobs, ends_early=fail_fast)
    code = INTERRUPTED if tally.interrupted else FAILED if tally.failed else OK
    first_failure = None
    if not as_json:
        emit(tally.lines())
    if tally.lowest is not None and not tally.interrupted:
        first_failure = finish(chosen, seed=tally.lowest.seed, out=out)
    elif out is not None:
        Path(out).rmdir()  # there is nothing to record
    if as_json:
        emit_json(tally.document(_replay(chosen, tally), first_failure))
    elif first_failure is not None:
        emit(["", "the lowest seed that failed:"])
        tell(first_failure, as_json=False)
    elif tally.lowest is not None:
        emit([f"replay: {_replay(chosen, tally)}"])
    return code


def _replay(chosen: Chosen, tally: "Tally") -> str | None:
    if tally.lowest is None:
        return None
    return chosen.command(chosen.plan(tally.lowest.seed))


def _first_seed(chosen: Chosen) -> int:
    """The lowest seed; making its plan also tells of all that is wrong with the options."""
    plan = chosen.plan()
    return plan.seed


@dataclass
class Tally:
    """What a sweep has found so far."""

    scenario: str
    first: int
    wanted: int
    done: int = 0
    failed: int = 0
    events: int = 0
    named: list["Outcome"] = field(default_factory=list)
    interrupted: bool = False
    began: float = field(default_factory=time.monotonic)
    took_s: float = 0.0
    _hash: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=16))

    def add(self, outcome: "Outcome") -> None:
        """Count one seed more."""
        self.done += 1
        self.events += outcome.events
        self._hash.update(outcome.digest.encode())
        if outcome.violation:
            self.failed += 1
            if len(self.named) < FAILED_MAX:
                self.named.append(outcome)

    @property
    def lowest(self) -> "Outcome | None":
        """The lowest seed that failed: outcomes come in the order of seeds."""
        return self.named[0] if self.named else None

    def lines(self) -> list[str]:
        """For people."""
        early = f", interrupted after {self.done} of {self.wanted}" if self.interrupted else ""
        failed = paint(f"{self.failed} failed", "red" if self.failed else "green")
        rate = self.done / self.took_s if self.took_s else 0.0
        lines = [f"{self.scenario}: {self.done} seeds, {failed}, {rate:.1f} seeds/s{early}"]
        lines += [f"  seed {each.seed}: {each.violation}" for each in self.named[:NAMED_MAX]]
        if self.failed > NAMED_MAX:
            lines.append(f"  ... and {self.failed - NAMED_MAX} more")
        return lines

    def document(self, replay: str | None, first: Finished | None) -> dict[str, Any]:
        """For programs: `seed` is the first one, `digest` that of all runs' digests in order."""
        rate = self.done / self.took_s if self.took_s else 0.0
        return {
            "schema": "meshd.sim.sweep/1",
            "scenario": self.scenario,
            "seed": self.first,
            "seeds": self.done,
            "digest": self._hash.hexdigest(),
            "violations": [
                {"seed": each.seed, "invariant": each.invariant, "text": each.violation}
                for each in self.named
            ],
            "metrics": {
                "failed": self.failed,
                "events": self.events,
                "wall_s": round(self.took_s, 2),
                "seeds_per_s": round(rate, 2),
            },
            "interrupted": self.interrupted,
            "replay": replay,
            "first_failure": None if first is None else first.document,
        }


def _go_through(chosen: Chosen, tally: Tally, *, jobs: int, ends_early: bool) -> None:
    from sim.sweep import outcomes

    progress = Progress(f"{tally.scenario} sweep")
    made = outcomes(_plans(chosen, tally), jobs=jobs)
    try:
        with closing(made):
            for outcome in made:
                tally.add(outcome)
                if outcome.violation and tally.failed <= NAMED_MAX:
                    progress.clear()
                    note(f"seed {outcome.seed} failed: {outcome.violation}")
                if outcome.violation and ends_early:
                    break
                text = f"{tally.done}/{tally.wanted} seeds, {tally.failed} failed"
                progress.show(tally.done, tally.wanted, text)
    except KeyboardInterrupt:
        tally.interrupted = True
    progress.clear()
    tally.took_s = time.monotonic() - tally.began


def _plans(chosen: Chosen, tally: Tally) -> Iterator["Plan"]:
    first = chosen.plan()
    for seed in range(tally.first, tally.first + tally.wanted):
        yield replace(first, seed=seed) if chosen.is_file else chosen.plan(seed)
