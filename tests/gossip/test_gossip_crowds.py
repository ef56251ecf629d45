"""Crowds that join: who compares views with whom, and how often at most."""

import pytest
from fabric import Fabric, Node, meshed
from test_gossip_sync import sent

from meshd.gossip import sync
from meshd.gossip.inputs import JoinRequested
from meshd.gossip.messages import Sync


def crowd_comes(fabric: Fabric, count: int, *, pause_s: float) -> list[Node]:
    """So many nodes join one after the other; returns the old ones, without their effects."""
    old = list(fabric.nodes)
    for node in old:
        node.effects.clear()
    for _ in range(count):
        newcomer = fabric.add()
        fabric.step(newcomer, JoinRequested((fabric.nodes[0].address,)))
        fabric.run(pause_s)
    return old


def syncs_of(node: Node) -> int:
    return len(sent(node.effects, Sync))


def test_after_a_crowd_every_node_compares_views_with_two_others():
    fabric = meshed(8)
    old = crowd_comes(fabric, 4, pause_s=0.1)
    fabric.run(1.0)
    assert {syncs_of(node) for node in old} <= {2, 3, 4}
    for node in old:
        node.effects.clear()
    # Within a few seconds one more counts as one of them.
    crowd_comes(fabric, 1, pause_s=1.0)
    assert min(map(syncs_of, old)) >= 1


def test_those_who_come_now_and_then_are_no_crowd():
    fabric = meshed(8)
    fabric.run(30)
    old = crowd_comes(fabric, 12, pause_s=1.0)
    assert max(map(syncs_of, old)) <= 4  # acks show a difference now and then; a crowd takes 24


@pytest.mark.no_cover
@pytest.mark.slow
def test_a_crowd_that_does_not_end_settles_in_between_and_not_at_any_rate():
    fabric = meshed(8)
    old = crowd_comes(fabric, 60, pause_s=0.1)
    assert all(1 <= syncs_of(node) <= 12 for node in old[1:])


@pytest.mark.slow
def test_crowds_that_come_one_after_the_other_are_settled_within_a_budget(monkeypatch):
    monkeypatch.setattr(sync, "_SETTLINGS_SAVED", 8)
    fabric = meshed(8)
    fabric.run(30)
    old = list(fabric.nodes)
    syncs = dict.fromkeys((node.id for node in old), 0)
    for _ in range(14):
        crowd_comes(fabric, 4, pause_s=0.0)
        fabric.run(1.0)
        for node in old:
            syncs[node.id] += syncs_of(node)
    # Two for each of eight crowds, and for those that a sync interval each pays for.
    most = 2 * (8 + 14 / fabric.config.sync_interval_s + 1)
    assert all(12 <= count <= most for node, count in syncs.items() if node != old[0].id)
