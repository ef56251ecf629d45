"""The bounds behind the invariants are the published formulas."""

import pytest

from meshd.gossip.config import profile
from sim.invariants.bounds import (
    detection_bound_s,
    everybody_bound_s,
    latency_high_s,
    serf_spread_s,
    spread_bound_s,
)
from sim.network import Constant, Exponential, Shape, Uniform
from sim.world import World


@pytest.mark.parametrize(("members", "seconds"), [(30, 0.54), (100, 0.62), (1_000, 0.77)])
def test_spreading_follows_serfs_simulator(members, seconds):
    assert serf_spread_s(profile("lan"), members, 0.0) == pytest.approx(seconds, abs=0.006)


def test_loss_and_failed_nodes_slow_the_spreading_down():
    config = profile("lan")
    assert serf_spread_s(config, 30, 0.5) == pytest.approx(2 * serf_spread_s(config, 30, 0.0))
    assert serf_spread_s(config, 30, 0.0, 0.5) == serf_spread_s(config, 30, 0.5)


@pytest.mark.parametrize(("nodes", "seconds"), [(100, 26.5), (1_000, 26.5)])
def test_a_crash_is_found_by_the_bound_of_the_design(nodes, seconds):
    assert detection_bound_s(World(nodes, 1), nodes - 1) == pytest.approx(seconds)


def test_a_lossy_network_has_twice_the_time_to_find_a_crash_by_a_probe():
    lossy = World(100, 1, shape=Shape(loss=0.01))
    assert detection_bound_s(lossy, 99) == pytest.approx(26.5 + 21)


@pytest.mark.parametrize(
    ("shape", "seconds"),
    [
        (Shape(latency=Constant(0.01)), 0.01),
        (Shape(latency=Uniform(0.0, 0.02)), 0.02),
        (Shape(latency=Exponential(0.001, 0.01, 0.1)), 0.047),
        (Shape(latency=Exponential(0.0, 0.1, 0.1)), 0.1),
        (Shape(latency=Constant(0.01), reorder=0.1, reorder_s=0.05), 0.06),
    ],
)
def test_the_latency_that_one_packet_in_a_hundred_exceeds(shape, seconds):
    assert latency_high_s(shape) == pytest.approx(seconds)


def test_the_last_one_hears_after_most_do():
    world = World(30, 1)
    world.start_converged()
    assert 0.7 < spread_bound_s(world) < 1.0
    assert spread_bound_s(world) < everybody_bound_s(world) < 10
