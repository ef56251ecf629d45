"""`meshd reload`: read the capabilities again, without a restart."""

import click

from meshd.cli.options import connection_options, examples, json_option
from meshd.cli.output import escape
from meshd.cli.session import Session, current, emit, emit_json, with_schema

TIMEOUT_S = 30.0


@click.command(
    "reload",
    short_help="Read the capabilities again.",
    epilog=examples(
        "meshd reload",
    ),
)
@json_option
@connection_options(hidden=True)
@current
def command(session: Session, *, as_json: bool) -> None:
    """Read the capabilities again, as SIGHUP does: modules, TOML files and the configuration.

    What is wrong changes nothing. All other settings take a restart.
    """
    result = session.call("reload", timeout_s=TIMEOUT_S)
    if as_json:
        emit_json(with_schema("meshd.reload/1", result))
        return
    changed = ", ".join(escape(name) for name in result["changed"]) or "nothing"
    offered = ", ".join(escape(name) for name in result["capabilities"]) or "nothing"
    emit([f"changed: {changed}", f"offers: {offered}"])
