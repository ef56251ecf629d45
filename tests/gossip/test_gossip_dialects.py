"""Versions side by side: each pair speaks the newest that both know, and none is killed for it."""

import random

from fabric import MESH, Fabric, meshed, node_id

from meshd.clock import Instant
from meshd.gossip import dialects
from meshd.gossip.codec import decode, encode_body, outline
from meshd.gossip.dialects import Dialects, Versions
from meshd.gossip.effects import DatagramRejected, SendDatagram, VersionRefused
from meshd.gossip.inputs import DatagramReceived, JoinRequested
from meshd.gossip.members import new_member
from meshd.gossip.messages import Join, Welcome
from meshd.gossip.swim import Swim
from meshd.model import Address, Epoch, MemberState

OLD, BOTH, NEW = Versions(1, 1), Versions(1, 2), Versions(2, 2)
T0 = Instant(0.0)
ONE, OTHER = node_id(1), node_id(2)


def of_type(kind, effects):
    return [effect for effect in effects if isinstance(effect, kind)]


def speaking(fabric: Fabric, *ranges: Versions) -> Fabric:
    """Give each node of a fabric a range of versions."""
    for index, versions in enumerate(ranges):
        node = fabric.nodes[index]
        me = new_member(node.id, Epoch(1_000_000), node.address)
        node.swim = Swim(
            me, MESH, fabric.config, random.Random(index), fabric.now, versions=versions
        )
        fabric._wake(node)
    return fabric


def test_two_ranges_have_their_newest_common_version_or_none():
    assert OLD.common(BOTH) == BOTH.common(OLD) == 1
    assert BOTH.common(BOTH) == BOTH.common(NEW) == 2
    assert OLD.common(NEW) is None
    assert [str(each) for each in (OLD, BOTH)] == ["1", "1-2"]


def test_the_oldest_is_spoken_until_the_other_says_that_it_knows_more():
    ours = Dialects(MESH, BOTH)
    assert ours.starts(ONE)[0][0] == 1
    ours.heard(ONE, 9)
    assert [start[0] for start in ours.starts(ONE)] == [2, 2]
    assert ours.starts(OTHER)[0][0] == 1
    ours.heard(ONE, 1)
    assert ours.starts(ONE)[0][0] == 1
    ours.heard(ONE, 2)
    ours.restarted(ONE)
    assert ours.starts(ONE)[0][0] == 1


def test_a_header_tells_how_far_ahead_its_sender_is():
    start = Dialects(MESH, Versions(1, 3)).starts(ONE)[1]
    told = outline(start + bytes(16))
    assert (told.version, told.newest, told.mesh) == (1, 3, MESH)
    assert outline(start) is None


def test_foreigners_are_reported_now_and_then_and_are_bounded(monkeypatch):
    monkeypatch.setattr(dialects, "FOREIGN_MAX", 2)
    ours = Dialects(MESH, OLD)
    assert ours.found_foreign(ONE, T0)
    assert not ours.found_foreign(ONE, Instant(59.0))
    assert ours.found_foreign(ONE, Instant(60.0))
    assert ours.is_foreign(ONE)
    ours.forget_silent(Instant(60.0 + dialects.FOREIGN_LASTS_S - 1))
    assert ours.is_foreign(ONE)
    ours.forget_silent(Instant(60.0 + dialects.FOREIGN_LASTS_S))
    assert not ours.is_foreign(ONE)
    assert ours.found_foreign(ONE, Instant(200.0))
    ours.heard(ONE, 1)
    assert not ours.is_foreign(ONE)
    for number in range(3):
        ours.found_foreign(node_id(number), T0)
    assert [ours.is_foreign(node_id(number)) for number in range(3)] == [False, True, True]


def test_neighbouring_versions_mesh_and_the_newer_speak_their_own_among_themselves():
    fabric = speaking(Fabric(4), OLD, BOTH, BOTH, OLD)
    fabric.join_all()
    assert fabric.run(5, until=fabric.converged)
    fabric.run(5)
    seen = set()

    def look(node, effects):
        for effect in of_type(SendDatagram, effects):
            index = fabric.nodes.index(fabric.by_address[effect.to])
            seen.add((fabric.nodes.index(node) in {1, 2}, index in {1, 2}, effect.data[0]))

    fabric.watchers.append(look)
    fabric.run(10)
    assert seen == {
        (False, False, 1), (False, True, 1), (True, False, 1), (True, True, 2)
    }  # fmt: skip
    rejected = {effect.reason for _, effect in fabric.effects_of(DatagramRejected)}
    assert "other_version" not in rejected


