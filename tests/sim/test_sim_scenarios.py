"""Every scenario keeps every invariant, and each planted protocol fault breaks one."""

import pytest

from sim.mutations import MUTATIONS
from sim.runner import run, shrink
from sim.scenarios import SCENARIOS

SIZES = {"steady": 20, "crash": 30, "join_storm": 40, "starved": 20, "churn": 15}
SEEDS_TO_KILL = {"any_ack": 12, "no_sync": 10, "no_gossip": 6}
"""Within how many seeds each planted fault is caught; most by the first or second."""


def plan(name: str, seed: int, loss: float = 0.0):
    scenario = SCENARIOS[name]
    return scenario.make(SIZES.get(name, scenario.nodes), seed, scenario.duration_s, loss)


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize(("seed", "loss"), [(1, 0.0), (2, 0.02)])
def test_a_scenario_keeps_every_invariant(name, seed, loss):
    assert run(plan(name, seed, loss)).violations == ()


@pytest.mark.slow
def test_a_sweep_of_drawn_plans_keeps_every_invariant():
    for seed in range(1_000, 1_025):
        assert run(plan("swarm", seed)).violations == (), seed


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_planted_fault_is_caught(mutation):
    with mutation.planted():
        caught = any(
            run(plan(mutation.scenario, seed)).failed
            for seed in range(SEEDS_TO_KILL.get(mutation.name, 3))
        )
    assert caught


def test_a_failed_run_shrinks_to_the_faults_that_matter():
    refutes_never = next(m for m in MUTATIONS if m.name == "left_is_dead")
    with refutes_never.planted():
        result = run(plan("goodbyes", 0))
        small = shrink(result)
    assert result.failed
    assert small.violations[0].invariant == result.violations[0].invariant
    assert len(small.plan.faults) == 1 < len(result.plan.faults)


def test_a_crash_is_measured():
    metrics = run(plan("crash", 3, 0.01)).metrics
    assert metrics["crashes"] == 1
    assert metrics["detected_s"]["count"] == 29
    assert 4 < metrics["detected_s"]["p50"] < 20
    assert metrics["false_deaths"] == 0


def test_a_quiet_node_sends_two_packets_a_second():
    assert run(plan("steady", 3)).metrics["packets_per_node_s"] == pytest.approx(2.0, rel=0.1)
