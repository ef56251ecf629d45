"""A node's own record over a long life: renamed offers, false accusations, days of sleep."""

import msgspec
import pytest
from fabric import MESH, meshed

from meshd.errors import UsageError
from meshd.gossip.codec import encode_body, encode_header, encode_update
from meshd.gossip.effects import DatagramRejected, EventHeard, IdentityRaised
from meshd.gossip.inputs import DatagramReceived, EventFired, Resumed, StateSet
from meshd.gossip.members import in_state
from meshd.model import Epoch, Incarnation, MemberState, NodeId

SUSPECT = MemberState.SUSPECT


def test_a_node_may_rename_what_it_offers_for_ever():
    fabric = meshed(3)
    node = fabric.nodes[0]
    long = "described at length " * 9
    for number in range(600):
        own = node.swim.state_of(node.id)
        gone = dict.fromkeys(own.values())
        new = {f"cap/{number}": b"x", f"doc/{number}": f"{number} {long}".encode(), "name": b"n"}
        fabric.step(node, StateSet({**gone, **new}))
        if number % 100 == 0:
            fabric.run(0.5)
    assert fabric.run(10, until=fabric.knows_state)
    assert node.swim.me.epoch == 1_000_001
    assert IdentityRaised(Epoch(1_000_001), Incarnation(0)) in node.effects
    for other in fabric.nodes:
        assert other.swim.state_of(node.id).values().keys() == {"cap/599", "doc/599", "name"}
    assert fabric.run(10, until=lambda: fabric.nodes[1].swim.value_of(node.id, "doc/599"))
    with pytest.raises(UsageError, match="at most 1024 keys"):
        fabric.step(node, StateSet({f"cap/{n}": b"x" for n in range(1_025)}))


@pytest.mark.parametrize("by", ["a member", "a stranger", "a table"])
def test_one_datagram_makes_a_node_refute_once_and_above_all_that_it_says(by):
    fabric = meshed(3)
    victim, teller = fabric.nodes[:2]
    me = victim.swim.me
    said = [
        encode_update(msgspec.structs.replace(in_state(me, SUSPECT), incarnation=number))
        for number in (3, 9, *range(9))
    ]
    source = NodeId(b"stranger") if by == "a stranger" else teller.id
    kind, fields = (9, (bytes(8), False)) if by == "a table" else (5, ())
    data = encode_header(MESH, victim.id, source) + encode_body(kind, fields, said)
    effects = fabric.step(victim, DatagramReceived(data, teller.address))
    raised = [e for e in effects if isinstance(e, IdentityRaised)]
    assert [e.incarnation for e in raised] == [10]
    assert victim.swim.health == 1


def test_days_of_sleep_make_nobody_that_starts_meanwhile_too_new():
    fabric = meshed(3)
    for node in fabric.nodes:
        for _ in range(3):
            fabric.step(node, Resumed(86_400.0))
    fabric.run(2)
    newcomer = fabric.add(epoch=1_000_000 + 3 * 86_400_000)
    fabric.knock(3)
    assert fabric.run(10, until=fabric.converged)
    fabric.step(newcomer, EventFired("hello"))
    fabric.run(5)
    for node in fabric.nodes:
        assert [e for e in node.effects if isinstance(e, EventHeard)]
        assert "epoch_ahead" not in [
            e.reason for e in node.effects if isinstance(e, DatagramRejected)
        ]
