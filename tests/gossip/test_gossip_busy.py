"""Crowds at a door: who is told to come later, what it does then, and whom it believes."""

import pytest
from fabric import MESH, Fabric, meshed, node_id
from test_gossip_sync import (
    ELSEWHERE,
    STRANGER,
    cookie_for,
    give,
    reasons,
    record,
    sent,
    sync_body,
    told,
)

from meshd.gossip import sync
from meshd.gossip.codec import encode_body, encode_header, pack_address
from meshd.gossip.doors import (
    FREE_DATAGRAMS_PER_S,
    HOST_JOINS_BURST,
    STRANGER_DATAGRAMS_PER_S,
    STRANGERS_PROBED_PER_S,
)
from meshd.gossip.effects import DatagramRejected, SendDatagram
from meshd.gossip.inputs import DatagramReceived, JoinRequested
from meshd.gossip.messages import JOIN_PADDING_BYTES, Busy, Join, Records, Welcome
from meshd.model import Address, Incarnation, MemberState, NodeId

ALIVE, SUSPECT, DEAD, LEFT = MemberState
VICTIM = Address("198.51.100.7", 53)


def join_body(sequence: int = 1) -> bytes:
    return encode_body(6, (sequence, bytes(JOIN_PADDING_BYTES)))


def crowd(fabric: Fabric) -> None:
    """Use up what one host may ask."""
    for number in range(HOST_JOINS_BURST):
        give(fabric, fabric.nodes[0], NodeId(b"crowd%03d" % number), join_body())


def asking(fabric: Fabric) -> tuple:
    """A node that waits for the welcome of somebody elsewhere."""
    node = fabric.nodes[0]
    (join,) = sent(fabric.step(node, JoinRequested((ELSEWHERE,))), Join)
    return node, join.sequence


def busy(sequence: int, *addresses: Address) -> bytes:
    return encode_body(15, (sequence, [pack_address(address) for address in addresses]))


def test_a_crowd_of_one_host_is_told_to_come_later_in_fewer_bytes_and_where_else_to_knock():
    fabric = meshed(8)
    crowd(fabric)
    effects = give(fabric, fabric.nodes[0], STRANGER, join_body())
    (answer,) = sent(effects)
    assert isinstance(answer, Busy)
    assert answer.sequence == 1
    others = {pack_address(node.address) for node in fabric.nodes[1:]}
    assert set(answer.addresses) <= others
    assert len(set(answer.addresses)) == 5
    assert reasons(effects) == ["busy"]
    (datagram,) = [effect.data for effect in effects if isinstance(effect, SendDatagram)]
    assert len(datagram) <= 28 + len(join_body())
    assert sent(give(fabric, fabric.nodes[0], STRANGER, join_body(), VICTIM), Welcome)


def test_long_addresses_are_named_as_far_as_they_fit():
    fabric = meshed(2)
    node = fabric.nodes[0]
    rows = [
        record(NodeId(b"newcome%d" % n), address=Address(f"2001:db8::{n + 1}", 1)) for n in range(6)
    ]
    told(fabric, node, *rows)
    crowd(fabric)
    effects = give(fabric, node, STRANGER, join_body())
    (datagram,) = [effect.data for effect in effects if isinstance(effect, SendDatagram)]
    assert len(datagram) <= 28 + len(join_body())


def test_a_newcomer_comes_back_after_a_while_and_knocks_elsewhere_meanwhile():
    fabric = Fabric(1)
    node, sequence = asking(fabric)
    others = [Address(f"10.9.9.{n + 1}", 1) for n in range(4)]
    effects = give(fabric, node, STRANGER, busy(sequence, *others))
    knocked = [effect.to for effect in effects if isinstance(effect, SendDatagram)]
    assert knocked == others[:STRANGERS_PROBED_PER_S]
    assert give(fabric, node, STRANGER, busy(sequence, ELSEWHERE)) == []
    impossible = encode_body(15, (sequence, [bytes(6)]))
    assert give(fabric, node, STRANGER, impossible) == []
    again = []
    fabric.watchers.append(
        lambda _node, effects: again.extend(e for e in effects if isinstance(e, SendDatagram))
    )
    fabric.run(3)
    assert [effect.to for effect in again].count(ELSEWHERE) >= 1


def test_who_is_busy_for_too_long_is_given_up_and_unasked_news_of_it_is_refused():
    fabric = Fabric(1)
    node, sequence = asking(fabric)
    assert reasons(give(fabric, node, STRANGER, busy(sequence ^ 1))) == ["unasked"]
    for _ in range(sync.BUSY_TRIES + 1):
        assert reasons(give(fabric, node, STRANGER, busy(sequence))) == []
    assert reasons(give(fabric, node, STRANGER, busy(sequence))) == ["unasked"]
    assert not node.swim._exchange.is_trying(ELSEWHERE)


def test_a_member_may_be_busy_as_well():
    fabric = meshed(2)
    node, peer = fabric.nodes
    effects = give(fabric, node, peer.id, busy(1), peer.address)
    assert reasons(effects) == ["unasked"]


def test_a_newcomer_with_a_cookie_is_told_that_no_sync_is_to_be_had_now():
    fabric = meshed(2)
    node, peer = fabric.nodes
    cookie = cookie_for(fabric, node, STRANGER)
    for _ in range(sync.ANSWERS_PER_S):
        give(fabric, node, peer.id, sync_body(b""), peer.address)
    effects = give(fabric, node, STRANGER, sync_body(cookie, record(STRANGER)))
    (answer,) = sent(effects)
    assert isinstance(answer, Busy)
    assert reasons(effects) == ["busy"]
    assert sent(give(fabric, node, peer.id, sync_body(b""), peer.address)) == []


