"""`meshd sim` finds the simulator by name, only when asked, and only if it is ours."""

import json
import subprocess
import sys

import pytest
import repository

from meshd.cli import sim as sim_command

LOOK = """
import sys
from meshd.cli.app import run
run(sys.argv[1:])
print(sorted(name for name in sys.modules if name.split(".")[0] == "sim"))
"""


def imported(*words):
    """The modules of the simulator that a command line has imported."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK, *words],
        cwd=repository.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()[-1]


def test_the_help_names_the_commands_in_order(meshd):
    done = meshd("sim", "--help")
    assert done.exit == 0
    names = ("  list ", "  run ", "  sweep ", "  replay ", "  plot ", "  bench ")
    places = [done.out.index(name) for name in names]
    assert places == sorted(places)


@pytest.mark.parametrize(
    "command", ["list", "run", "sweep", "replay", "plot", "bench", "mutations"]
)
def test_each_command_has_help_with_examples(meshd, command):
    done = meshd("sim", command, "--help")
    assert done.exit == 0
    assert f"meshd sim {command}" in done.out.partition("Examples:")[2]
    assert "--json" in done.out


def test_a_misspelt_command_gets_a_suggestion(meshd):
    done = meshd("sim", "sweeep")
    assert (done.exit, "Did you mean 'sweep'?" in done.err) == (2, True)
    assert "meshd sim --help" in done.err


def test_global_options_are_understood_after_the_command(meshd):
    assert meshd("sim", "list", "--color", "never").exit == 0
    assert meshd("sim", "list", "--color", "never").exit == 0


@pytest.mark.slow
def test_other_commands_do_not_import_the_simulator():
    assert imported("--help") == "[]"
    assert imported("config", "path") == "[]"


@pytest.mark.slow
def test_its_help_imports_the_commands_alone():
    heavy = ("sim.runner", "sim.world", "sim.scenarios", "sim.plots")
    assert not [name for name in heavy if name in imported("sim", "run", "--help")]


def test_where_it_is_not_installed_the_error_says_so(meshd, monkeypatch):
    monkeypatch.setattr(sim_command, "PACKAGE", "sim_that_nobody_has")
    done = meshd("sim", "list", "--json")
    assert done.exit == 2
    assert "the simulator is not installed" in done.error["message"]
    assert "pip install ." in done.error["hint"]


@pytest.mark.slow
@pytest.mark.parametrize("file", ["sim.py", "sim/__init__.py"])
def test_a_foreign_package_of_that_name_is_not_run(tmp_path, file):
    foreign = tmp_path / file
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text("raise SystemExit('a foreign module was run')\n")
    done = subprocess.run(
        [sys.executable, "-m", "meshd", "sim", "list", "--json"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(repository.ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    error = json.loads(done.stderr)["error"]
    assert "is not meshd's" in error["message"]
    assert str(tmp_path) in error["message"]
    assert "another directory" in error["hint"]


@pytest.mark.slow
def test_a_reader_who_has_seen_enough_ends_it_quietly():
    done = subprocess.Popen(
        [sys.executable, "-m", "meshd", "sim", "list"],
        cwd=repository.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert done.stdout is not None
    assert done.stderr is not None
    done.stdout.close()  # long before the first line is written
    with done.stderr as told:
        assert told.read() == b""
    assert done.wait(20) == 0
