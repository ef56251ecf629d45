"""Ranked verifiers, opinions taken back, and the last call before a death."""

import random

from fabric import MESH, Fabric, Node, meshed, node_id
from hypothesis import given
from hypothesis import strategies as st

from meshd.gossip.codec import decode, encode_body, encode_header, encode_update, update_fields
from meshd.gossip.effects import MemberChanged, SendDatagram
from meshd.gossip.history import CONFIRMED, RETRACTED
from meshd.gossip.inputs import DatagramReceived, LeaveRequested
from meshd.gossip.members import MemberTable, doubt_point, in_state, new_member
from meshd.gossip.messages import Ack, Ping
from meshd.model import Address, Epoch, Member, MemberState, NodeId

ALIVE, SUSPECT, DEAD, LEFT = MemberState


def tell(fabric: Fabric, to: Node, source: Node, *fields: object, sequence: int | None = None):
    """A rumour in a gossip, or in a ping with a sequence."""
    body = encode_body(5, ([fields],)) if sequence is None else encode_body(1, (sequence, [fields]))
    data = encode_header(MESH, to.id, source.id) + body
    return fabric.step(to, DatagramReceived(data, source.address))


def doubt(fabric: Fabric, subject: int, *accusers: int, retracted: tuple[int, ...] = ()):
    member = fabric.nodes[0].swim.members.get(fabric.nodes[subject].id)
    ids = (b"".join(fabric.nodes[n].id for n in some) for some in (accusers, retracted))
    return update_fields(in_state(member, SUSPECT), *ids)


def pings(node: Node, to: Node, since: int = 0) -> int:
    """How often a node pinged another with a word of doubt about it."""
    sent = [e for e in node.effects[since:] if isinstance(e, SendDatagram) and e.to == to.address]
    found = [decode(e.data, MESH).message for e in sent]
    return sum(isinstance(m, Ping) and any(u.node == to.id for u in m.updates) for m in found)


def test_four_verifiers_probe_a_suspect_as_soon_as_they_hear_of_it():
    fabric = meshed(12)
    suspect = fabric.nodes[5]
    before = [len(n.effects) for n in fabric.nodes]
    fabric.sleep(suspect)
    fabric.step(fabric.nodes[0], DatagramReceived(b"", suspect.address))
    tell(fabric, fabric.nodes[0], fabric.nodes[1], *doubt(fabric, 5, 1))
    fabric.run(0.3)
    others = [n for n in fabric.nodes if n is not suspect]
    asked = [pings(n, suspect, before[fabric.nodes.index(n)]) for n in others]
    assert sum(1 for count in asked if count) >= 4
    assert sum(len(n.swim._verifier) for n in others) == 4


def test_their_failed_probes_alone_bring_the_doubt_down_to_its_shortest():
    fabric = meshed(30)
    fabric.crash(fabric.nodes[7])
    began = fabric.now
    assert fabric.run(30, until=lambda: fabric.all_see(DEAD, 7))
    suspected = [
        e for n in fabric.nodes for e in n.effects
        if isinstance(e, MemberChanged) and e.member.state is SUSPECT
    ]  # fmt: skip
    assert suspected
    history = fabric.nodes[3].swim.explain(fabric.nodes[7].id, fabric.now).events
    since = next(event.at for event in history if event.state is SUSPECT)
    dead = next(event.at for event in history if event.state is DEAD)
    assert 2.9 <= dead - since <= 3.3
    assert fabric.now - began < 12


def test_a_suspect_that_answers_its_verifiers_is_not_confirmed_and_refutes():
    fabric = meshed(12)
    tell(fabric, fabric.nodes[0], fabric.nodes[1], *doubt(fabric, 5, 1))
    fabric.run(2)
    assert fabric.all_see(ALIVE, 5)
    assert fabric.nodes[5].swim.me.incarnation == 1
    assert all(len(n.swim._verifier) == 0 for n in fabric.nodes)
    events = fabric.nodes[0].swim.explain(node_id(5), fabric.now).events
    assert CONFIRMED not in {event.reason for event in events}


