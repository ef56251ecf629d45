"""Text for people and programs: tables, ages, units, colour, JSON, escaping of foreign text."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

NONE = "–"  # noqa: RUF001 - a dash of its own says "unknown", a hyphen reads as a minus
STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
STATE_STYLES = {"alive": "green", "suspect": "yellow", "dead": "red", "left": "dim"}
_RESET = "\x1b[0m"
_GAP = "  "


class Cell(NamedTuple):
    """Text of one table cell; `style` is a key of STYLES or empty."""

    text: str
    style: str = ""


class Column(NamedTuple):
    """A heading, and whether the cells below it are aligned to the right."""

    title: str
    right: bool = False


class Palette:
    """Paints text with ANSI colours, or leaves it as it is."""

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled

    def paint(self, text: str, style: str) -> str:
        """`text` in `style` (a key of STYLES; empty for none)."""
        if not self.enabled or not style or not text:
            return text
        return f"\x1b[{STYLES[style]}m{text}{_RESET}"


def wants_color(choice: str, environment: Mapping[str, str], *, is_tty: bool) -> bool:
    """Whether to use colour: --color, then NO_COLOR, then FORCE_COLOR, then terminal and TERM.

    Empty variables count as not set. Source: no-color.org, force-color.org.
    """
    if choice != "auto":
        return choice == "always"
    if environment.get("NO_COLOR"):
        return False
    if environment.get("FORCE_COLOR"):
        return True
    return is_tty and environment.get("TERM", "") != "dumb"


def escape(text: object, *, keep: str = "") -> str:
    r"""`text` with everything that a terminal might obey made visible as `\xNN` or `\uNNNN`.

    Control, format (bidirectional overrides too), surrogate and unassigned characters are escaped;
    characters in `keep` are not.
    """
    plain = str(text)
    if plain.isascii() and plain.isprintable():
        return plain
    return "".join(c if c.isprintable() or c in keep else _escaped(c) for c in plain)


def _escaped(character: str) -> str:
    number = ord(character)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x1_0000 else f"\\U{number:08x}"


def width(text: str) -> int:
    """How many terminal columns `text` takes."""
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in {"W", "F"} else 1
        for c in text
    )


def table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[Cell]],
    palette: Palette,
    *,
    notes: Sequence[str] = (),
) -> list[str]:
    """Lines of an aligned table with a header; `notes` (one a row) follow their rows unaligned."""
    widths = [
        max([width(column.title), *(width(row[i].text) for row in rows)])
        for i, column in enumerate(columns)
    ]
    header = [Cell(column.title, "bold") for column in columns]
    lines = [_line(columns, header, widths, palette)]
    for i, row in enumerate(rows):
        line = _line(columns, row, widths, palette)
        note = notes[i] if notes else ""
        lines.append(f"{line}{_GAP}{palette.paint(note, 'dim')}" if note else line)
    return lines


def _line(
    columns: Sequence[Column], row: Sequence[Cell], widths: Sequence[int], palette: Palette
) -> str:
    parts = []
    for column, cell, columns_wide in zip(columns, row, widths, strict=True):
        padding = " " * (columns_wide - width(cell.text))
        text = palette.paint(cell.text, cell.style)
        parts.append(padding + text if column.right else text + padding)
    return _GAP.join(parts).rstrip()


def fields(pairs: Iterable[tuple[str, str]], palette: Palette) -> list[str]:
    """Lines of `name  value`, the names aligned; a value of several lines is indented below."""
    known = [(name, value) for name, value in pairs if value]
    wide = max((width(name) for name, _ in known), default=0)
    lines = []
    for name, value in known:
        first, *rest = value.split("\n")
        padding = " " * (wide - width(name))
        lines.append(f"{palette.paint(name, 'bold')}{padding}{_GAP}{first}")
        lines.extend(" " * wide + _GAP + line for line in rest)
    return lines


def age(seconds: float | None) -> str:
    """A duration for people: `0.3s`, `42s`, `12m`, `3h`, `5d`; a dash where unknown."""
    if seconds is None:
        return NONE
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    for unit, length, until in (("s", 1, 60), ("m", 60, 3600), ("h", 3600, 86_400)):
        if seconds < until:
            return f"{int(seconds // length)}{unit}"
    return f"{int(seconds // 86_400)}d"


def latency(milliseconds: float | None) -> str:
    """A latency for people: `0.8 ms`, `125 ms`, `1.2 s`; a dash where unknown."""
    if milliseconds is None:
        return NONE
    if milliseconds < 99.95:
        return f"{milliseconds:.1f} ms"
    if milliseconds < 999.5:
        return f"{milliseconds:.0f} ms"
    return f"{milliseconds / 1000:.1f} s"


def percent(fraction: float | None) -> str:
    """`12%` of a fraction 0..1; a dash where unknown."""
    return NONE if fraction is None else f"{fraction * 100:.0f}%"


def plural(count: int, noun: str, nouns: str = "") -> str:
    """`1 node`, `2 nodes`; `nouns` is the plural where an s does not make it."""
    return f"{count} {noun}" if count == 1 else f"{count} {nouns or noun + 's'}"


def some_of(names: Sequence[str], columns_max: int) -> str:
    """`a,b,+3`: as many names as fit into `columns_max`, then how many are left; at least one."""
    shown: list[str] = []
    for i, name in enumerate(names):
        rest = len(names) - i - 1
        line = ",".join([*shown, name, *([f"+{rest}"] if rest else [])])
        if shown and width(line) > columns_max:
            return ",".join([*shown, f"+{len(names) - i}"])
        shown.append(name)
    return ",".join(shown) or NONE


_UNSAFE = re.compile(r"[^\x20-\x7e\n]")


def json_text(value: Any, *, indent: int | None = None) -> str:
    """JSON in UTF-8, readable, with every character escaped that a terminal might obey."""
    import json

    separators = (",", ":") if indent is None else (",", ": ")
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators)
    return _UNSAFE.sub(lambda found: _json_escaped(found[0]), text)


def _json_escaped(character: str) -> str:
    if character.isprintable():
        return character
    number = ord(character)
    if number < 0x1_0000:
        return f"\\u{number:04x}"
    number -= 0x1_0000
    return f"\\u{0xD800 + (number >> 10):04x}\\u{0xDC00 + (number & 0x3FF):04x}"
