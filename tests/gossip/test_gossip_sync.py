"""Handshake, view sync and state pulls: who is answered, how much, and what is refused."""

import random

import pytest
from fabric import MESH, Fabric, Node, meshed, node_id

from meshd.clock import Instant
from meshd.gossip import swim as swim_module
from meshd.gossip.beliefs import INCARNATION_MAX
from meshd.gossip.codec import (
    SEAL_BYTES_RESERVED,
    decode,
    encode_body,
    encode_header,
    pack_address,
    update_fields,
)
from meshd.gossip.config import GossipConfig
from meshd.gossip.effects import ConflictSeen, DatagramRejected, IdentityRaised, SendDatagram
from meshd.gossip.inputs import DatagramReceived, JoinRequested, LeaveRequested, StateSet
from meshd.gossip.lag import CODE_MAX
from meshd.gossip.members import bucket_of, new_member
from meshd.gossip.messages import (
    BUCKETS,
    JOIN_PADDING_BYTES,
    Delta,
    Join,
    Records,
    StateDelta,
    StateEntry,
    StatePull,
    Sync,
    Welcome,
)
from meshd.gossip.pulls import PULLS_MAX
from meshd.gossip.swim import Swim
from meshd.gossip.sync import ANSWERS_PER_S, ASKS_MAX, JOIN_TRIES, JOINS_MAX
from meshd.model import Address, Epoch, Incarnation, Member, MemberState, NodeId

PADDING = bytes(JOIN_PADDING_BYTES)
ALIVE, SUSPECT, DEAD, LEFT = MemberState
STRANGER = NodeId(b"stranger")
ELSEWHERE = Address("10.66.6.6", 66)
DAY_MS = 86_400_000


def give(fabric: Fabric, to: Node, source: NodeId, body: bytes, at: Address = ELSEWHERE):
    return fabric.step(to, DatagramReceived(encode_header(MESH, to.id, source) + body, at))


def sent(effects, kind: type | None = None) -> list:
    all_sent = [decode(e.data, MESH).message for e in effects if isinstance(e, SendDatagram)]
    return all_sent if kind is None else [m for m in all_sent if isinstance(m, kind)]


def reasons(effects) -> list[str]:
    return [e.reason for e in effects if isinstance(e, DatagramRejected)]


def record(node: NodeId, accuser: bytes = b"", **changes) -> tuple:
    fields = {
        "epoch": Epoch(1_000_000), "incarnation": Incarnation(0), "state": ALIVE,
        "address": ELSEWHERE, "state_version": 0, **changes,
    }  # fmt: skip
    return update_fields(Member(node, **fields), accuser)


def told(fabric: Fabric, to: Node, *records: tuple, source: int = 1):
    teller = fabric.nodes[source]
    return give(fabric, to, teller.id, encode_body(5, (list(records),)), teller.address)


def cookie_for(fabric: Fabric, to: Node, source: NodeId) -> bytes:
    (welcome,) = sent(give(fabric, to, source, encode_body(6, (1, PADDING))), Welcome)
    return welcome.cookie


def sync_body(cookie: bytes, *updates: tuple) -> bytes:
    return encode_body(8, (cookie, bytes(4 * BUCKETS), list(updates)))


# Nothing large goes to an address that has not proven itself


@pytest.mark.parametrize(
    ("host", "other"),
    [
        ("10.0.0.1", None),
        ("2001:db8::1234:5678:9abc:def0", None),
        ("10.0.0.1", Address("fd00::1", 65_535)),
    ],
)
def test_a_welcome_is_never_larger_than_the_join_that_it_answers(host, other):
    rng = random.Random(1)
    config = GossipConfig()
    me = Member(STRANGER, Epoch(2**53 - 1), Incarnation(INCARNATION_MAX), ALIVE,
                Address(host, 65_535), 2**32 - 1, CODE_MAX, b"digest__", other)  # fmt: skip
    host_node = Swim(me, MESH, config, rng, Instant(0.0))
    guest = Swim(new_member(node_id(1), Epoch(1), ELSEWHERE), MESH, config, rng, Instant(0.0))
    (join,) = guest.step(JoinRequested((me.address,)), Instant(0.0))
    (welcome,) = host_node.step(DatagramReceived(join.data, ELSEWHERE), Instant(0.0))
    assert isinstance(decode(welcome.data, MESH).message, Welcome)
    assert len(welcome.data) <= len(join.data)


