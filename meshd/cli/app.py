"""The root command: global options, lazy subcommands, and the one place where errors are told."""

import importlib
import sys
import traceback
from collections.abc import Sequence

import click

from meshd.cli.failure import USAGE, Exit, Report, report_json, report_of, report_text
from meshd.cli.options import connection_options
from meshd.cli.output import escape
from meshd.cli.session import Session
from meshd.version import __version__

SECTIONS: dict[str, dict[str, str]] = {
    "This node": {
        "start": "Run the daemon in the foreground.",
        "stop": "Leave the mesh and stop the daemon.",
        "status": "Show the health of the local node.",
        "reload": "Read capabilities and policies again.",
        "join": "Join the mesh of other nodes.",
        "leave": "Leave the mesh; the daemon stays up.",
    },
    "The mesh": {
        "peers": "List the nodes of the mesh.",
        "info": "Show everything known of one node.",
        "ping": "Measure the way to a node.",
        "events": "Show what has happened in the mesh; follow it.",
        "event": "Tell all nodes of the mesh.",
        "query": "Ask all nodes and gather their answers.",
        "doctor": "Look for what is wrong, and say how to fix it.",
    },
    "Work": {
        "capabilities": "List what the mesh can do (alias: caps).",
        "discover": "Find capabilities that fit a description.",
        "call": "Run a capability and print its result.",
        "delegate": "Hand work to the best peer and print the whole answer.",
        "task": "Look after work that was handed in.",
        "trace": "Show where calls were sent, and why.",
    },
    "Set-up": {
        "config": "Show and check the configuration.",
        "completion": "Complete commands in your shell.",
        "sim": "Run the protocol in a simulated network.",
    },
}
ALIASES = {"caps": "capabilities"}


class LazyGroup(click.Group):
    """A group that imports a command's file when that command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the sections."""
        del ctx
        return [name for section in SECTIONS.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name or alias, imported now."""
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in self.list_commands(ctx):
            return None
        command = importlib.import_module(f"meshd.cli.{name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, with a suggestion for what is spelt nearly right."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            import difflib

            near = difflib.get_close_matches(name, [*self.list_commands(ctx), *ALIASES], n=1)
            suggestion = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"No such command {escape(name)!r}.{suggestion}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections of the help; imports no command."""
        del ctx
        for title, section in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(list(section.items()))


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start here:  meshd start  ·  then, in another terminal:  meshd peers",
)
@connection_options(hidden=False)
@click.option("-v", "--verbose", count=True, help="Say more; show where an internal error arose.")
@click.option("-q", "--quiet", is_flag=True, help="No notes on stderr; errors remain.")
@click.version_option(__version__, prog_name="meshd", message="%(prog)s %(version)s")
@click.pass_context
def root(context: click.Context, verbose: int, quiet: bool) -> None:
    """A pure peer-to-peer gossip daemon: machines find each other and share work."""
    session = context.ensure_object(Session)
    session.verbosity = -1 if quiet else verbose


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return the exit code."""
    arguments = list(arguments)
    session = Session()
    _tolerate_any_text()
    try:
        result = root.main(arguments, prog_name="meshd", standalone_mode=False, obj=session)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return Exit.USAGE
    except click.Abort:
        return Exit.INTERRUPTED
    except click.ClickException as error:
        return _fail(_usage_report(error, arguments), session, arguments)
    except Exception as error:  # noqa: BLE001 - the outermost border: every error is told the same way
        if session.verbosity > 0:
            traceback.print_exc()
        return _fail(report_of(error), session, arguments)
    return result if isinstance(result, int) else Exit.OK


def _tolerate_any_text() -> None:
    """Let a terminal that lacks a character show an escape instead of a traceback."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _usage_report(error: click.ClickException, arguments: Sequence[str]) -> Report:
    context = getattr(error, "ctx", None)
    known = {name for section in SECTIONS.values() for name in section} | ALIASES.keys()
    # click's parser does not say in which command an option lacks its value
    named = next((f"meshd {a}" for a in arguments if a in known), "meshd")
    hint = f"see: {named if context is None else context.command_path} --help"
    if isinstance(error, click.FileError):
        return Report(error.format_message(), "", "MESHD-E001", Exit.FAILED)
    return Report(error.format_message(), hint, USAGE, Exit.USAGE)


def _fail(report: Report, session: Session, arguments: Sequence[str]) -> int:
    if wants_json(arguments):
        click.echo(report_json(report), err=True, color=True)
    else:
        click.echo(report_text(report, session.palette(sys.stderr)), err=True, color=True)
    return report.exit


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether errors go out as JSON: asked of the raw arguments, since parsing itself may fail."""
    for i, argument in enumerate(arguments):
        if argument == "--":
            break
        if argument in _JSON_FLAGS:
            return True
        if argument in {"-o", "--output"} and arguments[i + 1 : i + 2] in (["json"], ["jsonl"]):
            return True
    return False


_JSON_FLAGS = frozenset({"--json", "--output=json", "--output=jsonl", "-ojson", "-ojsonl"})
