"""Reading TOML files, with every fault told by its place."""

import re
import tomllib
from pathlib import Path
from typing import Any

from meshd.errors import UsageError

FILE_BYTES_MAX = 1024 * 1024


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no TOML; the text begins with `:line:column: ` where that is known.
    """
    with path.open("rb") as file:
        data = file.read(FILE_BYTES_MAX + 1)
    if len(data) > FILE_BYTES_MAX:
        raise ValueError(f": larger than {FILE_BYTES_MAX} bytes")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f":{line}: not UTF-8 text") from error
    except tomllib.TOMLDecodeError as error:
        match = re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", str(error), re.DOTALL)
        if match is None:
            raise ValueError(f": broken TOML: {error}") from error
        raise ValueError(f":{match[2]}:{match[3]}: broken TOML: {match[1]}") from error
    except RecursionError as error:
        raise ValueError(": broken TOML: nested too deeply") from error


def read_capability_file(path: Path) -> tuple[dict[str, Any], ...]:
    """The `[[capability]]` tables of a file that `--capability` names.

    Raises:
        UsageError: it cannot be read, is no TOML, or holds anything else; the message says where.
    """
    try:
        tables = read_toml(path)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror or error}",
            hint="give the path of a TOML file with [[capability]] tables that this user may read",
        ) from error
    except ValueError as error:
        raise UsageError(f"{path}{error}") from error
    entries = tables.get("capability")
    others = sorted(set(tables) - {"capability"})
    if others or not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        found = f"; it also has {', '.join(others)}" if others else ""
        raise UsageError(
            f"{path} does not hold [[capability]] tables alone{found}",
            hint="settings of the node go into the file that --config names",
        )
    return tuple(entries)
