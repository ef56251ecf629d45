"""The simulator's commands print what people and programs need."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import repository

from sim.mutations import MUTATIONS
from sim.scenarios import SCENARIOS

SMALL = ("--nodes", "8", "--duration", "10s")
COMMANDS = ([sys.executable, "-m", "meshd", "sim"], [sys.executable, "-m", "sim"])


def mutation(name):
    return next(each for each in MUTATIONS if each.name == name)


def started(command, place, **options):
    # Not measured for coverage: an interrupt while that holds its lock would hang it at the end.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}
    return subprocess.Popen(
        command,
        cwd=place,
        env={**environment, "PYTHONPATH": str(repository.ROOT), "PYTHONFAULTHANDLER": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def ended(running):
    """What it wrote; one that does not end tells where it hangs."""
    try:
        return running.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        running.send_signal(signal.SIGABRT)
        out, err = running.communicate()
        raise AssertionError(f"it did not end:\n{out}\n{err}") from None


def test_list_names_every_scenario(sim):
    done = sim("list")
    assert done.exit == 0
    assert all(f"\n{name} " in done.out for name in SCENARIOS)
    assert sim("list", "--json").last["scenarios"].keys() == SCENARIOS.keys()


def test_run_ends_with_one_json_object(sim):
    done = sim("run", "crash", *SMALL, "--seed", "4", "--loss", "0.01", "--json")
    out = done.last
    assert (done.exit, out["schema"]) == (0, "meshd.sim.run/1")
    assert (out["scenario"], out["seed"], out["nodes"], out["violations"]) == ("crash", 4, 8, [])
    assert out["metrics"]["crashes"] == 1


@pytest.mark.parametrize(
    "words",
    [
        ("churn", *SMALL, "--seed", "9"),
        ("swarm", "--seed", "11", "--duration", "17.3s"),
        ("crash", "--nodes", "5", "--duration", "10s", "--loss", "0.0123456789"),
    ],
)
def test_the_printed_command_replays_the_run(sim, words):
    once = sim("run", *words, "--json").last
    assert once["replay"].startswith(f"meshd sim replay {words[0]} ")
    again = sim(*once["replay"].split()[2:], "--json").last
    assert again["digest"] == once["digest"]


def test_a_summary_says_how_it_went(sim):
    done = sim("run", "isolate_one", *SMALL)
    assert done.exit == 0
    for words in ("isolate_one: 8 nodes", "suspected", "held dead", "B per node and second"):
        assert words in done.out
    assert "every invariant held" in done.out


def test_the_loss_that_is_told_is_the_one_that_the_scenario_drew(sim):
    words = ("run", "swarm", "--seed", "1", "--duration", "10s")
    assert "3.0% loss" in sim(*words).out.splitlines()[0]
    assert sim(*words, "--json").last["loss"] == 0.03


def test_colour_comes_when_asked_for_and_only_then(sim):
    assert "\x1b[32mevery invariant held" in sim("run", "crash", *SMALL, "--color", "always").out
    assert "\x1b" not in sim("run", "crash", *SMALL).out


def test_a_failed_run_says_what_broke_and_the_command_shows_just_that(sim):
    with mutation("left_is_dead").planted():
        done = sim("run", "goodbyes", "--nodes", "9", "--duration", "20s")
        lines = done.out.splitlines()
        (replay,) = [line for line in lines if line.startswith("replay: ")]
        first, violated = [line for line in lines if line.startswith("VIOLATED S5 at ")]
        assert " about node " in first
        assert any("shrunk from" in line for line in lines)
        assert sum("Leave(node=" in line for line in lines if "#" in line) == 1
        assert done.exit == 1
        again = sim(*replay.split()[3:])
    assert "--faults " in replay
    assert any("receives Gossip from node " in line and " left @0]" in line for line in lines)
    assert again.exit == 1
    assert violated in again.out.splitlines()


def test_a_failed_run_tells_programs_of_the_whole_plan_and_the_shrunk_one(sim):
    with mutation("left_is_dead").planted():
        out = sim("run", "goodbyes", "--nodes", "9", "--duration", "20s", "--json").last
        again = sim(*out["shrunk"]["replay"].split()[2:], "--json").last
    assert out["violations"][0]["invariant"] == out["shrunk"]["violations"][0]["invariant"] == "S5"
    assert out["violations"][0]["at_s"] < 30
    assert len(out["shrunk"]["faults"]) == 1
    assert again["digest"] == out["shrunk"]["digest"]


def test_shrinking_can_be_left_out(sim):
    with mutation("left_is_dead").planted():
        words = ("run", "goodbyes", "--nodes", "9", "--duration", "20s", "--no-shrink")
        assert "shrunk" not in sim(*words, "--json").last
        assert "replay: meshd sim replay goodbyes" in sim(*words).out


def test_some_faults_of_a_plan_can_be_left_out(sim):
    full = sim("run", "split", *SMALL, "--json").last
    only = sim("run", "split", *SMALL, "--faults", "2", "--json").last
    none = sim("run", "split", *SMALL, "--faults", "none", "--json").last
    both = sim("run", "split", *SMALL, "--faults", "1,2", "--json").last
    assert both["digest"] == full["digest"] != none["digest"]
    assert only["metrics"]["packets_dropped"] == 0 < full["metrics"]["packets_dropped"]


# Many seeds


def test_sweep_counts_seeds_and_tells_all_of_the_lowest_that_failed(sim):
    done = sim("sweep", "goodbyes", *SMALL, "--seeds", "3", "--json")
    assert (done.exit, done.last["violations"], done.last["seeds"]) == (0, [], 3)
    with mutation("left_is_dead").planted():
        told = sim("sweep", "goodbyes", *SMALL, "--seed", "5", "--seeds", "2")
        out = sim("sweep", "goodbyes", *SMALL, "--seed", "5", "--seeds", "2", "--json")
    assert told.exit == out.exit == 1
    assert "goodbyes: 2 seeds, 2 failed" in told.out
    assert "replay: meshd sim replay goodbyes --seed 5 " in told.out
    assert "seed 5 failed: S5" in told.err
    assert [each["seed"] for each in out.last["violations"]] == [5, 6]
    assert out.last["first_failure"]["seed"] == 5
    assert len(out.last["first_failure"]["shrunk"]["faults"]) == 1


def test_sweep_without_a_scenario_draws_plans(sim):
    done = sim("sweep", "--seeds", "2", "--duration", "10s")
    assert done.exit == 0
    assert "swarm: 2 seeds, 0 failed" in done.out


def test_sweep_can_end_with_the_first_failure(sim):
    with mutation("left_is_dead").planted():
        done = sim("sweep", "goodbyes", *SMALL, "--seeds", "50", "-x", "--json")
    assert (done.exit, done.last["seeds"], done.last["seed"]) == (1, 1, 0)


@pytest.mark.slow
def test_a_sweep_comes_out_the_same_with_several_processes(sim):
    words = ("sweep", "churn", *SMALL, "--seeds", "12", "--json")
    one, three = sim(*words).last, sim(*words, "--jobs", "3").last
    assert one["seeds"] == three["seeds"] == 12
    assert one["digest"] == three["digest"]


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_an_interrupted_sweep_tells_what_is_known_so_far(tmp_path, jobs):
    words = ["sweep", "steady", *SMALL, "--seeds", "100000", "--jobs", jobs, "--json"]
    running = started([*COMMANDS[0], *words], tmp_path, start_new_session=True)
    try:
        assert running.stderr.readline().startswith("steady sweep ")  # the first word of progress
    finally:
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does it: all processes hear of it
        out, err = ended(running)
    last = json.loads(out.splitlines()[-1])
    assert running.returncode == 130
    assert last["interrupted"]
    assert 0 < last["seeds"] < 100_000
    assert "Traceback" not in err


# As a user would


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=["meshd sim", "python -m sim"])
def test_a_user_runs_records_replays_and_sweeps(command, tmp_path):
    def use(*words):
        running = started([*command, *words], tmp_path)
        out, err = running.communicate(timeout=40)
        assert running.returncode == 0, err
        return out

    assert "join_storm" in use("list")
    first = json.loads(use("run", "crash", *SMALL, "--out", "run-1", "--json").splitlines()[-1])
    assert {"plan.toml", "result.json", "series.json", "trace.jsonl.gz"} <= {
        path.name for path in Path(tmp_path / "run-1").iterdir()
    }
    assert f"the last is {first['digest']}" in use("replay", "run-1")
    assert first["digest"] in use("replay", "run-1/plan.toml")
    assert "4 seeds, 0 failed" in use("sweep", "--seeds", "4", "--jobs", "2", "--duration", "10s")
