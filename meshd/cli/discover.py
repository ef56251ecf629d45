"""`meshd discover`: find capabilities by what they do; runs nothing."""

import sys
from typing import Any

import click

from meshd.cli.failure import Exit
from meshd.cli.options import connection_options, examples, list_options, watch_options
from meshd.cli.output import Cell, Column, Palette, escape, json_text, some_of, table
from meshd.cli.session import Session, current, emit, emit_json, is_tty
from meshd.cli.watch import watch as repeat

NODE_COLUMNS_MAX = 40
LIMIT_MAX = 100

Match = dict[str, Any]


@click.command(
    "discover",
    short_help="Find capabilities that fit a description.",
    epilog=examples(
        'meshd discover "turn this English email into German" --explain',
        "meshd discover translate -o name --limit 1",
    ),
)
@click.argument("query", nargs=-1, required=True)
@click.option("--tag", "tags", metavar="TAG", multiple=True, help="Only those with this tag.")
@click.option("--min-score", type=click.FloatRange(0.0, 1.0), help="Leave out worse matches.")
@click.option("--limit", type=click.IntRange(1, LIMIT_MAX), help="At most so many matches.")
@click.option("--explain", is_flag=True, help="Say why each one matches.")
@list_options("table", "wide", "json", "jsonl", "name")
@watch_options
@connection_options(hidden=True)
@current
def command(
    session: Session,
    *,
    query: tuple[str, ...],
    tags: tuple[str, ...],
    min_score: float | None,
    limit: int | None,
    explain: bool,
    output: str | None,
    watch: float | None,
    count: int | None,
) -> int:
    """Find capabilities that fit QUERY, free words or a name. Runs nothing.

    Exits with 4 where nothing fits.
    """
    given = {"tags": list(tags) or None, "min_score": min_score, "limit": limit}
    params = {"query": " ".join(query), **{k: v for k, v in given.items() if v is not None}}
    explain = explain or output == "wide"

    def fetch() -> Any:
        return session.call("discover", params)

    if watch is not None:
        as_json = output in {"json", "jsonl"} or (output is None and not is_tty(sys.stdout))
        screen = None if as_json else lambda d: lines(d, output, session.palette(), explain=explain)
        repeat(fetch, screen, interval_s=watch, count=count)
        return Exit.OK
    document = fetch()
    if output == "json":
        emit_json(document)
    elif document["matches"]:
        emit(lines(document, output, session.palette(), explain=explain))
    if not document["matches"]:
        session.note("nothing fits; see everything: meshd capabilities")
        return Exit.NOT_FOUND
    return Exit.OK


def lines(
    document: dict[str, Any], output: str | None, palette: Palette, *, explain: bool
) -> list[str]:
    """Matches in one of the formats `table` (also None), `wide`, `jsonl`, `name`, `id`."""
    matches: list[Match] = document["matches"]
    if output == "jsonl":
        return [json_text(match) for match in matches]
    if output in {"name", "id"}:
        return [escape(match.get("capability", "")) for match in matches]
    last = "WHY" if explain else "DESCRIPTION"
    columns = [Column("SCORE"), Column("CAPABILITY"), Column("NODES"), Column(last)]
    return table(columns, [_cells(match, last.lower()) for match in matches], palette)


def _cells(match: Match, last: str) -> list[Cell]:
    names = [_name(node) for node in match.get("nodes") or []]
    text = match.get(last) or ""
    words = ", ".join(map(str, text)) if isinstance(text, list) else str(text)
    return [
        Cell(f"{match.get('score', 0.0):.2f}"),
        Cell(escape(match.get("capability", "?")), "bold"),
        Cell(some_of(names, NODE_COLUMNS_MAX)),
        Cell(escape(" ".join(words.split()))),
    ]


def _name(node: Any) -> str:
    if isinstance(node, dict):
        return escape(node.get("name") or node.get("node") or "?")
    return escape(node)
