"""`meshd info`: everything known of one node, and how it came to be known."""

from typing import Any

import click

from meshd.cli import nodes
from meshd.cli.nodes import Row
from meshd.cli.options import complete_nodes, connection_options, examples, json_option
from meshd.cli.output import Palette, age, escape, fields, latency, percent
from meshd.cli.session import Session, current, emit, emit_json

HISTORY_SHOWN_MAX = 20


@click.command(
    "info",
    short_help="Show everything known of one node.",
    epilog=examples(
        "meshd info",
        "meshd info lab-b --json",
    ),
)
@click.argument("node", required=False, shell_complete=complete_nodes)
@json_option
@connection_options(hidden=True)
@current
def command(session: Session, *, node: str | None, as_json: bool) -> None:
    """Show everything known of NODE (a name or an id; default: this node).

    With the history: when it changed state, and who said so.
    """
    document = gather(session, node)
    if as_json:
        emit_json(document)
    else:
        emit(lines(document, session.palette()))


def gather(session: Session, wanted: str | None) -> dict[str, Any]:
    """The node's row, history and manifests in one document; of this node its own words too."""
    rows: list[Row] = session.call("peers")["nodes"]
    own = [row for row in rows if row.get("self")]
    row = own[0] if wanted is None and own else nodes.find(rows, wanted or "self")
    known = session.call("capabilities", {"node": row["id"]})
    document = {
        "schema": "meshd.node/1",
        "node": row,
        "capabilities": known["capabilities"],
        "history": session.call("explain", {"node": row["id"]})["history"],
    }
    if row.get("self"):
        document["info"] = session.call("info")
    return document


def lines(document: dict[str, Any], palette: Palette) -> list[str]:
    """The document for people."""
    row = document["node"]
    own = document.get("info") or {}
    state = nodes.state_cell(row)
    remarks = nodes.remarks(row)
    pairs = [
        ("node", f"{nodes.label(row)}  ({escape(row.get('id', '?'))})"),
        ("state", f"{palette.paint(*state)}  {remarks}".rstrip()),
        ("mesh", escape(own.get("mesh", ""))),
        ("agent", escape(own.get("agent", ""))),
        ("address", nodes.address(row)),
        ("url", escape(row.get("url") or "")),
        ("version", escape(row.get("version") or "")),
        ("incarnation", f"{row.get('incarnation', '?')}  epoch {row.get('epoch', '?')}"),
        ("up", age(own["uptime_s"]) if "uptime_s" in own else ""),
        ("heard", "" if row.get("self") else f"{nodes.seen(row)} ago, rtt {nodes.round_trip(row)}"),
        ("distance", nodes.estimate(row)),
        ("load", _load(row)),
        ("offers", "\n".join(_capability(c) for c in document["capabilities"]) or "nothing"),
        ("history", _history(document["history"])),
    ]
    return fields(pairs, palette)


def _load(row: Row) -> str:
    load = row.get("load")
    if not load:
        return "unknown"
    cpu, mem, in_flight = nodes.load_cells(row)
    text = f"cpu {cpu}, mem {mem}, {in_flight} in flight, {load.get('queue', 0)} queued"
    text += f", service {latency(1000 * load.get('service_s', 0.0))}"
    return f"{text}, errors {percent(load.get('error', 0.0))}"


def _capability(capability: dict[str, Any]) -> str:
    text = f"{escape(capability.get('name', '?'))} {escape(capability.get('version', ''))}".rstrip()
    description = escape(" ".join(str(capability.get("description") or "").split()))
    return f"{text}  {description}".rstrip()


def _history(history: list[str]) -> str:
    shown = [escape(line) for line in history[-HISTORY_SHOWN_MAX:]]
    if len(history) > len(shown):
        shown.insert(0, f"… {len(history) - len(shown)} earlier lines: --json")
    return "\n".join(shown) or "nothing recorded"
