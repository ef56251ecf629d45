"""Puts the rivals into a directory of their own: never into our environment or the repository."""

import os
import shutil
import subprocess
import venv
from dataclasses import dataclass
from pathlib import Path

KINSHIP = "kinship==0.4.0"
SERF = "serf"
HOW = "python bench/install_rivals.py"


@dataclass(frozen=True)
class Installed:
    """What there is; a path is None where its program is not, and `missing` says why."""

    serf: Path | None
    kinship_python: Path | None
    missing: dict[str, str]


def default_directory() -> Path:
    """In the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "meshd-bench-rivals"


def find(directory: Path) -> Installed:
    """What an earlier `install` left in a directory; Serf may also be installed as usual."""
    own = directory / "serf" / "usr" / "bin" / "serf"
    usual = shutil.which("serf")
    serf = own if own.exists() else Path(usual) if usual else None
    python = directory / "kinship" / "bin" / "python"
    kinship = python if python.exists() and (directory / "kinship" / "done").exists() else None
    found = {"serf": serf, "kinship": kinship}
    missing = {
        name: f"not installed in {directory}: run {HOW}"
        for name, path in found.items()
        if path is None
    }
    return Installed(serf, kinship, missing)


def install(directory: Path) -> dict[str, str]:
    """Install what is not there yet.

    Returns:
        What came of each, in words.
    """
    directory.mkdir(parents=True, exist_ok=True)
    there = find(directory)
    told = {}
    for name, path, put in (
        ("serf", there.serf, _install_serf),
        ("kinship", there.kinship_python, _install_kinship),
    ):
        if path is None:
            try:
                put(directory)
            except (OSError, subprocess.SubprocessError) as error:
                told[name] = _reason(error)
                continue
        told[name] = "installed"
    return told


def _install_serf(directory: Path) -> None:
    """Debian's package, unpacked and not installed: nothing outside the directory changes."""
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise OSError(f"needs {tool}; or install Serf so that `serf` is found")
    packages = directory / "packages"
    packages.mkdir(exist_ok=True)
    _run(["apt-get", "download", SERF], packages)
    (package,) = packages.glob(f"{SERF}_*.deb")
    _run(["dpkg", "-x", str(package), str(directory / "serf")], directory)


def _install_kinship(directory: Path) -> None:
    home = directory / "kinship"
    venv.create(home, with_pip=True, clear=True)
    _run([str(home / "bin" / "python"), "-m", "pip", "install", "-q", KINSHIP], directory)
    (home / "done").touch()


def _run(command: list[str], place: Path) -> None:
    subprocess.run(command, cwd=place, check=True, capture_output=True, text=True, timeout=300)


def _reason(error: Exception) -> str:
    said = getattr(error, "stderr", "") or str(error)
    return f"not installed: {said.strip().splitlines()[-1]}"
