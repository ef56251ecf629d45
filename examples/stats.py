"""Two capabilities that really compute: figures of a CSV file, and of a folder of text files.

Offer both on a node, from the folder that this file is in:

    meshd start --capability stats        # with STATS_ROOT=/some/data: of the files below that

and ask from any other node of the mesh:

    meshd call csv_stats path=data/orders.csv column=amount
    meshd call csv_stats content="a,b
    1,2
    3,4"
    meshd call text_stats content="to be or not to be" top=2

Both are idempotent: running them twice does no harm. So the mesh may hand them to another node
when the first one dies in the middle of the work.
"""

import csv
import os
import re
import statistics
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from meshd import UsageError, capability

ROWS_MAX = 1_000_000
FILES_MAX = 10_000
TOP_MAX = 1_000
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")


class Column(TypedDict):
    """Figures of one numeric column. `stdev` is the sample's, 0 where there is one value."""

    count: int
    mean: float
    median: float
    stdev: float
    min: float
    max: float


class CsvStats(TypedDict):
    """Figures of a table: its rows below the header, and its numeric columns by name."""

    rows: int
    columns: dict[str, Column]


class TextStats(TypedDict):
    """Figures of a folder: how much text there is, and its most frequent words."""

    files: int
    lines: int
    words: int
    distinct: int
    top: dict[str, int]


@capability(
    idempotent=True,
    agent="statistician",
    tags=("statistics", "csv", "table"),
    examples=("mean and median of the column amount in orders.csv",),
)
def csv_stats(path: str = "", content: str = "", column: str = "") -> CsvStats:
    """Count, mean, median, standard deviation, minimum and maximum of a CSV's numeric columns.

    Args:
        path: a CSV file with a header line, below the folder that this node lets others read.
        content: the CSV's text itself, instead of a path.
        column: this column alone; all numeric ones if empty.

    Raises:
        UsageError: there is no such file or column, or not exactly one of path and content.
    """
    if bool(path) == bool(content):
        raise UsageError("csv_stats needs a path or the content, and not both")
    lines = content.splitlines() if content else _read(_allowed(path)).splitlines()
    rows, values = _numbers(csv.DictReader(lines))
    if column:
        if column not in values:
            raise UsageError(
                f"there is no numeric column {column!r}",
                hint=f"numeric columns are: {', '.join(values) or 'none'}",
            )
        values = {column: values[column]}
    return {"rows": rows, "columns": {name: _figures(found) for name, found in values.items()}}


@capability(
    idempotent=True,
    agent="statistician",
    tags=("statistics", "text", "words"),
    examples=("the ten most frequent words of a folder of letters",),
)
def text_stats(folder: str = "", content: str = "", top: int = 10) -> TextStats:
    """Lines, words and the most frequent words of all .txt files in a folder.

    Args:
        folder: a folder, below the one that this node lets others read.
        content: a text itself, instead of a folder.
        top: how many of the most frequent words to name, 0..1000.

    Raises:
        UsageError: there is no such folder, or not exactly one of folder and content.
    """
    if bool(folder) == bool(content):
        raise UsageError("text_stats needs a folder or the content, and not both")
    if not 0 <= top <= TOP_MAX:
        raise UsageError(f"top must be 0 .. {TOP_MAX}")
    texts = [content] if content else [_read(file) for file in _text_files(_allowed(folder))]
    count = Counter[str]()
    for text in texts:
        count.update(word.lower() for word in _WORD.findall(text))
    # Equal counts in the order of the alphabet: every node gives the same answer.
    ranked = sorted(count.items(), key=lambda item: (-item[1], item[0]))
    return {
        "files": len(texts),
        "lines": sum(len(text.splitlines()) for text in texts),
        "words": count.total(),
        "distinct": len(count),
        "top": dict(ranked[:top]),
    }


def _allowed(name: str) -> Path:
    """The file or folder `name` below `$STATS_ROOT` (else the daemon's own folder).

    Whoever reaches an open mesh may call what it offers: a capability that reads files must say
    which ones.

    Raises:
        UsageError: it is not there, or lies elsewhere.
    """
    root = Path(os.environ.get("STATS_ROOT") or ".").resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root) or not path.exists():
        raise UsageError(f"there is no {name!r} here", hint="name it from this node's STATS_ROOT")
    return path


def _read(path: Path) -> str:
    if not path.is_file():
        raise UsageError(f"{path.name!r} is no file")
    return path.read_text("utf-8", errors="replace")


def _text_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UsageError(f"{folder.name!r} is no folder")
    return sorted(folder.glob("*.txt"))[:FILES_MAX]


def _numbers(table: "csv.DictReader[str]") -> tuple[int, dict[str, list[float]]]:
    """How many rows there are, and the columns in which every filled cell is a number."""
    values: dict[str, list[float]] = {name: [] for name in table.fieldnames or ()}
    rows = 0
    for rows, row in enumerate(table, start=1):
        if rows > ROWS_MAX:
            raise UsageError(f"the table has more than {ROWS_MAX} rows")
        for name in list(values):
            cell = row[name]
            if cell is None or not cell.strip():
                continue
            try:
                values[name].append(float(cell))
            except ValueError:
                del values[name]
    return rows, {name: found for name, found in values.items() if found}


def _figures(values: Iterable[float]) -> Column:
    found = sorted(values)
    mean = statistics.fmean(found)
    return {
        "count": len(found),
        "mean": round(mean, 6),
        "median": round(statistics.median(found), 6),
        "stdev": round(statistics.stdev(found, mean), 6) if len(found) > 1 else 0.0,
        "min": found[0],
        "max": found[-1],
    }
