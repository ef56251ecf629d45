"""The wheel holds what it must, and installs as a working command."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import repository

import meshd

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def _pip(*arguments: str) -> None:
    """Run pip without network: the build backend is one of the test tools."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from the tree."""
    place = tmp_path_factory.mktemp("wheel")
    source = str(repository.ROOT)
    _pip("wheel", source, "--no-deps", "--no-build-isolation", "--no-index", "-w", str(place))
    (built,) = place.glob("*.whl")
    return built


def test_wheel_holds_code_types_and_licence(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in ("meshd/__init__.py", "meshd/py.typed", "sim/__init__.py"):
        assert wanted in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"meshd", "sim"}


def test_installed_wheel_gives_the_command(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    _pip("--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    # The dependencies come from here, meshd itself from the wheel: path files are not read there.
    environment = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")}

    def use(*words: str) -> str:
        done = subprocess.run(
            [str(tmp_path / "venv" / "bin" / "meshd"), *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert use("--version") == f"meshd {meshd.__version__}\n"
    run = ("crash", "--nodes", "5", "--duration", "10s")
    assert "every invariant held" in use("sim", "run", *run, "--out", "recorded")
    assert "the same as recorded" in use("sim", "replay", "recorded")
    assert "2 seeds, 0 failed" in use("sim", "sweep", *run, "--seeds", "2", "--jobs", "2")
