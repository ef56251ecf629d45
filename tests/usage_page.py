"""Writes the parts of docs/USAGE.md that follow from the code: `python tests/usage_page.py`."""

import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import get_args

import click
import repository

from meshd.cli.app import SECTIONS, root
from meshd.config import Option, options
from meshd.gossip.config import PROFILES, profile
from meshd.gossip.numbers import Number, consequences, numbers
from meshd.routing.rules import KINDS

PAGE = repository.ROOT / "docs" / "USAGE.md"
SIZES = (10, 100)
"""Nodes of the meshes for which the page tells what follows from a profile."""
_PART = re.compile(r"<!-- (commands|settings|rules|profiles) -->\n(.*?)<!-- end -->\n", re.DOTALL)


def written(text: str) -> str:
    """The page with each part as it should be."""
    made = {
        "commands": commands(), "settings": settings(), "rules": rules(), "profiles": profiles(),
    }  # fmt: skip
    return _PART.sub(lambda m: f"<!-- {m[1]} -->\n{made[m[1]]}<!-- end -->\n", text)


def commands() -> str:
    """Each command with its options, in the order of `meshd --help`."""
    top = click.Context(root, info_name="meshd", **root.context_settings)
    named = [(name, root.get_command(top, name)) for part in SECTIONS.values() for name in part]
    return "\n" + "\n".join("\n".join(_command(name, found, top)) for name, found in named if found)


def _command(name: str, found: click.Command, top: click.Context) -> Iterator[str]:
    context = click.Context(found, info_name=name, parent=top)
    usage = " ".join(found.collect_usage_pieces(context)).removeprefix("[OPTIONS]").strip()
    yield f"### meshd {name}\n"
    about = inspect.cleandoc(found.help or "").split("\f")[0].strip()
    yield re.sub(r"(?<!\n)\n(?!\n)", " ", about) + "\n"
    if usage and not isinstance(found, click.Group):
        yield f"Arguments: {_code(usage)}\n"
    if isinstance(found, click.Group):
        for each in found.list_commands(context):
            below = found.get_command(context, each)
            if below is not None:
                yield f"- `meshd {name} {each}`: {below.get_short_help_str(200)}"
        yield ""
    taken = [p for p in found.params if isinstance(p, click.Option) and "--help" not in p.opts]
    records = [option.get_help_record(context) for option in taken]
    rows = [f"| {_code(record[0])} | {_cell(record[1])} |" for record in records if record]
    if rows:
        yield "| option | meaning |\n| --- | --- |"
        yield "\n".join(rows) + "\n"


def settings() -> str:
    """Every setting: where it stands in the TOML file, its default, its flag."""
    lines = []
    section = ""
    for option in options():
        here, _, key = option.path.rpartition(".")
        if here != section:
            section = here
            lines += [f"\n### [{section}]\n", "| key | default | meaning |", "| --- | --- | --- |"]
        lines.append(f"| `{key}` | {_default(option)} | {_cell(option.description)} |")
    return "\n".join(lines) + "\n\n"


def rules() -> str:
    """Every key that the table of a capability may have."""
    about = ((name, get_args(kind)[1].description) for name, kind in KINDS.items())
    rows = (f"| `{name}` | {_cell(text)} |" for name, text in about)
    return "\n".join(["", *_table(["key", "meaning"]), *rows]) + "\n\n"


def profiles() -> str:
    """Every number of each profile with its meaning, then what follows in meshes of two sizes."""
    made = [profile(name) for name in PROFILES]
    lines = [*_table(["number", "unit", *PROFILES, "meaning"]), *_rows(map(numbers, made))]
    sized = [(size, each) for size in SIZES for each in made]
    heads = [f"{name}, n = {size}" for size in SIZES for name in PROFILES]
    lines += ["", *_table(["follows", "unit", *heads, "formula"])]
    lines += _rows(consequences(each, size) for size, each in sized)
    return "\n" + "\n".join(lines) + "\n\n"


def _table(heads: list[str]) -> list[str]:
    return [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]


def _rows(columns: Iterable[tuple[Number, ...]]) -> Iterator[str]:
    """A row for each number, with its value in each column."""
    for row in zip(*columns, strict=True):
        values = " | ".join(f"{round(each.value, 3):.10g}" for each in row)
        yield f"| `{row[0].name}` | {row[0].unit} | {values} | {_cell(row[0].meaning)} |"


def _default(option: Option) -> str:
    value = option.default
    if value in ("", ()):
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, dict):
        return f"`{{{', '.join(f'{key} = {weight}' for key, weight in value.items())}}}`"
    return f"`{value}`" if isinstance(value, str) else f"`{value:,}`".replace(",", "_")


def _code(text: str) -> str:
    return f"`{_cell(text)}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    Path(PAGE).write_text(written(PAGE.read_text("utf-8")), "utf-8")
