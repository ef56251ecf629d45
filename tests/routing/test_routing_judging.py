"""Policies that judge by speed, price, success, skill and key."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_world import NOW, node_id, offer, peer, view

from meshd.clock import Instant
from meshd.model import Epoch, Load
from meshd.routing.affinity import SPREAD, Share, bounds, order_of, placed, ranks
from meshd.routing.breakers import Breakers
from meshd.routing.filters import Reason
from meshd.routing.history import HALF_LIFE_S, History
from meshd.routing.need import Need
from meshd.routing.nobody import nobody
from meshd.routing.router import explain, plan
from meshd.routing.settings import RoutingSettings
from meshd.routing.signals import Outcome, Outstanding
from meshd.routing.terms import Terms


def ranked(policy, *peers, outstanding=None, terms=None, affinity="", settings=None, now=NOW):
    made = plan(
        view(*peers, me=99), Need("echo", terms=terms, affinity=affinity), now,
        outstanding=outstanding or Outstanding(), random=random.Random(1),
        settings=settings or RoutingSettings(), policy=policy, is_detailed=True,
    )  # fmt: skip
    return [c.peer.name for c in made.attempts]


def called(outstanding, who, *outcomes, now=NOW, took_s=0.1):
    for outcome in outcomes:
        outstanding.begin(who, now)
        outstanding.end(who.node, outcome, now, took_s=took_s)


def busy(outstanding, who, calls):
    for _ in range(calls):
        outstanding.begin(who, NOW)


def priced(n, usd, **changes):
    return peer(n, capabilities=(offer(cost_usd_per_call=usd),), **changes)


def skilled(n, proficiency, usd=0.0, **changes):
    offered = offer(proficiency=proficiency, cost_usd_per_call=usd)
    return peer(n, capabilities=(offered,), **changes)


def test_fastest_takes_the_shortest_service_and_way_while_there_is_a_slot():
    slow = peer(1, load=Load(slots=4, service_s=1.0))
    fast = peer(2, load=Load(slots=4, service_s=0.1, in_flight=3))
    far = peer(3, load=Load(slots=4, service_s=0.1), rtt_s=0.2)
    assert ranked("fastest", slow, fast, far) == ["n2", "n3", "n1"]


def test_fastest_counts_own_calls_and_own_failures():
    one, other = (peer(n, load=Load(slots=1, service_s=0.1)) for n in (1, 2))
    mine = Outstanding()
    busy(mine, one, 2)
    assert ranked("fastest", one, other, outstanding=mine) == ["n2", "n1"]
    failed = Outstanding()
    called(failed, one, Outcome.FAILED)
    assert ranked("fastest", one, other, outstanding=failed) == ["n2", "n1"]


def test_cheapest_takes_the_price_first_and_then_who_is_soonest_done():
    cheap, dear = priced(1, 0.001, load=Load(slots=1, in_flight=9)), priced(2, 0.002)
    assert ranked("cheapest", dear, cheap) == ["n1", "n2"]
    mine = Outstanding()
    twins = [priced(n, 0.5) for n in (1, 2)]
    busy(mine, twins[0], 3)
    assert ranked("cheapest", *twins, outstanding=mine) == ["n2", "n1"]


def test_cheapest_counts_the_units_that_a_call_is_expected_to_take():
    flat = priced(1, 0.5)
    metered = peer(2, capabilities=(offer(cost_usd_per_unit=0.1),))
    assert ranked("cheapest", flat, metered) == ["n2", "n1"]
    assert ranked("cheapest", flat, metered, terms=Terms(units_at={metered.node: 9.0})) == [
        "n1",
        "n2",
    ]


def test_quality_prefers_the_tier_and_leaves_out_who_is_below_the_last():
    says = {1: 0.0, 2: 0.07, 3: 0.2, 4: 0.4}
    peers = [peer(n, load=Load(slots=4, error_fraction=wrong)) for n, wrong in says.items()]
    slow_best = peer(1, load=Load(slots=4, service_s=9.0))
    assert ranked("quality", *peers) == ["n1", "n2", "n3"]
    assert ranked("quality", slow_best, *peers[1:]) == ["n1", "n2", "n3"]
    assert ranked("quality", peers[3]) == []


def test_quality_believes_what_it_saw_more_than_what_is_said():
    liar, honest = peer(1), peer(2, load=Load(slots=4, service_s=5.0))
    outstanding = Outstanding()
    called(outstanding, liar, *[Outcome.FAILED] * 2)
    called(outstanding, liar, *[Outcome.NEUTRAL] * 9)
    assert ranked("quality", liar, honest, outstanding=outstanding) == ["n2", "n1"]


def test_quality_says_who_fails_too_often_and_its_tiers_can_be_set():
    worst = peer(1, load=Load(slots=4, error_fraction=0.4))
    made = plan(
        view(worst), Need("echo"), NOW, outstanding=Outstanding(), random=random.Random(1),
        settings=RoutingSettings(), policy="quality",
    )  # fmt: skip
    assert made.rejected[0].reason is Reason.UNRELIABLE
    assert "n1: fails too often: 60% of its calls succeed" in nobody(made, view(worst)).hint
    assert ranked("quality", worst, settings=RoutingSettings(tiers={"least": 0.5})) == ["n1"]


def test_composite_weighs_match_trust_availability_and_cost():
    free, dear = priced(1, 0.0), priced(2, 1.0)
    assert ranked("composite", dear, free) == ["n1", "n2"]
    idle, full = peer(1), peer(2, load=Load(slots=4, in_flight=40))
    assert ranked("composite", full, idle) == ["n1", "n2"]
    close, above = skilled(1, 0.7), skilled(2, 1.0)
    assert ranked("composite", above, close, terms=Terms(difficulty=0.7)) == ["n1", "n2"]
    good, bad = peer(1), peer(2, load=Load(slots=4, error_fraction=0.5))
    assert ranked("composite", bad, good) == ["n1", "n2"]
    cost_alone = RoutingSettings(shares={"cost": 1.0})
    assert ranked("composite", priced(1, 1.0), priced(2, 0.5), settings=cost_alone) == ["n2", "n1"]


def test_composite_leaves_who_fails_a_third_of_its_availability():
    failing, breakers = peer(1), Breakers()
    for _ in range(3):
        crossing = breakers.begin(failing, "echo", NOW)
        breakers.end(crossing, Outcome.FAILED, NOW, lambda: view(failing))
    made = plan(
        view(failing), Need("echo", pinned="n1"), NOW, outstanding=Outstanding(),
        random=random.Random(1), settings=RoutingSettings(), policy="composite",
        breakers=breakers,
    )  # fmt: skip
    assert made.attempts[0].factors["availability"] == pytest.approx(0.3)


def test_skill_takes_the_least_proficient_that_is_competent():
    peers = skilled(1, 0.3), skilled(2, 0.6), skilled(3, 0.95)
    assert ranked("skill", *peers, terms=Terms(difficulty=0.5)) == ["n2", "n3"]
    assert ranked("skill", *peers, terms=Terms(difficulty=0.9)) == ["n3"]
    assert ranked("skill", *peers, terms=Terms(difficulty=0.1)) == ["n1", "n2", "n3"]


def test_skill_goes_up_to_who_is_free_where_the_least_proficient_is_full():
    generalist = skilled(1, 0.6, load=Load(slots=1, in_flight=1))
    expert = skilled(2, 0.95)
    assert ranked("skill", generalist, expert, terms=Terms(difficulty=0.5)) == ["n2", "n1"]
    full_expert = skilled(2, 0.95, load=Load(full=True))
    assert ranked("skill", generalist, full_expert, terms=Terms(difficulty=0.5)) == ["n1"]


def test_skill_counts_own_calls_among_equals():
    one, other = skilled(1, 0.6), skilled(2, 0.6)
    mine = Outstanding()
    busy(mine, one, 1)
    assert ranked("skill", one, other, outstanding=mine) == ["n2", "n1"]


def test_skill_takes_the_cheap_for_simple_work_and_the_fitting_for_hard_work():
    cheap, fitting = skilled(1, 0.99, usd=0.1), skilled(2, 0.8, usd=1.0)
    assert ranked("skill", cheap, fitting, terms=Terms(difficulty=0.1)) == ["n1", "n2"]
    assert ranked("skill", cheap, fitting, terms=Terms(difficulty=0.8)) == ["n2", "n1"]
    near, dear = skilled(1, 0.96, usd=0.9), skilled(2, 0.9, usd=1.0)
    assert ranked("skill", near, dear, terms=Terms(difficulty=0.9)) == ["n2", "n1"]


def test_skill_without_a_difficulty_takes_a_generalist_before_who_is_below():
    peers = skilled(1, 0.2), skilled(2, 0.5), skilled(3, 0.9)
    assert ranked("skill", *peers) == ["n2", "n3", "n1"]


def test_sticky_sends_one_key_to_one_node_while_it_has_room():
    peers = [peer(n) for n in range(1, 9)]
    first = ranked("sticky", *peers, affinity="user-7")
    assert ranked("sticky", *reversed(peers), affinity="user-7") == first
    home = next(p for p in peers if p.name == first[0])
    mine = Outstanding()
    busy(mine, home, 9)
    assert ranked("sticky", *peers, affinity="user-7", outstanding=mine)[0] == first[1]


def test_sticky_without_a_key_takes_who_is_soonest_done():
    peers = peer(1, load=Load(slots=1, in_flight=3, service_s=0.1)), peer(2, load=None)
    assert ranked("sticky", *peers) == ["n2", "n1"]
    assert ranked("sticky", peer(1, load=None), affinity="k") == ["n1"]


@pytest.mark.parametrize(
    ("policy", "factor", "affinity"),
    [
        ("fastest", "service_s", ""), ("cheapest", "cost_usd", ""), ("quality", "success", ""),
        ("composite", "trust", ""), ("skill", "surplus", ""), ("sticky", "place", "k"),
        ("sticky", "service_s", ""),
    ],
)  # fmt: skip
def test_an_explanation_shows_what_the_policy_judged_by(policy, factor, affinity):
    peers = [priced(n, 0.1) for n in range(1, 7)]
    made = plan(
        view(*peers), Need("echo", affinity=affinity), NOW, outstanding=Outstanding(),
        random=random.Random(1), settings=RoutingSettings(), policy=policy, is_detailed=True,
    )  # fmt: skip
    told = explain(made)
    assert all(factor in row["factors"] for row in told["candidates"] + told["left_out"])


def test_an_offer_that_is_gone_from_the_view_counts_as_nothing_said():
    bare = peer(1, capabilities=())
    from meshd.routing.policies import Scene, policy_named

    scene = Scene(Outstanding(), random.Random(1), {}, node_id(9), None, NOW, Need("echo"))
    assert scene.cost_usd(bare) == 0.0
    assert policy_named("skill").factors(bare, scene)["surplus"] == 0.0


# What is known of success


def test_success_begins_with_what_the_node_says_and_follows_what_is_seen():
    history, who = History(), peer(1, load=Load(error_fraction=0.2))
    assert history.success(who, NOW) == pytest.approx(0.8)
    assert history.success(peer(1, load=None), NOW) == 1.0
    for _ in range(200):
        history.note(who.node, who.epoch, NOW, is_good=False)
    assert history.success(who, NOW) < 0.2
    assert history.success(who, Instant(NOW + 20 * HALF_LIFE_S)) == pytest.approx(0.8, abs=0.01)


def test_another_run_of_a_node_begins_anew():
    history, who = History(), peer(1)
    history.note(who.node, who.epoch, NOW, is_good=False)
    again = peer(1, epoch=Epoch(2))
    assert history.success(again, NOW) == 1.0
    history.note(again.node, again.epoch, NOW, is_good=True)
    assert history.success(again, NOW) == 1.0
    assert history.success(who, NOW) == 1.0


def test_the_history_is_bounded():
    history = History(nodes_max=2)
    for n in (1, 2, 1, 3):
        history.note(node_id(n), Epoch(1), NOW, is_good=False)
    assert len(history) == 2
    assert history.success(peer(2), NOW) == 1.0
    assert history.success(peer(1), NOW) < 1.0


@given(st.lists(st.booleans(), max_size=80))
def test_success_is_a_share(results):
    history, who = History(), peer(1)
    for is_good in results:
        history.note(who.node, who.epoch, NOW, is_good=is_good)
    assert 0.0 <= history.success(who, NOW) <= 1.0


# Keys and nodes

ids = st.lists(st.integers(1, 10_000), min_size=2, max_size=30, unique=True)
keys = st.text(min_size=1, max_size=12)


@given(ids, keys)
def test_a_node_that_goes_moves_only_its_own_keys(numbers, key):
    nodes = [node_id(n) for n in numbers]
    order = order_of(key, nodes)
    for gone in nodes:
        assert order_of(key, [n for n in nodes if n != gone]) == [n for n in order if n != gone]


@given(ids, st.data())
def test_no_node_gets_more_than_its_share_however_the_keys_come(numbers, data):
    slots = {node_id(n): data.draw(st.integers(1, 8)) for n in numbers}
    loads = dict.fromkeys(slots, 0.0)
    for number in range(60):
        shares = [Share(node, loads[node], slots[node]) for node in slots]
        key = f"k{data.draw(st.integers(0, 3))}" if number % 2 else "hot"
        first = placed(key, shares)[0]
        assert loads[first] + 1 <= bounds(shares)[first]
        loads[first] += 1
    total, all_slots = sum(loads.values()), sum(slots.values())
    for node, load in loads.items():
        assert load <= SPREAD * total * slots[node] / all_slots + 1


def test_keys_spread_over_nodes_of_their_own_accord():
    nodes = [node_id(n) for n in range(1, 11)]
    homes = [order_of(f"key-{n}", nodes)[0] for n in range(2_000)]
    assert all(120 <= homes.count(node) <= 280 for node in nodes)


def test_everyone_is_in_the_order_once_and_an_empty_mesh_has_none():
    shares = [Share(node_id(n), 0.0, 1) for n in range(1, 6)]
    assert sorted(ranks("k", shares).values()) == [0, 1, 2, 3, 4]
    assert placed("k", []) == []
