"""`meshd sim experiment`: one of the experiments, or the list of them."""

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meshd.errors import UsageError
from sim.commands.options import FAILED, OK, Progress, emit, emit_json, examples, json_option

if TYPE_CHECKING:
    from sim.experiments import Experiment

SEEDS_MAX = 100_000
JOBS_MAX = 256


@click.command(
    "experiment",
    short_help="Reproduce what others have published.",
    epilog=examples(
        "meshd sim experiment",
        "meshd sim experiment dissemination",
        "meshd sim experiment lifeguard --quick --json",
        "meshd sim experiment grid --jobs 2 --out grid.jsonl",
    ),
)
@click.argument("name", required=False, metavar="[NAME]")
@click.option("--quick", is_flag=True, help="Small: shows that it works, and no more.")
@click.option(
    "--seeds", type=click.IntRange(1, SEEDS_MAX), metavar="N", help="How many runs each cell gets."
)
@click.option(
    "--jobs",
    type=click.IntRange(1, JOBS_MAX),
    default=1,
    metavar="N",
    help="How many processes at a time (default 1). The results do not depend on it.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Keep each run's result in this file; what is there is not run again.",
)
@json_option
def experiment_command(
    name: str | None,
    seeds: int | None,
    jobs: int,
    out: Path | None,
    *,
    quick: bool,
    as_json: bool,
) -> int:
    """Run the experiment NAME, and say how its figures compare; without NAME, list them.

    Exit code 1 if a target was missed. A run of hours that may be cut off wants --out: the same
    command goes on from there. A changed program wants another file.
    """
    from sim.experiments import Options

    if name is None:
        if quick or seeds is not None or jobs != 1 or out is not None:
            raise click.BadParameter("name the experiment to run", param_hint="'NAME'")
        _list(as_json=as_json)
        return OK
    experiment = _named(name)
    progress = Progress(name)

    def tell(done: int, total: int) -> None:
        progress.show(done, total, f"{done}/{total} runs")

    outcome = experiment.run(Options(quick=quick, seeds=seeds, jobs=jobs, kept=out), tell)
    progress.clear()
    if as_json:
        emit_json(outcome.as_json())
    else:
        emit(outcome.as_text().splitlines())
    return OK if outcome.ok else FAILED


def _list(*, as_json: bool) -> None:
    from sim.experiments import EXPERIMENTS

    if as_json:
        texts = {each.name: {"text": each.text} for each in EXPERIMENTS.values()}
        emit_json({"schema": "meshd.sim.experiments/1", "experiments": texts})
        return
    wide = max(map(len, EXPERIMENTS))
    emit(f"{each.name:<{wide}}  {each.text}" for each in EXPERIMENTS.values())


def _named(name: str) -> "Experiment":
    from sim.experiments import EXPERIMENTS

    found = EXPERIMENTS.get(name)
    if found is None:
        near = get_close_matches(name, EXPERIMENTS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(
            f"there is no experiment {name!r}", hint=hint + "all of them: meshd sim experiment"
        )
    return found