def test_an_accuser_of_many_gets_one_probe_at_a_time():
    fabric = meshed(5)
    for node in fabric.nodes:
        node.swim._verifier._open.clear()
    verifier = fabric.nodes[0]
    fabric.drop = lambda a, b: verifier in {a, b}
    for subject in (2, 3, 4):
        tell(fabric, verifier, fabric.nodes[1], *doubt(fabric, subject, 1))
    verifier.swim._on_deadline(fabric.now)
    assert len(verifier.swim._verifier) == 1
    assert verifier.swim.pending()["verifications"] == 1


def test_verifications_are_bounded(monkeypatch):
    monkeypatch.setattr("meshd.gossip.verifier.VERIFICATIONS_MAX", 0)
    fabric = meshed(5)
    tell(fabric, fabric.nodes[0], fabric.nodes[1], *doubt(fabric, 3, 1))
    fabric.nodes[0].swim._on_deadline(fabric.now)
    assert len(fabric.nodes[0].swim._verifier) == 0


def test_a_doubt_that_is_over_before_its_verifier_wakes_is_not_verified():
    fabric = meshed(6)
    node = fabric.nodes[0]
    node.swim._verifier.on_doubt(NodeId(b"nobody__"), fabric.now)
    node.swim._verifier.on_doubt(node_id(3), fabric.now)
    assert len(node.swim._verifier) == 0


def test_a_verification_ends_without_a_word_when_its_suspect_is_known_better_meanwhile():
    fabric = meshed(5)
    node, suspect = fabric.nodes[0], fabric.nodes[3]
    fabric.drop = lambda a, b: {a, b} == {node, suspect}
    tell(fabric, node, fabric.nodes[1], *doubt(fabric, 3, 1))
    node.swim._on_deadline(fabric.now)
    assert len(node.swim._verifier) == 1
    fabric.run(3)
    assert len(node.swim._verifier) == 0
    assert fabric.state(0, 3) is ALIVE


def test_a_leaving_node_verifies_nobody():
    fabric = meshed(5)
    fabric.step(fabric.nodes[0], LeaveRequested())
    tell(fabric, fabric.nodes[0], fabric.nodes[1], *doubt(fabric, 3, 1))
    fabric.nodes[0].swim._on_deadline(fabric.now)
    assert len(fabric.nodes[0].swim._verifier) == 0


def test_an_answer_after_the_verdict_takes_the_opinion_back_and_others_hear_of_it():
    fabric = meshed(8)
    prober, slow = fabric.nodes[0], fabric.nodes[7]
    fabric.sleep(slow)
    assert fabric.run(
        20, until=lambda: any(n.swim._beliefs.suspicions for n in fabric.nodes if n is not slow)
    )
    accuser = next(n for n in fabric.nodes if n.swim._prober._missed)
    suspicion = accuser.swim._beliefs.suspicions[slow.id]
    sequence = next(iter(accuser.swim._prober._missed))
    # Only its answer gets through, not what it says of itself.
    body = encode_body(2, (sequence, 0))
    data = encode_header(MESH, accuser.id, slow.id) + body
    fabric.step(accuser, DatagramReceived(data, slow.address))
    assert suspicion.retracted == (accuser.id,)
    fabric.run(0.5)
    heard = [n.swim._beliefs.suspicions[slow.id] for n in fabric.nodes if n is not slow]
    assert all(accuser.id in s.retracted for s in heard)
    events = prober.swim.explain(slow.id, fabric.now).events
    assert RETRACTED in {event.reason for event in events}


def test_a_late_answer_says_nothing_of_another_life_or_of_others_doubts():
    fabric = meshed(5)
    node, subject = fabric.nodes[0], fabric.nodes[3]
    beliefs = node.swim._beliefs
    member = node.swim.members.get(subject.id)
    beliefs.doubts.answered_late(member, fabric.now)
    tell(fabric, node, fabric.nodes[1], *doubt(fabric, 3, 1))
    beliefs.doubts.answered_late(member, fabric.now)
    assert beliefs.suspicions[subject.id].retracted == ()
    beliefs.probe_failed(node.swim.members.get(subject.id), fabric.now)
    newer = Member(member.node, member.epoch, 7, ALIVE, member.address)
    beliefs.doubts.answered_late(newer, fabric.now)
    assert beliefs.suspicions[subject.id].retracted == ()
    beliefs.doubts.answered_late(member, fabric.now)
    beliefs.doubts.answered_late(member, fabric.now)
    assert beliefs.suspicions[subject.id].retracted == (node.id,)


