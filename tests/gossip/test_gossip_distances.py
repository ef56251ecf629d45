"""Who is told of coordinates, what is believed of them, and what that costs."""

import pytest
from fabric import MESH, Fabric, meshed, node_id

from meshd.gossip import distances as distances_module
from meshd.gossip.codec import decode, encode_body, encode_header
from meshd.gossip.coordinates import (
    COORDINATE_BYTES,
    DIMENSIONS,
    Coordinate,
    pack_coordinate,
    unpack_coordinate,
)
from meshd.gossip.distances import (
    ACKS_PER_COORDINATE,
    ENTRY_BYTES,
    ERROR_USABLE,
    OTHERS_MAX,
    OWN_BYTES,
    SAVED_BYTES_MAX,
)
from meshd.gossip.effects import DatagramRejected, SendDatagram
from meshd.gossip.inputs import DatagramReceived
from meshd.gossip.members import in_state, new_member
from meshd.gossip.messages import Ack, Ping
from meshd.model import Address, Epoch, MemberState, NodeId

NAN = b"\x7e\x00" * 10 + b"\x01"


def place(x, error=0.1):
    return pack_coordinate(Coordinate((x, *[0.0] * (DIMENSIONS - 1)), error=error))


class Lone:
    """One node's distances, with as many other members in its table as wanted."""

    def __init__(self, others, error=0.1):
        self.swim = Fabric(1).nodes[0].swim
        self.distances = self.swim._distances
        self.beliefs = self.swim._beliefs
        self.ids = [node_id(number) for number in range(1, others + 1)]
        for number, node in enumerate(self.ids):
            address = Address(f"10.9.{number // 200}.{number % 200 + 1}", 6374)
            self.beliefs.table.put(new_member(node, Epoch(1), address))
        self.distances._locator.here = unpack_coordinate(place(0.0, error))

    def rejected(self):
        return [e for e in self.swim._outbox.drain() if isinstance(e, DatagramRejected)]


def carried(lone, asker, acks, wanted=0):
    return [bool(lone.distances.for_ack(asker, wanted)) for _ in range(acks)]


def test_a_mesh_learns_its_distances_and_what_they_are_worth():
    fabric = meshed(8)
    assert fabric.nodes[0].swim.rtt_expected(fabric.nodes[0].id) is None
    fabric.run(60)
    for one in fabric.nodes:
        for other in fabric.nodes:
            if one is not other:
                expected = one.swim.rtt_expected(other.id)
                assert 0.000_5 <= expected.rtt_s <= 0.004
                assert expected.error <= ERROR_USABLE


def test_a_newcomer_soon_knows_its_distance_to_those_it_never_probed():
    fabric = meshed(30)
    fabric.run(90)
    newcomer = fabric.add()
    fabric.knock(30)
    fabric.run(16)
    others = [node.id for node in fabric.nodes[:30]]
    measured = [node for node in others if newcomer.swim.rtt_s(node) is not None]
    known = [node for node in others if newcomer.swim.rtt_expected(node) is not None]
    assert len(measured) < 18
    assert len(known) > 20


def test_whoever_was_told_is_told_again_of_news_and_every_tenth_ack():
    lone = Lone(1)
    one = lone.ids[0]
    every = ACKS_PER_COORDINATE
    assert carried(lone, one, 2 * every + 1) == [True, *([False] * (every - 1) + [True]) * 2]
    assert carried(lone, one, 1) == [False]
    lone.distances._version += 1
    lone.distances._earned_bytes = float(OWN_BYTES)
    assert carried(lone, one, 2) == [True, False]


def test_news_is_told_no_oftener_than_acks_have_earned():
    lone = Lone(20)
    for node in lone.ids:
        assert carried(lone, node, 1) == [True]
    told = 0
    for _ in range(50):
        lone.distances._version += 1
        told += sum(carried(lone, node, 1)[0] for node in lone.ids)
    assert told == pytest.approx(50 * 20 / ACKS_PER_COORDINATE, abs=3)


