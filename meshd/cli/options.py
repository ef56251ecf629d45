"""Options that several commands share."""

import functools
import re
from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

from meshd.cli.session import Session
from meshd.errors import MeshError

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]

WATCH_INTERVAL_S = 2.0
WATCH_INTERVAL_S_MIN = 0.1
COMPLETION_TIMEOUT_S = 0.5
DURATION_MAX_S = 86_400.0
"""A day: what the daemon takes as the deadline of a call."""


def _remember(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    if value is not None and parameter.name is not None:
        setattr(context.ensure_object(Session), parameter.name.removeprefix("global_"), value)
    return value


def examples(*lines: str) -> str:
    """The end of a command's help: commands to copy, set as they are."""
    return "\b\n" + "\n".join(["Examples:", *(f"  {line}" for line in lines)])


def connection_options(*, hidden: bool) -> Decorator:
    """--node, --mesh, --socket, --color: shown at the top, understood after a command as well."""

    def add(function: Command) -> Command:
        variable = None if hidden else "MESHD_"
        choices: list[tuple[str, Any, str]] = [
            ("node", None, "Talk to the daemon of this name (several may run on one machine)."),
            ("mesh", None, "Talk to the daemon of this mesh."),
            ("socket", None, "Talk to the daemon on this control socket."),
            ("color", click.Choice(["auto", "always", "never"]), "When to use colour."),
        ]
        for name, kind, text in reversed(choices):
            function = click.option(
                f"--{name}",
                f"global_{name}",  # a name of its own: some commands have an argument `node`
                type=kind,
                metavar=None if name == "color" else name.upper() if name != "socket" else "PATH",
                help=text,
                hidden=hidden,
                expose_value=False,
                callback=_remember,
                envvar=f"{variable}{name.upper()}" if variable else None,
            )(function)
        return function

    return add


def json_option(function: Command) -> Command:
    """--json, as the argument `as_json`."""
    option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
    return option(function)


def list_options(*formats: str) -> Decorator:
    """-o, --json and -q of commands that print a list, as one argument `output` (None: not given).

    `formats` are what -o takes; `name` prints one name or id a line.
    """

    def add(function: Command) -> Command:
        @functools.wraps(function)
        def chosen(
            *arguments: Any, output: str | None, as_json: bool, ids_only: bool, **named: Any
        ) -> Any:
            output = "json" if as_json else "id" if ids_only else output
            return function(*arguments, output=output, **named)

        options = [
            click.option("-o", "--output", type=click.Choice(formats), help="How to print it."),
            click.option("--json", "as_json", is_flag=True, help="The same as -o json."),
            click.option("-q", "--quiet", "ids_only", is_flag=True, help="Print ids only."),
        ]
        wrapped: Command = chosen
        for option in reversed(options):
            wrapped = option(wrapped)
        return wrapped

    return add


def watch_options(function: Command) -> Command:
    """-w [SECS] and --count N, as the arguments `watch` and `count`."""
    function = click.option(
        "--count", type=click.IntRange(min=1), help="With --watch: end after N screens."
    )(function)
    return click.option(
        "-w",
        "--watch",
        type=click.FloatRange(min=WATCH_INTERVAL_S_MIN),
        is_flag=False,
        flag_value=WATCH_INTERVAL_S,
        metavar="[SECS]",
        help=f"Show it again every SECS ({WATCH_INTERVAL_S:g}); one JSON document a line if piped.",
    )(function)


def duration(text: str) -> float:
    """Seconds of `5`, `5s`, `500ms`, `2m` or `1h`; above 0, at most a day.

    Raises:
        BadParameter: it is none of these.
    """
    seconds = duration_or_zero(text)
    if not 0 < seconds <= DURATION_MAX_S:
        raise click.BadParameter(f"{text!r} must be above 0 and at most {DURATION_MAX_S:g}s")
    return seconds


def duration_or_zero(text: str) -> float:
    """As `duration`, and 0 is allowed."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise click.BadParameter(f"{text!r} is not a duration; write 5s, 500ms, 2m or 1h")
    return float(found[1]) * _UNIT_S[found[2] or "s"]


_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h)?")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def complete_nodes(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of nodes that the running daemon knows."""
    del parameter
    nodes = _ask(context, "peers").get("nodes", [])
    return _items([(str(n.get("name", "")), str(n.get("state", ""))) for n in nodes], incomplete)


def complete_capabilities(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of capabilities that the running daemon knows."""
    del parameter
    known = _ask(context, "capabilities").get("capabilities", [])
    items = [(str(c.get("name", "")), str(c.get("description", ""))) for c in known]
    return _items(items, incomplete)


def _items(found: list[tuple[str, str]], incomplete: str) -> list[CompletionItem]:
    return [
        CompletionItem(name, help=text)
        for name, text in found
        if name.startswith(incomplete) and name.isprintable()
    ]


def _ask(context: click.Context, method: str) -> dict[str, Any]:
    session = context.ensure_object(Session)
    try:
        result = session.call(method, timeout_s=COMPLETION_TIMEOUT_S)
    except (MeshError, OSError):
        return {}
    return result if isinstance(result, dict) else {}