def test_of_several_welcomes_that_a_slow_node_sends_at_once_one_is_followed():
    fabric = Fabric(2)
    host, guest = fabric.nodes
    fabric.drop = lambda _source, _target: True
    fabric.step(guest, JoinRequested((host.address,)))
    fabric.run(0.8)
    joins = [e for e in guest.effects if isinstance(e, SendDatagram)]
    assert len(joins) == 2
    welcomes = [
        e.data
        for join in joins
        for e in host.swim.step(DatagramReceived(join.data, guest.address), fabric.now)
        if isinstance(e, SendDatagram)
    ]
    asked = [fabric.step(guest, DatagramReceived(data, host.address)) for data in welcomes]
    assert [len(sent(effects, Sync)) for effects in asked] == [1, 0]
    # The question was lost: it is asked again, in answer to the next welcome.
    fabric.heal()
    assert fabric.run(3, until=fabric.converged)


def test_each_join_that_is_sent_brings_one_question_and_there_is_an_end_to_them():
    fabric = Fabric(2)
    host, guest = fabric.nodes
    fabric.drop = lambda source, _target: source is host
    fabric.step(guest, JoinRequested((host.address,)))
    asked = 0
    for _ in range(400):
        fabric.run(0.25)
        for index in (0, 5):  # it answers under whatever id, as often as it likes
            me = update_fields(new_member(node_id(index), Epoch(7), host.address))
            sequence = guest.swim._exchange._joins.get(host.address)
            body = encode_body(7, (sequence.sequence if sequence else 0, bytes(8), me, 1, 1, 7))
            data = encode_header(MESH, guest.id, node_id(index)) + body
            asked += len(sent(fabric.step(guest, DatagramReceived(data, host.address)), Sync))
    assert len(sent(guest.effects, Join)) == JOIN_TRIES
    assert asked == JOIN_TRIES
    assert host.address not in guest.swim._exchange._joins


def test_a_large_introduction_stays_out_of_a_datagram_that_has_no_room_for_it():
    config = GossipConfig(datagram_bytes_max=640)
    fabric = Fabric(2, config=config)
    host, guest = fabric.nodes
    fabric.step(guest, StateSet({"cap/a": b"x" * 280}))
    fabric.step(guest, JoinRequested((host.address,)))
    assert fabric.run(5, until=lambda: fabric.converged() and fabric.knows_state())
    assert fabric.largest <= config.datagram_bytes_max - SEAL_BYTES_RESERVED
    (question,) = sent(guest.effects, Sync)[:1]
    assert question.updates[0].delta is None


def test_a_join_that_is_shorter_than_its_answer_gets_none():
    fabric = meshed(2)
    effects = give(fabric, fabric.nodes[0], STRANGER, encode_body(6, (1, PADDING[1:])))
    assert (sent(effects), reasons(effects)) == ([], ["short_join"])


def test_a_sync_without_proof_is_not_answered():
    fabric = meshed(2)
    for cookie in (b"", bytes(8)):
        effects = give(fabric, fabric.nodes[0], STRANGER, sync_body(cookie, record(STRANGER)))
        assert (sent(effects), reasons(effects)) == ([], ["unproven"])


