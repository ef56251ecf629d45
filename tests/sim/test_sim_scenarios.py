"""Every scenario keeps every invariant, and shows what it is for."""

import pytest

from meshd.gossip.effects import ConflictSeen
from sim.faults import Asks, At, Block, Clone, Loads, LossyLink, Pause, PowerLoss, Upgrade
from sim.network import Shape
from sim.plan import Plan
from sim.power import SIZES
from sim.report import describe
from sim.runner import Judge, run, shrink
from sim.scenarios import SCENARIOS, whole
from sim.world import World

SWEPT = range(1_000, 1_020)
"""Seeds of the swarm that are run each time."""
NAMED = range(30, 31)
"""Seeds of each named scenario that are run each time."""
KEPT = [
    ("steady", 2, 60.0, 0),  # a lone other member was not asked in every period
    ("two_meshes", 2, 30.0, 0),  # who is alone in its mesh has nobody to send packets to
    ("two_meshes", 3, 30.0, 0),
    ("clones", 2, 3.0, 17),  # both had doubles: nobody was left who knew an address
    ("swarm", 4, 3.0, 12),  # a cut that began after the end was never healed: the run had no end
    ("split", 3, 120.0, 0),  # who was cut off alone told of deaths when the others came back
    ("isolate_one", 5, 180.0, 0),
    ("churn", 8, 10.0, 270),  # the last rumours had their time from before all deaths were known
]
"""Plans that once broke an invariant: scenario, nodes, duration and seed."""
WHOLE = {make.__name__ for make, *_ in whole.ALL}
CORES = [name for name in SCENARIOS if name not in WHOLE]
"""The scenarios of the first level; whole daemons have tests of their own."""


def plan(name: str, seed: int, loss: float = 0.0) -> Plan:
    scenario = SCENARIOS[name]
    return scenario.make(SIZES.get(name, scenario.nodes), seed, scenario.duration_s, loss)


def told(made: Plan) -> str:
    """What a failed run says: the first violation, and the command that shows it again."""
    violations = run(made).violations
    return f"{describe(violations[0])}\nreplay: {made.command()}" if violations else ""


@pytest.mark.parametrize("name", CORES)
@pytest.mark.parametrize(("seed", "loss"), [(1, 0.0), (2, 0.02)])
def test_a_scenario_keeps_every_invariant(name, seed, loss):
    assert told(plan(name, seed, loss)) == ""


@pytest.mark.parametrize(("name", "nodes", "duration_s", "seed"), KEPT)
def test_what_once_broke_an_invariant_does_not_any_more(name, nodes, duration_s, seed):
    assert told(SCENARIOS[name].make(nodes, seed, duration_s, 0.0)) == ""


KEPT_LARGE = [
    ("split", 300, 10.0, 0),  # news of the heal waited behind hundreds of doubts and denials
    ("narrow", 150, 5.0, 1),  # fifteen deaths at once waited in links of 64 kbit/s
]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("name", "nodes", "duration_s", "seed"), KEPT_LARGE)
def test_what_once_broke_an_invariant_in_a_large_mesh_does_not(name, nodes, duration_s, seed):
    assert told(SCENARIOS[name].make(nodes, seed, duration_s, 0.0)) == ""


@pytest.mark.slow
def test_a_sweep_of_drawn_plans_keeps_every_invariant():
    for seed in SWEPT:
        assert told(plan("swarm", seed)) == "", f"first failing seed: {seed}"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CORES if name != "swarm"])
def test_a_sweep_of_a_named_scenario_keeps_every_invariant(name):
    for seed in NAMED:
        assert told(plan(name, seed)) == "", f"first failing seed: {seed}"


def test_a_failed_run_shrinks_to_the_faults_that_matter(planted):
    with planted("left_is_dead"):
        result = run(plan("goodbyes", 0))
        small = shrink(result)
    assert result.failed
    assert small.violations[0].invariant == result.violations[0].invariant
    assert len(small.plan.faults) == 1 < len(result.plan.faults)


