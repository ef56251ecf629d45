"""Where the configuration and the state of a node lie, unless somebody says otherwise."""

import sys
from collections.abc import Mapping
from pathlib import Path

SYSTEM_CONFIG = Path("/etc/meshd/meshd.toml")


def search_paths(env: Mapping[str, str]) -> tuple[Path, ...]:
    """Where TOML files may be, the weakest first: the system's, then the user's."""
    base = env.get("XDG_CONFIG_HOME") or str(_home(env) / ".config")
    return (SYSTEM_CONFIG, Path(base) / "meshd" / "meshd.toml")


def default_state_dir(env: Mapping[str, str], mesh: str, name: str) -> Path:
    """Where a node keeps its state unless told otherwise."""
    if sys.platform == "darwin":
        base = _home(env) / "Library" / "Application Support"
    else:
        given = env.get("XDG_STATE_HOME", "")
        # A relative one does not count, here as in `control.state_dir_root`: XDG base directories.
        base = Path(given) if given.startswith("/") else _home(env) / ".local" / "state"
    return base / "meshd" / mesh / name


def expanded(path: str, env: Mapping[str, str]) -> str:
    """The path with the home directory in place of `~`."""
    if path == "~" or path.startswith("~/"):
        return str(_home(env)) + path[1:]
    return path


def _home(env: Mapping[str, str]) -> Path:
    home = env.get("HOME")
    return Path(home) if home else Path.home()
