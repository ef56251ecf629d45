"""Why a member is believed to be what it is: who said what, and what was seen first-hand."""

import msgspec
import pytest
from fabric import MESH, Fabric, Node, meshed, node_id

from meshd.gossip.codec import encode_body, encode_header, update_fields
from meshd.gossip.effects import MemberChanged
from meshd.gossip.explanation import ANSWERED, FAILED, HELPED, LATE
from meshd.gossip.history import (
    CONFIRMED,
    GOODBYE,
    HEARD_OF,
    MOVED,
    RAN_OUT,
    REFUTED,
    RETRACTED,
    RETURNED,
    TOLD,
    UNANSWERED,
)
from meshd.gossip.inputs import (
    AddressChanged,
    DatagramReceived,
    JoinRequested,
    LeaveRequested,
    RejoinRequested,
)
from meshd.gossip.lag import lag_code
from meshd.gossip.members import in_state
from meshd.model import Address, MemberState
from meshd.view import Doubt

ALIVE, SUSPECT, DEAD, LEFT = MemberState


def tell(fabric: Fabric, to: Node, source: Node, *fields: object) -> None:
    data = encode_header(MESH, to.id, source.id) + encode_body(5, ([fields],))
    fabric.step(to, DatagramReceived(data, source.address))


def doubt(fabric: Fabric, subject: int, *accusers: int, retracted: tuple[int, ...] = ()):
    member = fabric.nodes[0].swim.members.get(fabric.nodes[subject].id)
    ids = (b"".join(fabric.nodes[n].id for n in some) for some in (accusers, retracted))
    return update_fields(in_state(member, SUSPECT), *ids)


def explained(fabric: Fabric, observer: int, subject: int):
    return fabric.nodes[observer].swim.explain(node_id(subject), fabric.now)


def test_of_somebody_unknown_nothing_is_to_be_explained():
    fabric = meshed(2)
    assert fabric.nodes[0].swim.explain(node_id(9), fabric.now) is None
    assert fabric.nodes[0].swim.doubt_of(node_id(9)) is None


def test_a_doubt_says_who_told_it_who_stands_behind_it_and_when_it_ends():
    fabric = meshed(6)
    node = fabric.nodes[0]
    fabric.crash(fabric.nodes[3])
    tell(fabric, node, fabric.nodes[1], *doubt(fabric, 3, 2))
    at = fabric.now
    found = explained(fabric, 0, 3)
    assert (found.node, found.state, found.incarnation) == (node_id(3), SUSPECT, 0)
    told = found.events[-1]
    assert (told.at, told.state, told.reason) == (at, SUSPECT, TOLD)
    assert (told.accuser, told.teller) == (node_id(2), node_id(1))
    assert found.doubt.accusers == (node_id(2),)
    assert (found.doubt.confirmations, found.doubt.needed, found.doubt.since) == (0, 3, at)
    assert found.doubt.deadline == at + 18.0
    assert (found.doubt.shortest_s, found.doubt.longest_s) == (3.0, 18.0)
    assert not found.doubt.is_crowd
    assert not found.doubt.is_last_called
    tell(fabric, node, fabric.nodes[4], *doubt(fabric, 3, 2, 5))
    confirmed = explained(fabric, 0, 3).events[-1]
    assert (confirmed.reason, confirmed.accuser) == (CONFIRMED, node_id(5))
    assert confirmed.teller == node_id(4)
    tell(fabric, node, fabric.nodes[5], *doubt(fabric, 3, 2, retracted=(2,)))
    found = explained(fabric, 0, 3)
    assert (found.events[-1].reason, found.events[-1].accuser) == (RETRACTED, node_id(2))
    assert found.doubt.retracted == (node_id(2),)
    assert node.swim.doubt_of(node_id(3)) == found.doubt


def test_what_this_node_found_out_itself_nobody_told_it():
    fabric = meshed(2)
    fabric.crash(fabric.nodes[1])
    assert fabric.run(30, until=lambda: fabric.all_see(DEAD, 1))
    found = explained(fabric, 0, 1)
    doubted, died = found.events[-2:]
    assert (doubted.reason, doubted.teller) == (UNANSWERED, None)
    assert doubted.accuser == node_id(0)
    assert (died.reason, died.teller) == (RAN_OUT, None)
    assert not found.is_reachable
    assert found.probed.result == FAILED
    assert found.gone_at == died.at
    assert found.forgotten_at == died.at + 86_400
    assert found.doubt is None
    assert 0 < found.health <= found.health_max == 8


def test_a_member_that_lives_is_explained_by_its_answers():
    fabric = meshed(2)
    fabric.run(3)
    found = explained(fabric, 0, 1)
    assert found.events[0].reason == HEARD_OF
    assert found.events[0].teller == node_id(1)
    assert found.probed.result == ANSWERED
    assert 0 < found.probed.rtt_s < 0.1
    assert found.probed.at <= found.heard_at <= fabric.now
    assert (found.is_reachable, found.health, found.own_lag_s) == (True, 0, 0.0)
    assert (found.gone_at, found.forgotten_at) == (None, None)


