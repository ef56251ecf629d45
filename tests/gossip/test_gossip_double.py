"""Two processes with one key: the one that began first stays, the other stands aside, loudly."""

import random

import pytest
from fabric import MESH, Fabric, Node, meshed, node_id

from meshd.errors import UsageError
from meshd.gossip.codec import decode, encode_body, encode_header, update_fields
from meshd.gossip.double import SILENCE_S
from meshd.gossip.effects import (
    ConflictOver,
    ConflictSeen,
    DatagramRejected,
    IdentityRaised,
    SendDatagram,
)
from meshd.gossip.inputs import (
    AnswerGiven,
    DatagramReceived,
    DeadlineReached,
    EventFired,
    JoinRequested,
    LoadSampled,
    PingRequested,
    QueryFired,
    Resumed,
)
from meshd.gossip.members import new_member
from meshd.gossip.messages import JOIN_PADDING_BYTES, Join, Welcome
from meshd.gossip.swim import Swim
from meshd.model import Address, Epoch, Load, MemberState

ALIVE = MemberState.ALIVE
LATER = 2_000_000
PADDING = bytes(JOIN_PADDING_BYTES)


def clone(fabric: Fabric, index: int, *, epoch: int = LATER) -> Node:
    """One more process with the key of a node, at another address; it knows nobody yet."""
    address = Address("10.9.9.9", 6374)
    me = new_member(node_id(index), Epoch(epoch), address)
    swim = Swim(me, MESH, fabric.config, random.Random(7), fabric.now)
    double = Node(swim, address)
    fabric.by_address[address] = double
    fabric._wake(double)
    return double


def is_aside(node: Node) -> bool:
    return node.swim._double.is_aside


def conflicts(node: Node) -> list[ConflictSeen]:
    return [e for e in node.effects if isinstance(e, ConflictSeen)]


@pytest.mark.parametrize("door", [0, 2])
def test_a_later_process_with_the_same_key_stands_aside_whoever_lets_it_in(door):
    fabric = meshed(4)
    first, later = fabric.nodes[2], clone(fabric, 2)
    fabric.step(later, JoinRequested((fabric.nodes[door].address,)))
    assert fabric.run(5, until=lambda: is_aside(later))
    assert not is_aside(first)
    assert conflicts(later)[-1] == ConflictSeen(first.address, aside=True)
    assert conflicts(first)[0] == ConflictSeen(later.address)
    fabric.run(10)
    fabric.effects_of(IdentityRaised).clear()
    first.effects.clear()
    fabric.run(60)
    # It is settled: nobody outranks anybody any more, and all know the first one's place.
    assert [e for e in first.effects if isinstance(e, IdentityRaised)] == []
    for node in fabric.nodes:
        record = node.swim.members.get(first.id)
        assert (record.state, record.address) == (ALIVE, first.address)


def test_the_one_that_began_first_stays_also_if_it_comes_into_the_mesh_later():
    fabric = meshed(4)
    held, first = fabric.nodes[2], clone(fabric, 2, epoch=999)
    fabric.step(first, JoinRequested((held.address, fabric.nodes[0].address)))
    assert fabric.run(5, until=lambda: is_aside(held))
    fabric.run(20)
    assert not is_aside(first)
    assert fabric.nodes[0].swim.members.get(first.id).address == first.address


def aside(fabric: Fabric) -> tuple[Node, Node]:
    first, later = fabric.nodes[2], clone(fabric, 2)
    fabric.step(later, JoinRequested((first.address,)))
    assert fabric.run(5, until=lambda: is_aside(later))
    fabric.run(5)
    later.effects.clear()
    return first, later


