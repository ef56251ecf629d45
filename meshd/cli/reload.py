"""`meshd reload`: read capabilities and policies again, without a restart."""

import click

from meshd.cli.options import connection_options, examples, json_option
from meshd.cli.output import escape
from meshd.cli.session import Session, current, emit, emit_json, with_schema

TIMEOUT_S = 30.0


@click.command(
    "reload",
    short_help="Read capabilities and policies again.",
    epilog=examples(
        "meshd reload",
    ),
)
@json_option
@connection_options(hidden=True)
@current
def command(session: Session, *, as_json: bool) -> None:
    """Read capabilities and policies again, as SIGHUP does: modules, TOML files, the configuration.

    What is wrong changes nothing. Settings but those of [routing] take a restart.
    """
    result = session.call("reload", timeout_s=TIMEOUT_S)
    if as_json:
        emit_json(with_schema("meshd.reload/1", result))
        return
    changed = ", ".join(escape(name) for name in result["changed"]) or "nothing"
    offered = ", ".join(escape(name) for name in result["capabilities"]) or "nothing"
    lines = [f"changed: {changed}", f"offers: {offered}"]
    routing = ", ".join(escape(key) for key in result.get("routing") or [])
    emit([*lines, f"routing: {routing}"] if routing else lines)
