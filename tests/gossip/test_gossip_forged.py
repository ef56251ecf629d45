"""What nobody's word, or a forged one, may do to others: next to nothing."""

import pytest
from fabric import MESH, Fabric, Node, meshed
from msgspec.structs import replace

from meshd.clock import Instant
from meshd.gossip import double, pulls
from meshd.gossip.beliefs import OUTDATED_MAX
from meshd.gossip.codec import decode, encode_body, encode_header, encode_update, update_fields
from meshd.gossip.config import profile
from meshd.gossip.effects import ConflictSeen, DatagramRejected, Effect, EventHeard, SendDatagram
from meshd.gossip.inputs import DatagramReceived, JoinRequested, StateSet
from meshd.gossip.members import new_member
from meshd.gossip.messages import Ping, UserEvent
from meshd.gossip.sync import FIRST_ANSWER_DATAGRAMS
from meshd.model import Address, Epoch, Incarnation, MemberState, NodeId

ELSEWHERE = Address("192.0.2.1", 1_000)
VICTIM = Address("198.51.100.1", 80)
STRANGER = NodeId(b"stranger")
NEW = NodeId(b"newcomer")
PING, PING_REQ, GOSSIP, SYNC, RECORDS, PULL, DIGEST = 1, 3, 5, 8, 9, 10, 14


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
    moved = replace(held, incarnation=Incarnation(900), address=VICTIM)
    tell(fabric, one, STRANGER, ELSEWHERE, GOSSIP, (), [encode_update(moved, sponsor.id)])
    assert one.swim.members.get(subject.id) == held


def test_a_stranger_raises_none_of_the_dead_by_naming_a_sponsor():
    fabric = meshed(4)
    one, sponsor, subject = fabric.nodes[:3]
    fabric.crash(subject)
    assert fabric.run(60, until=lambda: fabric.all_see(MemberState.DEAD, 2))
    held = one.swim.members.get(subject.id)
    risen = replace(held, incarnation=Incarnation(held.incarnation + 1), state=MemberState.ALIVE)
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
    high = replace(newcomer(), incarnation=Incarnation(4_000_000_000))
    tell(fabric, one, peer.id, peer.address, RECORDS, (bytes(8), False), [encode_update(high)])
    guest = encode_update(newcomer(), one.id)
    tell(fabric, one, peer.id, peer.address, RECORDS, (bytes(8), False), [guest])
    assert one.swim.members.get(NEW) is None
    tell(
        fabric, one, peer.id, peer.address, RECORDS, (bytes(8), False), [encode_update(newcomer())]
    )
    assert one.swim.members.get(NEW) == newcomer()


# Nothing large goes where nobody was heard


QUESTIONS = [
    (PING, (7,)),
    (PING_REQ, (7, bytes(8))),
    (SYNC, (b"", bytes(256))),
    (PULL, ([], [(bytes(16), b"\x01")])),
    (DIGEST, (0, b"", False)),
]


@pytest.mark.parametrize(("kind", "fields"), QUESTIONS)
def test_a_question_under_a_members_id_from_elsewhere_has_no_large_answer_there_or_at_home(
    kind, fields
):
    fabric = meshed(4)
    one, member = fabric.nodes[:2]
    question = encode_header(MESH, one.id, member.id) + encode_body(kind, fields)
    sent = sent_bytes(fabric.step(one, DatagramReceived(question, ELSEWHERE)))
    assert member.address not in sent
    # At most the bare answer, and one join to see who is there.
    assert sent.get(ELSEWHERE, 0) <= len(question) + 140


@pytest.mark.parametrize(("kind", "fields"), [q for q in QUESTIONS if q[0] not in {PING, SYNC}])
def test_the_first_word_of_somebody_known_by_hearsay_has_no_large_answer(kind, fields):
    fabric = meshed(4)
    one, member = fabric.nodes[:2]
    update = encode_update(newcomer(), member.id)
    tell(fabric, one, STRANGER, ELSEWHERE, GOSSIP, (), [update])
    assert one.swim.members.get(NEW) is not None
    sent = sent_bytes(tell(fabric, one, NEW, VICTIM, kind, fields))
    assert sent.get(VICTIM, 0) <= 48
    assert sent_bytes(tell(fabric, one, NEW, ELSEWHERE, kind, fields)).get(VICTIM) is None


