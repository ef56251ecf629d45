"""Who may be asked, who may not, and the plan's explanation."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_world import (
    NOW,
    begin,
    fail_everywhere,
    fail_there,
    node_id,
    offer,
    peer,
    view,
)

from meshd.errors import Code, UsageError
from meshd.model import Load, MemberState
from meshd.routing.breakers import Breakers
from meshd.routing.filters import Reason, eligible, may_serve
from meshd.routing.need import Need
from meshd.routing.nobody import nobody
from meshd.routing.policies import POLICIES, policy_named
from meshd.routing.router import WHOLE_MAX, explain, plan
from meshd.routing.settings import BreakerSettings, RoutingSettings
from meshd.routing.signals import Outcome, Outstanding
from meshd.routing.terms import parse_terms
from meshd.view import OFFERING_MAX


def make_plan(seen, need=None, now=NOW, **options):
    given_options = {
        "outstanding": Outstanding(),
        "random": random.Random(1),
        "settings": RoutingSettings(),
        **options,
    }
    return plan(seen, need or Need("echo"), now, **given_options)


STORES = offer(
    cost_usd_per_call=0.2, proficiency=0.8, attributes=(("warehouse", ("A", "B")),)
)  # fmt: skip


def terms(**asked):
    parsed, faults = parse_terms(**asked)
    assert not faults
    return Need("echo", terms=parsed)


@pytest.mark.parametrize(
    ("changes", "need", "reason"),
    [
        ({}, Need("echo", pinned="n9"), Reason.NOT_PINNED),
        ({"capabilities": ()}, Need("echo"), Reason.NOT_OFFERED),
        ({}, Need("echo", version="2"), Reason.VERSION),
        ({}, Need("echo", tags=("gpu",)), Reason.TAGS),
        ({}, Need("echo", is_idempotent=True), Reason.NOT_IDEMPOTENT),
        ({}, Need("echo", tried=frozenset({node_id(2)})), Reason.TRIED),
        ({}, Need("echo", hops=(node_id(2).hex(),)), Reason.VISITED),
        ({}, Need("echo", version="^2"), Reason.VERSION),
        ({"region": "us"}, terms(region="eu"), Reason.REGION),
        ({"labels": {"gpu": "t4"}}, terms(labels={"gpu": "a100"}), Reason.LABELS),
        ({"capabilities": (STORES,)}, terms(where=("warehouse in {C, D}",)), Reason.SCOPE),
        ({"capabilities": (STORES,)}, terms(difficulty=0.9), Reason.TOO_HARD),
        ({"capabilities": (STORES,)}, terms(cost_usd_max=0.1), Reason.TOO_EXPENSIVE),
        ({"state": MemberState.SUSPECT}, Need("echo"), Reason.SUSPECT),
        ({"state": MemberState.DEAD}, Need("echo"), Reason.DEAD),
        ({"state": MemberState.LEFT}, Need("echo"), Reason.LEFT),
        ({"reachable": False}, Need("echo"), Reason.UNREACHABLE),
        ({"heard_at": NOW - 6}, Need("echo"), Reason.STALE),
        ({"heard_at": None}, Need("echo"), Reason.STALE),
        ({"load": Load(draining=True)}, Need("echo"), Reason.DRAINING),
        ({"load": Load(ready=False)}, Need("echo"), Reason.NOT_READY),
        ({"load": Load(full=True)}, Need("echo"), Reason.FULL),
    ],
)
def test_a_peer_is_left_out_for_the_right_reason(changes, need, reason):
    candidates, rejected = eligible(view(peer(1, capabilities=()), peer(2, **changes)), need, NOW)
    assert candidates == []
    assert {r.node: r.reason for r in rejected}[node_id(2)] is reason


@pytest.mark.parametrize(
    ("changes", "need"),
    [
        ({}, Need("echo", pinned="n2", version="1.0", tags=())),
        ({}, Need("echo", pinned=node_id(2).hex(), version="1.0.0")),
        ({"capabilities": (offer("x"), offer(tags=("gpu", "big")))}, Need("echo", tags=("gpu",))),
        ({"load": None}, Need("echo", hops=(node_id(7).hex(),))),
        ({"capabilities": (offer(idempotent=True),)}, Need("echo", is_idempotent=True)),
        ({"region": "eu-west"}, terms(region="eu")),
        ({"labels": {"gpu": "a100", "x": "y"}}, terms(labels={"gpu": "a100"})),
        ({"capabilities": (STORES,)}, terms(where=("warehouse in {B, C}",))),
        ({"capabilities": (STORES,)}, terms(difficulty=0.8, cost_usd_max=0.2)),
        ({}, terms(difficulty=0.5, cost_usd_max=0.0)),
    ],
)  # fmt: skip
def test_a_fitting_peer_is_a_candidate(changes, need):
    candidates, _ = eligible(view(peer(1, capabilities=()), peer(2, **changes)), need, NOW)
    assert [p.name for p in candidates] == ["n2"]


def test_this_node_is_a_candidate_whatever_the_mesh_believes():
    me = peer(1, state=MemberState.SUSPECT, reachable=False, heard_at=None)
    assert eligible(view(me), Need("echo"), NOW)[0] == [me]


def test_work_that_runs_here_may_go_on_here_but_not_come_back():
    me, other = node_id(1).hex(), node_id(9).hex()
    assert eligible(view(peer(1)), Need("echo", hops=(other, me)), NOW)[0]
    assert not eligible(view(peer(1)), Need("echo", hops=(me, other)), NOW)[0]


def test_the_newer_of_reply_and_gossip_says_whether_a_peer_is_full():
    seen = view(peer(1, capabilities=()), peer(2, load=Load(full=True)))
    newer, older = {node_id(2): (Load(), NOW + 1)}, {node_id(2): (Load(), NOW - 1)}
    assert eligible(seen, Need("echo"), NOW, reports=newer)[0]
    assert not eligible(seen, Need("echo"), NOW, reports=older)[0]


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"region": "us"}, "is in another region: not us"),
        ({"labels": {"gpu": "a100"}}, "lacks a wanted label: gpu=a100"),
        ({"where": ("gpu", "warehouse=C")}, "does not meet a condition: gpu"),
        ({"difficulty": 0.9}, "is not proficient enough: less than 0.9"),
        ({"cost_usd_max": 0.1}, "is too expensive: more than $0.1"),
    ],
)
def test_an_explanation_says_what_of_the_need_was_lacking(asked, why):
    seen = view(peer(1, capabilities=(STORES,)))
    made = make_plan(seen, terms(**asked))
    assert [row["why"] for row in explain(made)["left_out"]] == [why]
    assert f"n1: {why}" in nobody(made, seen).hint


def test_a_version_that_is_not_offered_is_told_with_what_was_asked():
    made = make_plan(view(peer(1)), Need("echo", version="^2"))
    assert explain(made)["left_out"][0]["why"] == "offers another version: not ^2"


@st.composite
def worlds(draw):
    peers = []
    for n in range(1, 1 + draw(st.integers(1, 12))):
        load = draw(
            st.none()
            | st.builds(
                Load,
                in_flight=st.integers(0, 9),
                slots=st.integers(1, 8),
                full=st.booleans(),
                draining=st.booleans(),
                ready=st.booleans(),
                cpu_fraction=st.floats(0, 1),
            )
        )
        peers.append(
            peer(
                n,
                load=load,
                state=draw(st.sampled_from(MemberState)),
                reachable=draw(st.booleans()),
                heard_at=draw(st.sampled_from([None, NOW, NOW - 9])),
                capabilities=draw(st.sampled_from([(), (offer(),), (offer("other"),)])),
            )
        )
    return view(*peers)


@given(worlds(), st.sampled_from(sorted(set(POLICIES) - {"pinned"})), st.booleans())
def test_a_plan_asks_only_eligible_nodes_and_explains_every_peer_once(seen, policy, is_detailed):
    made = make_plan(seen, policy=policy, is_detailed=is_detailed)
    allowed = {p.node for p in eligible(seen, Need("echo"), NOW)[0]}
    asked = [c.peer.node for c in made.attempts]
    assert set(asked) <= allowed
    assert len(asked) == min(4, len(allowed))
    assert [c.score for c in made.attempts] == sorted(c.score for c in made.attempts)
    told = explain(made)
    assert all(row["why"] for row in told["left_out"])
    assert accounted_for(told) == sorted(node.hex() for node in seen.by_node)


@given(
    worlds(),
    st.sampled_from([
        Need("echo"), Need("echo", version="1"), Need("echo", version="2"),
        Need("echo", tags=("x",)),
        Need("echo", pinned="n2"), Need("echo", hops=(node_id(2).hex(),)),
        Need("echo", tried=frozenset({node_id(2)})), Need("echo", is_idempotent=True),
        Need("echo", terms=parse_terms(region="here")[0]),
    ]),
)  # fmt: skip
def test_of_those_that_offer_it_the_same_may_serve_it_one_by_one_as_all_together(seen, need):
    may = may_serve(seen, need, NOW, {})
    kept = {p.node for p in eligible(seen, need, NOW)[0]}
    assert {p.node for p in seen.offering("echo") if may(p)} == kept


def accounted_for(told):
    return sorted(row["node"] for row in told["candidates"] + told["left_out"])


def test_in_a_large_mesh_a_plan_accounts_for_those_it_looks_at_unless_that_would_be_unfair():
    seen = view(*(peer(n, capabilities=(offer(),) * (n % 3 > 0)) for n in range(1, WHOLE_MAX + 2)))
    everybody = sorted(node.hex() for node in seen.by_node)
    breakers = Breakers()
    quick = make_plan(seen, breakers=breakers)
    assert len(quick.attempts) == len(make_plan(seen).attempts) == 4
    assert all(c.peer.capabilities and c.factors for c in quick.attempts)
    assert (explain(quick)["left_out"], explain(quick)["is_whole"]) == ([], False)
    for options in (
        {"is_detailed": True}, {"policy": "fastest"}, {"need": Need("echo", pinned="n4")},
        {"need": Need("nothing")},
    ):  # fmt: skip
        assert accounted_for(explain(make_plan(seen, **options))) == everybody
    fail_everywhere(breakers, seen)
    assert make_plan(seen, breakers=breakers).circuit is not None


def test_in_a_large_mesh_open_circuits_are_left_out_of_what_is_drawn_unless_they_are_many():
    later = NOW + 60
    seen = view(*(peer(n, heard_at=later) for n in range(1, WHOLE_MAX + 2)))
    one, chance = Breakers(), random.Random(1)
    fail_there(one, peer(4), seen=seen)
    quick = [make_plan(seen, breakers=one, random=chance) for _ in range(60)]
    assert not any(made.is_whole for made in quick)
    assert all(c.peer.name != "n4" for made in quick for c in made.attempts)
    tried = [make_plan(seen, breakers=one, random=chance, now=later) for _ in range(60)]
    on_trial = [made for made in tried if made.trials]
    assert on_trial
    assert all(made.trials == [node_id(4)] for made in on_trial)
    many = Breakers()
    for each in seen.peers:
        fail_there(many, each, is_pinned=True)
    made = make_plan(seen, breakers=many)
    assert made.is_whole
    assert len([r for r in made.rejected if r.reason is Reason.EJECTED]) == len(seen.peers) // 3
    assert {c.peer.node for c in made.attempts} <= set(made.spared)


def test_a_newcomer_whose_own_circuit_is_open_is_spared_where_only_newcomers_pass():
    seen, breakers = view(peer(1), peer(2), peer(3)), Breakers()
    fail_everywhere(breakers, seen)
    fail_there(breakers, peer(4), is_pinned=True)
    made = make_plan(view(*seen.peers, peer(4)), breakers=breakers)
    assert [c.peer.name for c in made.attempts] == ["n4"]
    assert set(made.spared) == {node_id(4)}


def test_where_few_of_a_large_mesh_can_serve_it_all_are_accounted_for():
    few = [peer(n, capabilities=(offer(),) * (n < 9)) for n in range(1, WHOLE_MAX + 2)]
    made = make_plan(view(*few))
    assert made.is_whole
    assert len(accounted_for(explain(made))) == WHOLE_MAX + 1


def test_an_explanation_scores_those_passed_over_when_asked():
    seen = view(*(peer(n) for n in range(1, 9)))
    told = explain(make_plan(seen, is_detailed=True))
    assert told["chosen"] == {k: told["candidates"][0][k] for k in ("node", "name")}
    assert all("eta_s" not in r["factors"] and "rif" in r["factors"] for r in told["left_out"])
    plain = explain(make_plan(seen, policy="round_robin"))["left_out"]
    assert len(plain) == 4
    assert all(row["score"] is None for row in plain)
    assert explain(make_plan(view(peer(1, capabilities=()))))["chosen"] is None


def test_adaptive_asks_the_busy_last_and_the_others_alike():
    busy = peer(2, load=Load(in_flight=8, slots=4, service_s=0.1))
    seen = view(*(peer(n) for n in (1, 3, 4, 5, 6)), busy)
    rng, settings = random.Random(3), RoutingSettings(sample=2)
    firsts = [make_plan(seen, random=rng, settings=settings).chosen.peer.node for _ in range(300)]
    assert firsts.count(node_id(2)) == 0
    assert min(firsts.count(node_id(n)) for n in (1, 3, 4, 5, 6)) > 30


@given(
    worlds(), st.sampled_from(["adaptive", "least_loaded", "random"]), st.sets(st.integers(1, 9))
)
def test_a_quick_plan_asks_as_many_as_a_detailed_one_and_nobody_else(seen, policy, tried):
    need = Need("echo", tried=frozenset(node_id(n) for n in tried))
    quick = make_plan(seen, need, policy=policy)
    allowed = {p.node for p in eligible(seen, need, NOW)[0]}
    asked = {c.peer.node for c in quick.attempts}
    assert asked <= allowed
    assert len(asked) == min(4, len(allowed))


def test_of_many_peers_few_are_looked_at_and_those_who_may_not_be_asked_are_passed_by():
    peers = [peer(n, reachable=n % 10 == 0, load=Load(slots=2)) for n in range(1, 101)]
    seen = view(*peers, me=100)
    assert len(seen.offering("echo")) == 100
    for seed in range(20):
        made = make_plan(seen, random=random.Random(seed))
        assert len(made.attempts) == 4
        assert all(c.peer.reachable for c in made.attempts)


def test_a_view_remembers_who_offers_what_within_a_bound():
    seen = view(peer(1), peer(2, capabilities=(offer("other"), offer("echo"))))
    assert [p.name for p in seen.offering("echo")] == ["n1", "n2"]
    assert seen.offering("echo") is seen.offering("echo")
    assert [p.name for p in seen.offering("other")] == ["n2"]
    assert peer(1).offers("other") is None
    for number in range(OFFERING_MAX):
        assert seen.offering(f"none-{number}") == ()
    assert [p.name for p in seen.offering("echo")] == ["n1", "n2"]


def test_least_loaded_and_weighted_order_by_their_factors():
    low, high = Load(cpu_fraction=0.1, slots=4), Load(cpu_fraction=0.9, slots=4)
    seen = view(
        peer(1, load=None, rtt_s=None), peer(2, load=high), peer(3, load=low), peer(4, load=None)
    )
    for policy in ("least_loaded", "weighted"):
        names = [c.peer.name for c in make_plan(seen, policy=policy).attempts]
        assert names[-1] == "n2", policy
    far = view(peer(1, capabilities=()), peer(2, load=low, rtt_s=0.2), peer(3, load=high))
    assert make_plan(far, policy="weighted").chosen.peer.name == "n2"
    near = RoutingSettings(weights={"latency": 1.0})
    assert make_plan(far, policy="weighted", settings=near).chosen.peer.name == "n3"


@pytest.mark.parametrize("policy", ["least_loaded", "weighted", "adaptive"])
def test_a_detailed_plan_says_what_its_scores_are_made_of_whatever_is_known(policy):
    seen = view(peer(1, load=None), peer(2), peer(3, capabilities=()))
    made = make_plan(seen, policy=policy, is_detailed=True)
    assert {c.peer.name for c in made.attempts if c.factors} == {"n1", "n2"}


def test_round_robin_takes_turns_by_id_from_the_last():
    seen = view(*(peer(n << 60) for n in range(1, 6)), me=1 << 60)
    last, order = None, []
    for _ in range(7):
        last = make_plan(seen, policy="round_robin", last=last).chosen.peer.node
        order.append(int.from_bytes(last) >> 60)
    assert order == [1, 2, 3, 4, 5, 1, 2]


def test_an_unknown_policy_names_its_neighbours():
    with pytest.raises(UsageError, match=r"did you mean least_loaded\? policies: adaptive"):
        policy_named("least-loaded")
    with pytest.raises(UsageError) as caught:
        policy_named("zzz")
    assert "did you mean" not in caught.value.hint


def test_pinned_needs_a_node():
    with pytest.raises(UsageError, match="needs a node"):
        make_plan(view(peer(1)), policy="pinned")
    made = make_plan(view(peer(1), peer(2)), Need("echo", pinned="n2"), policy="pinned")
    assert [c.peer.name for c in made.attempts] == ["n2"]


def test_an_ejected_peer_is_left_out_of_the_plan_and_told_with_its_circuit():
    seen, breakers = view(peer(1), peer(2), peer(3)), Breakers()
    fail_there(breakers, peer(2), seen=seen)
    made = make_plan(seen, breakers=breakers)
    assert [(r.name, r.reason) for r in made.rejected] == [("n2", Reason.EJECTED)]
    assert {c.peer.name for c in made.attempts} == {"n1", "n3"}
    (row,) = explain(made)["left_out"]
    assert row["why"] == ("is ejected: 3 failures in a row; its circuit is open for another 60 s")


def test_what_fails_everywhere_is_a_plan_for_nobody_with_the_reason():
    seen, breakers = view(peer(1), peer(2), peer(3)), Breakers()
    fail_everywhere(breakers, seen)
    made = make_plan(seen, breakers=breakers)
    assert made.attempts == ()
    assert {r.reason for r in made.rejected} == {Reason.CIRCUIT}
    error = nobody(made, seen)
    assert (error.code, error.definite, error.data) == (
        Code.CIRCUIT_OPEN, True, {"retry_after_s": 10.0}
    )  # fmt: skip
    assert "10 failures in a row wherever it was tried" in error.message
    assert "tried again in 10 s" in error.hint
    pinned = make_plan(seen, Need("echo", pinned="n2"), policy="pinned", breakers=breakers)
    assert [c.peer.name for c in pinned.attempts] == ["n2"]
    begin(breakers, peer(1), now=NOW + 10)
    tried = make_plan(seen, breakers=breakers, now=NOW + 10)
    error = nobody(tried, seen)
    assert "by one call now, and else again in 10 s" in error.hint
    assert error.data == {"retry_after_s": 10.0}


def test_of_what_fails_everywhere_only_who_came_since_is_asked_and_by_one_call():
    seen, breakers = view(peer(1), peer(2), peer(3)), Breakers()
    fail_everywhere(breakers, seen)
    more = view(*seen.peers, peer(4))
    made = make_plan(more, breakers=breakers)
    assert [c.peer.name for c in made.attempts] == ["n4"]
    assert {r.reason for r in made.rejected} == {Reason.EJECTED}
    begin(breakers, peer(4))
    assert make_plan(more, breakers=breakers).circuit is not None


def test_what_nobody_offers_is_told_as_that_even_after_failures():
    seen, breakers = view(peer(1), peer(2), peer(3)), Breakers()
    fail_everywhere(breakers, seen)
    without = view(peer(1, capabilities=()))
    assert nobody(make_plan(without, breakers=breakers), without).code == Code.NO_CANDIDATE


def test_a_node_on_trial_is_scored_as_if_it_had_not_failed():
    later = NOW + 60
    bad = peer(2, load=Load(slots=4, service_s=0.1, error_fraction=1.0), heard_at=later)
    me = peer(1, capabilities=())
    seen = view(me, bad, peer(3, heard_at=later), peer(4, heard_at=later))
    breakers, signals = Breakers(), Outstanding()
    for _ in range(3):
        signals.begin(bad, NOW)
        signals.end(bad.node, Outcome.FAILED, NOW, took_s=0.0)
    fail_there(breakers, bad, seen=seen)
    cost_s = signals.estimate(bad, later).penalty_s
    made = make_plan(seen, now=later, breakers=breakers, outstanding=signals)
    assert made.trials == [bad.node]
    assert len({c.score for c in made.attempts}) == 1
    assert signals.estimate(bad, later).penalty_s == cost_s > 0, "a plan changes nothing"


def test_a_node_that_nobody_knows_is_told_as_that():
    seen = view(peer(1), peer(2))
    error = nobody(make_plan(seen, Need("echo", pinned="n7"), settings=RoutingSettings()), seen)
    assert (error.message, error.hint) == ("no node is called 'n7'", "known nodes: n1, n2")
    assert error.code == Code.NO_CANDIDATE


def test_work_that_could_only_go_back_is_a_cycle():
    seen = view(peer(1), peer(2))
    need = Need("echo", hops=(node_id(1).hex(), node_id(2).hex(), node_id(3).hex()))
    error = nobody(make_plan(seen, need), seen)
    assert error.code == Code.CYCLE
    assert error.definite
    assert "already passed this work on" in error.hint
    # Somebody who is only busy now may be asked later: no cycle.
    seen = view(peer(1), peer(4, load=Load(full=True)))
    assert nobody(make_plan(seen, need), seen).code == Code.NO_CANDIDATE


def test_nobody_says_who_was_considered_and_what_is_spelt_alike():
    seen = view(
        peer(1, capabilities=(offer("resize-image"),)),
        *(peer(n, capabilities=(offer("resize-images"),), reachable=False) for n in range(2, 9)),
    )
    need = Need("resize-images")
    error = nobody(make_plan(seen, need), seen)
    assert "n2, n3, n4, n5 and 3 more: did not answer the last probe" in error.hint
    assert "similar: resize-image" in error.hint
    error = nobody(make_plan(seen, Need("zzz")), seen)
    assert error.hint == "none of 8 nodes offers it"


def test_settings_out_of_range_are_all_named_at_once():
    with pytest.raises(UsageError) as caught:
        RoutingSettings(
            sample=1, hops_max=0, queue_max=-1, deadline_s=0, reserve_fraction=0.9,
            reserve_s_max=-1, weights={"speed": 1},
        )  # fmt: skip
    words = ("sample", "hops_max", "queue_max", "deadline_s", "fraction", "s_max", "speed")
    assert all(word in str(caught.value) for word in words)


def test_settings_of_breakers_out_of_range_are_all_named_at_once():
    with pytest.raises(UsageError) as caught:
        BreakerSettings(
            failures=0, failures_open_s=1e9, success_min=float("nan"), window=65, samples_min=66,
            rate_open_s=0.0, capability_failures=0, capability_open_s=-1.0, open_s_max=0.0,
        )  # fmt: skip
    assert all(name in str(caught.value) for name in BreakerSettings.__struct_fields__)
    assert "success_min must be 0..1" in caught.value.message
    with pytest.raises(UsageError, match="samples_min must be at most window"):
        BreakerSettings(window=5)
    with pytest.raises(UsageError, match="open_s_max must be at least failures_open_s"):
        BreakerSettings(open_s_max=59.0)


@pytest.mark.parametrize("weights", [{"cpu": -1.0}, {"cpu": 0.0}, {}, {"cpu": float("nan")}])
def test_weights_that_weigh_nothing_are_refused(weights):
    with pytest.raises(UsageError, match="weight"):
        RoutingSettings(weights=weights)


def test_a_hop_reserves_a_tenth_but_at_most_fifty_milliseconds():
    settings = RoutingSettings()
    assert settings.reserve_s(0.1) == pytest.approx(0.01)
    assert settings.reserve_s(30.0) == 0.05


def ordered(seen, policy):
    return [c.peer.name for c in make_plan(seen, policy=policy).attempts]


def test_nearest_takes_this_node_then_the_shortest_way_measured_or_estimated():
    seen = view(
        peer(1),
        peer(2, rtt_s=0.05),
        peer(3, rtt_s=None, rtt_estimate_s=0.02),
        peer(4, rtt_s=0.08, rtt_estimate_s=0.001),
    )
    assert ordered(seen, "nearest") == ["n1", "n3", "n2", "n4"]
    unknown = view(peer(1, capabilities=()), peer(2, rtt_s=None), peer(3, rtt_s=2.0))
    assert ordered(unknown, "nearest") == ["n3", "n2"]


def test_among_equally_near_ones_nearest_takes_the_less_busy():
    busy, idle = Load(in_flight=40, slots=4), Load(slots=4)
    seen = view(
        peer(1, capabilities=()),
        peer(2, rtt_s=0.0002, load=busy),
        peer(3, rtt_s=0.0004, load=idle),
        peer(4, rtt_s=0.02, load=idle),
    )
    assert ordered(seen, "nearest") == ["n3", "n2", "n4"]


def test_nearest_explains_itself():
    guess = peer(2, rtt_s=None, rtt_estimate_s=0.02)
    seen = view(peer(1, capabilities=()), guess, peer(3, rtt_s=None))
    first, last = make_plan(seen, policy="nearest").attempts
    assert first.factors["rtt_s"] == 0.02
    assert first.factors["estimated"] == 1.0
    assert "rtt_s" not in last.factors


def test_adaptive_and_weighted_use_the_estimate_where_nothing_was_measured():
    far, near = (peer(n, rtt_s=None, rtt_estimate_s=s) for n, s in ((2, 0.3), (3, 0.002)))
    seen = view(peer(1, capabilities=()), far, near)
    for policy in ("adaptive", "weighted"):
        assert ordered(seen, policy) == ["n3", "n2"], policy