def test_who_stands_aside_speaks_with_the_first_alone_to_ask_and_tell_whether_they_are_there():
    fabric = meshed(4)
    first, later = aside(fabric)
    fabric.step(later, JoinRequested((fabric.nodes[0].address,)))
    fabric.step(later, PingRequested(fabric.nodes[0].id))
    fabric.step(later, LoadSampled(Load(in_flight=3)))
    fabric.step(later, DatagramReceived(b"noise", fabric.nodes[0].address))
    ping = encode_header(MESH, later.id, fabric.nodes[0].id) + encode_body(1, (5,))
    fabric.step(later, DatagramReceived(ping, fabric.nodes[0].address))
    knock = encode_header(MESH, later.id, later.id) + encode_body(6, (5, PADDING))
    fabric.step(later, DatagramReceived(knock, first.address))
    fabric.step(later, DeadlineReached())
    fabric.step(later, Resumed(5.0))
    fabric.step(later, AnswerGiven(fabric.nodes[0].id, 7, b"answer"))
    for wish in (EventFired("x"), QueryFired(7, "x")):
        with pytest.raises(UsageError, match="takes no part"):
            fabric.step(later, wish)
    fabric.run(45)
    sent = [e for e in later.effects if isinstance(e, SendDatagram)]
    assert {e.to for e in sent} == {first.address}
    assert {type(decode(e.data, MESH).message) for e in sent} == {Join, Welcome}
    assert later.swim.is_aside
    assert 3 <= len(sent) <= 12
    assert is_aside(later)


def test_when_the_first_is_gone_the_other_takes_part_again_and_outranks_it():
    fabric = meshed(4)
    first, later = aside(fabric)
    fabric.crash(first)
    fabric.run(SILENCE_S + 25)
    assert not is_aside(later)
    assert [e for e in later.effects if isinstance(e, ConflictOver)]
    fabric.step(later, JoinRequested((fabric.nodes[0].address,)))
    fabric.run(10)
    record = fabric.nodes[1].swim.members.get(first.id)
    assert (record.state, record.address) == (ALIVE, later.address)


def test_an_echo_of_ourselves_is_no_double():
    fabric = meshed(2)
    node = fabric.nodes[0]
    alias = Address("192.0.2.7", 6374)
    fabric.by_address[alias] = node
    node.effects.clear()
    (knock,) = [
        e
        for e in fabric.step(node, JoinRequested((alias,)))
        if isinstance(e, SendDatagram) and e.to == alias
    ]
    # The router sends it back to us, and so our answer, if there was one.
    assert fabric.step(node, DatagramReceived(knock.data, alias)) == []
    sequence = decode(knock.data, MESH).message.sequence
    welcome = (sequence, bytes(8), update_fields(node.swim.me), 1, 1, node.swim._beliefs.began)
    echo = encode_header(MESH, node.id, node.id) + encode_body(7, welcome)
    assert fabric.step(node, DatagramReceived(echo, alias)) == []
    assert not is_aside(node)


def test_a_welcome_under_our_id_that_nobody_asked_for_changes_nothing():
    fabric = meshed(2)
    node = fabric.nodes[0]
    where = Address("10.9.9.9", 6374)
    welcome = (77, bytes(8), update_fields(new_member(node.id, Epoch(1), where)), 1)
    forged = encode_header(MESH, node.id, node.id) + encode_body(7, welcome)
    effects = fabric.step(node, DatagramReceived(forged, where))
    assert effects == [DatagramRejected("own_id", where)]
    assert not is_aside(node)


def test_questions_at_where_a_double_may_be_are_few_whatever_is_told():
    fabric = meshed(2)
    node, other = fabric.nodes
    asked = []
    for number in range(50):
        where = Address(f"10.9.9.{number + 1}", 6374)
        record = new_member(node.id, Epoch(node.swim.me.epoch + 1), where)
        rumour = encode_header(MESH, node.id, other.id) + encode_body(5, ([update_fields(record)],))
        effects = fabric.step(node, DatagramReceived(rumour, other.address))
        asked += [e for e in effects if isinstance(e, SendDatagram) and e.to == where]
    assert len(asked) == 1
