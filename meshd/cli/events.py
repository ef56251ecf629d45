"""`meshd events`: what has happened in the mesh, and what happens now."""

import sys
import time
from collections.abc import Iterator
from typing import Any

import click

from meshd.cli import nodes
from meshd.cli.options import complete_nodes, connection_options, duration, examples, json_option
from meshd.cli.output import Palette, escape, json_text
from meshd.cli.session import Session, current, emit, emit_json, is_tty

SHOWN = 20
POLL_S = 20.0
GRACE_S = 10.0
TYPES = (
    "joined", "alive", "suspect", "refuted", "dead", "left", "restarted", "updated", "conflict",
    "health", "event",
)  # fmt: skip
_STYLES = {
    "joined": "green", "alive": "green", "refuted": "green", "suspect": "yellow", "dead": "red",
    "conflict": "red", "lost": "red", "left": "dim", "event": "cyan",
}  # fmt: skip
_TYPE_COLUMNS = max(map(len, TYPES))

Event = dict[str, Any]


def _types(text: str) -> tuple[str, ...]:
    """Types of events, separated by commas."""
    types = tuple(part.strip() for part in text.split(",") if part.strip())
    for each in types:
        if each not in TYPES:
            raise click.BadParameter(f"{each!r} is no type; choose from {', '.join(TYPES)}")
    return types


def _since(text: str) -> dict[str, Any]:
    """Where to begin: after a number, or so long ago."""
    if text.isdecimal():
        return {"after": int(text)}
    try:
        return {"since_s": duration(text)}
    except click.BadParameter as error:
        raise click.BadParameter(f"{error.message}, or the number of an event") from None


@click.command(
    "events",
    short_help="Show what has happened in the mesh; follow it.",
    epilog=examples(
        "meshd events",
        "meshd events -f",
        "meshd events --since 10m --type joined,dead,left",
        "meshd events -f --type event --json | jq .payload",
    ),
)
@click.argument("node", required=False, default="", shell_complete=complete_nodes)
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens from now on.")
@click.option(
    "--since", type=_since, metavar="TIME|NUMBER",
    help="From 10m ago, or after the event of that number.",
)  # fmt: skip
@click.option("--type", "types", type=_types, metavar="TYPE,...", help="Only these types.")
@click.option("-n", "--last", type=click.IntRange(min=0), help=f"Begin with the last N ({SHOWN}).")
@click.option("--count", type=click.IntRange(min=1), help="With --follow: end after N events.")
@json_option
@connection_options(hidden=True)
@current
def command(
    session: Session, *, node: str, follow: bool, since: dict[str, Any] | None,
    types: tuple[str, ...] | None, last: int | None, count: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Show the last events in the eyes of the local daemon, oldest first; NODE: only about that.

    Types: joined, alive (again), suspect, refuted, dead, left, restarted, updated (its address or
    what it offers), conflict (of keys), health (of this node), event (told by users).
    With --follow and --json, or piped, each event is one line of JSON. The daemon keeps 4,096
    events; "lost" says how many were gone before they could be shown.
    """
    if since is not None and last is not None:
        raise click.UsageError("--since and --last say both where to begin: give one")
    place = {"last": SHOWN if last is None else last} if since is None else since
    wanted = {"types": list(types or ()), "node": node}
    if not follow:
        _show(session, {**wanted, **place}, as_json=as_json)
        return
    shown = _each(session, wanted, place)
    is_lines = as_json or not is_tty(sys.stdout)
    palette = session.palette()
    for number, each in enumerate(shown, 1):
        emit([json_text(each) if is_lines else line(each, palette)])
        if number == count:
            return


def _show(session: Session, params: dict[str, Any], *, as_json: bool) -> None:
    found: list[Event] = []
    page: dict[str, Any] = {}
    lost = 0
    # A page at a time, but no further than what there was when this began.
    while not page or page["events"]:
        page = session.call("events", params)
        found += page["events"]
        lost += page["lost"]
        params = {**params, "after": page["next"], "run": page["run"]}
        params.pop("since_s", None)
    if not found and params["node"]:
        nodes.find(session.call("peers")["nodes"], params["node"])  # or it says who is known
    if as_json:
        head = {"schema": page["schema"], "run": page["run"], "next": page["next"], "lost": lost}
        emit_json({**head, "events": found})
        return
    if lost:
        session.warn(f"{lost} events are gone: the daemon keeps the newest 4,096")
    if not found:
        session.note("nothing of that kind has happened")
    palette = session.palette()
    emit([line(each, palette) for each in found])


def _each(session: Session, wanted: dict[str, Any], place: dict[str, Any]) -> Iterator[Event]:
    """Events as they come, without end."""
    while True:
        params = {**wanted, **place, "wait_s": POLL_S}
        page = session.call("events", params, timeout_s=POLL_S + GRACE_S)
        if page["lost"]:
            yield {"type": "lost", "lost": page["lost"]}
        yield from page["events"]
        place = {"after": page["next"], "run": page["run"]}


def line(each: Event, palette: Palette) -> str:
    """One event for people: when, what, about whom, why."""
    kind = escape(each.get("type") or "?")
    painted = palette.paint(kind, _STYLES.get(kind, "")) + " " * (_TYPE_COLUMNS - len(kind))
    if kind == "lost":
        return f"{'':12}  {painted}  {each['lost']} events are gone"
    at_s = each.get("wall_ms", 0) / 1_000
    clock = time.strftime("%H:%M:%S", time.localtime(at_s)) + f".{int(at_s * 1_000) % 1_000:03d}"
    who = escape(each.get("name") or each.get("node") or "?")
    return f"{palette.paint(clock, 'dim')}  {painted}  {who}  {_what(each)}".rstrip()


def _what(each: Event) -> str:
    if each.get("type") == "event":
        payload = each.get("payload")
        if payload is None:
            payload = f"{each.get('payload_base64', '')} (base64)"
        return f"{escape(each.get('event', '?'))}  {escape(payload)}"
    accuser = each.get("accuser_name") or each.get("accuser")
    by = f" (accuser {escape(accuser)})" if accuser else ""
    return escape(each.get("reason", "")) + by
