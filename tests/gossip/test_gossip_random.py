"""Whatever happens to a few nodes, beliefs never go backwards, and in quiet all agree."""

import random

import pytest
from fabric import MESH, Fabric, Node, meshed, node_id
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.gossip.codec import encode_body, encode_header, update_fields
from meshd.gossip.config import profile
from meshd.gossip.inputs import (
    DatagramReceived,
    DeadlineReached,
    JoinRequested,
    LeaveRequested,
    RejoinRequested,
    StateSet,
)
from meshd.gossip.members import precedence
from meshd.gossip.messages import BUCKETS
from meshd.gossip.swim import Swim
from meshd.model import Address, Epoch, Incarnation, Member, MemberState, NodeId


class Watch:
    """Checks what must hold at every step of a run."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.keys: dict[tuple[Swim, NodeId], tuple[int, int, int]] = {}
        self.issued: dict[NodeId, tuple[int, int]] = {}
        fabric.watchers.append(self)

    def __call__(self, node: Node, _effects: object) -> None:
        swim = node.swim
        me = swim.me
        assert me.state in {MemberState.ALIVE, MemberState.LEFT}
        self.issued[me.node] = max(
            self.issued.get(me.node, (0, 0)), (int(me.epoch), int(me.incarnation))
        )
        for member in swim.members:
            key = precedence(member)
            before = self.keys.get((swim, member.node), (0, 0, 0))
            assert key >= before, "a belief went backwards"
            self.keys[swim, member.node] = key
            assert key[:2] <= self.issued[member.node], "a number that its subject never issued"


def random_run(seed: int) -> None:
    rng = random.Random(seed)
    fabric = Fabric(rng.randint(3, 8), seed=seed, config=profile("local"))
    watch = Watch(fabric)
    for node in fabric.nodes:
        watch(node, [])
    fabric.join_all()
    epoch = 1_000_000
    for _ in range(12):
        fabric.run(rng.random() * 2)
        index = rng.randrange(len(fabric.nodes))
        node = fabric.nodes[index]
        match rng.randrange(7):
            case 0:
                fabric.crash(node)
            case 1:
                epoch += 1_000
                fabric.restart(index, epoch=epoch)
                watch(fabric.nodes[index], [])
                fabric.knock(index)
            case 2:
                fabric.split({n for n in fabric.nodes if rng.random() < 0.5})
            case 3:
                fabric.lose(rng.random() * 0.3)
            case 4:
                fabric.heal()
            case 5 if node.up:
                fabric.step(node, rng.choice([LeaveRequested(), RejoinRequested()]))
            case _ if node.up:
                fabric.step(node, StateSet({"k": rng.randbytes(8)}))
    fabric.heal()
    for index, node in enumerate(fabric.nodes):
        if not node.up:
            epoch += 1_000
            fabric.restart(index, epoch=epoch)
            watch(fabric.nodes[index], [])
        fabric.step(fabric.nodes[index], RejoinRequested())
        fabric.knock(index)
    assert fabric.run(30, until=lambda: fabric.converged() and fabric.knows_state())


@pytest.mark.no_cover
@pytest.mark.parametrize("seed", range(30))
def test_no_belief_goes_backwards_and_quiet_brings_agreement(seed):
    random_run(seed)


MESHED = meshed(3, config=profile("local"))
ME = MESHED.nodes[0]


def _somebody(rng: random.Random) -> Member:
    return Member(
        rng.choice([node_id(0), node_id(1), node_id(2), NodeId(rng.randbytes(8))]),
        Epoch(rng.choice([1, 1_000_000, 1_000_001, 2**53 - 1])),
        Incarnation(rng.choice([0, 1, 5, 2**32 - 1])),
        MemberState(rng.randrange(4)),
        Address(f"10.0.0.{rng.randint(1, 4)}", rng.choice([6374, 1])),
        rng.choice([0, 1, 2**32 - 1]),
        rng.choice([0, 0, 9, 255]),
    )


def _body(rng: random.Random) -> bytes:
    """A message that is well-formed and otherwise anything."""
    sequence = rng.randrange(2**16)
    anybody = _somebody(rng).node
    doubters = (rng.choice([b"", anybody, rng.randbytes(rng.randrange(40))]) for _ in range(2))
    update = update_fields(_somebody(rng), *doubters)
    wanted = (anybody, 1_000_000, rng.choice([0, 5]))
    entries = [("k", rng.choice([1, 9]), rng.choice([None, b"v"]))]
    fields = {
        1: (sequence, [update]),
        2: (sequence, rng.randrange(2**32), [update]),
        3: (sequence, anybody, [update]),
        4: (sequence, [update]),
        5: ([update], rng.randbytes(rng.randint(0, 40))),
        6: (sequence, bytes(rng.choice([0, 64]))),
        7: (sequence, rng.randbytes(8), update),
        8: (rng.choice([b"", rng.randbytes(8)]), rng.randbytes(4 * BUCKETS), [update]),
        9: (rng.randbytes(8), rng.random() < 0.5, [update]),
        10: ([wanted],),
        11: (rng.randint(1, 3), [(anybody, 1_000_000, 0, rng.choice([0, 1, 9]), entries)]),
    }
    kind = rng.randint(1, 11)
    return encode_body(kind, fields[kind])


@settings(max_examples=300, derandomize=True)
@given(st.integers(0, 2**32))
def test_no_well_formed_message_breaks_the_machine(seed):
    rng = random.Random(seed)
    source = rng.choice([node_id(1), node_id(2), NodeId(rng.randbytes(8)), ME.id])
    destination = rng.choice([ME.id, ME.id, NodeId(bytes(8))])
    load = rng.choice([b"", rng.randbytes(11)])
    data = encode_header(MESH, destination, source, load) + _body(rng)
    address = Address(f"10.0.0.{rng.randint(1, 4)}", 6374)
    MESHED.step(ME, DatagramReceived(data, address))
    MESHED.now += 0.01
    MESHED.step(ME, DeadlineReached())
    ME.swim.validate()


@settings(max_examples=200, derandomize=True)
@given(st.binary(max_size=200), st.sampled_from([node_id(1), NodeId(b"stranger")]))
def test_no_bytes_break_the_machine(body, source):
    data = encode_header(MESH, ME.id, source) + body
    for candidate in (data, body):
        MESHED.step(ME, DatagramReceived(candidate, Address("10.0.0.2", 6374)))
    ME.swim.validate()


def test_the_same_seed_gives_the_same_run():
    runs = []
    for _ in range(2):
        fabric = Fabric(6, seed=5)
        fabric.lose(0.1)
        fabric.join_all()
        fabric.run(10)
        runs.append([(n.packets, n.bytes, n.swim.members.view_hash) for n in fabric.nodes])
    assert runs[0] == runs[1]


def test_joining_a_seed_that_is_down_gives_up_and_may_be_asked_again():
    fabric = Fabric(2)
    fabric.crash(fabric.nodes[0])
    fabric.join_all()
    fabric.run(30)
    joins = fabric.nodes[1].packets
    assert joins == 8
    fabric.step(fabric.nodes[1], JoinRequested((fabric.nodes[0].address,)))
    fabric.run(30)
    assert fabric.nodes[1].packets == 2 * joins