def test_a_newcomer_is_explained_by_who_vouches_for_it():
    fabric = meshed(3)
    newcomer = fabric.add()
    fabric.step(newcomer, JoinRequested((fabric.nodes[1].address,)))
    assert fabric.run(2, until=lambda: explained(fabric, 0, 3) is not None)
    assert explained(fabric, 0, 3).sponsor == node_id(1)
    newer = msgspec.structs.replace(newcomer.swim.me, epoch=newcomer.swim.me.epoch + 1)
    assert fabric.nodes[0].swim._beliefs.sponsors.sponsor_of(newer) is None
    assert explained(fabric, 0, 0).sponsor is None


def test_an_answer_by_way_of_a_helper_has_no_round_trip():
    fabric = meshed(3)
    one, two = fabric.nodes[0], fabric.nodes[2]
    fabric.drop = lambda a, b: {a, b} == {one, two}
    fabric.run(6)
    found = explained(fabric, 0, 2)
    assert (found.state, found.probed.result, found.probed.rtt_s) == (ALIVE, HELPED, None)


def test_a_late_answer_is_told_as_one():
    fabric = meshed(3)
    slow = fabric.nodes[2]
    fabric.sleep(slow)
    assert fabric.run(20, until=lambda: any(n.swim._prober._missed for n in fabric.nodes[:2]))
    accuser = next(n for n in fabric.nodes if n.swim._prober._missed)
    sequence = next(iter(accuser.swim._prober._missed))
    data = encode_header(MESH, accuser.id, slow.id) + encode_body(2, (sequence, 0))
    fabric.step(accuser, DatagramReceived(data, slow.address))
    found = accuser.swim.explain(slow.id, fabric.now)
    assert found.probed.result == LATE
    assert found.events[-1].reason == RETRACTED
    assert found.events[-1].teller is None
    assert found.is_reachable


@pytest.mark.parametrize("count", [3, 8])
def test_who_refutes_is_explained_so(count):
    fabric = meshed(count)
    slow = fabric.nodes[-1]
    fabric.sleep(slow)
    assert fabric.run(20, until=lambda: fabric.state(0, count - 1) is SUSPECT)
    fabric.wake(slow)
    assert fabric.run(5, until=lambda: fabric.state(0, count - 1) is ALIVE)
    refuted = explained(fabric, 0, count - 1).events[-1]
    assert (refuted.reason, refuted.state) == (REFUTED, ALIVE)
    assert refuted.incarnation > 0
    assert refuted.teller is not None


def test_a_new_address_is_no_refutation_and_a_goodbye_no_death():
    fabric = meshed(3)
    node = fabric.nodes[2]
    fabric.step(node, AddressChanged(Address("10.9.9.9", 7)))
    fabric.run(0.5)
    assert explained(fabric, 0, 2).events[-1].reason == MOVED
    fabric.step(fabric.nodes[1], LeaveRequested())
    fabric.run(0.5)
    found = explained(fabric, 0, 1)
    assert (found.state, found.events[-1].reason) == (LEFT, GOODBYE)
    assert found.gone_at is not None
    fabric.step(fabric.nodes[1], RejoinRequested())
    fabric.run(0.5)
    assert explained(fabric, 0, 1).events[-1].reason == RETURNED


def test_nobody_accuses_a_newcomer_although_its_sponsor_stands_in_that_place():
    fabric = Fabric(10)
    fabric.join_all()
    fabric.run(2)
    changes = [effect for _, effect in fabric.effects_of(MemberChanged)]
    assert {effect.member.state for effect in changes} == {ALIVE}
    assert {effect.accuser for effect in changes} == {None}


def test_lateness_that_a_member_told_of_makes_the_doubt_longer_and_says_so():
    fabric = meshed(5)
    node = fabric.nodes[3]
    fabric.step(node, DatagramReceived(b"", node.address, 2.0))
    body = encode_body(5, ([],))
    data = encode_header(MESH, node.id, node_id(0)) + body
    fabric.step(node, DatagramReceived(data, fabric.nodes[0].address, 2.0))
    fabric.run(1)
    assert fabric.nodes[0].swim.members.get(node.id).lag == lag_code(2.0)
    tell(fabric, fabric.nodes[0], fabric.nodes[1], *doubt(fabric, 3, 1))
    found = explained(fabric, 0, 3)
    assert found.lag_s == found.doubt.lag_s == pytest.approx(2.0)
    assert found.doubt.shortest_s == pytest.approx(3.0 + 2 * 2.0)
    assert node.swim.explain(node.id, fabric.now).own_lag_s > 1.5


def test_in_a_crowd_of_suspects_doubts_last_longer_and_say_so():
    fabric = meshed(20)
    node = fabric.nodes[0]
    fabric.drop = lambda _a, _b: True
    for subject in range(2, 20):
        tell(fabric, node, fabric.nodes[1], *doubt(fabric, subject, 1))

    def crowded() -> list[Doubt]:
        doubts = (node.swim.doubt_of(other.id) for other in fabric.nodes)
        return [found for found in doubts if found is not None and found.is_crowd]

    assert not crowded()
    assert fabric.run(20, until=crowded)
    assert crowded()[0].shortest_s > 4.0