def test_who_shares_no_version_is_refused_on_both_sides_with_its_range():
    fabric = speaking(Fabric(2), OLD, NEW)
    fabric.step(fabric.nodes[1], JoinRequested((fabric.nodes[0].address,)))
    fabric.run(20)
    told = {(n.address, e.address, e.oldest, e.newest)
            for n, e in fabric.effects_of(VersionRefused)}  # fmt: skip
    one, other = (node.address for node in fabric.nodes)
    assert told == {(one, other, 2, 2), (other, one, 1, 1)}
    assert all(node.swim.members.live == 1 for node in fabric.nodes)
    # Once told so, it does not knock again.
    assert fabric.nodes[1].packets == 1


def test_a_member_of_a_foreign_version_is_neither_suspected_for_ever_nor_killed():
    fabric = speaking(Fabric(5), OLD, BOTH, NEW, OLD, BOTH)
    for index in (0, 2, 3, 4):
        fabric.step(fabric.nodes[index], JoinRequested((fabric.nodes[1].address,)))
    assert fabric.run(5, until=fabric.converged)
    fabric.run(60)
    assert fabric.converged()
    assert fabric.all_see(MemberState.ALIVE, 2)
    assert not fabric.nodes[0].swim.is_reachable(fabric.nodes[2].id)
    refused = {node.address for node, effect in fabric.effects_of(VersionRefused)
               if effect.address == fabric.nodes[2].address}  # fmt: skip
    assert refused == {fabric.nodes[0].address, fabric.nodes[3].address}


def test_a_member_of_a_foreign_version_stays_for_long_and_dies_when_it_does():
    fabric = speaking(Fabric(3), OLD, BOTH, NEW)
    for index in (0, 2):
        fabric.step(fabric.nodes[index], JoinRequested((fabric.nodes[1].address,)))
    assert fabric.run(5, until=fabric.converged)
    # Several times as long as its silence is trusted.
    fabric.run(4 * dialects.FOREIGN_LASTS_S)
    assert fabric.all_see(MemberState.ALIVE, 2)
    assert not fabric.nodes[0].swim.is_reachable(fabric.nodes[2].id)
    for node in fabric.nodes[1:]:
        fabric.crash(node)
    alone = fabric.nodes[0].swim.members
    # The node that spoke both is gone, too: nobody else could tell.
    assert fabric.run(
        2 * dialects.FOREIGN_LASTS_S,
        until=lambda: alone.get(fabric.nodes[2].id).state is MemberState.DEAD,
    )


def test_other_versions_of_nobody_known_or_of_another_mesh_change_nothing():
    fabric = meshed(2)
    node, peer = fabric.nodes
    sent = []
    fabric.watchers.append(lambda _node, effects: sent.extend(of_type(SendDatagram, effects)))
    fabric.run(3)
    ping = next(e.data for e in sent if e.to == node.address and e.data[0] == 1)
    newer = bytes((2,)) + ping[1:]
    for data, source in (
        (newer[:4] + b"elsewher" + newer[12:], peer.address),
        (newer[:20] + b"stranger" + newer[28:], peer.address),
        (newer, Address("192.0.2.1", 1)),
        (newer[:20], peer.address),
    ):
        fabric.step(node, DatagramReceived(data, source))
    assert node.swim.is_reachable(peer.id)
    fabric.step(node, DatagramReceived(newer, peer.address))
    assert not node.swim.is_reachable(peer.id)
    again = fabric.step(node, DatagramReceived(newer, peer.address))
    assert [type(effect) for effect in again] == [DatagramRejected]
    fabric.run(3)
    assert node.swim.is_reachable(peer.id)


def test_the_handshake_is_legible_in_any_version():
    for kind, fields in ((6, (1, bytes(64), 7, 9)), (7, (1, bytes(8), (0, ONE, 5, 0, bytes(
        (10, 0, 0, 1, 24, 230)))))):  # fmt: skip
        start = Dialects(MESH, Versions(7, 9)).starts(ONE)[0]
        datagram = decode(start + ONE + OTHER + encode_body(kind, fields), MESH)
        assert isinstance(datagram.message, Join | Welcome)
        assert (datagram.version, datagram.newest) == (7, 9)