def test_those_who_lack_coordinates_are_told_out_of_what_was_saved_and_no_more():
    lone = Lone(1, error=1.0)
    acks = 2 * SAVED_BYTES_MAX // OWN_BYTES
    told = sum(carried(lone, lone.ids[0], acks))
    allowed = (SAVED_BYTES_MAX + acks * OWN_BYTES / ACKS_PER_COORDINATE) / OWN_BYTES
    assert told <= allowed + 1
    assert told < acks
    newcomer = Lone(1, error=1.0)
    newcomer.distances._saved_bytes = 0.0
    assert newcomer.distances.for_ack(newcomer.ids[0], 0) == b""


def test_an_asker_is_told_of_usable_living_others_in_turn():
    lone = Lone(24)
    asker, vague, dead, *rest = lone.ids
    assert len(lone.distances.for_ack(asker, OTHERS_MAX)) == COORDINATE_BYTES
    lone.distances.measured(asker, 0.01, place(0.01))
    lone.distances.measured(vague, 0.01, place(0.01, error=1.0))
    lone.distances.measured(dead, 0.01, place(0.01))
    member = lone.beliefs.table.get(dead)
    lone.beliefs.table.put(in_state(member, MemberState.DEAD))
    lone.distances._direct[NodeId(b"forgoten")] = place(0.01)
    for node in rest:
        lone.distances.measured(node, 0.01, place(0.01))
    heard: list[bytes] = []
    for _ in range(3):
        told = lone.distances.for_ack(asker, OTHERS_MAX)[COORDINATE_BYTES:]
        assert len(told) <= OTHERS_MAX * ENTRY_BYTES
        heard += [told[at : at + 8] for at in range(0, len(told), ENTRY_BYTES)]
    assert set(heard) == set(rest)
    assert len(lone.distances.for_ack(asker, 1)) == COORDINATE_BYTES + ENTRY_BYTES
    lone.distances._saved_bytes = SAVED_BYTES_MAX / 2
    assert len(lone.distances.for_ack(asker, OTHERS_MAX)) == COORDINATE_BYTES


def test_a_turn_without_anybody_to_tell_of_comes_to_an_end():
    lone = Lone(70)
    for node in lone.ids:
        lone.distances._direct[node] = place(0.01, error=1.0)
    assert len(lone.distances.for_ack(lone.ids[0], 8)) == COORDINATE_BYTES


def test_only_who_lacks_others_coordinates_asks_for_them():
    lone = Lone(10)
    assert lone.distances.wanted() == OTHERS_MAX
    for node in lone.ids[:5]:
        lone.distances.measured(node, 0.01, place(0.01))
    assert lone.distances.wanted() == 5
    for node in lone.ids[5:8]:
        lone.distances.measured(node, 0.01, place(0.01))
    assert lone.distances.wanted() == 0


def test_second_hand_word_counts_where_nothing_better_is_known():
    lone = Lone(6)
    teller, unknown, vague, known, doubted, dead = lone.ids
    lone.distances.measured(vague, 0.01, place(0.9, error=1.0))
    lone.distances.measured(known, 0.01, place(0.01))
    member = lone.beliefs.table.get(dead)
    lone.beliefs.table.put(in_state(member, MemberState.DEAD))
    others = {
        unknown: place(0.5), vague: place(0.5), known: place(0.5), dead: place(0.5),
        doubted: place(0.5, error=1.0), NodeId(b"stranger"): place(0.5),
        lone.swim.me.node: place(0.5),
    }  # fmt: skip
    told = place(0.02) + b"".join(node + packed for node, packed in others.items())
    lone.swim.take_touched()
    lone.distances.measured(teller, 0.02, told)
    assert {unknown, vague} <= set(lone.swim.take_touched())
    far = [n for n in others if (e := lone.distances.expected(n)) and e.rtt_s > 0.4]
    assert far == [unknown, vague]
    assert lone.distances.expected(known).rtt_s < 0.1
    # Its own word counts for more.
    lone.distances.measured(unknown, 0.01, place(0.01))
    assert lone.distances.expected(unknown).rtt_s < 0.1
    assert not lone.rejected()


