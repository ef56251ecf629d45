"""`meshd doctor`: what is wrong on this node, and how to fix it."""

import sys
from collections import Counter
from typing import Any

import click

from meshd.cli.failure import Exit
from meshd.cli.options import connection_options, examples, json_option
from meshd.cli.output import Palette, escape, plural, width
from meshd.cli.session import Session, current, emit, emit_json

TIMEOUT_S = 60.0
_MARKS = {"ok": ("✔", "ok", "green"), "warning": ("⚠", "!!", "yellow"), "error": ("✖", "XX", "red")}


@click.command(
    "doctor",
    short_help="Look for what is wrong, and say how to fix it.",
    epilog=examples(
        "meshd doctor",
        "meshd doctor --deep --json",
    ),
)
@click.option("--deep", is_flag=True, help="Also run the checks that take time.")
@json_option
@connection_options(hidden=True)
@current
def command(session: Session, *, deep: bool, as_json: bool) -> int:
    """Look for what is wrong, and say how to fix it.

    Exits with 7 where there is an error; warnings alone leave 0.
    """
    params = {"deep": True} if deep else {}
    document = session.call("doctor", params, timeout_s=TIMEOUT_S)
    checks = document["checks"]
    if as_json:
        emit_json(document)
    else:
        emit(lines(checks, session.palette(), plain=not _has_marks()))
    failed = any(check.get("status") == "error" for check in checks)
    return Exit.DEGRADED if failed else Exit.OK


def _has_marks() -> bool:
    encoding = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "")
    return encoding.startswith("utf")


def lines(checks: list[dict[str, Any]], palette: Palette, *, plain: bool) -> list[str]:
    """One line a check, its fix below it, and the count of errors and warnings."""
    wide = max((width(escape(check.get("name", "?"))) for check in checks), default=0)
    drawn = []
    for check in checks:
        mark, word, style = _MARKS.get(str(check.get("status")), ("?", "??", ""))
        mark = palette.paint(word if plain else mark, style)
        name = escape(check.get("name", "?"))
        padding = " " * (wide - width(name))
        drawn.append(f"{mark} {name}{padding}  {escape(check.get('detail') or '')}".rstrip())
        indent = " " * (wide + (5 if plain else 4))
        fix = escape(check.get("fix") or "", keep="\n").split("\n")
        drawn += [f"{indent}{'fix: ' if i == 0 else '     '}{f}" for i, f in enumerate(fix) if f]
    return [*drawn, _summary(checks)]


def _summary(checks: list[dict[str, Any]]) -> str:
    found = Counter(str(check.get("status")) for check in checks)
    if not found["error"] and not found["warning"]:
        return f"nothing is wrong ({plural(len(checks), 'check')})"
    return f"{plural(found['error'], 'error')}, {plural(found['warning'], 'warning')}"
