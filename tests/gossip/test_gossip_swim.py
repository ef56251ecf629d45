"""What a mesh of real machines does: meet, find the dead, refute, leave, split and heal."""

import random

import pytest
from fabric import MESH, Fabric, meshed, node_id

from meshd.clock import Instant
from meshd.errors import UsageError
from meshd.gossip.codec import decode
from meshd.gossip.config import GossipConfig, profile
from meshd.gossip.effects import (
    DatagramRejected,
    IdentityRaised,
    Joined,
    MemberChanged,
    PingAnswered,
    ProbeCompleted,
    SendDatagram,
    StateChanged,
    Woken,
)
from meshd.gossip.history import RESTARTED, TOLD
from meshd.gossip.inputs import (
    AddressChanged,
    DatagramReceived,
    DeadlineReached,
    JoinRequested,
    LeaveRequested,
    LoadSampled,
    PingRequested,
    RejoinRequested,
    Resumed,
    StateSet,
)
from meshd.gossip.members import MemberTable, in_state, new_member
from meshd.gossip.prober import ASKED_MAX
from meshd.gossip.swim import Swim
from meshd.model import Address, Epoch, Load, MemberState, MeshId, NodeId

ALIVE, SUSPECT, DEAD, LEFT = MemberState


def deaths(fabric: Fabric) -> list[MemberChanged]:
    changes = [e for _, e in fabric.effects_of(MemberChanged) if isinstance(e, MemberChanged)]
    return [e for e in changes if e.member.state is DEAD]


def test_two_nodes_meet_and_both_learn_of_it():
    fabric = Fabric(2)
    fabric.join_all()
    assert fabric.run(0.1, until=fabric.converged)
    assert [n.swim.members.live for n in fabric.nodes] == [2, 2]
    assert [e.node for _, e in fabric.effects_of(Joined)] == [node_id(0)]
    assert {e.member.node for _, e in fabric.effects_of(MemberChanged)} == {node_id(0), node_id(1)}


@pytest.mark.parametrize(("count", "bound_s"), [(10, 0.5), (50, 1.5)])
@pytest.mark.parametrize("seed", [2, 8, 14])
def test_a_crowd_through_one_seed_sees_all_and_knows_all(count, bound_s, seed):
    fabric = Fabric(count, seed=seed)
    for number, node in enumerate(fabric.nodes):
        fabric.step(node, StateSet({"name": b"node-%d" % number}))
    fabric.join_all()
    start = fabric.now
    assert fabric.run(bound_s, until=fabric.converged)
    assert fabric.run(1.0, until=fabric.knows_state)
    assert fabric.now - start <= bound_s
    assert fabric.sent / count < 160
    assert fabric.largest <= fabric.config.datagram_bytes_max - 48


@pytest.mark.no_cover
def test_a_crowd_sees_all_although_a_tenth_of_all_datagrams_is_lost():
    fabric = Fabric(50, seed=3)
    fabric.lose(0.1)
    for node in fabric.nodes:
        fabric.step(node, StateSet({"name": b"x"}))
    fabric.join_all()
    assert fabric.run(10, until=fabric.converged)
    assert fabric.run(10, until=fabric.knows_state)


def test_an_idle_node_costs_two_packets_a_second():
    fabric = meshed(10)
    fabric.run(60)  # until everybody knows its place, and everybody else's
    before = fabric.sent, sum(n.bytes for n in fabric.nodes)
    fabric.run(30)
    assert (fabric.sent - before[0]) / 300 == pytest.approx(2.0, abs=0.1)
    assert (sum(n.bytes for n in fabric.nodes) - before[1]) / 300 < 136


@pytest.mark.no_cover
@pytest.mark.parametrize(("count", "seed"), [(2, 1), (3, 1), (10, 1), (10, 2), (50, 1)])
def test_a_crash_is_found_by_everybody_within_the_bound(count, seed):
    fabric = meshed(count, seed=seed)
    fabric.run(random.Random(seed).random() * 5)
    fabric.crash(fabric.nodes[-1])
    shortest = {2: 4.0, 3: 4.0, 10: 4.0, 50: 6.8}[count]
    assert fabric.run(shortest + 8, until=lambda: fabric.all_see(DEAD, count - 1))
    assert {e.member.node for e in deaths(fabric)} == {node_id(count - 1)}
    history = fabric.nodes[0].swim.explain(node_id(count - 1), fabric.now).events
    assert (history[-1].state, history[-1].incarnation) == (DEAD, 0)


