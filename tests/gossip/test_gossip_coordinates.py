"""Network coordinates: places follow round trips, and nothing that is told can break them."""

import math
import random
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.errors import DecodeError
from meshd.gossip.coordinates import (
    COORDINATE_BYTES,
    DIMENSIONS,
    ERROR_MAX,
    FILTER_PEERS_MAX,
    HEIGHT_MIN_S,
    ORIGIN,
    RTT_MAX_S,
    SERF,
    SHIPPED,
    Coordinate,
    Locator,
    pack_coordinate,
    packed_error,
    unpack_coordinate,
)
from meshd.model import NodeId

PEER = NodeId(b"peer0001")
PLACES = st.builds(
    Coordinate,
    st.lists(st.floats(-0.5, 0.5), min_size=DIMENSIONS, max_size=DIMENSIONS).map(tuple),
    st.floats(0.0, 0.2),
    st.floats(-0.1, 0.1),
    st.floats(0.0, ERROR_MAX),
)


def at(*parts, **more):
    return Coordinate((*parts, *[0.0] * (DIMENSIONS - len(parts))), **more)


def meshed(truth, cycles, springs=SHIPPED):
    """One locator a node, after each has measured a random other one so many times."""
    rng = random.Random(7)
    nodes = [Locator(rng, springs) for _ in truth]
    for _ in range(cycles):
        for i, one in enumerate(nodes):
            j = rng.randrange(len(nodes))
            if i != j:
                one.update(NodeId(b"%8d" % j), nodes[j].here, truth[i][j])
    return nodes


def worst(nodes, truth):
    return max(
        abs(one.here.distance_s(other.here) / truth[i][j] - 1.0)
        for i, one in enumerate(nodes)
        for j, other in enumerate(nodes)
        if i != j
    )


@pytest.mark.parametrize("springs", [SHIPPED, SERF])
def test_nodes_on_a_line_find_their_distances(springs):
    truth = [[abs(i - j) * 0.01 for j in range(6)] for i in range(6)]
    nodes = meshed(truth, 300, springs)
    assert worst(nodes, truth) < 0.1
    assert max(node.here.error for node in nodes) < 0.05


def test_two_that_begin_at_the_same_point_go_apart():
    one, two = Locator(random.Random(1)), Locator(random.Random(2))
    for _ in range(60):
        one.update(PEER, two.here, 0.05)
        two.update(PEER, one.here, 0.05)
    assert one.here.distance_s(two.here) == pytest.approx(0.05, rel=0.05)


@pytest.mark.parametrize("rtt_s", [0.0, -1.0, math.nan, math.inf, RTT_MAX_S * 1.01])
def test_a_round_trip_that_cannot_be_changes_nothing(rtt_s):
    locator = Locator(random.Random(1))
    assert not locator.update(PEER, ORIGIN, rtt_s)
    assert locator.here == ORIGIN


@pytest.mark.parametrize(
    "there",
    [
        at(math.nan),
        at(-math.inf),
        at(11.0),
        at(height_s=math.nan),
        at(height_s=-0.1),
        at(adjustment_s=math.inf),
        at(adjustment_s=-11.0),
        at(error=-0.1),
        at(error=2.0),
        Coordinate((0.0,) * 3),
    ],
)
def test_a_place_that_cannot_be_changes_nothing(there):
    locator = Locator(random.Random(1))
    assert not locator.update(PEER, there, 0.01)
    assert locator.here == ORIGIN


def test_one_late_answer_among_three_counts_as_none():
    one, two = Locator(random.Random(1)), Locator(random.Random(1))
    for rtts, locator in (((0.01, 0.01, 3.0, 0.01), one), ((0.01, 0.01, 0.01, 0.01), two)):
        for rtt_s in rtts:
            locator.update(PEER, at(0.02), rtt_s)
    assert one.here == two.here


def test_of_too_many_peers_the_one_longest_not_measured_is_forgotten():
    locator = Locator(random.Random(1))
    for number in range(FILTER_PEERS_MAX + 5):
        locator.update(NodeId(b"%8d" % number), at(0.01), 0.01)
    assert len(locator._samples) == FILTER_PEERS_MAX
    assert NodeId(b"%8d" % 4) not in locator._samples
    locator.update(NodeId(b"%8d" % 5), at(0.01), 0.01)
    locator.update(NodeId(b"new peer"), at(0.01), 0.01)
    assert NodeId(b"%8d" % 5) in locator._samples


def test_whoever_is_pulled_out_of_all_bounds_begins_anew():
    locator = Locator(random.Random(1))
    locator.here = at(9.9)
    assert locator.update(PEER, at(9.8, error=0.0), RTT_MAX_S)
    assert locator.here == ORIGIN


@given(PLACES, PLACES, st.floats(1e-9, 5.0))
def test_no_valid_sample_leads_to_a_place_that_is_none(here, there, rtt_s):
    locator = Locator(random.Random(1))
    locator.here = here
    assert locator.update(PEER, there, rtt_s)
    assert locator.here.is_valid
    assert locator.here.height_s >= HEIGHT_MIN_S
    assert unpack_coordinate(pack_coordinate(locator.here)).is_valid


def test_an_adjustment_that_would_make_a_distance_negative_is_left_out():
    near = at(height_s=0.001, adjustment_s=-0.1)
    assert near.distance_s(at(height_s=0.001, adjustment_s=0.0)) == pytest.approx(0.002)
    assert near.moved_s(at(0.01, height_s=0.002)) == pytest.approx(0.111)


@given(PLACES, PLACES)
def test_packing_costs_one_part_in_two_thousand_of_the_way_to_the_origin(one, other):
    packed = pack_coordinate(one)
    assert len(packed) == COORDINATE_BYTES == 21
    told = unpack_coordinate(packed)
    assert one.error <= told.error + 1e-9 <= one.error + 0.006 + 1e-9
    assert packed_error(packed) == told.error
    again = unpack_coordinate(pack_coordinate(other))
    reach_s = sum(
        math.hypot(*each.point) + each.height_s + abs(each.adjustment_s) for each in (one, other)
    )
    off_s = abs(told.spring_s(again) - one.spring_s(other))
    assert off_s <= reach_s / 2_000 + 1e-6


@given(st.binary(max_size=40))
def test_whatever_bytes_come_are_a_valid_place_or_refused(data):
    with suppress(DecodeError):
        assert unpack_coordinate(data).is_valid
