"""`meshd trace`: where the last calls were sent, and why."""

import time
from typing import Any

import click

from meshd.cli.handover import explanation
from meshd.cli.options import complete_capabilities, connection_options, examples, json_option
from meshd.cli.output import Palette, escape, latency
from meshd.cli.session import Session, current, emit, emit_json

SHOWN = 10
KEPT = 64

Decision = dict[str, Any]


@click.command(
    "trace",
    short_help="Show where calls were sent, and why.",
    epilog=examples(
        "meshd trace --decisions",
        "meshd trace --decisions -n 1 --capability translate",
        "meshd trace --decisions --json | jq '.decisions[] | select(.ok | not)'",
    ),
)
@click.option("--decisions", is_flag=True, help="The last decisions of the local daemon.")
@click.option(
    "-n", "--last", type=click.IntRange(1, KEPT), default=SHOWN, help=f"So many ({SHOWN})."
)
@click.option(
    "--capability", default="", shell_complete=complete_capabilities, help="Only of this one."
)
@json_option
@connection_options(hidden=True)
@current
def command(
    session: Session, *, decisions: bool, last: int, capability: str, as_json: bool
) -> None:
    """Show the last calls that the local daemon sent somewhere, oldest first.

    For each: how it ended, whom it was sent to, the candidates of its last try with what their
    score was made of, and who was left out and why. The daemon keeps the last 64.
    """
    if not decisions:
        raise click.UsageError("say what to show: meshd trace --decisions")
    answer = session.call("decisions", {"last": last, "capability": capability})
    if as_json:
        emit_json(answer)
        return
    if not answer["decisions"]:
        what = f"of {capability!r} " if capability else ""
        session.note(f"no call {what}was decided here yet; calls are decided where they come in")
    palette = session.palette()
    for each in answer["decisions"]:
        emit(lines(each, palette))


def lines(decision: Decision, palette: Palette) -> list[str]:
    """One decision for people: how it ended, each try, then why."""
    clock = time.strftime("%H:%M:%S", time.localtime(decision.get("wall_ms", 0) / 1_000))
    is_ok = bool(decision.get("ok"))
    end = "ok" if is_ok else escape(decision.get("error") or "failed")
    head = (
        f"#{decision.get('number', '?')}  {palette.paint(clock, 'dim')}"
        f"  {escape(decision.get('capability', '?'))}"
        f"  {palette.paint(end, 'green' if is_ok else 'red')}  {latency(decision.get('took_ms'))}"
    )
    tries = [_try(each) for each in decision.get("attempts") or []]
    why = explanation(decision["explain"]) if decision.get("explain") else []
    return [head, *(f"  {line}" for line in (*tries, *why))]


def _try(attempt: dict[str, Any]) -> str:
    who = escape(attempt.get("name") or attempt.get("node") or "?")
    text = f"sent to {who}: {escape(attempt.get('outcome', '?'))}"
    text += f" after {latency(attempt.get('latency_ms'))}"
    return f"{text} ({escape(attempt['error'])})" if attempt.get("error") else text