def test_a_cookie_proves_one_id_at_one_address():
    fabric = meshed(2)
    node = fabric.nodes[0]
    cookie = cookie_for(fabric, node, STRANGER)
    body = sync_body(cookie, record(STRANGER))
    assert reasons(give(fabric, node, NodeId(b"another_"), body)) == ["unproven"]
    assert reasons(give(fabric, node, STRANGER, body, Address("10.66.6.7", 66))) == ["unproven"]
    assert sent(give(fabric, node, STRANGER, body), Records)


def test_a_members_sync_from_elsewhere_is_not_answered_but_it_is_asked_who_it_is():
    fabric = meshed(2)
    effects = give(fabric, fabric.nodes[0], node_id(1), sync_body(b""))
    assert reasons(effects) == ["unproven"]
    assert len(sent(effects)) == len(sent(effects, Join)) == 1


def test_a_members_sync_from_elsewhere_cannot_say_where_the_answer_goes():
    fabric = meshed(2)
    victim = Address("198.51.100.7", 53)
    for epoch in (1_000_000, 1_000_001):
        moved = record(node_id(1), epoch=Epoch(epoch), incarnation=Incarnation(1), address=victim)
        effects = give(fabric, fabric.nodes[0], node_id(1), sync_body(b"", moved))
        assert victim not in {e.to for e in effects if isinstance(e, SendDatagram)}
        assert sent(effects, Records) == []


def test_a_stranger_that_pulls_state_gets_an_empty_answer_and_is_asked_who_it_is():
    fabric = meshed(2)
    body = encode_body(10, ([(node_id(0), 1_000_000, 0)],))
    effects = give(fabric, fabric.nodes[0], STRANGER, body)
    assert sent(effects, StateDelta) == [StateDelta(1)]
    assert sent(effects, Join)
    datagrams = [e.data for e in effects if isinstance(e, SendDatagram)]
    assert len(datagrams[0]) <= 28 + len(body)


def test_syncs_are_answered_at_a_bounded_rate():
    fabric = meshed(2)
    node = fabric.nodes[0]
    answers = [
        reasons(give(fabric, node, node_id(1), sync_body(b""), fabric.nodes[1].address))
        for _ in range(ANSWERS_PER_S + 5)
    ]
    assert answers.count(["busy"]) == 5
    fabric.run(1)
    effects = give(fabric, node, node_id(1), sync_body(b""), fabric.nodes[1].address)
    assert sent(effects, Records)


@pytest.mark.parametrize("most", [1, 64])
def test_of_an_answer_that_was_cut_only_whole_buckets_are_asked_back(monkeypatch, most):
    monkeypatch.setattr(swim_module, "ANSWER_DATAGRAMS_MAX", most)
    fabric = meshed(60)
    node, asker = fabric.nodes[:2]
    effects = give(fabric, node, asker.id, sync_body(b""), asker.address)
    answers = sent(effects, Records)
    assert [answer.last for answer in answers] == [False] * (len(answers) - 1) + [True]
    mask = int.from_bytes(answers[-1].mask, "big")
    shown = {update.node for answer in answers for update in answer.updates}
    asked = {other.id for other in fabric.nodes if mask >> bucket_of(other.id) & 1}
    assert asked <= shown
    assert asked
    assert (len(shown) < 60) == (most < 64)


@pytest.mark.parametrize(
    "body",
    [
        encode_body(2, (1, 2)),
        encode_body(4, (1,)),
        encode_body(9, (bytes(8), True)),
        encode_body(11, (1,)),
    ],
)
def test_what_only_members_may_say_is_refused_from_a_stranger(body):
    fabric = meshed(2)
    effects = give(fabric, fabric.nodes[0], STRANGER, body)
    assert (sent(effects), reasons(effects)) == ([], ["not_a_member"])


@pytest.mark.parametrize("source", [node_id(0), NodeId(bytes(8))])
def test_ones_own_id_or_none_as_a_source_is_refused(source):
    fabric = meshed(2)
    assert reasons(give(fabric, fabric.nodes[0], source, encode_body(1, (1,)))) == ["own_id"]


