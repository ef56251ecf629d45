"""`meshd call`: run a capability on the best node and print what it returns."""

import sys
from functools import partial
from typing import Any

import click

from meshd.cli.arguments import parse_input
from meshd.cli.handover import delegate_params, hand_over, handover_options, whereabouts
from meshd.cli.options import complete_capabilities, connection_options, examples, json_option
from meshd.cli.output import escape, json_text
from meshd.cli.session import Session, current, emit, emit_json, is_tty, with_schema
from meshd.errors import NoCandidateError

TASK_TIMEOUT_S = 3_600.0
"""What is handed in is given up after this long: waiting for somebody who can is part of it."""


@click.command(
    "call",
    short_help="Run a capability and print its result.",
    epilog=examples(
        'meshd call translate text="good morning" dst=de',
        "meshd call stats -d '{\"rows\": [1, 2, 3]}' --to lab-b --timeout 5s",
        "meshd call stats @rows.json | jq .mean",
        "meshd call --stream summarise @report.txt",
        'ID=$(meshd call --detach render scene=7 --timeout 1h) && meshd task wait "$ID"',
    ),
)
@click.argument("capability", shell_complete=complete_capabilities)
@click.argument("pairs", metavar="[K=V ...|@FILE|-]", nargs=-1)
@partial(handover_options, also="; with --detach an hour")
@click.option("--dry-run", is_flag=True, help="Show who could do it with which input; run nothing.")
@click.option("--detach", is_flag=True, help="Hand it in, print the task's ID and return.")
@click.option("--stream", is_flag=True, help="Print partial results as they come, one a line.")
@json_option
@connection_options(hidden=True)
@current
def command(
    session: Session,
    /,
    *,
    capability: str,
    pairs: tuple[str, ...],
    data: str | None,
    dry_run: bool,
    detach: bool,
    stream: bool,
    as_json: bool,
    **choices: Any,
) -> None:
    """Run CAPABILITY and print its result alone: a string as it is, anything else as JSON.

    In K=V, V is JSON if it parses (n=3 is a number, n='"3"' a string), else a string.
    Who did it goes to stderr.
    """
    value = parse_input(pairs, data)
    if dry_run:
        _rehearse(session, capability, value, to=choices["to"], as_json=as_json)
        return
    if detach and stream:
        raise click.UsageError("--detach and --stream exclude each other; see: meshd task watch")
    if detach:
        _hand_in(session, {"capability": capability, "input": value}, choices, as_json=as_json)
        return
    printed: list[Any] = []

    def on_part(part: Any) -> None:
        printed.append(None)
        emit([json_text(part) if as_json else result_text(part, indent=None)])

    request = {"capability": capability, "input": value}
    answer = hand_over(session, request, on_part=on_part if stream else None, **choices)
    if printed and not as_json:
        session.note(whereabouts(answer))
    elif as_json:
        emit_json(with_schema("meshd.call/1", answer))
    else:
        emit([result_text((answer.get("peer_result") or {}).get("result"))])
        session.note(whereabouts(answer))


def _hand_in(
    session: Session, request: dict[str, Any], choices: dict[str, Any], *, as_json: bool
) -> None:
    choices["timeout_s"] = choices["timeout_s"] or TASK_TIMEOUT_S
    params = delegate_params(request, **choices)
    params.pop("explain", None)
    record = session.call("task.submit", params)
    if as_json:
        emit_json(record)
    else:
        emit([escape(record["id"])])
        session.note("fetch its result: meshd task wait ID")


def result_text(result: Any, *, indent: int | None = 2) -> str:
    """A result for stdout: text as it is (made harmless on a terminal), else (indented) JSON."""
    if not isinstance(result, str):
        return json_text(result, indent=indent)
    return escape(result, keep="\n\t") if is_tty(sys.stdout) else result


def _rehearse(session: Session, capability: str, value: Any, *, to: str, as_json: bool) -> None:
    known = session.call("capabilities", {"name": capability})["capabilities"]
    offered = [node for found in known for node in found.get("nodes") or []]
    able = [node for node in offered if node.get("state") == "alive"]
    if to != "auto":
        able = [node for node in able if to in {node.get("name"), node.get("node")}]
    if not able:
        where = "" if to == "auto" else f" on {to!r}"
        raise NoCandidateError(f"nobody who is alive offers {capability!r}{where}")
    if as_json:
        document = {"capability": capability, "input": value, "candidates": able}
        emit_json(with_schema("meshd.dry_run/1", document))
        return
    names = ", ".join(escape(node.get("name") or node.get("node")) for node in able)
    emit([f"would call {escape(capability)} on one of: {names}", json_text(value, indent=2)])
