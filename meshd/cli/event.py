"""`meshd event`: tell all nodes of the mesh."""

import base64
import sys
from pathlib import Path

import click

from meshd.cli.options import connection_options, examples, json_option
from meshd.cli.output import escape, plural
from meshd.cli.session import Session, current, emit_json, with_schema
from meshd.errors import UsageError

PAYLOAD_BYTES_READ_MAX = 65_536
"""More than any daemon takes: only keeps an endless stdin from filling the memory."""


@click.command(
    "event",
    short_help="Tell all nodes of the mesh.",
    epilog=examples(
        "meshd event deploy v2.1",
        "meshd event config @settings.json --coalesce",
        "date | meshd event tick -",
    ),
)
@click.argument("name")
@click.argument("payload", metavar="[PAYLOAD|@FILE|-]", default="")
@click.option(
    "--coalesce", is_flag=True, help="Nodes may leave out all but the newest of NAME in a second."
)
@json_option
@connection_options(hidden=True)
@current
def command(session: Session, *, name: str, payload: str, coalesce: bool, as_json: bool) -> None:
    """Tell every node NAME and up to 400 bytes of PAYLOAD. Programs there may listen.

    It spreads like a rumour: fast, to all who can be reached, each hears it once, nobody confirms.
    See them with meshd events --type event.
    """
    params = {"name": name, **payload_params(payload), "coalesce": coalesce}
    result = session.call("event", params)
    if as_json:
        emit_json(with_schema("meshd.event/1", result))
    else:
        session.note(f"told {escape(name)} with {plural(result['bytes'], 'byte')}")


def payload_params(payload: str) -> dict[str, str]:
    """The payload of the command line, a file (`@FILE`) or stdin (`-`) as the daemon takes it.

    Raises:
        UsageError: the file cannot be read.
    """
    if payload == "-":
        data = sys.stdin.buffer.read(PAYLOAD_BYTES_READ_MAX)
    elif payload.startswith("@"):
        try:
            with Path(payload[1:]).open("rb") as file:
                data = file.read(PAYLOAD_BYTES_READ_MAX)
        except OSError as error:
            raise UsageError(f"cannot read {payload[1:]}: {error.strerror}") from error
    else:
        return {"payload": payload}
    try:
        return {"payload": data.decode()}
    except UnicodeDecodeError:
        return {"payload_base64": base64.b64encode(data).decode()}
