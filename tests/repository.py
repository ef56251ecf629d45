"""What the tests about the repository share: its root, its files, its contracts, its tools."""

import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CODE = ("meshd", "sim", "tests", "bench", "examples")
_MADE = {".venv", ".git", "__pycache__", "dist", "build"}


@cache
def pyproject() -> dict[str, Any]:
    """Everything that pyproject.toml says."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def contracts() -> list[dict[str, Any]]:
    """The import contracts."""
    return list(pyproject()["tool"]["importlinter"]["contracts"])


def pure_names() -> list[str]:
    """Modules and packages that the purity contract names."""
    return [
        name
        for contract in contracts()
        if contract["name"].startswith("purity")
        for name in contract["source_modules"]
    ]


def module_file(name: str) -> Path | None:
    """The file or package directory of a dotted module name, from the root; None if it is none."""
    path = Path(*name.split("."))
    if (ROOT / path / "__init__.py").exists():
        return path
    file = path.with_suffix(".py")
    return file if (ROOT / file).exists() else None


def is_pure(path: Path) -> bool:
    """Whether the purity contract covers the file `path`, given from the root."""
    covered = (module_file(name) for name in pure_names())
    return any(pure is not None and (path == pure or pure in path.parents) for pure in covered)


def python_files() -> list[Path]:
    """Our Python files, from the root, in order."""
    found = (path for top in CODE for path in (ROOT / top).rglob("*.py"))
    return sorted(path.relative_to(ROOT) for path in found if not _MADE.intersection(path.parts))


def tracked_files() -> list[Path]:
    """What git tracks, from the root; without git, whatever lies there and no tool made."""
    git = shutil.which("git")
    if git and (ROOT / ".git").exists():
        listing = subprocess.run(
            [git, "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if listing.returncode == 0:
            named = (Path(name) for name in listing.stdout.split("\0") if name)
            return [path for path in named if (ROOT / path).is_file()]
    return sorted(
        path.relative_to(ROOT)
        for path in ROOT.rglob("*")
        if path.is_file() and not any(p in _MADE or p.endswith("_cache") for p in path.parts)
    )


def tool(name: str) -> str:
    """The command `name` of the environment that runs the tests."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    assert found, f"{name} is not installed; script/setup test brings it"
    return found


def run_tool(*command: str, cwd: Path = ROOT) -> None:
    """Run a checking tool; fail with all that it said."""
    done = subprocess.run(
        [tool(command[0]), *command[1:]], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"
