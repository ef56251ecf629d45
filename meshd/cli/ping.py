"""`meshd ping`: measure the way to a node, by the gossip's datagrams or by a call."""

import time
from typing import Any

import click

from meshd.cli import nodes
from meshd.cli.failure import Exit
from meshd.cli.options import (
    complete_nodes,
    connection_options,
    duration_or_zero,
    examples,
    json_option,
)
from meshd.cli.output import Palette, escape, latency
from meshd.cli.session import Session, current, emit, emit_json

COUNT = 3
COUNT_MAX = 10_000
REPLY_TIMEOUT_S = 15.0

Reply = dict[str, Any]


@click.command(
    "ping",
    short_help="Measure the way to a node.",
    epilog=examples(
        "meshd ping lab-b",
        "meshd ping lab-b -c 10 -i 200ms --via rpc",
    ),
)
@click.argument("node", shell_complete=complete_nodes)
@click.option(
    "-c", "--count", type=click.IntRange(1, COUNT_MAX), default=COUNT, help=f"How often ({COUNT})."
)
@click.option(
    "-i", "--interval", "interval_s", type=duration_or_zero, default="1s", metavar="TIME",
    help="Time between two (1s).",
)  # fmt: skip
@click.option(
    "--via", type=click.Choice(["udp", "rpc"]), default="udp", help="By datagram or by a call."
)
@json_option
@connection_options(hidden=True)
@current
def command(
    session: Session, *, node: str, count: int, interval_s: float, via: str, as_json: bool
) -> int:
    """Measure the round trip from the local daemon to NODE. Exits with 5 where nothing answers."""
    row = nodes.find(session.call("peers")["nodes"], node)
    palette = session.palette()
    replies: list[Reply] = []
    try:
        for seq in range(1, count + 1):
            if seq > 1:
                time.sleep(interval_s)
            replies.append(_probe(session, row["id"], seq, via))
            if not as_json:
                emit([reply_line(row, replies[-1], via, palette)])
    finally:
        if replies and not as_json:
            emit([summary(replies, nodes.estimate(row))])
    if as_json:
        head = {"schema": "meshd.ping/1", "node": row["id"], "name": row.get("name"), "via": via}
        emit_json({**head, "replies": replies})
    answered = any(reply.get("rtt_ms") is not None for reply in replies)
    return Exit.OK if answered else Exit.DEADLINE


def _probe(session: Session, node: str, seq: int, via: str) -> Reply:
    params = {"node": node, "count": 1, "via": via}
    result = session.call("probe", params, timeout_s=REPLY_TIMEOUT_S)
    reply: Reply = next(iter(result["replies"]), {"rtt_ms": None, "error": "no reply was listed"})
    return {**reply, "seq": seq}


def reply_line(row: nodes.Row, reply: Reply, via: str, palette: Palette) -> str:
    """One probe's outcome."""
    head = f"{escape(row.get('name') or row['id'])} ({nodes.address(row)}) {via} seq={reply['seq']}"
    if reply.get("rtt_ms") is not None:
        return f"{head}  {latency(reply['rtt_ms'])}"
    return f"{head}  {palette.paint(escape(reply.get('error') or 'no answer'), 'red')}"


def summary(replies: list[Reply], estimate: str = "") -> str:
    """How many were answered, the least, mean and greatest round trip, and the expected one."""
    times = [reply["rtt_ms"] for reply in replies if reply.get("rtt_ms") is not None]
    lost = 100 * (len(replies) - len(times)) / len(replies)
    text = f"{len(replies)} sent, {len(times)} answered, {lost:.0f}% lost"
    if not times:
        return text
    mean = sum(times) / len(times)
    text += f" · min {latency(min(times))} · mean {latency(mean)} · max {latency(max(times))}"
    return f"{text} · {estimate}" if estimate else text
