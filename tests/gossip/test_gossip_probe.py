"""Probe rounds: whom they ask, who helps, and what a missing answer costs."""

import random

import pytest
from fabric import MESH, Fabric, Node, meshed, node_id
from hypothesis import given
from hypothesis import strategies as st

from meshd.gossip.codec import decode, encode_body, encode_header
from meshd.gossip.config import GossipConfig
from meshd.gossip.effects import ProbeCompleted, SendDatagram
from meshd.gossip.inputs import DatagramReceived, LeaveRequested
from meshd.gossip.messages import Ack, Join, Nack, Ping, PingReq
from meshd.gossip.probe import ProbeRing
from meshd.gossip.prober import RELAYS_MAX
from meshd.model import Address, MemberState, NodeId

ALIVE, SUSPECT, DEAD, LEFT = MemberState


@given(st.integers(1, 60), st.integers(0, 1_000))
def test_a_cycle_of_the_ring_visits_every_row_once(rows, seed):
    ring = ProbeRing(random.Random(seed))
    for _ in range(3):
        assert sorted(ring.next_row(rows) for _ in range(rows)) == list(range(rows))


def test_a_ring_that_grows_visits_the_newcomers_too():
    ring = ProbeRing(random.Random(1))
    ring.next_row(3)
    assert {ring.next_row(40) for _ in range(80)} == set(range(40))
    assert {ring.next_row(44) for _ in range(100)} == set(range(44))


def messages(node: Node, kind: type) -> list:
    sent = [decode(e.data, MESH) for e in node.effects if isinstance(e, SendDatagram)]
    return [d for d in sent if isinstance(d.message, kind)]


def probing(fabric: Fabric, node: Node, target: Node) -> None:
    """Run until `node` begins a round with `target`."""

    def begun() -> bool:
        current = node.swim._prober._round
        return current is not None and current.target == target.id and not current.acked

    assert fabric.run(60, until=begun)


def give(fabric: Fabric, to: Node, source: Node | NodeId, body: bytes, at: Address | None = None):
    sender = source.id if isinstance(source, Node) else source
    address = at or (source.address if isinstance(source, Node) else Address("10.9.9.9", 9))
    data = encode_header(MESH, to.id, sender) + body
    return fabric.step(to, DatagramReceived(data, address))


def sent(effects) -> list:
    return [decode(e.data, MESH).message for e in effects if isinstance(e, SendDatagram)]


def test_a_failed_round_with_all_nacks_costs_no_health():
    fabric = meshed(6)
    prober = fabric.nodes[0]
    fabric.crash(fabric.nodes[5])
    probing(fabric, prober, fabric.nodes[5])
    fabric.run(1.05)
    assert fabric.state(0, 5) is not ALIVE
    assert len(messages(prober, PingReq)) == 3
    assert prober.swim.health == 0


@pytest.mark.parametrize("gone", [0, 6])
def test_two_members_ask_each_other_in_every_period_whoever_else_is_gone(gone):
    fabric = meshed(2 + gone)
    for node in fabric.nodes[2:]:
        fabric.crash(node)
    one = fabric.nodes[0]
    assert fabric.run(120, until=lambda: one.swim.members.live == 2)
    assert fabric.run(120, until=lambda: one.swim.health == 0)
    one.effects.clear()
    fabric.run(20)
    answered = [e for e in one.effects if isinstance(e, ProbeCompleted) and e.succeeded]
    assert len(answered) == pytest.approx(20 / fabric.config.probe_interval_s, abs=1)


def test_missing_nacks_cost_health_and_answered_probes_restore_it():
    fabric = meshed(6)
    prober = fabric.nodes[0]
    fabric.drop = lambda _, b: b is prober
    assert fabric.run(5, until=lambda: prober.swim.health >= 3)
    fabric.heal()
    fabric.run(20)
    assert prober.swim.health == 0


def test_after_a_moment_of_weakness_a_node_soon_probes_as_often_as_before():
    fabric = meshed(6)
    prober = fabric.nodes[0]
    for _ in range(8):
        prober.swim._health.stalled()
    # One round may have been stretched already; then 4, 2, 1 and 0 follow from quick answers.
    fabric.run(9)
    assert fabric.run(5 + 3 + 2 + 1, until=lambda: prober.swim.health == 0)