def test_a_datagram_for_somebody_else_is_refused_unless_it_asks_who_is_here():
    fabric = meshed(2)
    node = fabric.nodes[0]
    for destination, body, answer in (
        (node_id(7), encode_body(1, (1,)), False),
        (NodeId(bytes(8)), encode_body(1, (1,)), False),
        (NodeId(bytes(8)), encode_body(6, (1, PADDING)), True),
    ):
        data = encode_header(MESH, destination, STRANGER) + body
        effects = fabric.step(node, DatagramReceived(data, ELSEWHERE))
        assert bool(sent(effects)) is answer
        assert reasons(effects) == ([] if answer else ["other_destination"])


# Joining


def test_joins_are_bounded_and_no_address_is_tried_twice_at_a_time():
    fabric = Fabric(1)
    node = fabric.nodes[0]
    addresses = tuple(Address(f"10.1.{n // 200}.{n % 200 + 1}", 1) for n in range(JOINS_MAX + 9))
    assert len(sent(fabric.step(node, JoinRequested(addresses)), Join)) == JOINS_MAX
    assert fabric.step(node, JoinRequested(addresses[:5])) == []
    assert fabric.step(node, JoinRequested((node.address,))) == []


def test_an_address_where_an_alive_member_is_needs_no_join():
    fabric = meshed(3)
    assert fabric.step(fabric.nodes[0], JoinRequested((fabric.nodes[1].address,))) == []


def test_a_welcome_nobody_asked_for_or_about_somebody_else_is_refused():
    fabric = meshed(2)
    node = fabric.nodes[0]
    welcome = encode_body(7, (1, bytes(8), record(STRANGER)))
    assert reasons(give(fabric, node, STRANGER, welcome)) == ["unasked"]
    (join,) = sent(fabric.step(node, JoinRequested((ELSEWHERE,))), Join)
    other = encode_body(7, (join.sequence, bytes(8), record(NodeId(b"another_"))))
    assert reasons(give(fabric, node, STRANGER, other)) == ["not_its_own_record"]
    wrong = encode_body(7, (join.sequence ^ 1, bytes(8), record(STRANGER)))
    assert reasons(give(fabric, node, STRANGER, wrong)) == ["unasked"]
    right = encode_body(7, (join.sequence, bytes(8), record(STRANGER)))
    assert sent(give(fabric, node, STRANGER, right), Sync)


def test_syncs_of_ones_own_are_bounded():
    fabric = meshed(2)
    node = fabric.nodes[0]
    for number in range(ASKS_MAX + 5):
        address = Address("10.66.6.6", number + 1)
        source = NodeId(b"strange%c" % number)
        (join,) = sent(fabric.step(node, JoinRequested((address,))), Join)
        body = encode_body(7, (join.sequence, bytes(8), record(source, address=address)))
        give(fabric, node, source, body, address)
    assert len(node.swim._exchange._asks) == ASKS_MAX


def test_an_answer_from_elsewhere_than_was_asked_is_sent_nothing_in_return():
    fabric = meshed(3)
    node, peer = fabric.nodes[0], fabric.nodes[1]
    member = node.swim.members.get(peer.id)
    node.swim._exchange._ask(peer.id, member.address, b"", fabric.now)
    empty = encode_body(9, (b"\xff" * 8, True))
    assert sent(give(fabric, node, peer.id, empty), Records) == []
    assert sent(give(fabric, node, peer.id, empty, member.address), Records)


def test_a_lost_handshake_is_tried_again():
    fabric = Fabric(2)
    fabric.drop = lambda a, _: a is fabric.nodes[0]
    fabric.join_all()
    fabric.run(0.3)
    fabric.heal()
    assert fabric.run(1, until=fabric.converged)


def test_a_newcomer_learns_of_no_ghosts():
    fabric = meshed(4)
    fabric.crash(fabric.nodes[3])
    assert fabric.run(30, until=lambda: fabric.all_see(DEAD, 3))
    fabric.run(5)
    newcomer = fabric.add()
    fabric.step(newcomer, JoinRequested((fabric.nodes[0].address,)))
    assert fabric.run(2, until=fabric.converged)
    assert newcomer.swim.members.get(node_id(3)) is None


