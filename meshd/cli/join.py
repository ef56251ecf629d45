"""`meshd join`: join the mesh of other nodes."""

import click

from meshd.cli.options import connection_options, examples, json_option
from meshd.cli.output import plural
from meshd.cli.session import Session, current, emit, emit_json, with_schema
from meshd.errors import PeerError

TIMEOUT_S = 30.0


@click.command(
    "join",
    short_help="Join the mesh of other nodes.",
    epilog=examples(
        "meshd join 192.168.1.18",
        "meshd join nuc.local:6374 [fd00::7]:6374",
    ),
)
@click.argument("addresses", metavar="HOST[:PORT]...", nargs=-1, required=True)
@json_option
@connection_options(hidden=True)
@current
def command(session: Session, *, addresses: tuple[str, ...], as_json: bool) -> None:
    """Join the mesh of the nodes at these addresses. One that answers is enough."""
    result = session.call("join", {"addresses": list(addresses)}, timeout_s=TIMEOUT_S)
    if not result["joined"]:
        raise PeerError(
            f"nobody answered at {', '.join(addresses)}",
            hint="is meshd running there, with the same --mesh, and its UDP port open?",
            data=result,
        )
    if as_json:
        emit_json(with_schema("meshd.join/1", result))
    else:
        contacted = plural(result["contacted"], "address", "addresses")
        emit([f"joined through {result['joined']} of {contacted}"])