def test_nobody_takes_back_in_anothers_name_who_is_no_member_or_this_node_itself():
    fabric = meshed(5)
    node = fabric.nodes[0]
    tell(fabric, node, fabric.nodes[1], *doubt(fabric, 3, 1))
    suspicion = node.swim._beliefs.suspicions[node_id(3)]
    member = in_state(node.swim.members.get(node_id(3)), SUSPECT)
    for forged in (b"stranger", node.id, node_id(3)):
        tell(fabric, node, fabric.nodes[1], *update_fields(member, b"", forged))
    assert suspicion.retracted == ()
    for _ in range(2):
        tell(fabric, node, fabric.nodes[1], *update_fields(member, b"", node_id(1)))
    assert suspicion.retracted == (node_id(1),)


def test_failed_rounds_are_remembered_up_to_a_bound():
    fabric = meshed(3)
    node = fabric.nodes[0]
    member = node.swim.members.get(node_id(2))
    for sequence in range(40):
        node.swim._prober.failed(sequence, member, fabric.now)
    assert list(node.swim._prober._missed) == list(range(24, 40))


def test_who_missed_a_refutation_hears_of_it_before_it_holds_the_suspect_dead():
    fabric = meshed(10)
    deaf, suspect = fabric.nodes[0], fabric.nodes[5]
    member = deaf.swim.members.get(suspect.id)
    suspect.swim._beliefs.raise_incarnation(fabric.now)
    fabric.run(2)
    deaf.swim._beliefs.table.put(in_state(member, ALIVE))
    fabric.drop = lambda a, b: {a, b} == {deaf, suspect}
    beliefs = deaf.swim._beliefs
    beliefs._store(in_state(member, SUSPECT), member, (node_id(1), node_id(2), node_id(3),
                   node_id(4)), fabric.now, reason="told by a peer", spread=False)  # fmt: skip
    assert fabric.run(5, until=lambda: fabric.state(0, 5) is ALIVE)
    assert not [e for e in deaf.effects if isinstance(e, MemberChanged) and e.member.state is DEAD]


def test_a_ping_that_tells_old_news_is_answered_with_the_newer():
    fabric = meshed(4)
    node, asker, subject = fabric.nodes[:3]
    old = fabric.nodes[0].swim.members.get(subject.id)
    subject.swim._beliefs.raise_incarnation(fabric.now)
    fabric.run(3)
    effects = tell(fabric, node, asker, *update_fields(in_state(old, SUSPECT)), sequence=77)
    acks = [decode(e.data, MESH).message for e in effects if isinstance(e, SendDatagram)]
    (ack,) = [m for m in acks if isinstance(m, Ack)]
    assert [(u.node, u.incarnation, u.state) for u in ack.updates] == [(subject.id, 1, ALIVE)]
    effects = tell(fabric, node, asker, *update_fields(asker.swim.me), sequence=78)
    acks = [decode(e.data, MESH).message for e in effects if isinstance(e, SendDatagram)]
    assert not acks[0].updates


def test_when_many_are_suspected_at_once_doubts_last_longer_and_few_are_asked():
    fabric = meshed(24)
    node = fabric.nodes[0]
    for number in range(10, 24):
        fabric.crash(fabric.nodes[number])
    fabric.drop = lambda a, b: node in {a, b}
    for subject in range(10, 24):
        tell(fabric, node, fabric.nodes[1], *doubt(fabric, subject, 1, 2, 3, 4))
    before = len(node.effects)
    fabric.run(3.5)
    assert not any(fabric.state(0, n) is DEAD for n in range(10, 24))
    fabric.run(5.5)
    assert all(fabric.state(0, n) is DEAD for n in range(10, 24))
    others = {n.address for n in fabric.nodes[1:10]}
    sent = [e for e in node.effects[before:] if isinstance(e, SendDatagram) and e.to in others]
    about = [decode(e.data, MESH).message for e in sent]
    assert sum(isinstance(m, Ping) for m in about) < 20