@pytest.mark.parametrize("state", [DEAD, LEFT])
def test_a_tombstone_of_somebody_unknown_is_no_news(state):
    fabric = meshed(2)
    node, teller = fabric.nodes
    body = encode_body(9, (bytes(8), False, [record(STRANGER, state=state)]))
    give(fabric, node, teller.id, body, teller.address)
    assert node.swim.members.get(STRANGER) is None


def test_a_proven_stranger_whose_record_is_refused_gets_no_records():
    fabric = meshed(2)
    node = fabric.nodes[0]
    cookie = cookie_for(fabric, node, STRANGER)
    ahead = record(STRANGER, epoch=Epoch(1_000_000 + 2 * DAY_MS))
    effects = give(fabric, node, STRANGER, sync_body(cookie, ahead))
    assert (sent(effects), reasons(effects)) == ([], ["epoch_ahead"])
    assert node.swim.heard_at(STRANGER) is None


# What rumours may not do


def test_forged_jumps_and_epochs_far_ahead_are_refused():
    fabric = meshed(3)
    node = fabric.nodes[0]
    here = fabric.nodes[2].address
    jump = record(node_id(2), incarnation=Incarnation(1_001), address=here)
    assert reasons(told(fabric, node, jump)) == ["incarnation_jump"]
    ahead = record(node_id(2), epoch=Epoch(1_000_000 + DAY_MS + 60_000), address=here)
    assert reasons(told(fabric, node, ahead)) == ["epoch_ahead"]
    assert node.swim.members.get(node_id(2)) == fabric.nodes[2].swim.me


def test_a_forged_jump_or_epoch_about_oneself_is_ignored_or_outranked():
    fabric = meshed(3)
    node = fabric.nodes[0]
    worse = {"state": DEAD, "address": node.address}
    told(fabric, node, record(node.id, incarnation=Incarnation(2_000), **worse))
    told(fabric, node, record(node.id, epoch=Epoch(1_000_000 + 9 * DAY_MS), **worse))
    told(fabric, node, record(node.id, epoch=Epoch(5), **worse))
    assert node.swim.me.incarnation == 0
    told(fabric, node, record(node.id, incarnation=Incarnation(900), **worse))
    assert node.swim.me.incarnation == 901
    told(fabric, node, record(node.id, epoch=Epoch(1_000_500), **worse))
    assert (node.swim.me.epoch, node.swim.me.incarnation) == (1_000_501, 0)


def test_past_the_last_incarnation_comes_a_new_epoch():
    me = Member(node_id(0), Epoch(1_000_000), Incarnation(INCARNATION_MAX), ALIVE, ELSEWHERE)
    fabric = meshed(2)
    node = fabric.nodes[0]
    node.swim._beliefs.replace_self(me, fabric.now)
    told(fabric, node, record(node.id, incarnation=Incarnation(INCARNATION_MAX), state=SUSPECT))
    assert (node.swim.me.epoch, node.swim.me.incarnation) == (1_000_001, 0)


def test_a_full_table_takes_nobody_new_and_stays_within_its_bound():
    fabric = meshed(3, config=GossipConfig(members_max=4))
    node = fabric.nodes[0]
    records = [record(NodeId(b"strange%c" % n)) for n in range(5)]
    assert reasons(told(fabric, node, *records)) == ["table_full"] * 4
    assert len(node.swim.members) == 4


def test_an_impossible_address_is_refused():
    fabric = meshed(2)
    broken = (0, STRANGER, 1_000_000, 0, pack_address(Address("224.0.0.1", 5)))
    assert reasons(told(fabric, fabric.nodes[0], broken)) == ["bad_address"]