@pytest.mark.no_cover
def test_nobody_dies_while_few_datagrams_are_lost():
    fabric = meshed(10)
    fabric.lose(0.03)
    fabric.run(120)
    assert deaths(fabric) == []


def test_who_leaves_is_reported_left_and_never_dead():
    fabric = meshed(10)
    leaver = fabric.nodes[3]
    fabric.step(leaver, LeaveRequested())
    fabric.step(leaver, LeaveRequested())
    assert fabric.run(2, until=lambda: fabric.all_see(LEFT, 3))
    packets = leaver.packets
    fabric.run(2)
    assert leaver.swim.goodbyes_sent() is None
    fabric.run(20)
    # Out of the mesh it is silent, and nobody asks after it.
    assert leaver.packets - packets < 40
    fabric.crash(leaver)
    fabric.run(30)
    assert deaths(fabric) == []


def test_a_prober_that_missed_the_goodbye_hears_it_with_the_ack():
    fabric = meshed(3)
    leaver = fabric.nodes[2]
    fabric.drop = lambda a, b: leaver in {a, b}
    fabric.step(leaver, LeaveRequested())
    while leaver.swim.goodbyes_sent() is not None:
        fabric.run(0.5)
    fabric.heal()
    assert fabric.run(5, until=lambda: fabric.all_see(LEFT, 2))


def test_who_left_may_come_back_with_a_higher_incarnation():
    fabric = meshed(5)
    node = fabric.nodes[1]
    fabric.step(node, RejoinRequested())
    assert node.swim.me.incarnation == 0
    fabric.step(node, LeaveRequested())
    assert fabric.run(2, until=lambda: fabric.all_see(LEFT, 1))
    fabric.step(node, RejoinRequested())
    assert fabric.run(5, until=fabric.converged)
    assert node.swim.me.incarnation == 1


def test_a_member_that_left_is_no_door_to_the_mesh():
    fabric = meshed(2)
    fabric.step(fabric.nodes[0], LeaveRequested())
    newcomer = fabric.add()
    fabric.step(newcomer, JoinRequested((fabric.nodes[0].address,)))
    fabric.run(1)
    assert newcomer.swim.members.live == 1


def test_a_suspect_refutes_with_a_higher_incarnation_and_owns_up_to_being_slow():
    fabric = meshed(5)
    victim = fabric.nodes[4]
    fabric.sleep(victim)
    assert fabric.run(5, until=lambda: fabric.state(0, 4) is SUSPECT)
    fabric.wake(victim)
    assert fabric.run(3, until=lambda: fabric.all_see(ALIVE, 4))
    assert victim.swim.me.incarnation == 1
    assert victim.swim.health > 0
    raised = [e for e in victim.effects if isinstance(e, IdentityRaised)]
    assert [e.incarnation for e in raised] == [1]
    assert deaths(fabric) == []


@pytest.mark.parametrize("count", [2, 5, 10])
def test_a_node_paused_for_three_seconds_is_not_declared_dead_and_accuses_nobody(count):
    fabric = meshed(count)
    for _ in range(3):
        sleeper = fabric.nodes[0]
        fabric.sleep(sleeper)
        fabric.run(3)
        before = len(sleeper.effects)
        fabric.wake(sleeper)
        fabric.run(10)
        fresh = [e for e in sleeper.effects[before:] if isinstance(e, MemberChanged)]
        assert [e for e in fresh if e.member.state in {SUSPECT, DEAD}] == []
    assert deaths(fabric) == []
    assert fabric.converged()


def test_a_starved_prober_kills_nobody_and_still_finds_the_dead():
    fabric = meshed(2)
    starved = fabric.nodes[0]
    rng = random.Random(4)

    def starve(seconds: float) -> None:
        end = fabric.now + seconds
        while fabric.now < end:
            fabric.sleep(starved)
            fabric.run(0.5 + rng.random() * 2)
            fabric.wake(starved)
            fabric.run(0.2)

    starve(60)
    assert deaths(fabric) == []
    fabric.crash(fabric.nodes[1])
    starve(600)
    assert fabric.state(0, 1) is DEAD