ids = st.binary(min_size=8, max_size=8)


@given(st.lists(ids, min_size=1, max_size=30, unique=True), ids, st.integers(0, 5))
def test_the_first_from_a_point_are_those_that_follow_it_on_the_ring(nodes, point, count):
    table = MemberTable({}, ())
    for node in nodes:
        table.put(new_member(NodeId(node), Epoch(1), Address("10.0.0.1", 1)))
    found = [m.node for m in table.first_from(point, count, lambda _: True)]
    later, earlier = sorted(n for n in nodes if n >= point), sorted(n for n in nodes if n < point)
    assert found == (later + earlier)[:count]


def test_the_ring_follows_who_comes_and_goes():
    table = MemberTable({}, ())
    for number in range(5):
        table.put(new_member(node_id(number), Epoch(1), Address("10.0.0.1", 1)))
    assert len(table.ring) == 5
    table.forget(node_id(2))
    found = table.first_from(b"\0" * 8, 9, lambda m: m.state is ALIVE)
    assert node_id(2) not in {m.node for m in found}
    assert len(found) == 4


def test_each_life_of_a_suspect_has_other_verifiers():
    rng = random.Random(1)
    member = new_member(NodeId(rng.randbytes(8)), Epoch(1), Address("10.0.0.1", 1))
    newer = Member(member.node, member.epoch, 1, ALIVE, member.address)
    assert doubt_point(member) != doubt_point(newer)


def test_after_a_stall_a_doubt_has_its_time_whatever_opinions_come():
    fabric = meshed(8)
    node = fabric.nodes[0]
    fabric.drop = lambda a, b: node in {a, b}
    tell(fabric, node, fabric.nodes[1], *doubt(fabric, 5, 1, 2, 3))
    suspicion = node.swim._beliefs.suspicions[node_id(5)]
    fabric.sleep(node)
    fabric.run(8.0)
    fabric.drop = lambda _a, _b: True
    node.mail.clear()
    fabric.wake(node)
    tell(fabric, node, fabric.nodes[1], *doubt(fabric, 5, 1, 2, 3, 4))
    assert suspicion.deadline() > fabric.now + 1.0
    fabric.run(0.5)
    assert fabric.state(0, 5) is SUSPECT


def test_after_a_stall_the_round_under_way_ends_later_too():
    fabric = meshed(3)
    node = fabric.nodes[0]
    fabric.drop = lambda _a, _b: True
    assert fabric.run(5, until=lambda: node.swim._prober._round is not None)
    current = node.swim._prober._round
    until = current.until
    node.swim._on_stall(0.7, fabric.now)
    assert current.until >= until + 0.7


def test_a_last_call_holds_what_fits_and_leaves_out_the_rest(monkeypatch):
    fabric = meshed(14)
    node = fabric.nodes[0]
    fabric.drop = lambda _a, _b: True
    for subject in range(2, 14):
        tell(fabric, node, fabric.nodes[1], *doubt(fabric, subject, 1))
    monkeypatch.setattr(node.swim._outbox, "_bytes_max", 300)
    before = len(node.effects)
    node.swim._prober.ask_about(
        node.swim.members.get(node_id(1)), [node_id(n) for n in range(2, 14)]
    )
    (effect,) = node.swim._outbox.drain()
    told = decode(effect.data, MESH).message.updates
    assert 0 < len(told) < 12
    assert len(node.effects) == before


def test_corrections_that_do_not_fit_are_left_out(monkeypatch):
    fabric = meshed(3)
    outbox = fabric.nodes[0].swim._outbox
    monkeypatch.setattr(outbox, "_bytes_max", 100)
    rumour = encode_update(fabric.nodes[1].swim.me)
    outbox.send_full(node_id(1), fabric.nodes[1].address, Ack, (1, 2), also=[rumour] * 5)
    (effect,) = outbox.drain()
    assert 0 < len(decode(effect.data, MESH).message.updates) < 5


def test_what_a_node_told_of_its_load_and_what_nobody_looks_at():
    fabric = meshed(2)
    swim = fabric.nodes[0].swim
    assert swim.load_told is None
    swim.drop_touched()
    assert not swim.take_touched()
