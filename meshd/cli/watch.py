"""--watch: the same screen again and again, redrawn on a terminal, one JSON line each elsewhere."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from meshd.cli.output import json_text
from meshd.cli.session import emit, is_tty

_HOME = "\x1b[H"
_CLEAR_LINE = "\x1b[K"
_CLEAR_BELOW = "\x1b[J"
_ENTER = "\x1b[?25l\x1b[?7l\x1b[2J"
_LEAVE = "\x1b[?25h\x1b[?7h\n"


def watch(
    fetch: Callable[[], Any],
    render: Callable[[Any], list[str]] | None,
    *,
    interval_s: float,
    count: int | None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Show `render(fetch())` every `interval_s` seconds, `count` times (None: until interrupted).

    With `render` None the document itself goes out, one line of JSON a time.
    """
    if render is None:
        for _ in _ticks(interval_s, count, sleep):
            emit([json_text(fetch())])
        return
    if not is_tty(sys.stdout):
        for _ in _ticks(interval_s, count, sleep):
            emit(render(fetch()))
        return
    document = fetch()
    with _screen():
        for tick in _ticks(interval_s, count, sleep):
            document = fetch() if tick else document
            emit(frame(render(document), shutil.get_terminal_size().lines))


def _ticks(interval_s: float, count: int | None, sleep: Callable[[float], None]) -> Iterator[int]:
    tick = 0
    while count is None or tick < count:
        if tick:
            sleep(interval_s)
        yield tick
        tick += 1


def frame(lines: list[str], rows: int) -> list[str]:
    """`lines` as one screen of `rows` rows, drawn over the last one without flicker.

    Where they do not fit, the last lines (a table's summary) stay and a mark stands for the rest.
    """
    room = max(2, rows - 2)
    if len(lines) > room:
        hidden = len(lines) - room + 1
        lines = [*lines[: room - 2], f"… {hidden} more lines", lines[-1]]
    drawn = [line + _CLEAR_LINE for line in lines]
    drawn[0:1] = [_HOME + drawn[0]] if drawn else [_HOME]
    drawn[-1] += _CLEAR_BELOW
    return drawn


@contextmanager
def _screen() -> Iterator[None]:
    sys.stdout.write(_ENTER)
    try:
        yield
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
