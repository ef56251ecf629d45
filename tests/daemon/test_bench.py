"""The benches run, and end with one line that a program can read."""

import json
import os
import subprocess
import sys

import namespaces
import pytest
import repository

pytestmark = pytest.mark.no_cover

BENCH = repository.ROOT / "bench"


def _run(name, *options, cwd=None):
    done = subprocess.run(
        [sys.executable, str(BENCH / f"{name}.py"), "--quick", *options],
        env=_environment(),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _environment():
    return {**os.environ, "PYTHONPATH": str(repository.ROOT)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "figure"), [("converge", "n5"), ("cli", "ratio_p50"), ("delegate", "direct")]
)
def test_a_quick_bench_ends_with_its_json_object(name, figure):
    result = _run(name)
    assert result["bench"] == name
    assert result["figures"][figure]
    assert {"machine", "parameters"} <= result.keys()


@pytest.mark.slow
def test_what_is_measured_is_not_what_lies_where_the_bench_was_started(tmp_path):
    (tmp_path / "meshd").mkdir()
    (tmp_path / "meshd" / "__init__.py").write_text("raise RuntimeError('not this one')\n")
    assert _run("converge", cwd=tmp_path)["machine"]["build"] == "pure"


@pytest.mark.slow
def test_meshd_is_measured_beside_whatever_of_the_others_is_installed(tmp_path):
    result = _run("rpc", "--systems", "attached", "raw", "nats", "--rivals-dir", str(tmp_path))
    assert set(result["figures"]) == {"attached", "raw"}
    assert all(each["crowd_per_s"] > 0 for each in result["figures"].values())
    assert result["passed"] in {None, False}
    assert len(result["goals"]) == 9


@pytest.mark.slow
def test_many_and_large_calls_are_all_answered():
    result = _run("large")
    assert result["goals"][0]["is_met"]
    assert result["figures"]["stream"]["mib"] == 4


@pytest.mark.slow
def test_routing_is_simulated_and_its_decisions_are_timed():
    result = _run("routing")
    assert {row["way"] for row in result["figures"]["rows"]} >= {"adaptive", "everyone"}
    assert all(goal["value"] is not None for goal in result["goals"])
    figures = _run("routing", "--decisions")["figures"]
    assert figures["1000 peers, one circuit open, any"]["count"] > 100


@pytest.mark.slow
@pytest.mark.netns
def test_in_a_little_chaos_every_call_ends_once():
    namespaces.need_namespaces()
    namespaces.need("nft", "nsenter")
    result = _run("chaos")
    assert result["passed"], result
    assert sum(result["figures"]["outcomes"].values()) == 300


@pytest.mark.slow
def test_a_quick_detection_raises_no_false_alarm():
    figures = _run("detect")["figures"]
    assert figures["dead_everywhere_s"]["count"] == 1
    assert figures["false_alarms"]["declared_dead"] == 0
