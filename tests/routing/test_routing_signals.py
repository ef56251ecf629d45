"""First-hand knowledge: own calls between reports, and what failures cost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_world import NOW, node_id, peer

from meshd.clock import Instant
from meshd.model import Epoch, Load
from meshd.routing.signals import (
    PEERS_MAX,
    RATE_HALF_LIFE_S,
    Outcome,
    Outstanding,
    Rate,
    load_from_wire,
)

TWO = peer(2)


def fail(signals, node=TWO, now=NOW, took_s=0.0):
    signals.begin(node, now - took_s)
    signals.end(node.node, Outcome.FAILED, now, took_s=took_s)


def succeed(signals, node=TWO, now=NOW, took_s=0.2):
    signals.begin(node, now - took_s)
    signals.end(node.node, Outcome.OK, now, took_s=took_s)


def test_own_calls_since_the_report_are_added_to_it():
    signals = Outstanding()
    reported = peer(2, load=Load(in_flight=2, queue=1, slots=4, service_s=0.1))
    signals.begin(reported, NOW - 1)  # the report has seen this one
    for _ in range(3):
        signals.begin(reported, NOW + 1)
    estimate = signals.estimate(reported, NOW + 2)
    assert (estimate.rif, estimate.own) == (6, 3)
    assert estimate.eta_s == pytest.approx(0.1 * 7 / 4 + 0.001)


def test_calls_that_ended_since_the_report_are_taken_off_but_never_below_nothing():
    signals = Outstanding()
    reported = peer(2, load=Load(in_flight=1, slots=1, service_s=0.1))
    for _ in range(3):
        signals.begin(reported, NOW - 1)
    for _ in range(3):
        signals.end(TWO.node, Outcome.OK, NOW + 1, took_s=2.0)
    assert signals.estimate(reported, NOW + 2).rif == 0


def test_the_age_of_the_newest_report_is_told_and_endless_without_any():
    signals = Outstanding()
    assert signals.estimate(TWO, NOW + 2).age_s == 2.0
    signals.on_reply(TWO.node, Load(slots=4), NOW + 1)
    assert signals.estimate(TWO, NOW + 2).age_s == 1.0
    unheard = peer(3, load=None, load_at=None)
    assert signals.estimate(unheard, NOW).age_s == float("inf")


def test_a_reply_newer_than_gossip_counts_and_newer_gossip_counts_again():
    signals = Outstanding()
    signals.begin(TWO, NOW)
    signals.end(TWO.node, Outcome.OK, NOW + 1, took_s=1.0)
    signals.on_reply(TWO.node, Load(in_flight=7, slots=4, service_s=0.1), NOW + 1)
    assert signals.estimate(TWO, NOW + 1).rif == 7
    fresh = peer(2, load=Load(in_flight=3), load_at=NOW + 2)
    assert signals.estimate(fresh, NOW + 2).rif == 3


def test_a_call_on_its_way_was_not_yet_in_the_report():
    signals = Outstanding()
    far = peer(2, rtt_s=0.5)
    signals.begin(far, NOW - 0.4)
    assert signals.estimate(far, NOW + 0.1).rif == 1


def test_a_short_call_begun_and_ended_within_a_round_trip_leaves_no_trace():
    signals = Outstanding()
    far = peer(2, rtt_s=0.5)
    signals.begin(far, NOW - 9)
    signals.begin(far, NOW - 0.4)
    signals.end(far.node, Outcome.OK, NOW - 0.2, took_s=0.2)
    assert signals.estimate(far, NOW).own == 0


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0.01, 10)), max_size=30), st.floats(0, 20))
def test_own_calls_at_a_report_are_exactly_those_then_under_way(calls, at):
    signals, events = Outstanding(), []
    for start, took in calls:
        events += [(start, 0, took), (start + took, 1, took)]
    for when, ends, took in sorted(events):
        if ends:
            signals.end(TWO.node, Outcome.NEUTRAL, when, took_s=took)
        else:
            signals.begin(TWO, when)
    seen = sum(start <= at < start + took for start, took in calls)
    assert signals.estimate(peer(2, load_at=at, rtt_s=0.0), 30.0).own == -seen


def test_without_any_report_own_calls_are_the_load():
    signals = Outstanding()
    unknown = peer(2, load=None, load_at=None, rtt_s=None)
    signals.begin(unknown, NOW)
    estimate = signals.estimate(unknown, NOW)
    assert (estimate.rif, estimate.slots, estimate.service_s, estimate.rtt_s) == (1, 1, 0.1, 0.01)
    assert signals.estimate(unknown, NOW, local=True).rtt_s == 0.0


def test_service_time_seen_here_counts_where_the_peer_says_none():
    signals = Outstanding()
    succeed(signals, took_s=0.4)
    assert signals.estimate(peer(2, load=Load()), NOW).service_s == pytest.approx(0.4)
    assert signals.estimate(TWO, NOW).service_s == 0.1


def test_a_failure_costs_as_much_as_a_slow_call_and_fades():
    fast, signals = Outstanding(), Outstanding()
    fail(fast)
    assert fast.estimate(TWO, NOW).penalty_s == pytest.approx(0.3)
    fail(signals, took_s=8.0)
    now_s = signals.estimate(TWO, NOW).penalty_s
    assert now_s == pytest.approx(2.4)
    assert signals.estimate(TWO, NOW + 10).penalty_s == pytest.approx(now_s / 2)
    succeed(signals)
    assert signals.estimate(TWO, NOW).penalty_s < now_s


def test_a_failure_costs_ten_of_the_service_times_that_gossip_told_where_nothing_else_has():
    slow = peer(2, load=Load(slots=4, service_s=1.0))
    signals = Outstanding()
    fail(signals, slow)
    assert signals.estimate(slow, NOW).penalty_s == pytest.approx(3.0)


def test_reported_errors_lower_a_peers_chances():
    flawed = peer(2, load=Load(slots=4, service_s=0.1, error_fraction=0.5))
    assert Outstanding().estimate(flawed, NOW).penalty_s == pytest.approx(0.5)


def told(signals, share, now):
    flawed = peer(2, load=Load(slots=4, service_s=0.1, error_fraction=share), load_at=now)
    return signals.estimate(flawed, now).penalty_s


def test_reported_errors_that_grow_no_more_fade_and_new_ones_count_again():
    signals = Outstanding(peers_max=2)
    assert told(signals, 0.5, NOW) == pytest.approx(0.5)
    assert told(signals, 0.505, NOW + 10) == pytest.approx(0.2525)
    assert told(signals, 0.4, NOW + 10) == pytest.approx(0.2)
    assert told(signals, 0.5, NOW + 20) == pytest.approx(0.5)
    for n in (3, 4):  # the longest unchanged is forgotten, and begins anew
        other = peer(n, load=Load(slots=4, service_s=0.1, error_fraction=0.5))
        assert signals.estimate(other, NOW + 30).penalty_s == pytest.approx(0.5)
    assert told(signals, 0.5, NOW + 30) == pytest.approx(0.5)


def test_a_restarted_peer_starts_with_a_clean_slate():
    signals, anew = Outstanding(), peer(2, epoch=Epoch(2))
    fail(signals)
    assert signals.estimate(TWO, NOW).penalty_s > 0
    assert signals.estimate(anew, NOW).penalty_s == 0
    signals.begin(anew, NOW)
    assert signals.estimate(anew, NOW).penalty_s == 0


def test_who_is_pardoned_costs_nothing_whatever_failed_there_and_only_then():
    signals = Outstanding()
    flawed = peer(2, load=Load(slots=4, service_s=0.1, error_fraction=1.0))
    fail(signals)
    cost_s = signals.estimate(flawed, NOW).penalty_s
    assert cost_s > 1.0
    assert signals.estimate(flawed, NOW, is_pardoned=True).penalty_s == 0
    assert signals.estimate(flawed, NOW).penalty_s == cost_s


def test_records_are_bounded_and_those_with_calls_under_way_stay():
    signals = Outstanding(peers_max=2)
    signals.begin(peer(1), NOW)
    fail(signals)
    signals.begin(peer(3), NOW)
    assert signals.forgotten == 1
    assert signals.estimate(TWO, NOW).penalty_s == 0
    signals.begin(peer(4), NOW)  # nobody is idle: nothing is forgotten
    assert signals.forgotten == 1
    for n in range(5):
        signals.on_reply(node_id(n), Load(), NOW)
    assert list(signals.reports) == [node_id(3), node_id(4)]
    assert PEERS_MAX >= 1000


@pytest.mark.parametrize(
    "value",
    [
        None, 7, {"in_flight": "x"}, {"in_flight": -1}, {"service_s": float("nan")},
        {"service_s": float("inf")}, {"cpu_fraction": 1.5}, {"slots": 10**9},
        {"in_flight": 10**400},
    ],
)  # fmt: skip
def test_a_load_that_makes_no_sense_is_ignored(value):
    assert load_from_wire(value) is None


def test_a_load_from_the_wire_is_read_with_defaults():
    assert load_from_wire({"in_flight": 2, "slots": 4}) == Load(in_flight=2, slots=4)


@pytest.mark.parametrize("per_s", [0.5, 10.0, 2_000.0])
def test_a_steady_rate_is_known_after_a_while_and_fades_once_it_stops(per_s):
    rate, now = Rate(), NOW
    assert rate.per_s(now) == 0
    for _ in range(int(per_s * 60) + 1):
        now = Instant(now + 1 / per_s)
        rate.count(now)
    assert rate.per_s(now) == pytest.approx(per_s, rel=0.2)
    assert rate.per_s(Instant(now + RATE_HALF_LIFE_S)) == pytest.approx(per_s / 2, rel=0.2)
    assert rate.per_s(Instant(now + 600)) == pytest.approx(0, abs=1e-9)
