"""`meshd peers`: who is in the mesh, in which state, how busy and how far away."""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import click

from meshd.cli import nodes
from meshd.cli.nodes import Row
from meshd.cli.options import (
    complete_nodes,
    connection_options,
    examples,
    list_options,
    watch_options,
)
from meshd.cli.output import (
    STATE_STYLES,
    Cell,
    Column,
    Palette,
    escape,
    json_text,
    plural,
    some_of,
    table,
)
from meshd.cli.session import Session, current, emit, emit_json, is_tty
from meshd.cli.watch import watch as repeat

STATES = tuple(STATE_STYLES)
CAPABILITY_COLUMNS_MAX = 40
VIEW_HASH_SHOWN = 4

_COLUMNS = [
    Column("NODE"),
    Column("STATE"),
    Column("ADDRESS"),
    Column("CPU", right=True),
    Column("MEM", right=True),
    Column("INFL", right=True),
    Column("RTT"),
    Column("CAPABILITIES"),
    Column("SEEN"),
    Column("VERSION"),
]
_WIDE = [Column("ID"), Column("INC", right=True), Column("EPOCH", right=True), Column("URL")]


def _number(value: Any) -> tuple[bool, float]:
    return (value is None, value if value is not None else 0.0)


def _first(one: Any, other: Any) -> Any:
    return other if one is None else one


def _load(name: str) -> Callable[[Row], Any]:
    return lambda row: _number((row.get("load") or {}).get(name))


SORTS: dict[str, Callable[[Row], Any]] = {
    "name": lambda row: str(row.get("name")),
    "state": lambda row: STATES.index(row["state"]) if row.get("state") in STATES else 9,
    "cpu": _load("cpu"),
    "mem": _load("mem"),
    "rtt": lambda row: _number(_first(row.get("rtt_ms"), row.get("rtt_estimate_ms"))),
    "age": lambda row: _number(row.get("age_s")),
}


def state_list(text: str) -> tuple[str, ...]:
    """States separated by commas.

    Raises:
        BadParameter: one is no state.
    """
    states = tuple(part.strip() for part in text.split(",") if part.strip())
    if not states or not set(states) <= set(STATES):
        raise click.BadParameter(f"{text!r}: choose from {', '.join(STATES)}")
    return states


@click.command(
    "peers",
    short_help="List the nodes of the mesh.",
    epilog=examples(
        "meshd peers",
        "meshd peers 'lab-*' --state alive,suspect --sort cpu",
        "meshd peers --cap translate -o name",
        "meshd peers --watch=1",
    ),
)
@click.argument("which", metavar="[NODE|GLOB]", required=False, shell_complete=complete_nodes)
@click.option(
    "--state", type=state_list, metavar="STATE[,STATE]", help=f"Only these: {', '.join(STATES)}."
)
@click.option("--cap", metavar="NAME", help="Only nodes that offer this capability (or GLOB).")
@click.option(
    "--sort", type=click.Choice(list(SORTS)), help="Order of the rows; default: as known."
)
@list_options("table", "wide", "json", "jsonl", "name")
@watch_options
@connection_options(hidden=True)
@current
def command(
    session: Session,
    *,
    which: str | None,
    state: tuple[str, ...] | None,
    cap: str | None,
    sort: str | None,
    output: str | None,
    watch: float | None,
    count: int | None,
) -> None:
    """List the nodes of the mesh; this node is marked by `*`, an estimated round trip by `~`."""

    def fetch() -> dict[str, Any]:
        result: dict[str, Any] = session.call("peers")
        chosen = select(result["nodes"], which=which, states=state, capability=cap, sort=sort)
        return {**result, "nodes": chosen}

    if watch is not None:
        as_json = output in {"json", "jsonl"} or (output is None and not is_tty(sys.stdout))
        screen = None if as_json else lambda document: lines(document, output, session.palette())
        repeat(fetch, screen, interval_s=watch, count=count)
        return
    document = fetch()
    if output == "json":
        emit_json(document)
        return
    emit(lines(document, output, session.palette()))
    if not document["nodes"]:
        session.note("no node matches")


def select(
    rows: Sequence[Row],
    *,
    which: str | None,
    states: tuple[str, ...] | None,
    capability: str | None,
    sort: str | None,
) -> list[Row]:
    """The rows that were asked for, in the order that was asked for.

    Raises:
        NoCandidateError: `which` is no pattern, and no node is called that.
    """
    if which is None:
        chosen = list(rows)
    elif any(c in which for c in "*?["):
        chosen = [r for r in rows if fnmatchcase(str(r.get("name")), which)]
    else:
        chosen = [nodes.find(rows, which)]
    if states:
        chosen = [r for r in chosen if r.get("state") in states]
    if capability is not None:
        offered = [(r, [str(c.get("name")) for c in r.get("capabilities") or []]) for r in chosen]
        chosen = [r for r, names in offered if any(fnmatchcase(n, capability) for n in names)]
    return sorted(chosen, key=SORTS[sort]) if sort else chosen


def lines(document: dict[str, Any], output: str | None, palette: Palette) -> list[str]:
    """The document in one of the formats `table` (also None), `wide`, `jsonl`, `name`, `id`."""
    rows: list[Row] = document["nodes"]
    if output == "jsonl":
        return [json_text(row) for row in rows]
    if output in {"name", "id"}:
        return [escape(row.get(output, "")) for row in rows]
    wide = output == "wide"
    columns = _COLUMNS + _WIDE if wide else _COLUMNS
    cells = [_cells(row, wide=wide) for row in rows]
    drawn = table(columns, cells, palette, notes=[nodes.remarks(row) for row in rows])
    return [*drawn, palette.paint(_footer(document), "dim")]


def _cells(row: Row, *, wide: bool) -> list[Cell]:
    names = nodes.capability_names(row)
    more = [row.get("id"), row.get("incarnation"), row.get("epoch"), row.get("url")]
    return [
        Cell(nodes.label(row), "bold" if row.get("self") else ""),
        nodes.state_cell(row),
        Cell(nodes.address(row)),
        *map(Cell, nodes.load_cells(row)),
        Cell(nodes.round_trip(row)),
        Cell(some_of(names, 10_000 if wide else CAPABILITY_COLUMNS_MAX)),
        Cell(nodes.seen(row)),
        Cell(escape(row.get("version") or "")),
        *(Cell(escape("" if value is None else value)) for value in more[: 4 if wide else 0]),
    ]


def _footer(document: dict[str, Any]) -> str:
    states = Counter(str(row.get("state")) for row in document["nodes"])
    counted = ", ".join(f"{states[state]} {state}" for state in STATES if states[state])
    text = plural(len(document["nodes"]), "node")
    text += f": {counted}" if counted else ""
    view = escape(document.get("view_hash") or "")[:VIEW_HASH_SHOWN]
    return f"{text} · view {view}" if view else text
