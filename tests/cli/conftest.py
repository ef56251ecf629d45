"""Users without daemons, stand-ins for daemons, and the command line run against them."""

import json
import shutil
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple

import pytest
from stand_in import CAPABILITIES, PEERS, FakeDaemon

from meshd import control
from meshd.cli.app import run


class Outcome(NamedTuple):
    exit: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)

    @property
    def error(self):
        """The one JSON object on stderr."""
        (line,) = self.err.splitlines()
        document = json.loads(line)
        assert document["schema"] == "meshd.error/1"
        return document["error"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user without daemons, settings or colours."""
    for name in ("NO_COLOR", "FORCE_COLOR", "MESHD_NODE", "MESHD_SOCKET", "MESHD_MESH"):
        monkeypatch.delenv(name, raising=False)
    # Short, because a socket's path is bounded and the test runner's directories may be long.
    runtime = Path(tempfile.mkdtemp(prefix="meshd-"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(control, "SYSTEM_RUNTIME_DIR", str(tmp_path / "system"))
    yield tmp_path
    shutil.rmtree(runtime)


@pytest.fixture
def start_daemon(home):
    """Start stand-ins by mesh and name."""
    running = []

    def start(name="lab-a", mesh="default"):
        fake = FakeDaemon(Path(control.runtime_dir()) / mesh / f"{name}.sock")
        thread = threading.Thread(target=fake.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((fake, thread))
        return fake

    yield start
    for fake, thread in running:
        fake.shutdown()
        thread.join(5)
        fake.server_close()


@pytest.fixture
def fake(start_daemon):
    """One daemon in a mesh of three."""
    daemon = start_daemon()
    daemon.results.update(
        peers=PEERS,
        capabilities=lambda params: {
            "schema": "meshd.capabilities/1",
            "capabilities": [
                c for c in CAPABILITIES if params.get("name") in {None, c["name"]}
            ],
        },
    )  # fmt: skip
    return daemon


@pytest.fixture
def meshd(home, capsys):
    """Run one command line in this process."""

    def invoke(*arguments):
        capsys.readouterr()
        code = run(arguments)
        return Outcome(int(code), *capsys.readouterr())

    return invoke
