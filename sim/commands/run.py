"""`run` and `replay`: one plan, told in full."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meshd.errors import UsageError
from sim.commands.options import (
    FAILED,
    OK,
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

if TYPE_CHECKING:
    from sim.plan import Plan
    from sim.recording import Difference, Recorded, Recorder
    from sim.report import Shrunk
    from sim.runner import Judge, Observe, Result

RECORD = "Write plan, result, recorded trace, series and plots into this new directory."


def faults_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """--faults 2,5."""
    return click.option(
        "--faults",
        "kept",
        metavar="NUMBERS",
        callback=_numbers,
        help="Of the plan's faults only these, as 2,5 (or none): what a shrunk plan is left with.",
    )(function)


def _numbers(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    del context, parameter
    if value is None:
        return None
    if value == "none":
        return ()
    words = [word.strip() for word in value.split(",")]
    if not all(word.isascii() and word.isdigit() and len(word) < 9 for word in words):
        raise click.BadParameter(f"{value!r} is no list of numbers; write 2,5 or none")
    return tuple(sorted({int(word) for word in words}))


@click.command(
    "run",
    short_help="Run a scenario once.",
    epilog=examples(
        "meshd sim run crash --nodes 100 --loss 0.01",
        "meshd sim run split --nodes 20 --out split-20",
        "meshd sim run my-network.toml --seed 7 --json",
    ),
)
@scenario_argument()
@plan_options
@faults_option
@click.option("--no-shrink", is_flag=True, help="If it fails, show its plan as it is.")
@out_option(RECORD)
@json_option
def run_command(
    scenario: str,
    kept: tuple[int, ...] | None,
    out: str | None,
    *,
    no_shrink: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Run SCENARIO once and say how it went: a name of `meshd sim list`, or a TOML file's path.

    All that happens follows from the seed. If an invariant breaks, the run ends there, its plan is
    shrunk to the faults that matter, and the command that shows it again is printed. Exit code 1.
    """
    chosen = Chosen(scenario, **options)
    if out is not None:
        _prepare(Path(out))
    return tell(finish(chosen, kept=kept, out=out, shrinks=not no_shrink), as_json=as_json)


@click.command(
    "replay",
    short_help="Run a scenario or a recorded run again.",
    epilog=examples(
        "meshd sim replay churn --seed 9 --nodes 30",
        "meshd sim replay split-20                 # the directory of a recorded run",
        "meshd sim replay split-20/shrunk.toml",
    ),
)
@scenario_argument()
@plan_options
@faults_option
@out_option(RECORD)
@json_option
def replay_command(
    scenario: str,
    kept: tuple[int, ...] | None,
    out: str | None,
    *,
    as_json: bool,
    **options: Any,
) -> int:
    """Run SCENARIO again: a name, a TOML file, a recorded trace, or the directory of a run.

    A recorded trace is compared checkpoint by checkpoint: it comes out the same, or you hear where
    it first differs. Exit code 1 if it differs, or if an invariant breaks.
    """
    from sim.scenarios import SCENARIOS

    if scenario in SCENARIOS or scenario.endswith(".toml") or not Path(scenario).exists():
        if out is not None:
            _prepare(Path(out))
        return tell(
            finish(Chosen(scenario, **options), kept=kept, out=out, shrinks=False), as_json=as_json
        )
    given = [name for name, value in options.items() if value is not None]
    if given or kept is not None:
        name = given[0].removesuffix("_s") if given else "faults"
        raise UsageError(
            f"--{name} does not go with a recorded run, which has its own plan",
            hint=f"to change it, run its plan: meshd sim run {scenario}/plan.toml --{name} ...",
        )
    return _replay_recorded(Path(scenario), out=out, as_json=as_json)


@dataclass(frozen=True, slots=True)
class Finished:
    """A run with all that is told of it."""

    result: "Result"
    command: str
    shrunk: "Shrunk | None"
    document: dict[str, Any]
    out: str | None

    @property
    def code(self) -> int:
        """The exit code."""
        return FAILED if self.result.failed else OK


def finish(
    chosen: Chosen,
    *,
    seed: int | None = None,
    kept: tuple[int, ...] | None = None,
    out: str | None = None,
    shrinks: bool = True,
) -> Finished:
    """Run one plan; shrink it if it fails; record it in the directory `out`, which is prepared."""
    whole = plan = chosen.plan(seed)
    if kept is not None:
        plan = _only(plan, kept)
    progress = Progress(f"{plan.scenario} seed {plan.seed}")
    result, recorder = _watched(plan, progress, records=out is not None)
    command = chosen.command(plan, kept)
    shrunk = None
    if shrinks and result.failed and plan.faults:
        shrunk = _shrunk(chosen, whole, result, progress)
    progress.clear()
    finished = Finished(result, command, shrunk, _document(result, command, shrunk), out)
    if recorder is not None:
        _save(finished, recorder)
    return finished


def _only(plan: "Plan", kept: tuple[int, ...]) -> "Plan":
    wrong = [number for number in kept if not 1 <= number <= len(plan.faults)]
    if wrong:
        count = len(plan.faults)
        hint = f"they are numbered 1 to {count}" if count else "it has none"
        raise UsageError(f"the plan has no fault {wrong[0]}", hint=hint)
    return replace(plan, faults=tuple(plan.faults[number - 1] for number in kept))


def _prepare(directory: Path) -> None:
    from sim.recording import prepare

    prepare(directory)


