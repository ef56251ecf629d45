"""The values at the bottom: deadlines, views, the shape that machines have."""

import random

import pytest

from meshd.capability.manifest import Manifest, summarise
from meshd.clock import Instant
from meshd.deadline import Deadline
from meshd.gossip.config import profile
from meshd.gossip.effects import Effect
from meshd.gossip.inputs import Input, JoinRequested
from meshd.gossip.members import new_member
from meshd.gossip.swim import Swim
from meshd.machine import Machine
from meshd.model import (
    LABELS_MAX,
    Address,
    Epoch,
    MemberState,
    MeshId,
    NodeId,
    Site,
    site_faults,
)
from meshd.view import ClusterView, Peer


def _peer(number, name, **more):
    return Peer(
        node=NodeId(bytes([number]) * 8),
        name=name,
        address=Address("10.0.0.1", 6374),
        state=MemberState.ALIVE,
        epoch=Epoch(1),
        incarnation=0,
        **more,
    )


def _view(*peers):
    return ClusterView(
        version=1, me=peers[0].node, by_node={p.node: p for p in peers}, stale_after_s=3.0
    )


def test_a_deadline_says_what_remains_and_never_less_than_nothing():
    deadline = Deadline.after(2.5, Instant(10.0))
    assert deadline.remaining(Instant(11.0)) == pytest.approx(1.5)
    assert deadline.remaining(Instant(99.0)) == 0.0


def test_the_gossip_machine_has_the_shape_of_machines():
    me = new_member(NodeId(b"12345678"), Epoch(1), Address("10.0.0.1", 6374))
    machine: Machine[Input, Effect] = Swim(
        me, MeshId(b"one-mesh"), profile("lan"), random.Random(1), Instant(0.0)
    )
    (effect,) = machine.step(JoinRequested((Address("10.0.0.2", 6374),)), Instant(0.0))
    assert effect.to == Address("10.0.0.2", 6374)
    at = machine.next_deadline()
    assert at is not None
    assert at > 0.0


def test_a_view_lists_oneself_first_and_finds_by_name_and_id():
    view = _view(_peer(9, "zoe"), _peer(2, "bob"), _peer(1, "amy"))
    assert [p.name for p in view.peers] == ["zoe", "amy", "bob"]
    assert view.self_peer.name == "zoe"
    assert view.named("bob") == view.named("02" * 8)
    assert view.named("nobody") == ()
    assert view.get(NodeId(bytes([1]) * 8)) == view.peers[1]
    assert len(list(view.in_state(MemberState.ALIVE))) == 3


def test_silence_makes_a_peer_stale_but_never_oneself():
    now = Instant(10.0)
    silent, heard = _peer(2, "b"), _peer(3, "c", heard_at=Instant(8.0))
    view = _view(_peer(1, "a"), silent, heard)
    assert silent.age(now) is None
    assert heard.age(now) == pytest.approx(2.0)
    assert [p.name for p in view.peers if view.stale(p, now)] == ["b"]
    assert view.stale(heard, Instant(12.0))


def test_a_peer_offers_what_it_has_and_nothing_else():
    summary = summarise(Manifest(name="translate"))
    other = summarise(Manifest(name="other"))
    peer = _peer(1, "a", capabilities=(other, summary))
    assert peer.offers("translate") is summary
    assert peer.offers("paint") is None


def test_a_site_has_a_name_for_a_region_and_few_labels():
    assert site_faults(Site("eu-west", {"gpu": "a100"})) == []
    many = {f"l{n}": "x" for n in range(LABELS_MAX + 1)}
    assert [field for field, _ in site_faults(Site("e u", many))] == ["region", "labels"]
