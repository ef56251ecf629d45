"""`meshd query`: ask all nodes of the mesh, and print the answers as they come."""

from collections.abc import Iterator
from typing import Any

import click

from meshd.cli.event import payload_params
from meshd.cli.failure import Exit
from meshd.cli.options import (
    complete_capabilities,
    complete_nodes,
    connection_options,
    duration,
    examples,
    json_option,
)
from meshd.cli.output import Palette, escape, plural
from meshd.cli.session import Session, current, emit, emit_json

POLL_S = 20.0
GRACE_S = 10.0

Reply = dict[str, Any]


@click.command(
    "query",
    short_help="Ask all nodes and gather their answers.",
    epilog=examples(
        "meshd query uptime",
        "meshd query reload-config now --to lab-a --to lab-b",
        "meshd query gpu-temperature --capability render --timeout 2s --json",
    ),
)
@click.argument("name")
@click.argument("payload", metavar="[PAYLOAD|@FILE|-]", default="")
@click.option(
    "--timeout", "timeout_s", type=duration, metavar="TIME",
    help="How long answers are gathered; some seconds, by the size of the mesh.",
)  # fmt: skip
@click.option(
    "--to", "nodes", multiple=True, metavar="NODE", shell_complete=complete_nodes,
    help="Only this node shall answer (16 at most); ends when all have.",
)  # fmt: skip
@click.option(
    "--capability", default="", metavar="NAME", shell_complete=complete_capabilities,
    help="Only nodes that offer this shall answer.",
)  # fmt: skip
@json_option
@connection_options(hidden=True)
@current
def command(
    session: Session, *, name: str, payload: str, timeout_s: float | None, nodes: tuple[str, ...],
    capability: str, as_json: bool,
) -> int:  # fmt: skip
    """Ask every node NAME, with up to 400 bytes of PAYLOAD; programs there may answer.

    Exits with 0 where somebody answered (with --to: all), 1 where there were only errors, 4 where
    nobody answered, and 5 where some of --to did not.
    """
    params: dict[str, Any] = {
        "name": name, "nodes": list(nodes), "capability": capability, **payload_params(payload),
    }  # fmt: skip
    if timeout_s is not None:
        params["timeout_s"] = timeout_s
    asked = session.call("query", params)
    palette = session.palette()
    replies: list[Reply] = []
    got: set[str] = set()
    for reply in _each(session, asked["query"]):
        got.add(reply["node"])
        if reply["kind"] == "ack":
            continue
        replies.append(reply)
        if not as_json:
            emit([line(reply, palette)])
    if as_json:
        head = {"schema": "meshd.query/1", "name": name, "members": asked["members"]}
        emit_json({**head, "got": len(got), "replies": replies})
    else:
        # Each node itself says whether it offers a capability: how many are meant is not known.
        meant = plural(len(asked["nodes"]) or asked["members"], "node")
        reach = plural(len(got), "node") if capability else f"{len(got)} of {meant}"
        session.note(f"{len(replies)} answered · {reach} got it")
    return _exit(replies, len(asked["nodes"]))


def _each(session: Session, query: int) -> Iterator[Reply]:
    """Replies as they come, until the time is over."""
    after, has_ended = 0, False
    while not has_ended:
        params = {"query": query, "after": after, "wait_s": POLL_S}
        page = session.call("answers", params, timeout_s=POLL_S + GRACE_S)
        yield from page["replies"]
        after, has_ended = page["next"], page["ended"]


def line(reply: Reply, palette: Palette) -> str:
    """One node's answer."""
    who = palette.paint(escape(reply.get("name") or reply.get("node") or "?"), "bold")
    if reply["kind"] == "error":
        return f"{who}  {palette.paint('error:', 'red')} {escape(reply.get('error', ''))}"
    payload = reply.get("payload")
    if payload is None:
        payload = f"{reply.get('payload_base64', '')} (base64)"
    return f"{who}  {escape(payload)}".rstrip()


def _exit(replies: list[Reply], wanted: int) -> Exit:
    answers = sum(1 for reply in replies if reply["kind"] == "answer")
    if not replies:
        return Exit.NOT_FOUND
    if not answers:
        return Exit.FAILED
    return Exit.DEADLINE if len(replies) < wanted else Exit.OK