def _watched(
    plan: "Plan", progress: Progress, *, records: bool
) -> "tuple[Result, Recorder | None]":
    from sim.recording import Recorder
    from sim.runner import run

    recorder = Recorder(plan) if records else None
    return run(plan, _observer(progress, recorder)), recorder


def _observer(progress: Progress, recorder: "Recorder | None") -> "Observe":
    from sim.world import START_S

    def observe(judge: "Judge") -> None:
        world = judge.world
        ran_s, planned_s = world.now - START_S, judge.planned_end_at - START_S
        state = "" if ran_s < planned_s else ", settling"
        text = f"{ran_s:.0f} of {planned_s:.0f} s, {world.trace.events:,} events{state}"
        progress.show(ran_s, planned_s, text)
        if recorder is not None:
            recorder.observe(judge)

    return observe


def _shrunk(chosen: Chosen, whole: "Plan", result: "Result", progress: Progress) -> "Shrunk | None":
    """The failed plan without what does not matter; None if that was interrupted."""
    from sim.report import Shrunk
    from sim.runner import SHRINK_RUNS_MAX, shrink

    def on_try(runs: int, faults: int) -> None:
        text = f"shrinking the failed plan: run {runs + 1}, {faults} faults left"
        progress.show(runs, SHRINK_RUNS_MAX, text)

    try:
        small = shrink(result, on_try)
    except KeyboardInterrupt:
        progress.clear()
        note("interrupted: the plan is not shrunk")
        return None
    numbers = _kept(whole, small.plan)
    command = chosen.command(small.plan, numbers)
    return Shrunk(small, numbers, command)


def _kept(whole: "Plan", small: "Plan") -> tuple[int, ...] | None:
    """Which faults of the whole plan are left, by their number; None if more than that differs."""
    if replace(small, faults=()) != replace(whole, faults=()):
        return None
    numbers: list[int] = []
    for number, fault in enumerate(whole.faults, start=1):
        if len(numbers) < len(small.faults) and small.faults[len(numbers)] == fault:
            numbers.append(number)
    return tuple(numbers) if len(numbers) == len(small.faults) else None


def _document(result: "Result", command: str, shrunk: "Shrunk | None") -> dict[str, Any]:
    from sim.report import as_json

    return as_json(result, command, shrunk)


def _save(run: Finished, recorder: "Recorder") -> None:
    """Write all of a run into its directory, with plots where they can be drawn."""
    from sim.recording import save
    from sim.report import as_text

    if run.out is None:
        return
    directory = Path(run.out)
    summary = as_text(run.result, run.command, run.shrunk)
    small = None if run.shrunk is None else run.shrunk.result.plan
    save(directory, run.result, recorder, document=run.document, summary=summary, shrunk=small)
    try:
        from sim.plots import plot

        plot(directory)
    except UsageError as error:
        note(f"no plots: {error.message}; {error.hint}")


def tell(run: Finished, *, as_json: bool) -> int:
    """Print all about a run; returns the exit code."""
    from sim.recording import SHRUNK_FILE
    from sim.report import as_text

    if as_json:
        emit_json(run.document if run.out is None else {**run.document, "out": run.out})
        return run.code
    emit([as_text(run.result, run.command, run.shrunk, paint)])
    if run.shrunk is not None and run.shrunk.kept is None and run.out is None:
        note("the shrunk plan is no part of the whole one: to get it, run again with --out DIR")
    if run.out is not None:
        emit([f"recorded in {run.out}; again: meshd sim replay {shlex.quote(run.out)}"])
        if run.shrunk is not None:
            emit([f"shrunk plan: {Path(run.out) / SHRUNK_FILE}"])
    return run.code


def _replay_recorded(path: Path, *, out: str | None, as_json: bool) -> int:
    from sim.recording import Recorder as NewRecorder
    from sim.recording import difference, read_recorded
    from sim.runner import run

    recorded = read_recorded(path)
    if out is not None:
        _prepare(Path(out))
    progress = Progress(f"{recorded.plan.scenario} seed {recorded.plan.seed}")
    recorder = NewRecorder(recorded.plan)
    result = run(recorded.plan, _observer(progress, recorder))
    progress.clear()
    differs = difference(recorded, recorder, result)
    command = f"meshd sim replay {shlex.quote(str(path))}"
    document = _document(result, command, None)
    document["recorded"] = _compared(recorded, differs)
    finished = Finished(result, command, None, document, out)
    _save(finished, recorder)
    code = tell(finished, as_json=as_json)
    if not as_json:
        emit([_comparison(recorded, differs)])
    return code if differs is None else FAILED


def _compared(recorded: "Recorded", differs: "Difference | None") -> dict[str, Any]:
    return {
        "digest": recorded.digest,
        "meshd": recorded.meshd,
        "checkpoints": len(recorded.checkpoints),
        "same": differs is None,
        "differs": None
        if differs is None
        else {
            "checkpoint": differs.checkpoint,
            "after_events": differs.after_events,
            "after_s": differs.after_s,
            "until_s": differs.until_s,
        },
    }


def _comparison(recorded: "Recorded", differs: "Difference | None") -> str:
    if differs is None:
        count = len(recorded.checkpoints) + 1
        same = paint("the same as recorded", "green")
        return f"{same}: {count} of {count} digests agree, the last is {recorded.digest}"
    until = "the end" if differs.until_s is None else f"{differs.until_s:.3f} s"
    return (
        f"{paint('DIFFERS', 'red')} from what meshd {recorded.meshd} recorded: first at checkpoint "
        f"{differs.checkpoint}, between {differs.after_s:.3f} s (event {differs.after_events:,}) "
        f"and {until}"
    )
