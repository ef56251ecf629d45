"""Puts NATS, Ray, and Celery with Redis into the rivals' directory."""

import os
import subprocess
import venv
from dataclasses import dataclass
from pathlib import Path

from rivals.install import reason, run, unpack

NATS = ("nats-py==2.16.0", "uvloop")
RAY = ("ray==2.60.0", "uvloop")
CELERY = ("celery[redis]==5.7.0", "packaging")
REDIS = ("redis-server", "redis-tools", "libjemalloc2", "liblua5.1-0", "liblzf1", "libhiredis0.14",
         "libatomic1", "lua-cjson", "lua-bitop")  # fmt: skip
LIBRARIES = "usr/lib/x86_64-linux-gnu"


@dataclass(frozen=True)
class Tools:
    """Where what is; the programs and interpreters may be missing."""

    directory: Path

    @property
    def nats_server(self) -> Path:
        """The broker."""
        found = list(self.directory.glob("nats/usr/*bin/nats-server"))
        return found[0] if found else self.directory / "nats-server"

    @property
    def redis_server(self) -> Path:
        """The broker and store of Celery."""
        return self.directory / "redis" / "usr" / "bin" / "redis-server"

    def python(self, name: str) -> Path:
        """An interpreter that has a client's package."""
        return self.directory / f"{name}-python" / "bin" / "python"

    @property
    def libraries(self) -> str:
        """Of Redis: Debian's own, which need not be installed."""
        return str(self.directory / "redis" / LIBRARIES)

    def missing(self, system: str) -> str:
        """Why a system cannot be measured; empty if it can."""
        needed = {
            "nats": [self.nats_server, self.python("nats")],
            "ray": [self.python("ray")],
            "celery": [self.redis_server, self.python("celery")],
        }.get(system, [])
        lacking = [path.name for path in needed if not path.exists()]
        return f"not installed: run python bench/install_rivals.py rpc ({lacking})" * bool(lacking)


def install(directory: Path) -> dict[str, str]:
    """Install what is not there yet.

    Returns:
        What came of each, in words.
    """
    tools = Tools(directory)
    directory.mkdir(parents=True, exist_ok=True)
    told = {}
    for name, packages, debian in (
        ("nats", NATS, ("nats-server",)), ("ray", RAY, ()), ("celery", CELERY, REDIS),
    ):  # fmt: skip
        if tools.missing(name):
            try:
                if debian:
                    unpack(list(debian), directory / ("redis" if name == "celery" else name))
                _install_python(tools.python(name), packages)
            except (OSError, subprocess.SubprocessError) as error:
                told[name] = reason(error)
                continue
        told[name] = "installed"
    return told


def _install_python(python: Path, packages: tuple[str, ...]) -> None:
    home = python.parent.parent
    venv.create(home, with_pip=True, clear=True)
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    run([str(python), "-m", "pip", "install", "-q", *packages], home, environment)