def test_the_first_sync_of_somebody_known_by_hearsay_has_a_short_answer():
    fabric = meshed(50, config=replace(profile("lan"), datagram_bytes_max=640))
    one, member = fabric.nodes[:2]
    tell(fabric, one, STRANGER, ELSEWHERE, GOSSIP, (), [encode_update(newcomer(), member.id)])
    counts = []
    for _ in range(2):
        effects = tell(fabric, one, NEW, VICTIM, SYNC, (b"", bytes(256)))
        counts.append(sum(isinstance(e, SendDatagram) and e.to == VICTIM for e in effects))
    assert counts[0] == FIRST_ANSWER_DATAGRAMS < counts[1]


def test_questions_for_states_past_the_budget_hear_that_nothing_is_here(monkeypatch):
    monkeypatch.setattr(pulls, "ANSWERS_PER_S", 2)
    fabric = meshed(2)
    one, member = fabric.nodes
    fabric.step(member, StateSet({"cap/x": b"v"}))
    fabric.run(2)
    wanted = [(member.id, member.swim.me.epoch, 0)]
    sizes = [
        sent_bytes(tell(fabric, one, member.id, member.address, PULL, (wanted,)))[member.address]
        for _ in range(3)
    ]
    assert sizes[0] == sizes[1] > sizes[2]


# Two processes with one key, or so it seems


def test_a_stranger_that_claims_to_run_with_our_key_silences_nobody():
    fabric = meshed(3)
    one = fabric.nodes[0]
    me = one.swim.me
    forged = replace(me, incarnation=Incarnation(me.incarnation + 1), address=ELSEWHERE)
    effects = tell(fabric, one, STRANGER, ELSEWHERE, GOSSIP, (), [encode_update(forged)])
    (question,) = [e for e in effects if isinstance(e, SendDatagram) and e.to == ELSEWHERE]
    join = decode(question.data, MESH).message
    record = update_fields(replace(forged, epoch=Epoch(1)))
    fields = (join.sequence, bytes(8), record, 1, 1, 1)
    effects = tell(fabric, one, one.id, ELSEWHERE, 7, fields)
    assert ConflictSeen(ELSEWHERE) in effects
    assert not one.swim._double.is_aside


def test_addresses_that_are_vouched_for_are_forgotten_oldest_first(monkeypatch):
    monkeypatch.setattr(double, "VOUCHED_MAX", 2)
    one = meshed(2).nodes[0].swim._double
    for port in (1, 2, 1, 3):
        one.vouch(Address("192.0.2.1", port))
    assert [address.port for address in one._vouched] == [1, 3]


# Room in the table


def test_who_proves_itself_gets_the_row_of_somebody_who_is_gone_first_of_one_never_heard():
    config = replace(profile("lan"), members_max=6)
    fabric = meshed(4, config=config)
    one, member = fabric.nodes[:2]
    fabric.crash(fabric.nodes[3])
    assert fabric.run(60, until=lambda: fabric.all_see(MemberState.DEAD, 3))
    dead = [NodeId(b"nobody-%d" % n) for n in range(2)]
    for node in dead:
        tell(fabric, one, member.id, member.address, GOSSIP, (), [encode_update(newcomer(node))])
        gone = replace(newcomer(node), state=MemberState.DEAD)
        tell(fabric, one, member.id, member.address, GOSSIP, (), [encode_update(gone)])
    assert len(one.swim.members) == 6
    for lost in (*dead, fabric.nodes[3].id):
        assert one.swim.members.get(lost) is not None
        fresh = fabric.add()
        fabric.step(fresh, JoinRequested((one.address,)))
        assert fabric.run(3, until=lambda node=fresh.id: one.swim.members.get(node) is not None)
        assert one.swim.members.get(lost) is None
    late = fabric.add()
    fabric.step(late, JoinRequested((one.address,)))
    fabric.run(3)
    assert one.swim.members.get(late.id) is None  # all who are there live