def test_in_a_large_mesh_a_few_nodes_call_at_the_dead_in_each_interval():
    fabric = meshed(30)
    gone = fabric.nodes[29]
    fabric.crash(gone)
    assert fabric.run(60, until=lambda: fabric.all_see(DEAD, 29))
    fabric.run(10)
    for node in fabric.nodes:
        node.effects.clear()
    fabric.run(60)
    calls = [
        effect
        for node in fabric.nodes
        for effect in node.effects
        if isinstance(effect, SendDatagram) and effect.to == gone.address
    ]
    assert 60 < len(calls) < 300


def test_without_helpers_a_failed_round_costs_one_step():
    fabric = meshed(3, config=GossipConfig(indirect_probes=0))
    fabric.crash(fabric.nodes[2])
    prober = fabric.nodes[0]
    scores: list[int] = []
    probing(fabric, prober, fabric.nodes[2])
    fabric.watchers.append(lambda n, _: scores.append(n.swim.health) if n is prober else None)
    fabric.run(1.05)
    assert max(scores) == 1
    assert not messages(fabric.nodes[0], PingReq)


def test_helpers_reach_a_target_that_the_prober_cannot():
    fabric = meshed(5)
    prober, target = fabric.nodes[0], fabric.nodes[4]
    fabric.drop = lambda a, b: {a, b} == {prober, target}
    probing(fabric, prober, target)
    fabric.run(30)
    assert {fabric.state(n, 4) for n in range(4)} == {ALIVE}
    rounds = [e for e in prober.effects if isinstance(e, ProbeCompleted) and e.node == target.id]
    assert all(e.succeeded for e in rounds)
    assert rounds[-1].rtt_s is None
    assert prober.swim.is_reachable(target.id)


def test_a_verdict_holds_for_the_life_that_was_asked_and_for_no_newer_one():
    fabric = meshed(4)
    prober = fabric.nodes[0]
    fabric.crash(fabric.nodes[3])
    probing(fabric, prober, fabric.nodes[3])
    fabric.restart(3, epoch=1_005_000)
    fabric.drop = lambda a, b: {a, b} == {prober, fabric.nodes[3]}
    fabric.run(0.01)
    fabric.knock(3)
    fabric.run(0.05)
    fabric.nodes[3].up = False
    current = prober.swim._prober._round
    if current is not None and current.target == node_id(3):
        fabric.run(current.started + 1.01 - fabric.now)
    assert fabric.state(0, 3) is ALIVE


def test_a_suspect_hears_of_it_in_the_ping_and_denies_it_in_the_ack():
    fabric = meshed(5)
    victim = fabric.nodes[4]
    fabric.sleep(victim)
    told = []

    def is_told() -> bool:
        letters = [decode(data, MESH).message for data, _ in victim.mail]
        pings = [letter for letter in letters if isinstance(letter, Ping)]
        told[:] = [u for ping in pings for u in ping.updates if u.node == victim.id]
        return bool(told)

    assert fabric.run(8, until=is_told)
    assert MemberState(told[0].state) is SUSPECT
    fabric.wake(victim)
    own = [u for d in messages(victim, Ack) for u in d.message.updates if u.node == victim.id]
    assert own[-1].incarnation == 1
    assert MemberState(own[-1].state) is ALIVE


def test_a_ping_to_a_stranger_is_answered_in_no_more_bytes():
    fabric = meshed(2)
    body = encode_body(1, (65_535,))
    effects = give(fabric, fabric.nodes[0], NodeId(b"stranger"), body)
    ack = next(e for e in effects if isinstance(e, SendDatagram))
    assert isinstance(decode(ack.data, MESH).message, Ack)
    assert len(ack.data) <= len(encode_header(MESH, node_id(0), node_id(0))) + len(body)


def test_a_ping_of_a_member_from_elsewhere_is_answered_in_no_more_bytes():
    fabric = meshed(2)
    body = encode_body(1, (7,))
    effects = give(fabric, fabric.nodes[0], fabric.nodes[1], body, Address("10.6.6.6", 6))
    ack, join = (e for e in effects if isinstance(e, SendDatagram))
    assert isinstance(decode(join.data, MESH).message, Join)
    assert ack.to == join.to == Address("10.6.6.6", 6)
    assert len(ack.data) <= 28 + len(body)


def test_strangers_are_asked_who_they_are_at_a_low_rate():
    fabric = meshed(2)
    node = fabric.nodes[0]
    before = node.packets
    for number in range(300):
        source = NodeId(b"strange%c" % (number % 200))
        give(fabric, node, source, encode_body(2, (1, 2)), Address(f"10.5.0.{number % 200}", 7))
        give(fabric, node, source, encode_body(1, (1,)), Address(f"10.5.0.{number % 200}", 7))
        fabric.run(0.1)
    # 300 acks, its own probes, and at most three joins a second.
    assert node.packets - before <= 300 + 30 * 3 + 30 * 3


