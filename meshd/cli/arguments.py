"""A call's input from the command line: `k=v` pairs, JSON, `@file` or stdin."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meshd.errors import UsageError

INPUT_BYTES_MAX = 64 * 1024 * 1024
"""More than any daemon takes; only keeps an endless stdin from filling the memory."""


def parse_input(pairs: Sequence[str], data: str | None) -> Any:
    """The input of a call; `{}` where nothing was given.

    `pairs` are `k=v` words, or one `@file` or `-`; `data` is JSON text, `@file` or `-` (stdin).

    Raises:
        UsageError: it is not valid JSON, or both were given.
    """
    if data is None and len(pairs) == 1 and (pairs[0] == "-" or pairs[0].startswith("@")):
        return _document(pairs[0])
    if data is not None:
        if pairs:
            raise UsageError("input was given twice", hint="use either k=v words or -d, not both")
        return _document(data)
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UsageError(
                f"{pair!r} is not of the form key=value",
                hint="""quote values with spaces: text="two words"; or give JSON: -d '{...}'""",
            )
        if key in values:
            raise UsageError(f"{key!r} was given twice", hint=f"""for a list: {key}='["a","b"]'""")
        values[key] = parse_value(text)
    return values


def parse_value(text: str) -> Any:
    """`text` as JSON if it parses, else as the string that it is."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text


def _document(data: str) -> Any:
    source, text = "-d", data
    if data == "-":
        source, text = "stdin", _text(sys.stdin.buffer.read(INPUT_BYTES_MAX + 1), "stdin")
    elif data.startswith("@"):
        source = data[1:]
        try:
            with Path(source).open("rb") as file:
                text = _text(file.read(INPUT_BYTES_MAX + 1), source)
        except OSError as error:
            raise UsageError(f"cannot read {source}: {error.strerror}") from error
    try:
        return json.loads(text, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{source} is not valid JSON: {error.msg} at line {error.lineno} column {error.colno}",
            hint="""quote it for the shell: -d '{"text": "hello"}'""",
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{source} is not valid JSON: {error}") from error


def _text(read: bytes, source: str) -> str:
    if len(read) > INPUT_BYTES_MAX:
        raise UsageError(f"{source} is larger than {INPUT_BYTES_MAX} bytes")
    try:
        return read.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{source} is not UTF-8 text", hint="encode binary as base64") from error


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON number")
