"""`meshd info`: everything known of one node, and how it came to be known."""

from typing import Any

import click

from meshd.cli import belief, nodes
from meshd.cli.belief import Names
from meshd.cli.nodes import Row
from meshd.cli.options import complete_nodes, connection_options, examples, json_option
from meshd.cli.output import (
    Cell,
    Column,
    Palette,
    age,
    escape,
    fields,
    latency,
    percent,
    plural,
    table,
)
from meshd.cli.session import Session, current, emit, emit_json


@click.command(
    "info",
    short_help="Show everything known of one node.",
    epilog=examples(
        "meshd info",
        "meshd info lab-b --json",
        "meshd info --spend",
    ),
)
@click.argument("node", required=False, shell_complete=complete_nodes)
@click.option("--spend", is_flag=True, help="Show what this node's callers have spent instead.")
@json_option
@connection_options(hidden=True)
@current
def command(session: Session, *, node: str | None, spend: bool, as_json: bool) -> None:
    """Show everything known of NODE (a name or an id; default: this node).

    With what that rests on: who doubts it and when the doubt ends, what this node saw itself, and
    the history: when its state changed, at which incarnation, and who said so.
    """
    if spend:
        if node is not None:
            raise click.UsageError("--spend is about this node: leave out NODE")
        spent = session.call("spend")
        if as_json:
            emit_json(spent)
        else:
            emit(spend_lines(spent, session.palette()))
        return
    rows: list[Row] = session.call("peers")["nodes"]
    document = gather(session, rows, node)
    if as_json:
        emit_json(document)
    else:
        emit(lines(document, Names(rows), session.palette()))


def gather(session: Session, rows: list[Row], wanted: str | None) -> dict[str, Any]:
    """The node's row, belief and manifests in one document; of this node its own words too."""
    own = [row for row in rows if row.get("self")]
    row = own[0] if wanted is None and own else nodes.find(rows, wanted or "self")
    known = session.call("capabilities", {"node": row["id"]})
    document = {
        "schema": "meshd.node/2",
        "node": row,
        "capabilities": known["capabilities"],
        "belief": session.call("explain", {"node": row["id"]}),
    }
    if row.get("self"):
        document["info"] = session.call("info")
    return document


def lines(document: dict[str, Any], names: Names, palette: Palette) -> list[str]:
    """The document for people."""
    row, believed = document["node"], document["belief"]
    own = document.get("info") or {}
    state = palette.paint(*nodes.state_cell({**row, "state": believed.get("state")}))
    # What the doubt is, the line says itself.
    remarks = nodes.remarks({**row, "doubt": None})
    standing = " ".join(part for part in (state, belief.standing(believed, names)) if part)
    pairs = [
        ("node", f"{nodes.label(row)}  ({escape(row.get('id', '?'))})"),
        ("state", f"{standing}  {remarks}".rstrip()),
        ("doubt", belief.duration(believed)),
        ("mesh", escape(own.get("mesh", ""))),
        ("agent", escape(own.get("agent", ""))),
        ("address", nodes.address(row)),
        ("url", escape(row.get("url") or "")),
        ("version", escape(row.get("version") or "")),
        ("incarnation", f"{row.get('incarnation', '?')}  epoch {row.get('epoch', '?')}"),
        ("up", age(own["uptime_s"]) if "uptime_s" in own else ""),
        ("heard", "" if row.get("self") else f"{nodes.seen(row)} ago, rtt {nodes.round_trip(row)}"),
        ("seen", "" if row.get("self") else belief.evidence(believed, names)),
        ("distance", nodes.estimate(row)),
        ("observer", belief.observer(believed, names)),
        ("region", escape(row.get("region") or "")),
        ("labels", ", ".join(f"{escape(k)}={escape(v)}" for k, v in _labels(row))),
        ("load", _load(row)),
        ("offers", "\n".join(_capability(c) for c in document["capabilities"]) or "nothing"),
        ("history", "" if row.get("self") else belief.history(believed, names)),
    ]
    return fields(pairs, palette)


def _labels(row: Row) -> list[tuple[str, str]]:
    return sorted((row.get("labels") or {}).items())


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
    text += _price(capability)
    description = escape(" ".join(str(capability.get("description") or "").split()))
    return f"{text}  {description}".rstrip()


def _price(capability: dict[str, Any]) -> str:
    """`  $0.01 a call + $0.002 a token`, or nothing where it is free."""
    per_call, per_unit = capability.get("cost_usd_per_call"), capability.get("cost_usd_per_unit")
    parts = [f"${per_call:g} a call"] if per_call else []
    parts += [f"${per_unit:g} a {escape(capability.get('unit') or 'unit')}"] if per_unit else []
    return f"  {' + '.join(parts)}" if parts else ""


def spend_lines(spent: dict[str, Any], palette: Palette) -> list[str]:
    """Who has spent how much on what since this node started, and how the caps stand."""
    columns = [
        Column("CALLER"),
        Column("CAPABILITY"),
        *(Column(title, right=True) for title in ("CALLS", "UNITS", "USD")),
    ]
    rows = [
        [
            Cell(escape(row["caller"])),
            Cell(escape(row["capability"])),
            Cell(str(row["calls"])),
            Cell(f"{row['units']:g}"),
            Cell(f"{row['cost_usd']:.4f}"),
        ]
        for row in spent["spent"]
    ]
    caps = [
        f"{escape(cap['caller'] or 'this node')}: ${cap['spent_usd']:.4f} of ${cap['cap_usd']:g}"
        f" ({escape(cap['cap'])}), anew in {age(cap['resets_in_s'])}"
        for cap in spent["caps"]
    ]
    total = f"{plural(spent['calls'], 'call')} for ${spent['cost_usd']:.4f}"
    return [*(table(columns, rows, palette) if rows else []), *caps, palette.paint(total, "dim")]