@pytest.mark.parametrize(
    "coordinates",
    [b"\x00", NAN, place(0.1) + b"\x00" * 7, place(0.1) + b"somebody" + NAN, place(0.1) * 2],
)
def test_what_is_no_coordinate_is_refused_whole(coordinates):
    lone = Lone(2)
    lone.distances.measured(lone.ids[0], 0.01, coordinates)
    assert [e.reason for e in lone.rejected()] == ["bad_coordinate"]
    assert lone.distances.expected(lone.ids[0]) is None
    assert lone.distances.here == unpack_coordinate(place(0.0))


def test_a_round_trip_without_a_coordinate_counts_with_the_one_that_was_heard_before():
    lone = Lone(1)
    lone.distances.measured(lone.ids[0], 0.05, b"")
    before = lone.distances.here
    assert before == unpack_coordinate(place(0.0))
    lone.distances.measured(lone.ids[0], 0.05, place(0.01))
    once = lone.distances.here
    lone.distances.measured(lone.ids[0], 0.05, b"")
    assert len({before, once, lone.distances.here}) == 3


def test_an_impossible_round_trip_moves_nothing():
    lone = Lone(1)
    lone.distances.measured(lone.ids[0], 60.0, place(0.01))
    assert lone.distances.here == unpack_coordinate(place(0.0))


def test_a_move_is_news_to_others_and_to_rows_that_only_have_an_estimate():
    lone = Lone(3)
    one, two, three = lone.ids
    for node in (one, two):
        lone.distances.measured(node, 0.01, place(0.01))
    lone.beliefs.rtt_s[two] = 0.01
    version = lone.distances._version
    lone.swim.take_touched()
    for _ in range(5):
        lone.distances.measured(three, 0.5, place(-0.01, error=0.01))
    assert lone.distances._version > version
    touched = lone.swim.take_touched()
    assert one in touched
    assert two not in touched


def test_tables_are_bounded(monkeypatch):
    monkeypatch.setattr(distances_module, "MEMBERS_MAX", 5)
    lone = Lone(9)
    for node in lone.ids:
        lone.distances.measured(node, 0.01, place(0.01))
        lone.distances.for_ack(node, 0)
        lone.distances.for_ack(node, 0)
    assert list(lone.distances._direct) == lone.ids[-5:]
    assert list(lone.distances._told) == lone.ids[-5:]
    assert lone.distances._usable == 5


def test_only_the_answer_to_an_own_probe_is_listened_to():
    fabric = meshed(2)
    one, other = fabric.nodes
    here = one.swim._distances.here
    header = encode_header(MESH, one.id, other.id)
    body = encode_body(2, (60_000, 0, (), b"", place(0.5)))
    one.swim.step(DatagramReceived(header + body, other.address), fabric.now)
    assert one.swim._distances.here == here


def test_coordinates_ride_behind_whatever_else_rides_along():
    fabric = meshed(3)
    seen: list[Ack | Ping] = []

    def watch(_node, effects):
        for effect in effects:
            if isinstance(effect, SendDatagram):
                message = decode(effect.data, MESH).message
                if isinstance(message, Ack | Ping):
                    seen.append(message)

    fabric.watchers.append(watch)
    fabric.crash(fabric.nodes[2])
    fabric.run(40)
    acks = [m for m in seen if isinstance(m, Ack)]
    assert any(ack.coordinates and ack.updates for ack in acks)
    assert any(ack.coordinates and not ack.updates for ack in acks)
    assert any(not ack.coordinates for ack in acks)


def test_nothing_random_is_drawn_to_tell_of_coordinates():
    lone = Lone(3)
    state = lone.swim._rng.getstate()
    for node in lone.ids:
        lone.distances.measured(node, 0.01, place(0.01))
        lone.distances.for_ack(node, 8)
    assert lone.swim._rng.getstate() == state
