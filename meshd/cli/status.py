"""`meshd status`: the local node's health on one screen, for people and for monitoring."""

import sys
from typing import Any

import click

from meshd.cli.failure import Exit
from meshd.cli.options import connection_options, examples, json_option, watch_options
from meshd.cli.output import STATE_STYLES, Palette, age, escape, fields, latency
from meshd.cli.session import Session, current, emit, emit_json, is_tty
from meshd.cli.watch import watch as repeat

GOSSIP_COUNTERS_SHOWN = ("packets_sent", "packets_received", "bytes_sent", "bytes_received")
CIRCUITS_SHOWN = 8


@click.command(
    "status",
    short_help="Show the health of the local node.",
    epilog=examples(
        "meshd status",
        "meshd status --check --json",
        "meshd status --watch=1",
    ),
)
@click.option("--check", is_flag=True, help="For monitoring: exit with 7 where it is not healthy.")
@json_option
@watch_options
@connection_options(hidden=True)
@current
def command(
    session: Session, *, check: bool, as_json: bool, watch: float | None, count: int | None
) -> int:
    """Show the health of the local node."""

    def fetch() -> Any:
        return session.call("status")

    if watch is not None:
        piped = as_json or not is_tty(sys.stdout)
        screen = None if piped else lambda document: lines(document, session.palette())
        repeat(fetch, screen, interval_s=watch, count=count)
        return Exit.OK
    document = fetch()
    if as_json:
        emit_json(document)
    else:
        emit(lines(document, session.palette()))
    return Exit.DEGRADED if check and not document["healthy"] else Exit.OK


def lines(document: dict[str, Any], palette: Palette) -> list[str]:
    """The status for people."""
    healthy = bool(document["healthy"])
    word = palette.paint(*(("healthy", "green") if healthy else ("degraded", "red")))
    tasks = document.get("tasks") or {}
    pairs = [
        (
            "node",
            f"{_text(document, 'name')}  ({_text(document, 'id')})  mesh {_text(document, 'mesh')}",
        ),
        ("health", "\n".join([word, *(f"- {escape(p)}" for p in document.get("problems") or [])])),
        ("daemon", _daemon(document)),
        ("address", _text(document, "address")),
        ("members", _members(document.get("members") or {}, palette)),
        ("tasks", ", ".join(f"{n} {escape(k).replace('_', ' ')}" for k, n in tasks.items())),
        ("circuits", _circuits(document.get("circuits") or {})),
        ("gossip", _gossip(document.get("gossip") or {})),
        ("discovery", "\n".join(_source(s) for s in document.get("discovery") or [])),
        ("socket", _text(document, "socket")),
        ("state", _text(document, "state_dir")),
    ]
    return fields(pairs, palette)


def _text(document: dict[str, Any], key: str) -> str:
    return escape(document.get(key) or "")


def _daemon(document: dict[str, Any]) -> str:
    text = f"meshd {_text(document, 'version')}, pid {document.get('pid', '?')}"
    text += f", up {age(document.get('uptime_s'))}, profile {_text(document, 'profile') or '?'}"
    lag_s = document.get("loop_lag_s")
    return text if lag_s is None else f"{text}, loop lag {latency(1000 * lag_s)}"


def _members(members: dict[str, int], palette: Palette) -> str:
    counted = [(state, members.get(state, 0)) for state in STATE_STYLES]
    return ", ".join(palette.paint(f"{n} {s}", STATE_STYLES[s] if n else "dim") for s, n in counted)


def _circuits(circuits: dict[str, Any]) -> str:
    """One line for each that is not closed, the first few; nothing where all are."""
    rows = circuits.get("rows") or []
    shown = [_circuit(row) for row in rows[:CIRCUITS_SHOWN]]
    rest = circuits.get("open", 0) + circuits.get("half_open", 0) - len(shown)
    return "\n".join([*shown, *([f"{rest} more: --json"] if rest > 0 else [])])


def _circuit(row: dict[str, Any]) -> str:
    where = f"at {escape(row.get('name') or row['node'])}" if row.get("node") else "everywhere"
    is_open = row.get("state") == "open"
    state = f"open for {age(row.get('left_s'))}" if is_open else "half-open"
    return f"{escape(row.get('capability', '?'))} {where}: {state}, {escape(row.get('why', '?'))}"


def _gossip(counters: dict[str, int]) -> str:
    shown = [name for name in GOSSIP_COUNTERS_SHOWN if name in counters] or list(counters)[:4]
    text = ", ".join(f"{escape(name).replace('_', ' ')} {counters[name]}" for name in shown)
    rest = len(counters) - len(shown)
    return f"{text}, {rest} more: --json" if rest > 0 else text


def _source(source: dict[str, Any]) -> str:
    text = f"{escape(source.get('source', '?'))}: {escape(source.get('state', '?'))}"
    detail = escape(source.get("detail") or "")
    return f"{text}  ({detail})" if detail else text
