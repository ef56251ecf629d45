"""`meshd leave`: leave the mesh; the daemon stays up."""

import click

from meshd.cli.options import connection_options, duration_or_zero, examples, json_option
from meshd.cli.output import plural
from meshd.cli.session import Session, current, emit, emit_json, with_schema

TIMEOUT_S = 30.0


@click.command(
    "leave",
    short_help="Leave the mesh; the daemon stays up.",
    epilog=examples(
        "meshd leave",
        "meshd leave --drain 20s",
    ),
)
@click.option(
    "--drain", "drain_s", type=duration_or_zero, metavar="TIME",
    help="Let running tasks finish for so long first.",
)  # fmt: skip
@json_option
@connection_options(hidden=True)
@current
def command(session: Session, *, drain_s: float | None, as_json: bool) -> None:
    """Leave the mesh in good order, so that nobody suspects this node. The daemon stays up."""
    if drain_s is None:
        drain_s = float(session.call("status").get("drain_s") or 0.0)
    result = session.call("leave", {"drain_s": drain_s}, timeout_s=TIMEOUT_S + drain_s)
    if as_json:
        emit_json(with_schema("meshd.leave/1", result))
    else:
        emit([f"left the mesh; {plural(result['heard_by'], 'node')} heard it"])
        session.note("come back: meshd join HOST    end the daemon: meshd stop")
