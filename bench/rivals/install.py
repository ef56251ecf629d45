"""Puts the rivals into a directory of their own: never into our environment or the repository."""

import os
import shutil
import subprocess
import tempfile
import venv
import zlib
from dataclasses import dataclass
from pathlib import Path

KINSHIP = "kinship==0.4.0"
SERF = "serf"
MEMBERLIST = ["golang-github-hashicorp-memberlist-dev", "golang-go"]
DEPENDENCIES = [
    "apt-cache", "depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts",
    "--no-breaks", "--no-replaces", "--no-enhances",
]  # fmt: skip
PROGRAM = Path(__file__).resolve().parent / "memberlist_node.go"
HOW = "python bench/install_rivals.py"


@dataclass(frozen=True)
class Installed:
    """What there is; a path is None where its program is not, and `missing` says why."""

    serf: Path | None
    kinship_python: Path | None
    memberlist: Path | None
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
    own = directory / _program_name()
    memberlist = own if own.exists() else None
    found = {"serf": serf, "kinship": kinship, "memberlist": memberlist}
    missing = {
        name: f"not installed in {directory}: run {HOW}"
        for name, path in found.items()
        if path is None
    }
    return Installed(serf, kinship, memberlist, missing)


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
        ("memberlist", there.memberlist, _install_memberlist),
    ):
        if path is None:
            try:
                put(directory)
            except (OSError, subprocess.SubprocessError) as error:
                told[name] = reason(error)
                continue
        told[name] = "installed"
    return told


def _install_serf(directory: Path) -> None:
    unpack([SERF], directory / "serf")


def _install_memberlist(directory: Path) -> None:
    """Debian's source of it, and of a Go to build our small program with; both go again."""
    names = set(run([*DEPENDENCIES, *MEMBERLIST], directory).split())
    with tempfile.TemporaryDirectory(dir=directory) as place:
        root = Path(place)
        unpack(sorted(name for name in names if name.startswith("golang-")), root)
        (go,) = root.glob("usr/lib/go-*/bin/go")
        environment = {
            "PATH": os.environ["PATH"], "GOROOT": str(go.parents[1]), "GO111MODULE": "off",
            "GOPATH": str(root / "usr" / "share" / "gocode"), "GOCACHE": str(root / "cache"),
            "CGO_ENABLED": "0", "HOME": place,
        }  # fmt: skip
        built = str(directory / _program_name())
        run([str(go), "build", "-o", built, str(PROGRAM)], root, environment)


def _program_name() -> str:
    """Another one for each version of our program around memberlist: an old one is not used."""
    return f"memberlist-node-{zlib.crc32(PROGRAM.read_bytes()):08x}"


def unpack(packages: list[str], root: Path) -> None:
    """Debian's packages, unpacked and not installed: nothing outside the directory changes."""
    for tool in ("apt-get", "apt-cache", "dpkg"):
        if shutil.which(tool) is None:
            raise OSError(f"needs {tool}, that is Debian or its like")
    with tempfile.TemporaryDirectory(dir=root.parent) as place:
        run(["apt-get", "download", *packages], Path(place))
        for package in Path(place).glob("*.deb"):
            run(["dpkg", "-x", str(package), str(root)], Path(place))


def _install_kinship(directory: Path) -> None:
    home = directory / "kinship"
    venv.create(home, with_pip=True, clear=True)
    run([str(home / "bin" / "python"), "-m", "pip", "install", "-q", KINSHIP], directory)
    (home / "done").touch()


def run(command: list[str], place: Path, environment: dict[str, str] | None = None) -> str:
    """Run a tool; returns what it said."""
    return subprocess.run(
        command, cwd=place, env=environment, check=True, capture_output=True, text=True, timeout=600
    ).stdout


def reason(error: Exception) -> str:
    """Why something could not be installed, in words."""
    said = getattr(error, "stderr", "") or str(error)
    return f"not installed: {said.strip().splitlines()[-1]}"