def test_invented_accusers_do_not_hasten_a_death():
    fabric = meshed(10)
    node = fabric.nodes[0]
    fabric.drop = lambda a, b: node in {a, b}
    here = fabric.nodes[2].address
    for accuser in (*(NodeId(b"invent%02d" % n) for n in range(9)), node.id, node_id(2)):
        doubt = record(node_id(2), accuser, state=SUSPECT, address=here)
        told(fabric, node, doubt)
    assert node.swim._beliefs.suspicions[node_id(2)].confirmations == 0
    for accuser in (3, 4, 5):
        told(fabric, node, record(node_id(2), node_id(accuser), state=SUSPECT, address=here))
    assert node.swim._beliefs.suspicions[node_id(2)].confirmations == 2
    newer = record(node_id(2), node_id(6), state=SUSPECT, address=here, state_version=1)
    told(fabric, node, newer)
    assert node.swim._beliefs.suspicions[node_id(2)].confirmations == 3
    assert node.swim.members.get(node_id(2)).state_version == 1


def test_an_old_accusation_is_answered_by_the_truth():
    fabric = meshed(3)
    node = fabric.nodes[0]
    told(fabric, node, record(node.id, state=SUSPECT, address=node.address))
    fabric.run(5)
    assert node.swim.goodbyes_sent() is None
    told(fabric, node, record(node.id, state=SUSPECT, address=node.address))
    assert node.swim.me.incarnation == 1
    assert node.swim.goodbyes_sent() == 0


def test_two_nodes_with_one_identity_report_it_and_do_not_flood_the_mesh():
    fabric = meshed(5)
    original = fabric.nodes[4]
    clone = fabric.add(index=4, epoch=1_001_000)
    original.up = True
    fabric.nodes.append(original)
    moved = Address("10.7.7.7", 6374)
    clone.swim._beliefs.replace_self(
        Member(clone.id, Epoch(1_001_000), Incarnation(0), ALIVE, moved), fabric.now
    )
    fabric.by_address[original.address] = original
    fabric.by_address[moved] = clone
    clone.address = moved
    fabric.knock(4)
    before = fabric.sent
    fabric.run(60)
    assert fabric.effects_of(ConflictSeen)
    raised = [e for e in original.effects + clone.effects if isinstance(e, IdentityRaised)]
    assert len(raised) < 40
    assert (fabric.sent - before) / (60 * 6) < 20


def test_another_address_at_ones_own_incarnation_is_outranked():
    fabric = meshed(3)
    node = fabric.nodes[0]
    effects = told(fabric, node, record(node.id, address=Address("10.99.9.9", 9)))
    assert node.swim.me.incarnation == 1
    assert [e for e in effects if isinstance(e, ConflictSeen)]


# Node state


def test_unasked_state_is_refused():
    fabric = meshed(2)
    delta = (node_id(1), 1_000_000, 0, 1, [("k", 1, b"forged")])
    effects = give(fabric, fabric.nodes[0], node_id(1), encode_body(11, (1, [delta])),
                   fabric.nodes[1].address)  # fmt: skip
    assert reasons(effects) == ["unasked"]
    assert fabric.nodes[0].swim.state_of(node_id(1)) is None


def test_who_lacks_a_state_says_so_and_the_owner_is_asked_at_once():
    fabric = meshed(10)
    node, teller, owner = fabric.nodes[:3]
    fabric.drop = lambda a, b: owner in {a, b} and node not in {a, b}
    fabric.step(owner, StateSet({"k": b"v"}))
    told(fabric, node, update_fields(owner.swim.me))
    assert fabric.run(0.3, until=lambda: node.swim.state_of(owner.id) is not None)
    assert teller.swim.state_of(owner.id) is None


def test_a_state_that_nobody_has_is_asked_for_ever_less_often():
    fabric = meshed(5)
    node = fabric.nodes[0]
    told(fabric, node, record(STRANGER, state_version=7))
    fabric.run(20)
    pulls = [e for e in node.effects if isinstance(e, SendDatagram)]
    asked = [m for e in pulls if isinstance(m := decode(e.data, MESH).message, StatePull)]
    assert 5 < len(asked) < 25


