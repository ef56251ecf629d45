"""A plan of short work stands for the calls right after it, as far as its peers have room."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from routing_world import NOW, fail_there, node_id, peer, view

from meshd.clock import Instant
from meshd.model import Load
from meshd.routing import standing
from meshd.routing.breakers import Breakers
from meshd.routing.draw import room
from meshd.routing.need import Need
from meshd.routing.probes import TOO_SHORT
from meshd.routing.router import plan
from meshd.routing.settings import RoutingSettings
from meshd.routing.signals import Outstanding
from meshd.routing.standing import AS_BEFORE, CAPABILITIES_MAX, STANDS_S, Standings

SETTINGS = RoutingSettings()
AGE_S = 0.01
"""How old reports are: by then each slot has done ten of the tasks of a millisecond."""


def short(n, *, slots=4, rif=0, service_s=0.001):
    load = Load(slots=slots, in_flight=rif, service_s=service_s)
    return peer(n, load=load, load_at=Instant(NOW - AGE_S))


def planned(seen, *, policy="", breakers=None, capability="echo"):
    return plan(
        seen, Need(capability), NOW, outstanding=Outstanding(), random=random.Random(1),
        settings=SETTINGS, policy=policy, breakers=breakers,
    )  # fmt: skip


def kept(made, seen, *, seed=2, signals=None):
    standings = Standings(random.Random(seed), signals or Outstanding())
    standings.keep(made, seen, SETTINGS, NOW)
    return standings


def taken(standings, seen, now=NOW, *, settings=SETTINGS, capability="echo"):
    return standings.plan(capability, seen, settings, now)


def three(**more):
    return view(peer(1, capabilities=()), *(short(n, **more) for n in (2, 3, 4)))


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(0, 20)), min_size=1, max_size=4))
def test_each_peer_gets_about_as_many_as_fit_in_and_all_no_more_than_they_do_in_that_time(peers):
    seen = view(
        peer(1, capabilities=()),
        *(short(n, slots=slots, rif=rif) for n, (slots, rif) in enumerate(peers, 2)),
    )
    made = planned(seen)
    fits = dict(zip((c.peer.node for c in made.attempts), room_of(made), strict=True))
    they_do = STANDS_S * 1_000 * sum(slots for slots, _ in peers)
    standings, had = kept(made, seen), Counter({made.chosen.peer.node: 1})
    while (again := taken(standings, seen)) is not None:
        had[again.chosen.peer.node] += 1
        assert {c.peer.node for c in again.attempts} == set(fits)
        assert again.probes is AS_BEFORE, "whoever asks is told whose figures these are"
    assert had.total() <= they_do + 1
    assert had.total() >= min(they_do, sum(fits.values())) - 1
    assert all(count <= math.ceil(fits[node]) + 1 for node, count in had.items())


def room_of(made):
    return room([c.made_of for c in made.attempts])


def test_who_has_more_room_gets_more_of_them():
    seen = view(peer(1, capabilities=()), short(2, slots=1), short(3, slots=8))
    had = Counter()
    for seed in range(30):
        standings = kept(planned(seen), seen, seed=seed)
        for _ in range(20):
            had[taken(standings, seen).chosen.peer.node] += 1
    assert 5 < had[node_id(3)] / had[node_id(2)] < 12


def test_it_names_all_who_were_looked_at_though_a_plan_tries_four():
    seen = view(peer(1, capabilities=()), *(short(n) for n in range(2, 10)))
    made = planned(seen)
    assert len(made.attempts) == 4
    standings, had = kept(made, seen), set()
    while (again := taken(standings, seen)) is not None:
        had.add(again.chosen.peer.node)
        assert len(again.attempts) == 8
        assert not again.passed_over
    assert had == {node_id(n) for n in range(2, 10)}


@pytest.mark.parametrize("count", [13, 58])
def test_where_not_all_were_looked_at_each_call_draws_others(count):
    seen = view(peer(1, capabilities=()), *(short(n) for n in range(2, 2 + count)))
    made = planned(seen)
    assert made.is_whole == (count == 13)
    assert taken(kept(made, seen), seen) is None


def test_work_that_is_short_for_its_way_alone_has_a_plan_for_each_call():
    far = view(
        peer(1, capabilities=()),
        *(peer(n, rtt_s=0.2, load=Load(slots=4, service_s=10.0)) for n in (2, 3)),
    )
    assert planned(far).probes.why_not == TOO_SHORT
    assert taken(kept(planned(far), far), far) is None


def test_it_stands_for_a_moment():
    seen = three()
    standings = kept(planned(seen), seen)
    assert taken(standings, seen, Instant(NOW + 0.9 * STANDS_S)) is not None
    assert taken(standings, seen, Instant(NOW + STANDS_S)) is None
    assert taken(standings, seen, NOW) is None, "it is gone for good"


@pytest.mark.parametrize("what", ["view", "settings", "dropped", "capability"])
def test_news_end_it(what):
    seen = three()
    standings = kept(planned(seen), seen)
    changes = {"view": {"seen": three()}, "settings": {"settings": RoutingSettings()}}
    if what == "dropped":
        standings.drop("echo")
        standings.drop("echo")
    changes["capability"] = {"capability": "other"}
    assert taken(standings, **{"seen": seen, **changes.get(what, {})}) is None


@pytest.mark.parametrize("load", [Load(full=True), Load(draining=True), Load(ready=False)])
def test_whoever_has_said_meanwhile_that_it_takes_none_gets_none(load):
    seen, signals = three(), Outstanding()
    standings = kept(planned(seen), seen, signals=signals)
    for n in (2, 3):
        signals.on_reply(node_id(n), Load(slots=4), NOW)
    signals.on_reply(node_id(4), load, NOW)
    for _ in range(10):
        made = taken(standings, seen)
        if made is None:
            break
        assert made.chosen.peer.node != node_id(4)
    else:
        raise AssertionError("the fourth was never its turn: ten draws of three are too few")


def test_whoever_was_full_before_gossip_knew_better_gets_its_share():
    seen, signals = three(), Outstanding()
    for n in (2, 3, 4):
        signals.on_reply(node_id(n), Load(full=True), Instant(NOW - 1.0))
    standings = kept(planned(seen), seen, signals=signals)
    assert all(taken(standings, seen) is not None for _ in range(9))


def test_what_is_long_or_goes_by_something_else_has_a_plan_for_each_call():
    seen = three()
    assert taken(kept(planned(three(service_s=1.0)), seen), seen) is None
    assert taken(kept(planned(seen, policy="random"), seen), seen) is None
    nobody = view(peer(1, capabilities=()))
    assert taken(kept(planned(nobody), nobody), nobody) is None


def test_where_a_circuit_is_tried_each_call_has_a_plan_of_its_own():
    later = Instant(NOW + 90.0)
    seen = view(
        peer(1, capabilities=()),
        *(replace(short(n), heard_at=later, load_at=Instant(later - AGE_S)) for n in (2, 3, 4)),
    )
    breakers = Breakers()
    fail_there(breakers, seen.by_node[node_id(2)], seen=seen)
    made = plan(
        seen, Need("echo"), later, outstanding=Outstanding(), random=random.Random(1),
        settings=SETTINGS, breakers=breakers,
    )  # fmt: skip
    assert made.trials
    assert made.probes.why_not == TOO_SHORT
    standings = Standings(random.Random(1), Outstanding())
    standings.keep(made, seen, SETTINGS, later)
    assert taken(standings, seen, later) is None
    standings.keep(replace(made, trials=()), seen, SETTINGS, later)
    assert taken(standings, seen, later) is not None, "it was the trial alone"


def test_the_plans_of_a_former_view_are_let_go():
    before, seen = three(), three()
    standings = kept(planned(before), before)
    standings.keep(replace(planned(seen), need=Need("other")), seen, SETTINGS, NOW)
    assert taken(standings, seen, capability="other") is not None
    assert taken(standings, before) is None
    assert len(standings._standing) == 1


def test_so_many_capabilities_have_one_and_no_more(monkeypatch):
    monkeypatch.setattr(standing, "CAPABILITIES_MAX", 2)
    assert CAPABILITIES_MAX > 2
    standings = Standings(random.Random(1), Outstanding())
    names = ("echo", "echo2", "echo3")
    seen = three()
    made = planned(seen)
    for name in names:
        standings.keep(replace(made, need=Need(name)), seen, SETTINGS, NOW)
    assert taken(standings, seen, capability="echo") is None
    assert taken(standings, seen, capability="echo3") is not None


def test_a_plan_that_is_given_back_is_the_next_ones_and_takes_nobodys_room():
    seen = three()
    standings = kept(planned(seen), seen)
    first = taken(standings, seen)
    left = standings._standing["echo"].left
    for _ in range(50):
        standings.give_back("echo", first)
        assert taken(standings, seen) is first
    assert standings._standing["echo"].left == left
    standings.give_back("other", first)
    assert taken(standings, seen, capability="other") is None


def test_the_last_one_that_stands_is_still_the_next_ones_when_it_is_given_back():
    seen = three()
    standings, last = kept(planned(seen), seen), None
    while standings._standing["echo"].left >= 1.0:
        last = taken(standings, seen)
        assert last is not None
    standings.give_back("echo", last)
    assert taken(standings, seen) is last
    assert taken(standings, seen) is None


@pytest.mark.parametrize("what", ["view", "time", "full"])
def test_a_plan_that_is_given_back_stands_no_longer_than_others(what):
    seen, signals = three(), Outstanding()
    standings = kept(planned(seen), seen, signals=signals)
    first = taken(standings, seen)
    standings.give_back("echo", first)
    if what == "full":
        signals.on_reply(first.chosen.peer.node, Load(full=True), NOW)
        made = taken(standings, seen)
        assert made is None or made.chosen.peer is not first.chosen.peer
    else:
        later = Instant(NOW + STANDS_S) if what == "time" else NOW
        assert taken(standings, three() if what == "view" else seen, later) is None
        standings.give_back("echo", first)
        assert taken(standings, seen) is None, "it is gone for good"


def test_each_candidate_leads_one_plan_however_often_it_is_drawn():
    seen = three()
    standings, plans = kept(planned(seen), seen), {}
    while (again := taken(standings, seen)) is not None:
        assert plans.setdefault(again.chosen.peer.node, again) is again
        assert [c.peer.node for c in again.attempts].count(again.chosen.peer.node) == 1
        assert len(again.attempts) == 3
    assert len(plans) == 3


def test_a_plan_that_could_not_stand_is_remembered_for_a_moment_and_of_so_many(monkeypatch):
    monkeypatch.setattr(standing, "VAIN_MAX", 2)
    seen = three(service_s=1.0)
    made, standings = planned(seen), Standings(random.Random(1), Outstanding())
    for name in ("a", "b", "c"):
        assert standings.may_stand(name, NOW)
        assert not standings.keep(replace(made, need=Need(name)), seen, SETTINGS, NOW)
        assert not standings.may_stand(name, NOW)
    assert standings.may_stand("a", NOW), "it was forgotten for want of room"
    assert standings.may_stand("c", Instant(NOW + STANDS_S))


def test_the_longer_no_plan_stands_the_more_seldom_one_is_made_for_that():
    long, short = three(service_s=1.0), three()
    standings, now, pauses = Standings(random.Random(1), Outstanding()), NOW, []
    for _ in range(12):
        assert not standings.keep(planned(long), long, SETTINGS, now)
        began = now
        while not standings.may_stand("echo", now):
            now = Instant(now + 0.001)
        pauses.append(now - began)
    assert pauses[0] == pytest.approx(STANDS_S, abs=0.0011)
    assert pauses == sorted(pauses)
    assert pauses[-1] == pytest.approx(standing.VAIN_S_MAX, abs=0.0011)
    assert standings.keep(planned(short), short, SETTINGS, now)
    assert not standings.keep(planned(long), long, SETTINGS, now)
    assert standings.may_stand("echo", Instant(now + 1.1 * STANDS_S)), "it begins anew"


def test_what_was_given_back_goes_to_nobody_who_takes_no_work_by_now():
    seen, outstanding = three(), Outstanding()
    standings = Standings(random.Random(1), outstanding)
    assert standings.keep(planned(seen), seen, SETTINGS, NOW)
    back = standings.plan("echo", seen, SETTINGS, NOW)
    standings.give_back("echo", back)
    outstanding.on_reply(back.chosen.peer.node, Load(slots=4, draining=True), NOW)
    assert standings.plan("echo", seen, SETTINGS, NOW) is None
    assert standings.plan("echo", seen, SETTINGS, NOW) is None, "and nothing stands any more"
