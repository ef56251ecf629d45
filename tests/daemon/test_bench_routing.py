"""The routing benches run, count what they say they count, and judge it."""

import importlib
import json
import os
import subprocess
import sys

import pytest
import repository

pytestmark = pytest.mark.no_cover

BENCH = repository.ROOT / "bench"


@pytest.fixture
def figures(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("routing_figures")


def _run(name, *options):
    done = subprocess.run(
        [sys.executable, str(BENCH / f"{name}.py"), "--quick", *options],
        env={**os.environ, "PYTHONPATH": str(repository.ROOT)},
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_policies_have_their_turns_on_the_same_daemons_with_the_same_arrivals():
    result = _run("routing_daemons")
    adaptive, chance = (result["figures"][name] for name in ("adaptive", "random"))
    assert adaptive["calls"] == chance["calls"] > 10
    assert adaptive["messages"] > 0
    assert len(result["goals"]) == 2
    assert all(goal["value"] > 0 for goal in result["goals"])


@pytest.mark.slow
def test_the_claims_of_the_field_hold():
    result = _run("routing_claims")
    assert result["passed"], result["goals"]
    assert result["figures"]["random_isolated_after"]["max"] == 3


def test_the_load_of_a_node_is_its_busy_time_and_the_slow_one_does_not_lower_the_mean(figures):
    workers = [
        figures.Worker("a", 1, 0.1),
        figures.Worker("b", 2, 0.1),
        figures.Worker("slow", 1, 1.0, is_slow=True),
        figures.Worker("failing", 1, 0.1, is_failing=True),
    ]
    calls = [_ended(figures, "a", k) for k in range(4)] + [_ended(figures, "b", 5)] * 2
    calls += [figures.Ended("a", 9.0, 0.01, (("failing", "error"),))]
    told = figures.figures_of([figures.Turn(calls, 1.0, 0)], workers)
    assert told["loads"] == {"a": 0.4, "b": 0.1, "slow": 0.0}
    assert told["max_over_mean"] == pytest.approx(0.4 / 0.2)
    assert told["max_over_node_mean"] == pytest.approx(0.4 / 0.25)
    assert told["failed"] == 1
    assert told["messages"] == pytest.approx((2 * 2 + 2) / 7, abs=0.01)


def test_a_call_waits_in_vain_where_a_healthy_slot_was_free_when_it_was_due(figures):
    workers = [figures.Worker("a", 1, 0.1), figures.Worker("b", 1, 0.1)]
    first, second = _ended(figures, "a", 1.0), _ended(figures, "a", 1.05, began_s=0.05)
    turn = figures.Turn([first, second], 2.0, 0)
    assert figures.waited_in_vain(turn, workers) == 1
    busy = figures.Turn([first, second, _ended(figures, "b", 1.02)], 2.0, 0)
    assert figures.waited_in_vain(busy, workers) == 0


@pytest.mark.parametrize(
    ("node", "tries", "began_s", "why"),
    [
        ("slow", ("ok",), 0.0, "slow node"),
        ("a", ("error", "ok"), 0.0, "failed elsewhere first"),
        ("a", ("busy", "ok"), 0.0, "refused elsewhere first"),
        ("a", ("ok",), 0.1, "waited for a slot"),
        ("a", ("ok",), 0.0, "on the way"),
    ],
)
def test_what_made_a_call_slow_is_the_first_thing_that_holds(figures, node, tries, began_s, why):
    by_name = {
        "a": figures.Worker("a", 1, 0.1),
        "slow": figures.Worker("slow", 1, 1.0, is_slow=True),
    }
    outcomes = tuple(("a", outcome) for outcome in tries)
    call = figures.Ended("a", 0.0, 1.0, outcomes, node, began_s, began_s + 0.1)
    assert figures.why_slow(call, by_name) == why


def _ended(figures, node, due, *, began_s=0.0):
    """A call that was given to `a`, due at `due`, and took 100 ms from `began_s` on."""
    return figures.Ended("a", due, began_s + 0.1, ((node, "ok"),), node, began_s, began_s + 0.1)
