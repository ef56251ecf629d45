"""How late mail is read: measured, told, and waited for."""

import msgspec
import pytest
from fabric import MESH, Fabric, Node, meshed

from meshd.clock import Instant
from meshd.gossip.codec import encode_body, encode_header, update_fields
from meshd.gossip.inputs import DatagramReceived, LeaveRequested
from meshd.gossip.lag import CODE_MAX, HALF_LIFE_S, LAG_MAX_S, MailLag, lag_code, lag_s
from meshd.model import MemberState

NOW = Instant(100.0)
ALIVE, SUSPECT, DEAD, LEFT = MemberState


def test_the_worst_of_late_counts_and_fades():
    lag = MailLag()
    assert lag.at(NOW) == 0.0
    lag.read(2.0, NOW)
    lag.read(0.5, NOW)
    assert lag.at(NOW) == 2.0
    assert lag.at(Instant(NOW + HALF_LIFE_S)) == pytest.approx(1.0)
    lag.read(1.5, Instant(NOW + HALF_LIFE_S))
    assert lag.at(Instant(NOW + HALF_LIFE_S)) == 1.5
    assert lag.at(Instant(NOW + 100 * HALF_LIFE_S)) == 0.0


def test_the_ordinary_business_of_a_scheduler_is_no_lag_and_no_clock_is_believed_without_bound():
    lag = MailLag()
    lag.read(0.01, NOW)
    assert lag.at(NOW) == 0.0
    lag.read(86_400.0, NOW)
    assert lag.at(NOW) == LAG_MAX_S


def test_on_the_wire_a_lag_is_told_in_steps_up_to_its_maximum():
    assert lag_s(lag_code(1.5)) == pytest.approx(1.5)
    assert lag_code(99.0) == CODE_MAX
    assert lag_s(255) == LAG_MAX_S


def late(fabric: Fabric, node: Node, waited_s: float) -> None:
    """A ping of another node is read late."""
    other = fabric.nodes[1 if node is fabric.nodes[0] else 0]
    data = other_ping(other, node)
    fabric.step(node, DatagramReceived(data, other.address, waited_s))


def other_ping(other: Node, node: Node) -> bytes:
    return encode_header(MESH, node.id, other.id) + encode_body(1, (1,))


def test_a_node_that_reads_late_tells_so_once_and_takes_it_back_when_it_is_well():
    fabric = meshed(4)
    node = fabric.nodes[0]
    for _ in range(3):
        late(fabric, node, 2.0)
    assert (node.swim.me.incarnation, node.swim.me.lag) == (1, lag_code(2.0))
    fabric.run(2)
    assert {n.swim.members.get(node.id).lag for n in fabric.nodes} == {lag_code(2.0)}
    fabric.run(120)
    assert {n.swim.members.get(node.id).lag for n in fabric.nodes} == {0}
    assert node.swim.me.incarnation <= 3


def test_a_small_lateness_is_nobody_elses_business():
    fabric = meshed(3)
    node = fabric.nodes[0]
    late(fabric, node, 0.1)
    assert node.swim.me.incarnation == 0
    node.swim._beliefs.raise_incarnation(Instant(fabric.now))
    assert node.swim.me.lag == 0


def test_who_is_leaving_tells_of_no_lag():
    fabric = meshed(3)
    node = fabric.nodes[0]
    late(fabric, node, 1.0)
    told = node.swim.me.lag
    fabric.step(node, LeaveRequested())
    late(fabric, node, 4.0)
    fabric.run(120)
    assert (node.swim.me.state, node.swim.me.lag) == (LEFT, told)


def test_an_answer_of_a_late_reader_is_waited_for_and_the_next_is_asked_meanwhile():
    fabric = meshed(3)
    prober, slow = fabric.nodes[0], fabric.nodes[2]
    late(fabric, slow, 2.0)
    fabric.run(2)
    fabric.sleep(slow)
    fabric.run(1.9)
    assert not any(n.swim._beliefs.suspicions for n in fabric.nodes)
    assert prober.swim._prober._slow
    fabric.wake(slow)
    fabric.run(0.1)
    assert not prober.swim._prober._slow
    fabric.crash(slow)
    assert fabric.run(30, until=lambda: fabric.all_see(DEAD, 2))


def test_past_their_bound_rounds_with_late_readers_get_no_extra_time(monkeypatch):
    monkeypatch.setattr("meshd.gossip.prober.SLOW_MAX", 0)
    fabric = meshed(3)
    late(fabric, fabric.nodes[2], 2.0)
    fabric.run(5)
    assert not fabric.nodes[0].swim._prober._slow
    fabric.crash(fabric.nodes[2])
    assert fabric.run(30, until=lambda: fabric.all_see(DEAD, 2))


def test_a_lag_that_somebody_else_made_up_is_denied():
    fabric = meshed(4)
    node, victim = fabric.nodes[0], fabric.nodes[2]
    forged = update_fields(msgspec.structs.replace(victim.swim.me, lag=CODE_MAX))
    body = encode_body(5, ([forged],))
    data = encode_header(MESH, node.id, fabric.nodes[1].id) + body
    fabric.step(node, DatagramReceived(data, fabric.nodes[1].address))
    fabric.run(3)
    assert {n.swim.members.get(victim.id).lag for n in fabric.nodes} == {0}
