"""A recorded run: its files, that it replays, where it first differs, and its pictures."""

import gzip
import importlib.util
import json

import pytest

from sim import recording
from sim.mutations import MUTATIONS
from sim.recording import Recorder, difference, spans
from sim.runner import Result, run
from sim.scenario_file import load
from sim.scenarios import SCENARIOS

RUN = ("run", "split", "--nodes", "12", "--duration", "60s", "--seed", "2")
needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed"
)


def record(plan):
    recorder = Recorder(plan)
    result = run(plan, recorder.observe)
    return recorder, result


def test_who_looks_on_changes_nothing():
    plan = SCENARIOS["churn"].make(12, 3, 40.0, 0.01)
    recorder, result = record(plan)
    assert result == run(plan)
    assert len(recorder.samples.at_s) > 100


def test_a_run_leaves_its_plan_its_result_and_its_trace(sim, tmp_path, no_matplotlib):
    done = sim(*RUN, "--out", "one")
    assert done.exit == 0
    assert "recorded in one; again: meshd sim replay one" in done.out
    assert "no plots: matplotlib is not installed; pip install matplotlib" in done.err
    result = json.loads((tmp_path / "one" / "result.json").read_text())
    assert result["schema"] == "meshd.sim.run/1"
    assert f"digest      {result['digest']}" in done.out
    assert load(tmp_path / "one" / "plan.toml") == SCENARIOS["split"].make(12, 2, 60.0, 0.0)


def test_a_recorded_run_comes_out_the_same(sim, no_matplotlib):
    first = sim(*RUN, "--out", "one", "--json").last
    assert "the same as recorded" in sim("replay", "one").out
    again = sim("replay", "one/trace.jsonl.gz", "--out", "two", "--json").last
    assert again["digest"] == again["recorded"]["digest"] == first["digest"]
    assert again["recorded"]["same"]
    assert sim("replay", "two").exit == 0
    assert sim("replay", "one/plan.toml", "--json").last["digest"] == first["digest"]


@pytest.mark.slow
def test_a_run_that_differs_says_where_it_first_did(sim, tmp_path, no_matplotlib):
    sim("run", "churn", "--nodes", "40", "--seed", "2", "--out", "one")
    file = tmp_path / "one" / "trace.jsonl.gz"
    lines = gzip.decompress(file.read_bytes()).splitlines(keepends=True)
    assert len(lines) >= 4
    point = json.loads(lines[2])
    lines[2] = json.dumps({**point, "digest": "0" * 32}).encode() + b"\n"
    file.write_bytes(gzip.compress(b"".join(lines)))
    done = sim("replay", "one")
    assert done.exit == 1
    assert "DIFFERS from what meshd" in done.out
    assert "first at checkpoint 2, between" in done.out
    differs = sim("replay", "one", "--json").last["recorded"]["differs"]
    assert differs["checkpoint"] == 2
    assert differs["after_s"] < differs["until_s"] == point["at_s"]


def test_a_changed_protocol_differs_from_its_recording(sim, no_matplotlib):
    sim("run", "split", "--nodes", "12", "--seed", "2", "--out", "one")
    with next(each for each in MUTATIONS if each.name == "no_gossip").planted():
        done = sim("replay", "one", "--json")
    assert done.exit == 1
    assert not done.last["recorded"]["same"]


def test_an_end_that_differs_is_told():
    plan = SCENARIOS["crash"].make(6, 1, 10.0, 0.0)
    recorder, result = record(plan)
    other = Result(plan, "0" * 32, (), result.metrics)

    class Recorded:
        checkpoints = tuple(recorder.checkpoints)
        digest = result.digest

    found = difference(Recorded, recorder, other)
    assert found is not None
    assert (found.checkpoint, found.until_s) == (1, None)
    assert difference(Recorded, recorder, result) is None


def test_a_failed_run_leaves_its_shrunk_plan_which_replays(sim, tmp_path, no_matplotlib):
    with next(each for each in MUTATIONS if each.name == "left_is_dead").planted():
        words = ("goodbyes", "--nodes", "9", "--duration", "20s", "--out", "one")
        first = sim("run", *words, "--json").last
        again = sim("replay", "one/shrunk.toml", "--json").last
        swept = sim("sweep", *words[:-1], "two", "--seeds", "2", "--json").last
    assert again["digest"] == first["shrunk"]["digest"]
    assert len(load(tmp_path / "one" / "shrunk.toml").faults) == 1
    assert swept["first_failure"]["digest"] == first["digest"]
    assert load(tmp_path / "two" / "plan.toml") == load(tmp_path / "one" / "plan.toml")