def test_the_dead_who_were_never_heard_are_forgotten_within_minutes():
    fabric = meshed(3)
    one, member = fabric.nodes[:2]
    fabric.crash(fabric.nodes[2])
    assert fabric.run(60, until=lambda: fabric.all_see(MemberState.DEAD, 2))
    for state in (MemberState.ALIVE, MemberState.DEAD):
        update = encode_update(replace(newcomer(), state=state))
        tell(fabric, one, member.id, member.address, GOSSIP, (), [update])
    one.swim._beliefs.reap(Instant(fabric.now + 299))
    assert one.swim.members.get(NEW) is not None
    one.swim._beliefs.reap(Instant(fabric.now + 301))
    assert one.swim.members.get(NEW) is None
    assert fabric.state(0, 2) is MemberState.DEAD


def test_members_seldom_ping_those_whom_a_lying_sponsor_names():
    fabric = meshed(3)
    one, liar = fabric.nodes[:2]
    forged = [NodeId(b"forged%02d" % n) for n in range(60)]
    rows = [
        encode_update(newcomer(node, Address("192.0.2.1", 1000 + n)))
        for n, node in enumerate(forged)
    ]
    written = []
    fabric.watchers.append(
        lambda _node, effects: written.extend(
            e.to
            for e in effects
            if isinstance(e, SendDatagram)
            and e.to.host == "192.0.2.1"
            and isinstance(decode(e.data, MESH).message, Ping)
        )
    )
    for at in range(0, 60, 20):
        tell(fabric, one, liar.id, liar.address, GOSSIP, (), rows[at : at + 20])
    assert all(one.swim.members.get(node) is not None for node in forged)
    seconds = 10
    fabric.run(seconds)
    assert 0 < len(written) <= 3 * len(fabric.nodes) * (seconds + 1)


# A member's id from elsewhere says nothing of the member


@pytest.mark.parametrize("kind", [2, 4, GOSSIP, DIGEST])
def test_a_members_id_from_elsewhere_makes_nobody_reachable(kind):
    fabric = meshed(3)
    one, member = fabric.nodes[:2]
    fabric.crash(member)
    one.swim._beliefs.unreachable[member.id] = None
    heard_at = one.swim.heard_at(member.id)
    tell(
        fabric,
        one,
        member.id,
        ELSEWHERE,
        kind,
        {2: (1, 0), 4: (1,), DIGEST: (0, b"")}.get(kind, ()),
    )
    assert not one.swim.is_reachable(member.id)
    assert one.swim.heard_at(member.id) == heard_at


def test_acks_from_elsewhere_keep_no_dead_member_alive():
    fabric = meshed(3)
    one, member = fabric.nodes[:2]
    fabric.crash(member)
    pings: list[int] = []

    def watch(node: Node, effects: list[Effect]) -> None:
        for effect in effects:
            if node is one and isinstance(effect, SendDatagram) and effect.to == member.address:
                message = decode(effect.data, MESH).message
                if isinstance(message, Ping):
                    pings.append(message.sequence)

    fabric.watchers.append(watch)
    for _ in range(200):
        fabric.run(0.1)
        while pings:
            tell(fabric, one, member.id, ELSEWHERE, 2, (pings.pop(), 0))
    assert fabric.state(0, 1) is MemberState.DEAD


def test_events_from_elsewhere_are_not_told():
    fabric = meshed(2)
    one, member = fabric.nodes
    event = UserEvent(one.swim._events._wall_ms(fabric.now) + 5, member.id, 0, "x", b"")
    effects = tell(fabric, one, member.id, ELSEWHERE, 12, (0, (event,)))
    assert not [e for e in effects if isinstance(e, EventHeard)]
    assert DatagramRejected("unproven", ELSEWHERE) in effects


def test_who_has_proven_another_address_than_it_tells_gets_no_relay_to_the_one_it_tells():
    fabric = meshed(3)
    one, member = fabric.nodes[:2]
    one.swim._exchange._prove(member.id, ELSEWHERE)
    sent = sent_bytes(tell(fabric, one, member.id, ELSEWHERE, PING_REQ, (7, fabric.nodes[2].id)))
    assert list(sent) == [ELSEWHERE]
    assert sent[ELSEWHERE] <= 48


def test_those_of_whom_somebody_is_behind_are_kept_up_to_a_bound():
    one = meshed(2).nodes[0]
    beliefs = one.swim._beliefs
    for _ in range(OUTDATED_MAX + 5):
        beliefs._note_outdated(one.swim.me)
    assert len(beliefs.outdated) == OUTDATED_MAX
