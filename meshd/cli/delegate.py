"""`meshd delegate`: hand work to the best peer and print the whole answer."""

import re
from typing import Any

import click

from meshd.cli.arguments import parse_input
from meshd.cli.handover import hand_over, handover_options, whereabouts
from meshd.cli.options import complete_capabilities, connection_options, examples, json_option
from meshd.cli.output import json_text
from meshd.cli.session import Session, current, emit, emit_json, with_schema

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@click.command(
    "delegate",
    short_help="Hand work to the best peer and print the whole answer.",
    epilog=examples(
        "meshd delegate translate text=hello dst=de",
        'meshd delegate "summarise this report" --explain',
        'meshd delegate "statistics of numbers" -d \'{"rows": [1, 2, 3]}\' --policy least_loaded',
    ),
)
@click.argument("work", metavar="TEXT|CAPABILITY", shell_complete=complete_capabilities)
@click.argument("pairs", metavar="[K=V ...|@FILE|-]", nargs=-1)
@handover_options
@json_option
@connection_options(hidden=True)
@current
def command(
    session: Session,
    /,
    *,
    work: str,
    pairs: tuple[str, ...],
    data: str | None,
    as_json: bool,
    **choices: Any,
) -> None:
    """Hand work to the best peer and print the whole answer as JSON: who did it, and its result.

    One word names a CAPABILITY. A TEXT of several words is handed over as it is; with an input
    it describes what is needed, and the capability that fits best is taken.
    """
    answer = hand_over(session, request_of(work, pairs, data), **choices)
    document = with_schema("meshd.delegate/1", answer)
    if as_json:
        emit_json(document)
    else:
        emit([json_text(document, indent=2)])
        session.note(whereabouts(answer))


def request_of(work: str, pairs: tuple[str, ...], data: str | None) -> dict[str, Any]:
    """The parameters that name the work."""
    if _NAME.fullmatch(work):
        return {"capability": work, "input": parse_input(pairs, data)}
    if not pairs and data is None:
        return {"text": work}
    return {"need": work, "input": parse_input(pairs, data)}