def test_a_run_of_a_file_prints_a_command_that_replays_it(sim, tmp_path, no_matplotlib):
    sim(*RUN, "--out", "one")
    (tmp_path / "my plan.toml").write_text((tmp_path / "one" / "plan.toml").read_text())
    out = sim("run", "my plan.toml", "--loss", "0.02", "--seed", "5", "--json").last
    expected = "meshd sim replay 'my plan.toml' --seed 5 --loss 0.02"
    assert (out["replay"], out["loss"]) == (expected, 0.02)
    again = sim("replay", "my plan.toml", "--seed", "5", "--loss", "0.02", "--json").last
    assert again["digest"] == out["digest"]
    swept = sim("sweep", "my plan.toml", "--seeds", "2", "--loss", "0.02", "--seed", "5")
    assert swept.exit == 0


# Series


def test_both_sides_of_a_split_come_to_believe_in_themselves_alone():
    recorder, _ = record(SCENARIOS["split"].make(10, 5, 120.0, 0.0))
    series = recorder.series()
    at_40 = series["at_s"].index(max(at for at in series["at_s"] if at <= 55))
    assert [group["name"] for group in series["groups"]] == ["A (5)", "B (5)"]
    assert [group["mean"][at_40] for group in series["groups"]] == [5.0, 5.0]
    assert (series["true"][at_40], series["equal"][at_40], series["views"][at_40]) == (0.0, 0.5, 2)
    assert (series["true"][0], series["true"][-1]) == (1.0, 1.0)
    assert series["members"][at_40] == 10


def test_faults_last_until_they_are_healed_or_the_run_mends_all():
    plan = SCENARIOS["split"].make(10, 5, 100.0, 0.0)
    (bar,) = spans(plan)
    assert (bar["what"], bar["from_s"], bar["to_s"]) == ("Partition", 10.0, 50.0)
    lossy = [*spans(SCENARIOS["lossy"].make(20, 1, 90.0, 0.0))]
    assert {each["to_s"] - each["from_s"] for each in lossy} == {63.0}


def test_a_long_run_keeps_a_bounded_number_of_samples(monkeypatch):
    monkeypatch.setattr(recording, "SAMPLES_MAX", 100)
    recorder, _ = record(SCENARIOS["crash"].make(5, 1, 60.0, 0.0))
    at_s = recorder.samples.at_s
    assert 50 <= len(at_s) <= 100
    assert at_s[0] == 0.0
    assert at_s[-1] > 58
    assert {len(column) for column in recorder.samples.columns()} == {len(at_s)}
    assert len(recorder.groups[0].mean) == len(at_s)


# Pictures


@needs_matplotlib
@pytest.mark.slow
def test_a_recorded_run_is_drawn(sim, tmp_path):
    done = sim("run", "churn", "--nodes", "10", "--duration", "30s", "--out", "one")
    assert (done.exit, done.err) == (0, "")
    names = {path.name for path in (tmp_path / "one").iterdir()}
    pictures = {
        f"{n}.{k}" for n in ("convergence", "detection", "timeline") for k in ("png", "svg")
    }
    assert pictures <= names
    once = {name: (tmp_path / "one" / name).read_bytes() for name in pictures}
    assert once["timeline.png"].startswith(b"\x89PNG")
    assert b"virtual time" in once["convergence.svg"]
    again = sim("plot", "one", "--json").last
    assert {path.rpartition("/")[2] for path in again["files"]} == pictures
    assert once["timeline.svg"] == (tmp_path / "one" / "timeline.svg").read_bytes()


@needs_matplotlib
@pytest.mark.slow
def test_a_run_with_many_faults_and_a_violation_is_drawn(sim, tmp_path):
    with next(each for each in MUTATIONS if each.name == "left_is_dead").planted():
        sim("run", "goodbyes", "--nodes", "40", "--duration", "30s", "--out", "one", "--no-shrink")
    assert "violated" in (tmp_path / "one" / "timeline.svg").read_text()


def test_without_matplotlib_plot_says_how_to_get_it(sim, no_matplotlib):
    sim(*RUN, "--out", "one")
    done = sim("plot", "one")
    assert (done.exit, "pip install matplotlib" in done.err) == (2, True)
