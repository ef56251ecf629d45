"""`meshd sim`: the simulator, which is found by name and only when it is asked for."""

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

import meshd
from meshd.cli.app import LazyGroup
from meshd.cli.options import connection_options, examples
from meshd.cli.session import discard_stdout
from meshd.errors import UsageError

PACKAGE = "sim"


class Simulator(LazyGroup):
    """A group whose commands are the simulator's own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, in the order of the help."""
        del ctx
        return list(commands())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, which takes the global options as well."""
        del ctx
        found = commands().get(cmd_name)
        if found is not None and not any(each.name == "global_color" for each in found.params):
            connection_options(hidden=True)(found)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one list: there are no sections."""
        click.Group.format_commands(self, ctx, formatter)

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; a reader who has seen enough ends the program quietly."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            discard_stdout()
            raise click.exceptions.Exit(0) from None


def commands() -> Mapping[str, click.Command]:
    """The simulator's commands by name.

    Raises:
        UsageError: it is not installed, or another package has its name.
    """
    ours = Path(meshd.__file__).resolve().parent.parent
    spec = importlib.util.find_spec(PACKAGE)
    hint = "install meshd again from its checkout: pip install ."
    if spec is None:
        raise UsageError("the simulator is not installed beside meshd", hint=hint)
    places = [Path(place).resolve() for place in spec.submodule_search_locations or ()]
    if ours / PACKAGE not in places:
        found = places[0] if places else spec.origin
        raise UsageError(
            f"the package {PACKAGE!r} that Python finds first is not meshd's: {found}",
            hint="run it from another directory, or without that place in PYTHONPATH",
        )
    known = importlib.import_module(f"{PACKAGE}.commands.table").COMMANDS
    assert isinstance(known, dict)
    return known


@click.group(
    "sim",
    cls=Simulator,
    short_help="Run the protocol in a simulated network.",
    epilog=examples(
        "meshd sim list",
        "meshd sim run split --nodes 20 --out split-20",
        "meshd sim sweep --seeds 1000 --jobs 2",
    ),
)
@connection_options(hidden=True)
def command() -> None:
    """Run meshd's own protocol in a simulated network, under a virtual clock, from a seed.

    No daemon is needed, and no packet leaves this process. See docs/SIMULATOR.md.
    """
