"""The start screen: what the new node is, where it listens, and whom it found."""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

from meshd.cli import nodes
from meshd.cli.output import Palette, escape, plural, some_of
from meshd.errors import MeshError

READY_WITHIN_S = 30.0
FOUND_WITHIN_S = 5.0
POLL_S = 0.05
CALL_TIMEOUT_S = 2.0
NAMES_COLUMNS_MAX = 60
NEXT = "next: meshd peers · meshd capabilities · meshd doctor"

Call = Callable[..., Any]


def welcome(
    call: Call,
    palette: Palette,
    write: Callable[[str], Any],
    *,
    pid: int | None = None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Write the start screen once the daemon of process `pid` (None: this one) answers.

    Says nothing where it never does: then the daemon itself tells why.
    """
    status = _ready(call, os.getpid() if pid is None else pid, sleep, clock)
    if status is None:
        return
    try:
        info = call("info", {}, CALL_TIMEOUT_S)
        _say(write, screen(status, info, palette))
        since = clock()
        found = _others(call, sleep, clock)
        _say(write, [outcome(found, clock() - since, time.strftime("%H:%M:%S"))])
    except MeshError:  # it is being stopped already
        return


def _say(write: Callable[[str], Any], lines: list[str]) -> None:
    write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def _ready(
    call: Call, pid: int, sleep: Callable[[float], None], clock: Callable[[], float]
) -> dict[str, Any] | None:
    give_up = clock() + READY_WITHIN_S
    while clock() < give_up:
        try:
            status: dict[str, Any] = call("status", {}, CALL_TIMEOUT_S)
        except MeshError:
            sleep(POLL_S)
            continue
        return status if status.get("pid") == pid else None
    return None


def _others(
    call: Call, sleep: Callable[[float], None], clock: Callable[[], float]
) -> list[nodes.Row]:
    """The other nodes that are alive, once there are any and their names have come after them."""
    give_up = clock() + FOUND_WITHIN_S
    while True:
        rows: list[nodes.Row] = call("peers", {}, CALL_TIMEOUT_S)["nodes"]
        others = [row for row in rows if not row.get("self") and row.get("state") == "alive"]
        named = all(row.get("name") not in {None, "", row.get("id")} for row in others)
        if (others and named) or clock() >= give_up:
            return others
        sleep(POLL_S)


def screen(status: dict[str, Any], info: dict[str, Any], palette: Palette) -> list[str]:
    """Who the node is and where it listens."""
    name = palette.paint(escape(status["name"]), "bold")
    head = f"meshd {escape(status['version'])}  node {name} ({_short(status['id'])})"
    key = palette.paint("⚠ anyone on this network can join", "yellow")
    lines = [
        f'{head}  mesh "{escape(status["mesh"])}"',
        f"  gossip  udp {escape(status['address'])}      rpc  {escape(info['url'])}",
    ]
    for source in status.get("discovery") or []:
        text = f"{escape(source.get('state', ''))}  {escape(source.get('detail') or '')}".rstrip()
        lines.append(f"  {escape(source.get('source', '?')):6}  {text}")
    return [*lines, f"  key     none  {key}"]


def outcome(others: list[nodes.Row], after_s: float, at: str) -> str:
    """Whom it found, and what to do next."""
    if not others:
        return f"{at} no other node yet; still looking. Join one: meshd join HOST    {NEXT}"
    names = some_of([escape(row.get("name") or "?") for row in others], NAMES_COLUMNS_MAX)
    found = f"found {plural(len(others), 'peer')} in {after_s:.2f} s ({names})"
    return f"{at} joined: {found}    {NEXT}"


def _short(node: str) -> str:
    return f"{escape(node[:4])}…{escape(node[-2:])}"