def test_a_lost_answer_is_asked_for_again():
    fabric = meshed(2)
    fabric.drop = lambda a, _: a is fabric.nodes[1]
    fabric.step(fabric.nodes[1], StateSet({"k": b"v"}))
    told(fabric, fabric.nodes[0], update_fields(fabric.nodes[1].swim.me))
    fabric.run(0.3)
    assert fabric.nodes[0].swim.pending()["pulls"] == 1
    fabric.heal()
    assert fabric.run(1, until=fabric.knows_state)


def test_questions_are_bounded_and_each_asks_for_a_bounded_number():
    fabric = meshed(20)
    node = fabric.nodes[0]
    fabric.drop = lambda a, b: node in {a, b}
    for teller in range(1, 20):
        versions = [record(node_id(n), address=fabric.nodes[n].address, state_version=teller)
                    for n in range(1, 20)]  # fmt: skip
        told(fabric, node, versions[teller - 1], source=teller)
    fabric.run(0.2)
    assert node.swim.pending()["pulls"] == PULLS_MAX
    crowd = [record(NodeId(b"%08d" % n), state_version=1) for n in range(20)]
    fabric.run(1)
    told(fabric, node, *crowd)
    told(fabric, node, *(record(NodeId(b"%08d" % n), state_version=1) for n in range(20, 40)))
    fabric.run(2)
    pulls = sent(node.effects, StatePull)
    assert max(len(m.wanted) for m in pulls) == 32


def test_the_state_of_the_dead_is_asked_for_no_more():
    fabric = meshed(3)
    node, gone = fabric.nodes[0], fabric.nodes[2]
    fabric.crash(gone)
    told(fabric, node, record(gone.id, address=gone.address, state_version=5))
    assert fabric.run(30, until=lambda: fabric.all_see(DEAD, 2))
    fabric.run(1)
    assert list(node.swim._states.wants()) == []


def test_an_entry_that_fits_no_datagram_of_ours_holds_up_nothing():
    fabric = meshed(3, config=GossipConfig(datagram_bytes_max=640))
    node, asker = fabric.nodes[0], fabric.nodes[1]
    state = node.swim._states.own
    state.merge(Delta(node.id, 1, 0, 1, (StateEntry("\N{SNAKE}" * 72, 1, bytes(400)),)))
    body = encode_body(10, ([(node.id, 1_000_000, 0)],))
    assert sent(give(fabric, node, asker.id, body, asker.address), StateDelta) == [StateDelta(1)]
    body = encode_body(10, ([(node.id, 7, 0), (STRANGER, 7, 0)],))
    assert sent(give(fabric, node, asker.id, body, asker.address), StateDelta) == [StateDelta(1)]


def test_leaving_ends_answers_to_syncs():
    fabric = meshed(3)
    fabric.step(fabric.nodes[0], LeaveRequested())
    effects = give(fabric, fabric.nodes[0], node_id(1), sync_body(b""), fabric.nodes[1].address)
    assert sent(effects, Records) == []


def test_an_older_version_heard_in_a_crowd_makes_the_newer_one_no_better_known():
    fabric = meshed(50)
    node = fabric.nodes[0]
    versions = [record(node_id(n), address=fabric.nodes[n].address, state_version=5)
                for n in range(2, 50)]  # fmt: skip
    told(fabric, node, *versions[:24])
    told(fabric, node, *versions[24:])
    rumours = node.swim._rumours
    assert rumours.is_crowded
    before = rumours.sent(node_id(9))
    told(fabric, node, record(node_id(9), address=fabric.nodes[9].address, state_version=4))
    assert rumours.sent(node_id(9)) == before
    told(fabric, node, versions[7])
    assert rumours.sent(node_id(9)) == before + 1
