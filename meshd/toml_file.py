"""Reads TOML files, with faults that say where they are."""

import re
import tomllib
from pathlib import Path
from typing import Any

TOML_BYTES_MAX = 1024 * 1024


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no TOML; the text begins with `:line:column: ` where that is known.
    """
    with path.open("rb") as file:
        data = file.read(TOML_BYTES_MAX + 1)
    if len(data) > TOML_BYTES_MAX:
        raise ValueError(f": larger than {TOML_BYTES_MAX} bytes")
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