def test_a_core_that_raises_is_a_violation_of_the_run(monkeypatch):
    def broken(*_args: object) -> None:
        message = "no such row"
        raise KeyError(message)

    monkeypatch.setattr("meshd.gossip.prober.Prober.on_tick", broken)
    result = run(plan("steady", 1))
    assert [violation.invariant for violation in result.violations] == ["V"]
    assert "KeyError" in result.violations[0].text


def test_a_crash_is_measured():
    metrics = run(plan("crash", 3, 0.01)).metrics
    assert metrics["crashes"] == 1
    assert metrics["detected_s"]["count"] == 29
    assert 4 < metrics["detected_s"]["p50"] < 20
    assert metrics["false_deaths"] == 0


def test_a_quiet_node_sends_two_packets_a_second():
    assert run(plan("steady", 3)).metrics["packets_per_node_s"] == pytest.approx(2.0, rel=0.1)


# What single faults do


def small(*faults: At, nodes: int = 8, duration_s: float = 40.0) -> Plan:
    return Plan(
        scenario="test", nodes=nodes, seed=5, duration_s=duration_s, converged=nodes, faults=faults
    )


def test_what_a_newer_version_says_is_passed_over_or_refused_and_counted():
    upgrades = [At(1.0 + node, Upgrade(node, seeds=((node + 1) % 8,))) for node in range(4)]
    result = run(small(*upgrades))
    assert result.violations == ()
    assert result.metrics["false_deaths"] == 0
    assert result.metrics["rejected"]["unknown_kind"] > 0
    assert result.metrics["rejected"]["other_version"] > 0


def test_a_version_taken_back_speaks_as_before():
    back = [At(1.0, Upgrade(0, seeds=(1,))), At(5.0, Upgrade(0, newer=False, seeds=(1,)))]
    judge = Judge(small(*back))
    judge.run()
    assert judge.violations == []
    assert judge.world.hosts[0].speak is None


def test_a_double_is_reported_by_both_and_the_node_outlives_it():
    judge = Judge(small(At(1.0, Clone(3, 12.0, (0, 1))), duration_s=80.0))
    seen: list[int] = []
    judge.world.on_effect.append(
        lambda host, effect: seen.append(host.index) if type(effect) is ConflictSeen else None
    )
    judge.run()
    assert judge.violations == []
    assert {3, 8} <= set(seen)
    host = judge.world.hosts[3]
    held = judge.world.hosts[0].swim.members.get(host.id)
    assert held.address == host.address


def test_a_node_without_memory_and_with_its_clock_set_back_outranks_its_last_run():
    loss = PowerLoss((2, 3), after_s=1.0, back_s=3_600.0, seeds=(0, 1))
    judge = Judge(small(At(1.0, loss)))
    before = judge.world.hosts[2].epoch
    judge.run()
    assert judge.violations == []
    assert judge.world.hosts[2].epoch == before + 1


def test_a_lossy_link_is_as_narrow_as_all_others():
    world = World(3, 1, shape=Shape(mtu_bytes=100))
    LossyLink(0, 1, 0.0, 5.0).apply(world)
    assert world.network.route(0, 1, 100, world.now) != ()
    assert world.network.route(0, 1, 101, world.now) == ()


@pytest.mark.parametrize("fault", [Block(3, 3.5), Pause(3, 3.5)])
def test_a_short_hold_is_no_death_and_a_long_one_is(fault):
    short = run(small(At(5.0, fault)))
    assert short.violations == ()
    assert short.metrics["false_deaths"] == 0
    long = run(small(At(5.0, type(fault)(3, 20.0))))
    assert long.violations == ()
    assert long.metrics["false_deaths"] > 0


def test_loads_and_users_pings_cost_packets_and_break_nothing():
    quiet = run(small())
    busy = run(small(At(0.0, Loads(5.0, 30.0)), At(0.0, Asks(1.0, 30.0))))
    assert busy.violations == quiet.violations == ()
    assert busy.metrics["packets_per_node_s"] > quiet.metrics["packets_per_node_s"] + 1
