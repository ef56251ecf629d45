"""Whom to ask for their load, for how long, when not at all, and what the answers change."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_world import NOW, node_id, offer, peer, view

from meshd.model import Epoch, Load, MemberState
from meshd.routing.custom import custom_policy
from meshd.routing.filters import Reason
from meshd.routing.need import Need
from meshd.routing.policies import POLICIES, policy_named
from meshd.routing.probes import (
    BIDS,
    MESSAGES_PER_CALL,
    MESSAGES_SAVED,
    NO_CHOICE,
    NO_EQUAL,
    NO_LOAD,
    NOT_FIRST,
    ONLY_PLANNED,
    PROBE_S_MAX,
    TOO_LATE,
    TOO_SHORT,
    YOUNG,
    MessageBudget,
    Probes,
    has_room,
    others_of,
    probes_of,
)
from meshd.routing.router import explain, plan, reranked, second_look
from meshd.routing.settings import RoutingSettings
from meshd.routing.signals import DEFAULT_SERVICE_S, Estimate, Outstanding

ME, TWO, THREE, FOUR, FIVE = (node_id(n) for n in range(1, 6))


def estimate(rif=2, *, service_s=0.2, rtt_s=0.001, age_s=1.0, slots=4):
    return Estimate(rif, 0, slots, service_s, rtt_s, 0.0, service_s, age_s)


def busy(rif, **more):
    return Load(**{"in_flight": rif, "slots": 4, "service_s": 0.2, **more})


def test_the_best_two_are_asked_for_a_twentieth_of_the_work_or_fifty_milliseconds():
    seen = {TWO: estimate(), THREE: estimate(), FOUR: estimate()}
    asked = probes_of(seen, ME)
    assert (asked.nodes, asked.wait_s, asked.why_not) == ((TWO, THREE), pytest.approx(0.01), "")
    long = estimate(4, service_s=60.0)
    assert probes_of({TWO: long, THREE: estimate()}, ME).wait_s == PROBE_S_MAX


def test_who_is_too_far_to_answer_in_time_is_not_asked():
    assert probes_of({TWO: estimate(rtt_s=0.2), THREE: estimate()}, ME).nodes == (THREE,)


def test_this_node_is_not_asked_for_what_it_knows():
    assert probes_of({ME: estimate(4, age_s=0.0), TWO: estimate()}, ME).nodes == (TWO,)


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        ({}, NO_CHOICE),
        ({TWO: estimate()}, NO_CHOICE),
        ({TWO: estimate(service_s=0.019), THREE: estimate()}, TOO_SHORT),
        ({TWO: estimate(rtt_s=0.02), THREE: estimate(rtt_s=0.02)}, TOO_SHORT),
        ({ME: estimate(), TWO: estimate(rtt_s=0.02)}, TOO_SHORT),
        ({TWO: estimate(0, age_s=0.079), THREE: estimate()}, YOUNG),
        ({TWO: estimate(3, age_s=0.019), THREE: estimate()}, YOUNG),
    ],
)
def test_nobody_is_asked_where_it_would_not_pay(seen, why):
    asked = probes_of(seen, ME)
    assert (asked.nodes, asked.why_not) == ((), why)


@pytest.mark.parametrize("first", [estimate(0, age_s=0.081), estimate(4, age_s=0.0)])
def test_an_old_report_and_a_full_worker_are_asked_about(first):
    assert probes_of({TWO: first, THREE: estimate()}, ME).nodes == (TWO, THREE)


def test_the_wait_ends_with_one_who_has_room_and_whom_the_silent_can_hardly_beat():
    asked = Probes({TWO: 0.2, THREE: 0.1}, 0.01)
    free, full = (0.001, busy(3)), (0.001, busy(4))
    assert asked.is_settled({THREE: free})
    assert not asked.is_settled({THREE: full})
    assert not asked.is_settled({TWO: free}), "the silent one is twice as fast"
    assert asked.is_settled({TWO: full, THREE: free})
    assert not asked.is_settled({})
    patient = Probes({TWO: 0.2, THREE: 0.1}, 0.01, is_by_time=False)
    assert not patient.is_settled({THREE: free})


@pytest.mark.parametrize(
    ("load", "room"),
    [
        (busy(3), True),
        (busy(3, queue=1), False),
        (busy(0, ready=False), False),
        (busy(0, full=True), False),
        (busy(0, draining=True), False),
    ],
)
def test_room_is_a_free_slot_of_one_who_takes_work(load, room):
    assert has_room(load) is room


def test_further_ones_are_asked_two_at_a_time_if_they_answer_soon_enough():
    first = Probes({TWO: 0.2}, 0.01)
    far = estimate(rtt_s=0.02)
    seen = {ME: estimate(), THREE: far, FOUR: estimate(), FIVE: estimate(), TWO: estimate()}
    others = others_of(seen, first, ME)
    assert (others.service_s, others.wait_s) == ({FOUR: 0.2, FIVE: 0.2}, 0.01)
    assert others_of({}, first, ME).nodes == ()


@given(st.lists(st.integers(0, 9), max_size=300))
def test_on_average_a_call_has_no_more_messages_than_its_share(wishes):
    budget, spent = MessageBudget(), 0
    for wish in wishes:
        budget.began()
        if budget.has(wish):
            budget.spend(wish)
            spent += 2 * wish
    assert spent <= MESSAGES_SAVED + len(wishes) * MESSAGES_PER_CALL


def test_refusals_are_paid_first_and_a_debt_is_bounded():
    budget = MessageBudget()
    budget.spend(1_000)
    assert not budget.has(0)
    for _ in range(12):
        budget.began()
    assert budget.has(2)
    assert not budget.has(5)


# With a plan


def world(*rifs, me_rif=None, rule=None):
    """A plan of node 1 for peers that were heard of a second ago, and what it was made from."""
    old = [peer(n, load=busy(rif), load_at=NOW - 1) for n, rif in enumerate(rifs, 2)]
    here = peer(1, load=busy(me_rif)) if me_rif is not None else peer(1, capabilities=())
    seen, signals = view(here, *old), Outstanding()
    made = plan(
        seen, Need("echo"), NOW, outstanding=signals, random=random.Random(1),
        settings=RoutingSettings(), named=lambda name: rule or policy_named(name),
    )  # fmt: skip
    return made, seen, signals


def told(made, seen, signals, answers):
    """The plan once these have answered."""
    for node, load in answers.items():
        signals.on_reply(node, load, NOW)
    answered = {node: (0.001, load) for node, load in answers.items()}
    asked = made.probes.nodes if not made.asked else second_look(made).nodes
    again = reranked(made, asked, answered, seen, NOW)
    return again, second_look(again)


def order(made):
    return [c.peer.node for c in made.attempts]


def test_an_answer_shows_who_is_busy_and_the_other_is_first():
    made, *rest = world(0, 1, 2, 3)
    assert order(made) == [TWO, THREE, FOUR, FIVE]
    assert made.probes.nodes == (TWO, THREE)
    again, more = told(made, *rest, {TWO: busy(6), THREE: busy(3)})
    assert order(again)[0] == THREE
    assert more.nodes == ()


def test_who_is_known_to_have_room_goes_before_equals_of_whom_that_is_thought():
    made, *rest = world(0, 1, 2, 3)
    again, more = told(made, *rest, {THREE: busy(3)})
    assert order(again)[0] == THREE, "a lost answer is no loss"
    assert more.nodes == ()


def test_one_that_is_much_slower_is_not_first_for_its_free_slot():
    slow = {"service_s": 2.0}
    made, *rest = world(1, 1, 1)
    again, more = told(made, *rest, {TWO: busy(1, **slow)})
    assert order(again)[-1] == TWO
    assert set(more.nodes) == {TWO, THREE, FOUR} - set(made.probes.nodes), "the others are asked"


def test_where_both_are_busy_the_others_are_asked_and_then_the_least_busy_has_it():
    made, *rest = world(0, 1, 2, 3)
    again, more = told(made, *rest, {TWO: busy(6), THREE: busy(5)})
    assert more.nodes == (FOUR, FIVE)
    last, _ = told(again, *rest, {FOUR: busy(8), FIVE: busy(7)})
    assert order(last)[0] == THREE
    assert set(last.answers) == {TWO, THREE, FOUR, FIVE}


def test_without_answers_the_order_is_as_it_was():
    made, *rest = world(0, 1, 2, 3)
    again, _ = told(made, *rest, {})
    assert order(again) == order(made)


def test_a_policy_that_goes_by_something_else_keeps_to_its_scores():
    by_name = custom_policy("by_name", lambda peer, _: -float(peer.name[1:]))
    made, *rest = world(0, 0, 0, rule=by_name)
    assert order(made) == [FOUR, THREE, TWO]
    again, more = told(made, *rest, {THREE: busy(0)})
    assert order(again) == [FOUR, THREE, TWO]
    again, more = told(made, *rest, {FOUR: busy(9), THREE: busy(9)})
    assert (order(again), more.nodes) == ([FOUR, THREE, TWO], ())


def test_this_node_with_room_is_as_good_as_one_that_answered():
    made, seen, signals = world(0, 1, me_rif=3)
    signals.on_reply(ME, busy(3), NOW)
    again, more = told(made, seen, signals, {TWO: busy(5)})
    assert order(again)[0] == ME
    assert more.nodes == ()


def test_who_may_not_be_asked_any_more_is_left_out_with_the_reason_and_that_may_be_all():
    made, seen, signals = world(0, 1)
    gone = view(seen.by_node[ME], peer(2, state=MemberState.DEAD), seen.by_node[THREE])
    again, _ = told(made, gone, signals, {})
    assert order(again) == [THREE]
    assert {r.name: r.reason for r in again.rejected}["n2"] is Reason.DEAD
    assert {row["name"] for row in explain(again)["probes"]} == {"n2", "n3"}
    again, more = told(made, view(seen.by_node[ME]), signals, {})
    assert (order(again), more.nodes) == ([], ())
    assert {r.reason for r in again.rejected} == {Reason.NOT_OFFERED, Reason.STALE}
    again, _ = told(made, seen, signals, {TWO: busy(0, draining=True)})
    assert order(again) == [THREE]


def test_a_policy_without_an_eye_for_load_asks_nobody():
    seen = view(peer(1), peer(2))
    made = plan(
        seen, Need("echo"), NOW, outstanding=Outstanding(), random=random.Random(1),
        settings=RoutingSettings(), policy="round_robin",
    )  # fmt: skip
    assert made.probes == Probes(why_not=NO_LOAD)
    assert second_look(made) == Probes()
    assert explain(made)["not_probed"] == NO_LOAD


def test_work_too_short_to_ask_about_is_spread_by_room_and_not_by_rank():
    short = Load(slots=4, service_s=0.001)
    seen = view(*(peer(n, load=short, load_at=NOW - 1) for n in range(1, 5)))
    chance = random.Random(1)
    made = [
        plan(
            seen, Need("echo"), NOW, outstanding=Outstanding(), random=chance,
            settings=RoutingSettings(), policy=policy,
        )
        for policy in ("adaptive", "least_loaded")
    ]  # fmt: skip
    assert [each.probes.why_not for each in made] == [TOO_SHORT, TOO_SHORT]
    assert {len(each.attempts) for each in made} == {4}


def test_workers_too_far_to_ask_are_taken_by_room_too():
    peers = (peer(n, load=busy(n), load_at=NOW - 1, rtt_s=0.03) for n in (2, 3, 4))
    seen = view(peer(1, capabilities=()), *peers)
    made = plan(
        seen, Need("echo"), NOW, outstanding=Outstanding(), random=random.Random(1),
        settings=RoutingSettings(), is_detailed=True,
    )  # fmt: skip
    assert made.probes.why_not == TOO_SHORT
    assert {c.peer.node for c in made.attempts} == {TWO, THREE, FOUR}
    assert made.attempts[0].factors["rtt_s"] == 0.03


def test_an_explanation_names_the_probed_and_what_they_said():
    made, *rest = world(0, 1)
    again, _ = told(made, *rest, {TWO: busy(3, queue=2)})
    rows = {row["name"]: row for row in explain(again)["probes"]}
    assert rows["n2"]["answered"]
    assert (rows["n2"]["rif"], rows["n2"]["rtt_s"]) == (5, 0.001)
    assert not rows["n3"]["answered"]
    assert rows["n3"]["rif"] is None
    assert explain(again)["not_probed"] is None
    assert explain(made)["probes"] == []
    assert explain(made)["not_probed"] == ONLY_PLANNED
    assert explain(made.unprobed(NOT_FIRST))["not_probed"] == NOT_FIRST


def test_whom_the_answers_put_later_is_told_by_how_much():
    made, *rest = world(1, 1)
    again, _ = told(made, *rest, {TWO: busy(1)})
    first, second = again.attempts
    assert (first.peer.node, second.peer.node) == (TWO, THREE)
    assert "turn_s" not in first.factors
    assert second.factors["turn_s"] == pytest.approx(0.2)
    assert second.score == pytest.approx(made.attempts[1].score + 0.2)


def test_the_best_bidder_is_first_and_then_nobody_is_asked():
    made, *_ = world(0, 1, 2)
    led = made.led_by(made.attempts[2].peer)
    assert order(led) == [FOUR, TWO, THREE]
    assert led.probes == Probes(why_not=BIDS)


@pytest.mark.parametrize("name", [p.name for p in POLICIES.values() if p.is_probed])
def test_whatever_counts_load_asks_the_best_two_and_takes_the_less_busy_of_equals(name):
    old = [peer(n, load=busy(1), load_at=NOW - 1) for n in (2, 3, 4)]
    seen, signals = view(peer(1, capabilities=()), *old), Outstanding()
    made = plan(
        seen, Need("echo"), NOW, outstanding=signals, random=random.Random(1),
        settings=RoutingSettings(), policy=name,
    )  # fmt: skip
    first, second = made.probes.nodes
    assert order(made)[:2] == [first, second]
    again, _ = told(made, seen, signals, {first: busy(7, cpu_fraction=0.9), second: busy(1)})
    assert order(again).index(second) < order(again).index(first)


def test_in_a_shorter_wait_only_the_nearer_are_asked():
    asked = Probes({TWO: 0.2, THREE: 0.2}, 0.01, rtt_s={TWO: 0.001, THREE: 0.008})
    assert asked.within(0.01) == asked
    assert asked.within(0.005).nodes == (TWO,)
    assert asked.within(0.005).wait_s == 0.005
    for short_s in (0.0005, 0.000_9):
        assert (asked.within(short_s).nodes, asked.within(short_s).why_not) == ((), TOO_LATE)
    far = Probes({THREE: 0.2}, 0.01, rtt_s={THREE: 0.008})
    assert far.within(0.005).why_not == TOO_LATE


@pytest.mark.parametrize(
    ("name", "differ"),
    [
        ("cheapest", {"capabilities": (offer(cost_usd_per_call=2.0),)}),
        ("nearest", {"rtt_s": 0.004}),
    ],
)
def test_where_no_load_could_change_the_order_nobody_is_asked(name, differ):
    usual = {"load": busy(1), "load_at": NOW - 1}
    seen = view(peer(1, capabilities=()), peer(2, **usual), peer(3, **{**usual, **differ}))
    made = plan(
        seen, Need("echo"), NOW, outstanding=Outstanding(), random=random.Random(1),
        settings=RoutingSettings(), policy=name,
    )  # fmt: skip
    assert order(made) == [TWO, THREE]
    assert made.probes.why_not == NO_EQUAL


def test_who_was_started_anew_during_the_wait_is_left_out():
    made, seen, signals = world(0, 1)
    anew = view(seen.by_node[ME], peer(2, epoch=Epoch(2)), seen.by_node[THREE])
    again, _ = told(made, anew, signals, {})
    assert order(again) == [THREE]


def test_where_the_best_is_too_quick_to_ask_about_though_others_are_not_room_decides():
    quick = peer(2, load=Load(slots=4, service_s=0.001), load_at=NOW - 1)
    seen = view(quick, peer(3, load=busy(1), load_at=NOW - 1), me=3)
    made = plan(
        seen, Need("echo"), NOW, outstanding=Outstanding(), random=random.Random(1),
        settings=RoutingSettings(),
    )  # fmt: skip
    assert made.probes.why_not == TOO_SHORT
    assert {c.peer.node for c in made.attempts} == {TWO, THREE}


def plan_of(*peers):
    return plan(
        view(peer(1, capabilities=()), *peers), Need("echo"), NOW, outstanding=Outstanding(),
        random=random.Random(1), settings=RoutingSettings(),
    )  # fmt: skip


def test_whom_nobody_knows_is_expected_to_take_as_long_as_the_others_of_the_plan():
    unknown = peer(4, load=Load(slots=4))
    known = [peer(n, load=Load(slots=4, service_s=s)) for n, s in ((2, 0.001), (3, 0.003))]
    found = {c.peer.name: c.made_of for c in plan_of(*known, unknown).attempts}
    assert found["n4"].service_s == pytest.approx(0.002)
    assert found["n4"].eta_s == pytest.approx(0.002 / 4 + 0.001), "in a slot, and the way"
    assert [found[name].is_guess for name in ("n2", "n3", "n4")] == [False, False, True]
    assert plan_of(unknown).attempts[0].made_of.service_s == DEFAULT_SERVICE_S
