"""Doubt shortens with each further opinion, and one's own health tempers one's verdicts."""

import pytest

from meshd.clock import Instant
from meshd.gossip.config import GossipConfig, profile
from meshd.gossip.health import LocalHealth
from meshd.gossip.suspicion import Suspicion, suspicion_bounds_s
from meshd.model import NodeId

CONFIG = profile("lan")
NOW = Instant(100.0)


def accuser(number: int) -> NodeId:
    return NodeId(bytes([number]) * 8)


@pytest.mark.parametrize(("members", "shortest"), [(0, 4.0), (5, 4.0), (10, 4.0), (100, 8.0)])
def test_the_shortest_doubt_grows_with_the_logarithm_of_the_mesh(members, shortest):
    low, high = suspicion_bounds_s(CONFIG, members)
    assert low == pytest.approx(shortest)
    assert high == pytest.approx(6 * shortest)


def test_each_further_opinion_shortens_the_doubt_down_to_the_minimum():
    suspicion = Suspicion(CONFIG, 100, accuser(1), NOW)
    waits = [suspicion.deadline() - NOW]
    for number in (2, 3, 4):
        assert suspicion.confirm(accuser(number))
        waits.append(suspicion.deadline() - NOW)
    assert waits == sorted(waits, reverse=True)
    assert waits[0] == pytest.approx(48.0)
    assert waits[-1] == pytest.approx(8.0)
    assert suspicion.confirmations == 3


def test_nobody_is_counted_twice_and_no_more_than_needed_are_counted():
    suspicion = Suspicion(CONFIG, 100, accuser(1), NOW)
    assert not suspicion.confirm(accuser(1))
    assert suspicion.confirm(accuser(2))
    assert not suspicion.confirm(accuser(2))
    assert suspicion.confirm(accuser(3))
    assert suspicion.confirm(accuser(4))
    assert not suspicion.confirm(accuser(5))


def test_hearsay_confirms_nothing_and_the_first_real_accuser_takes_its_place():
    suspicion = Suspicion(CONFIG, 100, None, NOW)
    assert suspicion.confirm(accuser(1))
    assert suspicion.confirmations == 0
    assert suspicion.confirm(accuser(2))
    assert suspicion.confirmations == 1


def test_two_alone_need_no_confirmation_for_none_could_come():
    assert Suspicion(CONFIG, 2, accuser(1), NOW).deadline() == Instant(104.0)
    assert not Suspicion(CONFIG, 2, accuser(1), NOW).confirm(accuser(2))


def test_no_confirmations_wanted_means_the_shortest_doubt():
    config = GossipConfig(suspicion_confirmations=0)
    assert Suspicion(config, 50, accuser(1), NOW).deadline() < Instant(107.0)


def test_a_failed_round_costs_as_much_health_as_nacks_are_missing():
    health = LocalHealth(8)
    health.probe_failed(3, 3)
    assert health.score == 0
    health.probe_failed(3, 1)
    assert (health.score, health.factor) == (2, 3)
    health.probe_failed(0, 0)
    assert health.score == 3


def test_health_stays_between_well_and_its_maximum():
    health = LocalHealth(2)
    health.probe_succeeded()
    assert health.score == 0
    for _ in range(5):
        health.refuted()
        health.stalled()
    assert health.score == 2
    health.probe_succeeded()
    assert health.score == 1