def test_relays_are_bounded_and_a_busy_helper_says_so_at_once():
    fabric = meshed(3)
    helper, requester = fabric.nodes[0], fabric.nodes[1]
    fabric.crash(fabric.nodes[2])
    for number in range(RELAYS_MAX):
        give(fabric, helper, requester, encode_body(3, (number, node_id(2))))
    assert helper.swim.pending()["relays"] == RELAYS_MAX
    effects = give(fabric, helper, requester, encode_body(3, (999, node_id(2))))
    assert [m.sequence for m in sent(effects) if isinstance(m, Nack)] == [999]
    fabric.run(2)
    assert helper.swim.pending()["relays"] <= 1


@pytest.mark.parametrize("target", [NodeId(b"unknown_"), node_id(0)])
def test_a_helper_that_cannot_ask_the_target_says_so_at_once(target):
    fabric = meshed(3)
    effects = give(fabric, fabric.nodes[0], fabric.nodes[1], encode_body(3, (9, target)))
    assert [m.sequence for m in sent(effects) if isinstance(m, Nack)] == [9]


def test_a_helper_tells_what_became_of_a_target_that_left():
    fabric = meshed(3)
    fabric.step(fabric.nodes[2], LeaveRequested())
    fabric.run(5)
    request = encode_body(3, (9, node_id(2)))
    (nack,) = sent(give(fabric, fabric.nodes[0], fabric.nodes[1], request))
    assert isinstance(nack, Nack)
    assert [(u.node, u.state) for u in nack.updates] == [(node_id(2), LEFT)]


def test_a_stranger_asking_for_help_gets_a_nack_no_larger_than_its_question():
    fabric = meshed(2)
    body = encode_body(3, (9, node_id(1)))
    effects = give(fabric, fabric.nodes[0], NodeId(b"stranger"), body)
    nack = next(e for e in effects if isinstance(e, SendDatagram))
    assert isinstance(decode(nack.data, MESH).message, Nack)
    assert len(nack.data) <= 28 + len(body)


def test_a_late_or_foreign_ack_or_nack_changes_nothing():
    fabric = meshed(4)
    prober, target = fabric.nodes[0], fabric.nodes[3]
    fabric.crash(target)
    probing(fabric, prober, target)
    sequence = prober.swim._prober._round.sequence
    give(fabric, prober, fabric.nodes[1], encode_body(2, (sequence, 0)))
    give(fabric, prober, fabric.nodes[1], encode_body(4, (sequence,)))
    give(fabric, prober, fabric.nodes[1], encode_body(4, (sequence + 1,)))
    give(fabric, prober, fabric.nodes[1], encode_body(2, (sequence + 1, 0)))
    assert not prober.swim._prober._round.acked
    assert not prober.swim._prober._round.nacks
    fabric.run(1.05)
    assert fabric.state(0, 3) is not ALIVE


def test_a_requester_that_is_forgotten_meanwhile_gets_no_answer():
    fabric = meshed(3)
    helper, requester, target = fabric.nodes
    for ack in (False, True):
        give(fabric, helper, requester, encode_body(3, (9, target.id)))
        record = helper.swim.members.get(requester.id)
        helper.swim.members.forget(requester.id)
        if ack:
            fabric.run(0.1)
        else:
            fabric.crash(target)
            relay = next(iter(helper.swim._prober._relays))
            helper.swim._prober.on_nack_due(relay)
            target.up = True
        helper.swim.members.put(record)
        helper.swim._prober._relays.clear()
    assert not [m for m in messages(helper, Nack) if m.message.sequence == 9]
    helper.swim._prober.on_nack_due(1)


def test_a_target_that_died_by_other_news_meanwhile_is_not_judged_again():
    fabric = meshed(3)
    prober, target = fabric.nodes[0], fabric.nodes[2]
    fabric.crash(target)
    probing(fabric, prober, target)
    before = len([e for e in prober.effects if isinstance(e, ProbeCompleted)])
    record = prober.swim.members.get(target.id)
    update = (int(DEAD), record.node, record.epoch, 0, bytes((10, 0, 0, 3, 24, 230)))
    give(fabric, prober, fabric.nodes[1], encode_body(5, ([update],)))
    fabric.run(1.05)
    rounds = [e for e in prober.effects if isinstance(e, ProbeCompleted)]
    assert len([e for e in rounds[before:] if e.node == target.id]) == 0