@pytest.mark.no_cover
@pytest.mark.parametrize(("count", "bound_s"), [(3, 2.0), (10, 2.0), (50, 2.0)])
def test_a_split_that_lasted_heals_within_two_seconds(count, bound_s):
    fabric = meshed(count, seed=2)
    side = set(fabric.nodes[: count // 2])
    fabric.split(side)

    def is_split() -> bool:
        sizes = {True: len(side), False: count - len(side)}
        return all(n.swim.members.live == sizes[n in side] for n in fabric.nodes)

    assert fabric.run(60, until=is_split)
    fabric.run(30)
    fabric.heal()
    before = fabric.sent
    assert fabric.run(bound_s, until=fabric.converged)
    assert (fabric.sent - before) / count < 60
    before = len(deaths(fabric))
    fabric.run(20)
    assert len(deaths(fabric)) == before


@pytest.mark.parametrize("count", [4, 6])
def test_who_was_cut_off_alone_kills_nobody_when_the_others_come_back(count):
    fabric = meshed(count)
    alone, gone = fabric.nodes[0], fabric.nodes[-1]
    fabric.step(gone, LeaveRequested())
    fabric.run(1.0)
    fabric.crash(gone)
    fabric.split({alone})
    cut_off = fabric.run(200.0, until=lambda: alone.swim.members.live == 1)
    assert cut_off
    fabric.run(10.0)
    assert alone.swim.pending()["rumours"] == 0
    before = len(deaths(fabric))
    fabric.heal()
    assert fabric.run(30.0, until=fabric.converged)
    assert deaths(fabric)[before:] == []


def test_a_restart_replaces_the_old_run_in_place():
    fabric = meshed(5)
    fabric.step(fabric.nodes[2], StateSet({"old": b"1"}))
    fabric.step(fabric.nodes[2], LoadSampled(Load(queue=9)))
    fabric.run(2)
    fabric.restart(2, epoch=1_010_000)
    fabric.step(fabric.nodes[2], StateSet({"new": b"1"}))
    fabric.knock(2)
    assert fabric.run(1, until=lambda: fabric.converged() and fabric.knows_state())
    assert fabric.nodes[0].swim.state_of(node_id(2)).values() == {"new": b"1"}
    assert fabric.nodes[0].swim.load_of(node_id(2)) is None
    assert len(fabric.nodes[0].swim.members) == 5
    assert fabric.nodes[0].swim.explain(node_id(2), fabric.now).events[-1].reason == RESTARTED


def test_a_restart_with_the_clock_set_back_raises_its_epoch_past_the_old_run():
    fabric = meshed(5)
    fabric.restart(2, epoch=5)
    fabric.knock(2)
    assert fabric.run(3, until=fabric.converged)
    assert fabric.nodes[2].swim.me.epoch == 1_000_001
    assert IdentityRaised(Epoch(1_000_001), 0) in fabric.nodes[2].effects


def test_a_lost_rumour_is_repaired_by_comparing_views():
    fabric = meshed(5)
    deaf = fabric.nodes[4]
    fabric.drop = lambda a, b: deaf in {a, b}
    newcomer = fabric.add()
    fabric.step(newcomer, JoinRequested((fabric.nodes[0].address,)))
    fabric.run(1.5)
    fabric.heal()
    assert deaf.swim.members.get(newcomer.id) is None
    assert fabric.run(10, until=fabric.converged)


def test_views_are_compared_in_the_end_even_where_it_is_never_quiet():
    fabric = meshed(5)
    deaf = fabric.nodes[4]
    fabric.drop = lambda a, b: deaf in {a, b}
    newcomer = fabric.add()
    fabric.step(newcomer, JoinRequested((fabric.nodes[0].address,)))
    fabric.run(1.5)
    fabric.heal()
    for number in range(200):
        fabric.step(fabric.nodes[1], StateSet({"busy": b"%d" % number}))
        fabric.run(0.2)
    assert deaf.swim.members.get(newcomer.id) is not None


def test_a_large_state_arrives_everywhere_although_it_fits_no_datagram():
    fabric = meshed(10)
    entries = {f"cap/{n}": bytes(300) for n in range(100)}
    fabric.step(fabric.nodes[0], StateSet(entries))
    assert fabric.run(2, until=fabric.knows_state)
    assert all(n.swim.state_of(node_id(0)).values() == entries for n in fabric.nodes)
    assert [e for e in fabric.nodes[1].effects if isinstance(e, StateChanged)]
    fabric.step(fabric.nodes[0], StateSet({"cap/7": None}))
    assert fabric.run(1, until=fabric.knows_state)
    assert "cap/7" not in fabric.nodes[9].swim.state_of(node_id(0)).values()


def test_a_state_that_gossip_cannot_carry_changes_nothing():
    fabric = meshed(2)
    with pytest.raises(UsageError):
        fabric.step(fabric.nodes[0], StateSet({"ok": b"1", "bad": bytes(65_537)}))
    assert fabric.nodes[0].swim.me.state_version == 0
    fabric.step(fabric.nodes[0], StateSet({"never": None}))
    assert fabric.nodes[0].swim.me.state_version == 0


def test_load_gets_round_and_its_newest_record_wins():
    fabric = meshed(10)
    for queue in (1, 5, 9):
        for node in fabric.nodes:
            fabric.step(node, LoadSampled(Load(queue=queue)))
        fabric.run(1.5)
    seen = [o.swim.load_of(s.id) for o in fabric.nodes for s in fabric.nodes]
    right = [held for held in seen if held is not None and held[0].queue == 9]
    assert len(right) >= 0.9 * len(seen)
    fabric.run(30)
    for node in fabric.nodes:
        fabric.step(node, LoadSampled(Load(queue=9)))
    waiting = fabric.sent
    fabric.run(10)
    assert (fabric.sent - waiting) / 100 == pytest.approx(2.0, abs=0.2)


def test_a_datagram_of_another_mesh_is_refused():
    fabric = meshed(2)
    me = new_member(NodeId(b"stranger"), Epoch(1_000_000), Address("10.9.9.9", 1))
    stranger = Swim(me, MeshId(b"elsewher"), fabric.config, random.Random(1), fabric.now)
    (sent,) = stranger.step(JoinRequested((fabric.nodes[0].address,)), fabric.now)
    effects = fabric.step(fabric.nodes[0], DatagramReceived(sent.data, me.address))
    assert effects == [DatagramRejected("other_mesh", me.address)]


def test_a_ping_that_was_asked_for_is_answered_with_its_time():
    fabric = meshed(3)
    fabric.step(fabric.nodes[0], PingRequested(node_id(1)))
    fabric.step(fabric.nodes[0], PingRequested(node_id(0)))
    fabric.step(fabric.nodes[0], PingRequested(NodeId(b"nobody__")))
    fabric.run(0.1)
    (answer,) = [e for e in fabric.nodes[0].effects if isinstance(e, PingAnswered)]
    assert answer.node == node_id(1)
    assert 0.001 <= answer.rtt_s <= 0.01
    fabric.crash(fabric.nodes[1])
    for _ in range(ASKED_MAX + 10):
        fabric.step(fabric.nodes[0], PingRequested(node_id(1)))
    assert len(fabric.nodes[0].swim._prober._asked) == ASKED_MAX


def test_a_changed_address_is_told_to_all_and_used():
    fabric = meshed(5)
    node = fabric.nodes[3]
    fabric.step(node, AddressChanged(node.address))
    assert node.swim.me.incarnation == 0
    moved = Address("10.7.7.7", 6374)
    fabric.by_address[moved] = node
    node.address = moved
    fabric.step(node, AddressChanged(moved))
    assert fabric.run(2, until=fabric.converged)
    assert fabric.nodes[0].swim.members.get(node.id).address == moved
    fabric.run(30)
    assert deaths(fabric) == []


def test_a_second_address_is_told_and_heard_as_the_member_s_own():
    fabric = meshed(3)
    node = fabric.nodes[1]
    second = Address("fd00::7", 6374)
    fabric.step(node, AddressChanged(node.address, second))
    assert fabric.run(2, until=fabric.converged)
    held = fabric.nodes[0].swim.members.get(node.id)
    assert (held.address, held.other) == (node.address, second)
    fabric.by_address[second] = node
    # Its packets come from there now, and are answered in full.
    fabric.nodes[0].effects.clear()
    node.address = second
    fabric.run(10)
    assert deaths(fabric) == []
    joins = [e for e in fabric.nodes[0].effects if isinstance(e, SendDatagram) and e.to == second]
    assert joins == []


def test_a_node_that_loses_an_ip_version_uses_the_other_for_all_who_have_it():
    fabric = meshed(3)
    seconds = [Address(f"fd00::{number}", 6374) for number in (1, 2, 3)]
    for node, second in zip(fabric.nodes, seconds, strict=True):
        fabric.by_address[second] = node
        fabric.step(node, AddressChanged(node.address, second))
    assert fabric.run(2, until=fabric.converged)
    one, two, three = fabric.nodes
    assert one.swim.members.get(two.id).is_at(seconds[1])
    assert one.swim.members.get(two.id).address == two.address
    one.swim.take_touched()
    first, one.address = one.address, seconds[0]
    fabric.step(one, AddressChanged(seconds[0]))
    del fabric.by_address[first]
    assert {two.id, three.id} <= one.swim.take_touched().keys()
    assert one.swim.members.get(two.id).address == seconds[1]
    fabric.run(30)
    assert two.swim.members.get(one.id).address == seconds[0]
    assert deaths(fabric) == []
    fabric.by_address[first], one.address = one, first
    fabric.step(one, AddressChanged(first, seconds[0]))
    assert one.swim.members.get(two.id).address == two.address


def test_whom_this_node_cannot_reach_by_its_ip_version_it_does_not_judge():
    fabric = meshed(3)
    node = fabric.nodes[2]
    moved = Address("fd00::7", 6374)
    fabric.by_address[moved] = node
    fabric.step(node, AddressChanged(moved))
    fabric.run(1)
    fabric.drop = lambda a, b: node in (a, b)
    fabric.run(120)
    assert (fabric.state(0, 2), fabric.state(1, 2)) == (ALIVE, ALIVE)
    assert not fabric.nodes[0].swim.is_reachable(node.id)
    assert fabric.nodes[0].swim.is_reachable(fabric.nodes[1].id)


def test_the_dead_are_forgotten_when_their_tombstone_expires():
    config = GossipConfig(tombstone_s=100.0)
    fabric = meshed(3, config=config)
    fabric.crash(fabric.nodes[2])
    assert fabric.run(30, until=lambda: fabric.all_see(DEAD, 2))
    fabric.run(200)
    swim = fabric.nodes[0].swim
    assert swim.members.get(node_id(2)) is None
    assert swim.state_of(node_id(2)) is None
    assert swim.pending()["gone"] == 0
    assert swim.explain(node_id(2), fabric.now) is None
    assert node_id(2) not in swim._beliefs.probed


def test_the_dead_cost_a_packet_a_second_and_use_up_no_rumour():
    fabric = meshed(3)
    fabric.crash(fabric.nodes[2])
    fabric.run(40)
    node = fabric.nodes[0]
    before = node.packets
    fabric.step(node, StateSet({"k": b"v"}))
    fabric.run(0.01)
    node.packets = before
    fabric.run(30)
    assert node.packets - before < 3.5 * 30


def test_what_waits_returns_to_the_baseline_in_quiet():
    fabric = meshed(10)
    fabric.crash(fabric.nodes[9])
    fabric.run(60)
    pending = fabric.nodes[0].swim.pending()
    assert pending["rumours"] == pending["suspicions"] == pending["relays"] == pending["pulls"] == 0
    assert pending["timers"] <= 4


def test_first_hand_word_round_trip_and_reach_can_be_read():
    fabric = meshed(3)
    fabric.run(5)
    swim = fabric.nodes[0].swim
    assert swim.heard_at(node_id(1)) > fabric.now - 5
    assert 0.001 <= swim.rtt_s(node_id(1)) <= 0.003
    assert swim.is_reachable(node_id(1))
    assert swim.me.node in swim.take_touched()
    fabric.crash(fabric.nodes[1])
    assert fabric.run(6, until=lambda: not swim.is_reachable(node_id(1)))
    failed = [e for e in fabric.nodes[0].effects if isinstance(e, ProbeCompleted)]
    assert not failed[-1].succeeded


def test_a_machine_may_start_from_a_shared_table():
    members = [new_member(node_id(n), Epoch(1), Address("10.0.0.1", n + 1)) for n in range(5)]
    base = {m.node: m for m in members}
    table = MemberTable(base, tuple(base))
    swim = Swim(members[0], MESH, profile("lan"), random.Random(1), Instant(0.0), table)
    assert swim.members.live == 5
    at = swim.next_deadline()
    effects = swim.step(DeadlineReached(), at)
    pings = [decode(e.data, MESH) for e in effects if isinstance(e, SendDatagram)]
    assert len(pings) == 1
    swim.validate()


def test_a_timer_of_nobody_is_a_bug_that_is_not_passed_over():
    fabric = meshed(1)
    fabric.nodes[0].swim._timers.set("nonsense", fabric.now)
    with pytest.raises(AssertionError, match="nonsense"):
        fabric.step(fabric.nodes[0], DeadlineReached())


def test_a_doubt_does_not_ripen_while_the_doubter_itself_is_stopped():
    fabric = meshed(3)
    doubter, victim = fabric.nodes[0], fabric.nodes[2]
    fabric.sleep(victim)
    assert fabric.run(8, until=lambda: fabric.state(0, 2) is SUSPECT)
    fabric.sleep(doubter)
    # Its mail overflows meanwhile: the refutation is lost to it.
    fabric.drop = lambda _, b: b is doubter
    fabric.wake(victim)
    fabric.run(60)
    fabric.heal()
    fabric.wake(doubter)
    assert fabric.state(0, 2) is SUSPECT
    assert fabric.run(3, until=lambda: fabric.state(0, 2) is ALIVE)
    assert not [e for e in deaths(fabric) if e in doubter.effects]


@pytest.mark.parametrize("leaving", [False, True])
def test_after_a_suspend_nobody_counts_as_reachable_until_heard_and_a_few_are_greeted(leaving):
    fabric = meshed(4)
    node = fabric.nodes[0]
    if leaving:
        fabric.step(node, LeaveRequested())
    effects = fabric.step(node, Resumed(300.0))
    assert Woken(300.0) in effects
    assert not any(node.swim.is_reachable(other.id) for other in fabric.nodes[1:])
    greeted = {e.to for e in effects if isinstance(e, SendDatagram)}
    assert len(greeted) == (0 if leaving else 3)
    fabric.run(1)
    assert all(node.swim.is_reachable(other.id) for other in fabric.nodes[1:]) != leaving
    assert deaths(fabric) == []


def test_a_doubt_of_whom_this_node_cannot_reach_is_for_others_to_verify():
    fabric = meshed(3)
    subject = fabric.nodes[2]
    moved = Address("fd00::7", 6374)
    fabric.by_address[moved] = subject
    fabric.step(subject, AddressChanged(moved))
    fabric.run(1)
    one = fabric.nodes[0]
    member = one.swim.members.get(subject.id)
    doubt = in_state(member, MemberState.SUSPECT)
    one.swim._beliefs._store(doubt, member, (fabric.nodes[1].id,), fabric.now, reason=TOLD)
    one.swim._verifier.on_doubt(subject.id, fabric.now)
    assert len(one.swim._verifier) == 0


def test_timers_that_are_all_late_by_one_stall_put_verdicts_off_once():
    fabric = meshed(3)
    node = fabric.nodes[0]
    fabric.crash(fabric.nodes[2])
    fabric.drop = lambda _a, _b: True
    assert fabric.run(20, until=lambda: node_id(2) in node.swim._beliefs.suspicions)
    key = ("suspicion", node_id(2))
    due = node.swim._timers._live[key][0]
    began = fabric.now
    for _ in range(20):
        fabric.now = Instant(fabric.now + 0.05)
        node.swim._on_stall(0.6, fabric.now)
    put_off_s = node.swim._timers._live[key][0] - due
    grace_s = fabric.config.probe_interval_s
    assert put_off_s <= fabric.now - began + 0.6 + grace_s
