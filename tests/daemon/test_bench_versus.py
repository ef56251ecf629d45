"""The benches that set meshd beside its rivals run, each alone here, and end with their figures."""

import json
import os
import subprocess
import sys

import namespaces
import pytest
import repository

pytestmark = pytest.mark.no_cover

BENCH = repository.ROOT / "bench"


def _figures(name, directory, *options):
    return _run(name, directory, *options)[0]["figures"]


def _run(name, directory, *options):
    program = [sys.executable, str(BENCH / f"versus_{name}.py")]
    done = subprocess.run(
        [*program, "--quick", "--kinds", "meshd", "--rivals-dir", str(directory), *options],
        env={**os.environ, "PYTHONPATH": str(repository.ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["bench"] == f"versus_{name}"
    assert {"machine", "parameters", "goals", "passed"} <= result.keys()
    return result, done.stdout


@pytest.mark.slow
def test_a_killed_node_is_found_dead_and_comes_back(tmp_path):
    figures = _figures("kill", tmp_path)["n3"]["meshd"]
    assert (figures["failed"], figures["false_deaths"]) == (0, 0)
    assert figures["dead_everywhere_s"]["min"] >= figures["first_dead_s"]["min"] > 0


@pytest.mark.slow
def test_a_crowd_behind_one_address_joins(tmp_path):
    figures = _figures("join", tmp_path)["n5"]["meshd"]
    assert figures["failed"] == 0
    assert figures["all_see_all_s"]["count"] == 1


@pytest.mark.slow
def test_an_update_reaches_all(tmp_path):
    figures = _figures("update", tmp_path)["n3"]["meshd"]
    assert figures["failed"] == 0
    assert figures["everywhere_s"]["count"] > 0
    assert 0 <= figures["everywhere_s"]["min"] <= figures["everywhere_s"]["max"] < 10


@pytest.mark.slow
def test_a_node_that_is_stopped_blocked_or_crowded_for_a_moment_lives(tmp_path):
    figures = _figures("pause", tmp_path)
    assert list(figures) == ["stopped_0.5s", "blocked_1s_by_sleep", "busy_1s"]
    for each in figures.values():
        assert each["meshd"]["failed"] == 0
        assert each["meshd"]["declared_dead_by"] == each["meshd"]["others_declared_dead"] == 0


@pytest.mark.slow
def test_a_starved_node_kills_no_healthy_one(tmp_path):
    figures = _figures("starved", tmp_path)["n3"]["meshd"]
    assert (figures["failed"], figures["healthy_deaths"]) == (0, 0)


@pytest.mark.slow
def test_a_round_that_was_kept_is_not_run_again(tmp_path):
    out = tmp_path / "results.jsonl"
    first, said = _run("update", tmp_path, "--out", str(out))
    assert "all 3 see all" in said
    again, said = _run("update", tmp_path, "--out", str(out))
    assert "all 3 see all" not in said
    assert again == first
    assert len(out.read_text("utf-8").splitlines()) == 2


@pytest.fixture
def _lan():
    namespaces.need_namespaces()
    namespaces.need("nft", "nsenter")


@pytest.mark.slow
@pytest.mark.netns
@pytest.mark.usefixtures("_lan")
def test_what_an_idle_node_sends_is_counted_by_the_switch(tmp_path):
    figures = _figures("idle", tmp_path)["n3"]["meshd"]
    # Whatever it says, a datagram has more than its 28 bytes of headers.
    assert figures["udp_ip_bytes_per_s"] > 28 * figures["udp_packets_per_s"] > 0
    assert figures["rss_mb"] > 1


@pytest.mark.slow
@pytest.mark.netns
@pytest.mark.usefixtures("_lan")
def test_a_split_parts_the_halves_and_heals(tmp_path):
    (figures,) = _figures("split", tmp_path)["n3_9s_seed_shared"]["meshd"]
    assert figures["dead_across"] > 0
    assert figures["all_see_all_s"] > 0
    assert figures["own_side_deaths"] == 0


@pytest.mark.slow
@pytest.mark.netns
@pytest.mark.usefixtures("_lan")
def test_a_soak_counts_deaths_and_bytes_without_and_with_loss(tmp_path):
    figures = _figures("soak", tmp_path)["n3"]
    for phase in ("quiet", "lossy"):
        assert figures[phase]["meshd"]["declared_dead"] == 0
        assert figures[phase]["meshd"]["udp_bytes_per_s"] > 0


@pytest.mark.slow
@pytest.mark.netns
@pytest.mark.usefixtures("_lan")
def test_loads_that_change_each_second_are_known_everywhere(tmp_path):
    figures = _figures("load", tmp_path)["n3"]["meshd"]
    assert figures["unknown_at_worst"] == 0
    assert 0 <= figures["age_p50_s"] <= figures["age_p99_s"] < 60
