"""Nodes as the daemon lists them: finding one by name or id, and showing its parts."""

from collections.abc import Sequence
from typing import Any

from meshd.cli.belief import countdown
from meshd.cli.output import NONE, STATE_STYLES, Cell, age, escape, latency, percent
from meshd.errors import NoCandidateError, UsageError

Row = dict[str, Any]

KNOWN_SHOWN_MAX = 10


def address(row: Row) -> str:
    """`host:port`, with brackets around IPv6."""
    host = escape(row.get("address") or "?")
    return f"[{host}]:{row.get('port')}" if ":" in host else f"{host}:{row.get('port')}"


ID_DIGITS_SHOWN = 4


def label(row: Row) -> str:
    """The node's name, or its id where it has none; this node is marked by `*`.

    A name that other nodes bear, too, is followed by the first digits of the id.
    """
    name = escape(row.get("name") or row.get("id") or "?")
    if row.get("name_shared"):
        name += f" ({escape(row.get('id') or '?')[:ID_DIGITS_SHOWN]})"
    return f"{name} *" if row.get("self") else name


def state_cell(row: Row) -> Cell:
    """The state, coloured and worded."""
    state = escape(row.get("state") or "?")
    return Cell(state, STATE_STYLES.get(state, ""))


def load_cells(row: Row) -> tuple[str, str, str]:
    """CPU, memory, and in flight out of slots."""
    load = row.get("load")
    if not isinstance(load, dict):
        return NONE, NONE, NONE
    in_flight = f"{load.get('in_flight', 0)}/{load.get('slots', '?')}"
    return percent(load.get("cpu")), percent(load.get("mem")), in_flight


def round_trip(row: Row) -> str:
    """The measured round trip; with `~` before it, the one that coordinates say."""
    if row.get("rtt_ms") is None and row.get("rtt_estimate_ms") is not None:
        return f"~{latency(row['rtt_estimate_ms'])}"
    return latency(row.get("rtt_ms"))


def estimate(row: Row) -> str:
    """The round trip by network coordinates and by how much it may be off, or nothing."""
    if row.get("rtt_estimate_ms") is None:
        return ""
    error = percent(row.get("rtt_estimate_error"))
    return f"{latency(row['rtt_estimate_ms'])} by coordinates, give or take {error}"


def seen(row: Row) -> str:
    """How long ago it was heard; a dash for this node itself."""
    return NONE if row.get("self") else age(row.get("age_s"))


def capability_names(row: Row) -> list[str]:
    """Names of what it offers."""
    return [escape(c.get("name", "?")) for c in row.get("capabilities") or []]


def remarks(row: Row) -> str:
    """What is unusual about it, in words, or nothing."""
    load = row.get("load") or {}
    words = [word for word in ("full", "draining") if load.get(word)]
    if row.get("state") == "suspect" and row.get("doubt"):
        words = [*countdown(row["doubt"]), *words]
    if load and load.get("ready") is False:
        words.insert(0, "not ready")
    if row.get("state") in {"alive", "suspect"}:
        words += ["unreachable from here"] if row.get("reachable") is False else []
        words += ["stale"] if row.get("stale") else []
    return f"({', '.join(words)})" if words else ""


def find(rows: Sequence[Row], wanted: str) -> Row:
    """The one node that `wanted` names: its name, its id, or at least 4 first digits of the id.

    Raises:
        NoCandidateError: no node is called that.
        UsageError: several are.
    """
    found = [r for r in rows if wanted in {r.get("name"), r.get("id")}]
    if not found and len(wanted) >= 4:
        found = [r for r in rows if str(r.get("id", "")).startswith(wanted.lower())]
    # A node that lost its key came back as somebody new: its old self is not meant.
    found = [r for r in found if r.get("state") not in {"dead", "left"}] or found
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(f"{r.get('id')} at {address(r)}" for r in found)
        raise UsageError(f"{wanted!r} names {len(found)} nodes", hint=f"use an id: {ids}")
    raise NoCandidateError(f"no node is called {wanted!r}", hint=_suggestion(rows, wanted))


def _suggestion(rows: Sequence[Row], wanted: str) -> str:
    import difflib

    names = [str(r.get("name")) for r in rows]
    close = difflib.get_close_matches(wanted, names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    shown = ", ".join(names[:KNOWN_SHOWN_MAX])
    return f"known nodes: {shown}{', …' if len(names) > KNOWN_SHOWN_MAX else ''}"
