"""Whom a sampling policy looks at: how much room each has, and that draws follow from it."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_world import peer

from meshd.routing.draw import by_room, by_speed, room, some
from meshd.routing.signals import Estimate


def estimate(rif=0, *, slots=4, service_s=1.0, age_s=1.0, penalty_s=0.0):
    return Estimate(rif, 0, slots, service_s, 0.001, penalty_s, service_s, age_s)


estimates = st.builds(
    estimate,
    st.integers(0, 50),
    slots=st.integers(1, 64),
    service_s=st.floats(1e-4, 100.0),
    age_s=st.floats(0.0, 1e4) | st.just(float("inf")),
    penalty_s=st.floats(0.0, 60.0),
)


@given(st.lists(estimates, min_size=1, max_size=12))
def test_the_room_of_all_is_what_came_since_the_reports_and_one_more(given_):
    rooms = room(given_)
    came = 1.0 + sum(min(e.age_s, 60.0) * e.slots / e.service_s for e in given_)
    assert min(rooms) >= 0.0
    assert sum(rooms) == pytest.approx(came, rel=1e-6)


def test_fresh_reports_leave_room_where_it_is_free_and_old_ones_by_speed():
    fresh = room([estimate(8, age_s=0.0), estimate(0, age_s=0.0)])
    assert fresh[0] == 0.0
    slow, fast = room([estimate(8, age_s=60.0), estimate(0, service_s=0.5, age_s=60.0)])
    assert fast == pytest.approx(2 * slow, rel=0.1)


def test_who_is_fined_has_less_room():
    good, bad = room([estimate(), estimate(penalty_s=0.5)])
    assert bad < good


@pytest.mark.parametrize("draw", [by_room, by_speed])
@given(given_=st.lists(estimates, max_size=12), size=st.integers(0, 16))
def test_a_draw_names_as_many_as_it_can_and_nobody_twice(draw, given_, size):
    found = draw(given_, size, random.Random(1))
    assert len(found) == min(size, len(given_)) == len(set(found))
    assert set(found) <= set(range(len(given_)))


def test_who_is_faster_and_less_occupied_is_drawn_more_often():
    given_ = [estimate(service_s=0.5), estimate(), estimate(rif=4), estimate(rif=40)]
    chance = random.Random(2)
    firsts = Counter(by_speed(given_, 1, chance)[0] for _ in range(2_000))
    assert firsts[0] > firsts[1] > firsts[2] > firsts[3] > 0


def test_where_nobody_has_room_all_are_drawn_alike():
    full = [estimate(9, age_s=0.0), estimate(9, age_s=0.0), estimate(0, slots=64, age_s=0.0)]
    chance = random.Random(3)
    orders = Counter(tuple(by_room(full, 3, chance)) for _ in range(200))
    assert set(orders) == {(2, 0, 1), (2, 1, 0)}
    assert min(orders.values()) > 60


@given(st.integers(0, 60), st.integers(0, 16), st.integers(1, 8), st.integers(0, 9))
def test_some_are_as_many_wanted_ones_as_there_are_up_to_the_size(count, size, wanted, seed):
    peers = [peer(n) for n in range(1, count + 1)]
    chosen = {p.node for p in peers[::wanted]}
    found = some(peers, size, lambda p: p.node in chosen, random.Random(seed))
    nodes = {p.node for p in found}
    assert nodes <= chosen
    assert len(found) == len(nodes) == min(size, len(chosen))


def test_of_many_only_some_get_a_look():
    looks = []
    peers = [peer(n) for n in range(1, 201)]
    some(peers, 12, lambda p: looks.append(p) is None, random.Random(1))
    assert len(looks) == 12