@pytest.mark.parametrize("bound", ["PROVEN_MAX", "PUSHES_MAX"])
def test_who_has_proven_itself_is_remembered_within_bounds(monkeypatch, bound):
    monkeypatch.setattr(sync, bound, 2)
    fabric = meshed(2)
    node = fabric.nodes[0]
    for number in range(4):
        stranger, address = NodeId(b"strange%d" % number), Address("10.66.6.6", number + 1)
        (welcome,) = sent(give(fabric, node, stranger, join_body(), address), Welcome)
        body = sync_body(welcome.cookie, record(stranger, address=address))
        assert sent(give(fabric, node, stranger, body, address), Records)
    exchange = node.swim._exchange
    kept = exchange._proven if bound == "PROVEN_MAX" else exchange._pushes
    assert len(kept) == 2


def test_past_all_budgets_datagrams_are_dropped_unread():
    fabric = meshed(2)
    node = fabric.nodes[0]
    data = encode_header(MESH, node.id, STRANGER) + b"\xc1"
    for _ in range(FREE_DATAGRAMS_PER_S + STRANGER_DATAGRAMS_PER_S):
        node.swim.step(DatagramReceived(data, ELSEWHERE), fabric.now)
    effects = node.swim.step(DatagramReceived(data, ELSEWHERE), fabric.now)
    assert effects == [DatagramRejected("flood", ELSEWHERE)]


# Whom to believe


def test_news_of_a_stranger_waits_until_it_is_a_member():
    fabric = meshed(2)
    node = fabric.nodes[0]
    other = NodeId(b"newcomer")
    give(fabric, node, STRANGER, encode_body(5, ([record(other)],)))
    assert node.swim.members.get(other) is None
    assert node.swim.pending()["hearsay"] == 1
    told(fabric, node, record(STRANGER))
    assert node.swim.members.get(other).state is ALIVE
    assert node.swim.pending()["hearsay"] == 0


def test_a_member_is_not_believed_from_another_address_until_it_has_answered_there():
    fabric = meshed(3)
    node, peer = fabric.nodes[:2]
    forged = record(node_id(2), state=DEAD)
    effects = give(fabric, node, peer.id, encode_body(5, ([forged],)))
    assert fabric.state(0, 2) is ALIVE
    (join,) = sent(effects, Join)
    welcome = encode_body(7, (join.sequence, bytes(8), record(peer.id, address=peer.address)))
    give(fabric, node, peer.id, welcome)
    give(fabric, node, peer.id, encode_body(5, ([forged],)))
    assert fabric.state(0, 2) is DEAD


def test_rows_that_nobody_asked_for_are_refused_from_elsewhere():
    fabric = meshed(2)
    rows = encode_body(9, (bytes(8), False, [record(STRANGER)]))
    assert reasons(give(fabric, fabric.nodes[0], node_id(1), rows)) == ["unproven"]


def test_a_guest_of_ours_that_we_never_met_is_denied_to_all():
    fabric = meshed(4)
    node = fabric.nodes[0]
    guest = (*record(STRANGER), node.id)
    fields = (*record(STRANGER)[:6], 0, b"", bytes(node.id))
    assert len(guest) >= len(record(STRANGER))
    for number in (1, 2):
        give(fabric, fabric.nodes[number], NodeId(b"liar%d___" % number)[:8],
             encode_body(5, ([fields],)), VICTIM)  # fmt: skip
        assert fabric.nodes[number].swim.members.get(STRANGER).state is ALIVE
    fabric.run(2)
    held = [each.swim.members.get(STRANGER) for each in fabric.nodes]
    assert held[0] is None
    assert all(each is None or each.state is DEAD for each in held)


def test_who_tells_old_news_is_told_the_truth_as_a_doubt_once_a_second():
    fabric = meshed(3)
    node, peer = fabric.nodes[:2]
    subject = record(node_id(2), incarnation=Incarnation(3), address=fabric.nodes[2].address)
    told(fabric, node, subject)
    fabric.run(0.2)
    while node.swim.pending()["rumours"]:
        fabric.run(0.2)
    old = record(node_id(2), address=fabric.nodes[2].address)
    answers = [sent(told(fabric, node, old), Records) for _ in range(2)]
    assert [len(each) for each in answers] == [1, 0]
    (row,) = answers[0][0].updates
    assert (row.node, row.incarnation >= 3) == (node_id(2), True)
    assert peer.swim.me.state is ALIVE


def test_the_dead_who_gossip_are_told_that_they_are_held_dead():
    fabric = meshed(3)
    node, peer = fabric.nodes[:2]
    fabric.crash(peer)
    assert fabric.run(40, until=lambda: fabric.all_see(DEAD, 1))
    while node.swim.pending()["rumours"]:
        fabric.run(0.2)
    effects = give(fabric, node, peer.id, encode_body(5, ()), peer.address)
    rows = [row for message in sent(effects, Records) for row in message.updates]
    assert [(row.node, row.state) for row in rows] == [(peer.id, DEAD)]


def test_who_is_told_busy_at_its_question_is_let_in_when_it_comes_back():
    fabric = meshed(3)
    host = fabric.nodes[0]
    guest = fabric.add()
    while host.swim._exchange._answers.take(fabric.now):
        pass  # as if a crowd had just asked
    fabric.step(guest, JoinRequested((host.address,)))
    fabric.run(0.01)
    assert [e for e in guest.effects if isinstance(e, SendDatagram)]
    assert "busy" in [e.reason for e in host.effects if isinstance(e, DatagramRejected)]
    assert fabric.run(0.6, until=fabric.converged)
