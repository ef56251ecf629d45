"""The network loses, doubles, delays, cuts and holds packets as it was told, from its seed."""

import random

import pytest

from sim.network import Constant, Exponential, Network, Shape, Uniform

SLOW = Constant(0.01)


def network(**shape) -> Network:
    shape.setdefault("latency", SLOW)
    return Network(Shape(**shape), lambda what: random.Random("test/" + what))


def arrivals(net: Network, count: int = 1_000, size: int = 100) -> list[tuple[float, ...]]:
    return [net.route(0, 1, size, 5.0) for _ in range(count)]


@pytest.mark.parametrize(
    ("latency", "low", "high"),
    [(SLOW, 0.01, 0.01), (Uniform(0.1, 0.2), 0.1, 0.2), (Exponential(0.1, 0.1, 0.3), 0.1, 0.3)],
)
def test_a_delay_stays_within_its_bounds(latency, low, high):
    times = [at for each in arrivals(network(latency=latency)) for at in each]
    assert 5.0 + low <= min(times)
    assert max(times) <= 5.0 + high


def test_the_share_of_lost_and_doubled_packets_is_as_asked_for():
    routed = arrivals(network(loss=0.2, duplicate=0.3), 10_000)
    lost = sum(not each for each in routed)
    twice = sum(len(each) == 2 for each in routed)
    assert lost == pytest.approx(2_000, rel=0.1)
    assert twice == pytest.approx(0.3 * (10_000 - lost), rel=0.1)


def test_a_reordered_packet_comes_after_a_later_one():
    net = network(reorder=0.5, reorder_s=0.05)
    times = [net.route(0, 1, 100, 5.0 + step * 0.001)[0] for step in range(100)]
    assert times != sorted(times)
    assert times[-1] < 5.1 + 0.01 + 0.05


def test_what_exceeds_the_mtu_is_lost():
    net = network(mtu_bytes=1_000)
    assert net.route(0, 1, 1_000, 5.0)
    assert net.route(0, 1, 1_001, 5.0) == ()
    assert net.dropped == 1


def test_a_narrow_link_queues_packets_and_then_drops_them():
    net = network(bytes_per_s=10_000.0)
    times = [net.route(0, 1, 1_000, 5.0) for _ in range(8)]
    assert [each[0] for each in times[:3]] == pytest.approx([5.01, 5.11, 5.21])
    assert times[-1] == ()
    assert net.route(2, 1, 1_000, 5.0)[0] == pytest.approx(5.01)


def test_a_partition_cuts_both_ways_until_it_is_healed():
    net = network()
    net.partition("split", (frozenset({0, 1}), frozenset({2})))
    assert net.route(0, 1, 100, 5.0)
    assert net.route(0, 2, 100, 5.0) == net.route(2, 1, 100, 5.0) == ()
    assert net.route(2, 3, 100, 5.0)
    net.heal("split")
    assert net.route(0, 2, 100, 5.0)


def test_a_cut_may_be_one_way():
    net = network()
    net.cut("one", frozenset({0}), frozenset({1}))
    assert net.route(0, 1, 100, 5.0) == ()
    assert net.route(1, 0, 100, 5.0)
    net.heal()
    assert net.is_whole


def test_a_clogged_node_gets_its_packets_late():
    net = network()
    net.clog(1, 7.0)
    assert net.route(0, 1, 100, 5.0) == net.route(1, 0, 100, 5.0) == (7.0,)
    net.unclog(1)
    assert net.route(0, 1, 100, 5.0)[0] < 6


def test_overrides_hold_for_a_node_or_for_one_direction_of_a_link():
    net = network()
    net.override_node(1, 1.0)
    assert net.route(0, 1, 100, 5.0) == net.route(1, 2, 100, 5.0) == ()
    net.override_node(0, 0.0)
    assert net.route(0, 1, 100, 5.0) == net.route(1, 0, 100, 5.0) == ()
    net.override_link(0, 1, Shape(latency=SLOW))
    assert net.route(0, 1, 100, 5.0)
    assert net.route(1, 0, 100, 5.0) == ()
    net.override_link(0, 1, None)
    net.override_node(1, None)
    net.override_node(0, None)
    assert net.is_whole
    assert net.route(0, 1, 100, 5.0)


def test_a_reset_network_is_whole_and_calm():
    net = network(loss=0.5)
    net.partition("split", (frozenset({0}), frozenset({1})))
    net.reset()
    assert net.is_whole
    assert net.shape.loss <= 0.03


def test_a_narrow_link_is_behind_by_what_waits_in_it():
    net = network(bytes_per_s=1_000.0)
    assert net.backlog_s(5.0) == 0.0
    arrivals(net, 3)
    assert net.backlog_s(5.0) == pytest.approx(0.3)
