"""All commands of the simulator in one table, and the small ones themselves."""

from pathlib import Path
from typing import Any

import click

from sim.commands.experiment import experiment_command
from sim.commands.options import (
    FAILED,
    OK,
    emit,
    emit_json,
    examples,
    json_option,
    note,
)
from sim.commands.power import mutations_command
from sim.commands.run import replay_command, run_command
from sim.commands.sweep import sweep_command


@click.command(
    "list",
    short_help="Name the scenarios.",
    epilog=examples("meshd sim list", "meshd sim list --json"),
)
@json_option
def list_command(*, as_json: bool) -> int:
    """Name the scenarios, with the size and the time that they usually have."""
    from sim.plan import number
    from sim.scenarios import SCENARIOS

    if as_json:
        rows = {
            each.name: {"text": each.text, "nodes": each.nodes, "duration_s": each.duration_s}
            for each in SCENARIOS.values()
        }
        emit_json({"schema": "meshd.sim.scenarios/1", "scenarios": rows})
        return OK
    wide = max(map(len, SCENARIOS))
    emit([f"{'SCENARIO':<{wide}}  {'NODES':>5}  {'TIME':>5}  WHAT HAPPENS"])
    for each in SCENARIOS.values():
        nodes = str(each.nodes or "any")
        time = f"{number(each.duration_s)}s"
        emit([f"{each.name:<{wide}}  {nodes:>5}  {time:>5}  {each.text}"])
    return OK


@click.command(
    "plot",
    short_help="Draw a recorded run.",
    epilog=examples("meshd sim run split --out split-20", "meshd sim plot split-20"),
)
@click.argument("directory", metavar="DIR", type=click.Path())
@json_option
def plot_command(directory: str, *, as_json: bool) -> int:
    """Draw the run that was recorded in DIR, as PNG and SVG, into the same directory.

    How the views converge, how soon crashes are found, and what each side of a cut believes.
    """
    from sim.plots import plot

    paths = plot(Path(directory))
    if as_json:
        files = [str(path) for path in paths]
        emit_json({"schema": "meshd.sim.plots/1", "directory": directory, "files": files})
    else:
        emit(str(path) for path in paths)
    return OK


@click.command(
    "bench",
    short_help="Measure how fast the simulator is.",
    epilog=examples(
        "meshd sim bench", "meshd sim bench crash_1000 --json", "meshd sim bench --large"
    ),
)
@click.argument("rows", metavar="[ROW]...", nargs=-1)
@click.option("--large", is_flag=True, help="The rows that take minutes, too.")
@json_option
def bench_command(rows: tuple[str, ...], *, large: bool, as_json: bool) -> int:
    """Measure CPU seconds and memory on this machine, against what is promised.

    Exit code 1 if a promise is not kept.
    """
    from sim.bench import ROWS, measured

    known = {row.name: row for row in ROWS}
    for name in rows:
        if name not in known:
            raise click.BadParameter(
                f"there is no row {name!r}; there are {', '.join(known)}", param_hint="'ROW'"
            )
    chosen = tuple(known[name] for name in rows) or ROWS
    found: list[dict[str, Any]] = []
    kept = True
    for result in measured(chosen, large=large or bool(rows)):
        found.append(result.as_json())
        kept = kept and result.within
        if as_json:
            note(result.as_text())
        else:
            emit([result.as_text()])
    if as_json:
        emit_json({"schema": "meshd.sim.bench/1", "rows": found, "kept": kept})
    return OK if kept else FAILED


COMMANDS: dict[str, click.Command] = {
    "list": list_command,
    "run": run_command,
    "sweep": sweep_command,
    "replay": replay_command,
    "plot": plot_command,
    "bench": bench_command,
    "mutations": mutations_command,
    "experiment": experiment_command,
}
"""By name, in the order of the help."""
