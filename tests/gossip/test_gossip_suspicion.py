"""Doubt shortens with each further opinion, and one's own health tempers one's verdicts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.clock import Instant
from meshd.gossip.config import GossipConfig, profile
from meshd.gossip.health import LocalHealth
from meshd.gossip.messages import ACCUSERS_MAX
from meshd.gossip.suspicion import Suspicion, suspicion_bounds_s
from meshd.model import NodeId

CONFIG = profile("lan")
NOW = Instant(100.0)


def accuser(number: int) -> NodeId:
    return NodeId(bytes([number]) * 8)


def doubted(members: int, *accusers: int, config: GossipConfig = CONFIG, lag_s: float = 0.0):
    suspicion = Suspicion(config, members, NOW, lag_s=lag_s)
    for number in accusers:
        suspicion.confirm(accuser(number))
    return suspicion


@pytest.mark.parametrize("members", [0, 5, 10, 100, 10_000])
def test_with_verifiers_the_shortest_doubt_is_the_same_in_every_mesh(members):
    low, high = suspicion_bounds_s(CONFIG, members)
    assert low == pytest.approx(3.0)
    assert high == pytest.approx(6 * 3.0)


@pytest.mark.parametrize(("members", "shortest"), [(0, 4.0), (5, 4.0), (10, 4.0), (100, 8.0)])
def test_without_verifiers_it_grows_with_the_logarithm_of_the_mesh(members, shortest):
    low, high = suspicion_bounds_s(GossipConfig(verifiers=0, suspicion_mult=4.0), members)
    assert low == pytest.approx(shortest)
    assert high == pytest.approx(6 * shortest)


def test_each_further_opinion_shortens_the_doubt_down_to_the_minimum():
    suspicion = doubted(100, 1)
    waits = [suspicion.deadline() - NOW]
    for number in (2, 3, 4):
        assert suspicion.confirm(accuser(number))
        waits.append(suspicion.deadline() - NOW)
    assert waits == sorted(waits, reverse=True)
    assert waits[0] == pytest.approx(18.0)
    assert waits[-1] == pytest.approx(3.0)
    assert suspicion.confirmations == suspicion.needed == 3


def test_who_reads_its_mail_late_is_given_that_time_twice():
    assert doubted(100, 1, 2, 3, 4, lag_s=1.5).deadline() == NOW + 3.0 + 3.0


def test_nobody_is_counted_twice_and_no_more_than_needed_are_counted():
    suspicion = doubted(100, 1)
    assert not suspicion.confirm(accuser(1))
    assert suspicion.confirm(accuser(2))
    assert not suspicion.confirm(accuser(2))
    assert suspicion.confirm(accuser(3))
    assert suspicion.confirm(accuser(4))
    assert not suspicion.confirm(accuser(5))


def test_hearsay_confirms_nothing_and_the_first_real_accuser_takes_its_place():
    suspicion = doubted(100)
    assert suspicion.confirm(accuser(1))
    assert suspicion.confirmations == 0
    assert suspicion.confirm(accuser(2))
    assert suspicion.confirmations == 1


def test_two_alone_need_no_confirmation_for_none_could_come():
    assert doubted(2, 1).deadline() == Instant(103.0)
    assert not doubted(2, 1).confirm(accuser(2))


def test_no_confirmations_wanted_means_the_shortest_doubt():
    config = GossipConfig(suspicion_confirmations=0)
    assert doubted(50, 1, config=config).deadline() == Instant(103.0)


def test_an_opinion_that_is_taken_back_counts_no_more_and_comes_not_again():
    suspicion = doubted(100, 1, 2, 3, 4)
    assert suspicion.retract(accuser(2))
    assert suspicion.confirmations == 2
    assert suspicion.deadline() > NOW + 3.0
    assert not suspicion.confirm(accuser(2))
    assert not suspicion.retract(accuser(2))
    assert suspicion.confirm(accuser(5))
    assert suspicion.deadline() == NOW + 3.0


def test_a_doubt_that_everybody_took_back_lasts_longest_and_may_be_taken_up_by_others():
    suspicion = doubted(2, 1)
    suspicion.retract(accuser(1))
    assert suspicion.deadline() == NOW + 18.0
    assert suspicion.confirm(accuser(2))
    assert suspicion.deadline() == NOW + 3.0


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 12)), max_size=40))
def test_who_doubts_and_who_took_it_back_is_bounded_and_nothing_is_undone(words):
    suspicion = doubted(100)
    held: tuple[int, int] = (0, 0)
    for is_doubt, number in words:
        (suspicion.confirm if is_doubt else suspicion.retract)(accuser(number))
        now = (len(suspicion.accusers), len(suspicion.retracted))
        assert now >= held
        held = now
        assert max(now) <= ACCUSERS_MAX
        assert NOW + 3.0 <= suspicion.deadline() <= NOW + 18.0


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
    health.probe_succeeded(quickly=False)
    assert health.score == 0
    for _ in range(5):
        health.refuted()
        health.stalled()
    assert health.score == 2
    health.probe_succeeded(quickly=False)
    assert health.score == 1


def test_a_quick_ack_takes_half_of_what_is_wrong_away():
    health = LocalHealth(8)
    for _ in range(8):
        health.stalled()
    scores = []
    while health.score:
        health.probe_succeeded(quickly=True)
        scores.append(health.score)
    assert scores == [4, 2, 1, 0]
