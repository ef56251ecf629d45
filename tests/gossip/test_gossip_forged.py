"""What nobody's word, or a forged one, may do to others: next to nothing."""

import msgspec
from fabric import MESH, Fabric, Node, meshed

from meshd.gossip.codec import encode_body, encode_header, encode_update
from meshd.gossip.effects import Effect, SendDatagram
from meshd.gossip.inputs import DatagramReceived
from meshd.gossip.members import new_member
from meshd.model import Address, Epoch, Incarnation, MemberState, NodeId

ELSEWHERE = Address("192.0.2.1", 1_000)
VICTIM = Address("198.51.100.1", 80)
STRANGER = NodeId(b"stranger")
NEW = NodeId(b"newcomer")
PING, PING_REQ, GOSSIP, SYNC, RECORDS, PULL = 1, 3, 5, 8, 9, 10


def tell(
    fabric: Fabric, to: Node, source: NodeId, address: Address, kind: int, fields=(), updates=()
) -> list[Effect]:
    """One datagram as anybody could make it."""
    data = encode_header(MESH, to.id, source) + encode_body(kind, fields, updates)
    return fabric.step(to, DatagramReceived(data, address))


def sent_bytes(effects: list[Effect]) -> dict[Address, int]:
    sent: dict[Address, int] = {}
    for effect in effects:
        if isinstance(effect, SendDatagram):
            sent[effect.to] = sent.get(effect.to, 0) + len(effect.data)
    return sent


def newcomer(node: NodeId = NEW, address: Address = VICTIM):
    return new_member(node, Epoch(1_000_000), address)


# Whose word counts


def test_a_stranger_changes_no_record_of_a_known_member_by_naming_a_sponsor():
    fabric = meshed(4)
    one, sponsor, subject = fabric.nodes[:3]
    held = one.swim.members.get(subject.id)
    moved = msgspec.structs.replace(held, incarnation=Incarnation(900), address=VICTIM)
    tell(fabric, one, STRANGER, ELSEWHERE, GOSSIP, (), [encode_update(moved, sponsor.id)])
    assert one.swim.members.get(subject.id) == held


def test_a_stranger_raises_none_of_the_dead_by_naming_a_sponsor():
    fabric = meshed(4)
    one, sponsor, subject = fabric.nodes[:3]
    fabric.crash(subject)
    assert fabric.run(60, until=lambda: fabric.all_see(MemberState.DEAD, 2))
    held = one.swim.members.get(subject.id)
    risen = msgspec.structs.replace(
        held, incarnation=Incarnation(held.incarnation + 1), state=MemberState.ALIVE
    )
    tell(fabric, one, STRANGER, ELSEWHERE, GOSSIP, (), [encode_update(risen, sponsor.id)])
    assert one.swim.members.get(subject.id) == held


def test_a_newcomer_whose_sponsor_is_named_is_still_heard_of_from_anybody():
    fabric = meshed(4)
    one, sponsor = fabric.nodes[:2]
    update = encode_update(newcomer(), sponsor.id)
    tell(fabric, one, STRANGER, ELSEWHERE, GOSSIP, (), [update])
    assert one.swim.members.get(NEW) == newcomer()


def test_rows_that_a_peers_own_sync_brought_about_are_looked_at_as_closely_as_any_news():
    fabric = meshed(3)
    one, peer = fabric.nodes[:2]
    tell(fabric, one, peer.id, peer.address, SYNC, (b"", bytes(256)))
    high = msgspec.structs.replace(newcomer(), incarnation=Incarnation(4_000_000_000))
    tell(fabric, one, peer.id, peer.address, RECORDS, (bytes(8), False), [encode_update(high)])
    guest = encode_update(newcomer(), one.id)
    tell(fabric, one, peer.id, peer.address, RECORDS, (bytes(8), False), [guest])
    assert one.swim.members.get(NEW) is None
    tell(
        fabric, one, peer.id, peer.address, RECORDS, (bytes(8), False), [encode_update(newcomer())]
    )
    assert one.swim.members.get(NEW) == newcomer()
