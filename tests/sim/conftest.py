"""What tests of the simulator share: planted faults, and commands run as a user would type them."""

import json
import sys
from typing import NamedTuple

import pytest

from meshd.cli.app import run
from sim.mutations import MUTATIONS


class Outcome(NamedTuple):
    exit: int
    out: str
    err: str

    @property
    def last(self):
        """The JSON object in the last line."""
        return json.loads(self.out.splitlines()[-1])

    @property
    def error(self):
        """The one JSON object on stderr."""
        document = json.loads(self.err.splitlines()[-1])
        assert document["schema"] == "meshd.error/1"
        return document["error"]


@pytest.fixture
def sim(capsys, monkeypatch, tmp_path):
    """Run `meshd sim ...` in an empty directory."""
    for name in ("NO_COLOR", "FORCE_COLOR", "MESHD_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def invoke(*words):
        capsys.readouterr()
        code = run(["sim", *words])
        return Outcome(int(code), *capsys.readouterr())

    return invoke


@pytest.fixture
def no_matplotlib(monkeypatch):
    """As where the extra is not installed: import says so."""
    for name in [each for each in sys.modules if each.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.fixture
def planted():
    """Plants one of the protocol faults by its name."""
    by_name = {mutation.name: mutation for mutation in MUTATIONS}
    return lambda name: by_name[name].planted()


def pytest_collection_modifyitems(items):
    """Long runs are for what they find: the lines that they pass are counted by shorter tests."""
    for item in items:
        if item.path.parent.name == "sim":
            item.add_marker(pytest.mark.no_cover)
