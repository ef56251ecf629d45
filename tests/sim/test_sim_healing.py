"""Whole daemons that lost each other for long, or never met: what brings them together."""

import msgspec
import pytest

from meshd.model import MemberState
from sim.whole.fleet import Fleet

pytestmark = pytest.mark.slow

DEAD = MemberState.DEAD


@pytest.fixture
def fleet():
    """Lay out machines; they are taken down in the end."""
    made = []

    def make(nodes, **settings):
        made.append(Fleet(nodes, 1, settings={"profile": "local", **settings}))
        return made[-1]

    yield make
    for each in made:
        each.close()


def remember_for(box, tombstone_s):
    """A node that forgets its dead sooner; before its gossip is bound."""
    config = msgspec.structs.replace(box.node.gossip_config, tombstone_s=tombstone_s)
    box.node.gossip_config = config


def seen(box):
    """How many others it holds alive; none before it serves."""
    if not box.joined:
        return 0
    return sum(1 for p in box.node.view().in_state(MemberState.ALIVE)) - 1


def known(box):
    """How many others its table has, in whichever state."""
    if not box.joined:
        return 0
    return len(box.node.view().by_node) - 1


def within(fleet, seconds, holds, step_s=0.5):
    """Let time pass until it is so; how long that took."""
    began = fleet.now
    while not holds():
        assert fleet.now - began < seconds, [seen(box) for box in fleet.boxes if box.node]
        fleet.run(fleet.now + step_s)
    return fleet.now - began


def test_sides_that_forgot_each_other_and_have_no_seed_meet_again_by_their_disks(fleet):
    fleet = fleet(4)
    for box in fleet.boxes:
        fleet.start(box, seeds=())
        remember_for(box, tombstone_s=20.0)
    fleet.run(fleet.now + 2)
    # People join them by hand, once; no daemon is told of a seed.
    for box in fleet.boxes[1:]:
        fleet.in_lane(box, lambda box=box: box.node.gossip.join(fleet.boxes[0].address))
    within(fleet, 20, lambda: all(seen(box) == 3 for box in fleet.boxes))
    fleet.run(fleet.now + 15)
    fleet.network.partition("long", (frozenset({0, 1}), frozenset({2, 3})))
    within(fleet, 300, lambda: all(known(box) == 1 for box in fleet.boxes))
    fleet.network.heal("long")
    took_s = within(fleet, 1_200, lambda: all(seen(box) == 3 for box in fleet.boxes))
    assert took_s > 1


def test_a_restart_during_the_split_remembers_the_other_side_too(fleet):
    fleet = fleet(2)
    for index, box in enumerate(fleet.boxes):
        fleet.start(box, seeds=(0,) if index else ())
    within(fleet, 20, lambda: all(seen(box) == 1 for box in fleet.boxes))
    fleet.run(fleet.now + 15)
    fleet.network.partition("split", (frozenset({0}), frozenset({1})))
    fleet.crash(fleet.boxes[0])
    fleet.start(fleet.boxes[0], seeds=())
    fleet.run(fleet.now + 600)
    assert known(fleet.boxes[0]) == 0
    fleet.network.heal("split")
    within(fleet, 80, lambda: all(seen(box) == 1 for box in fleet.boxes))


def test_islands_that_formed_pairwise_find_each_other_by_a_seed_that_was_absent(fleet):
    fleet = fleet(4)
    fleet.network.partition("islands", (frozenset({0, 1}), frozenset({2, 3})))
    for index, seeds in ((0, (1, 2)), (1, ()), (2, (3,)), (3, ())):
        fleet.start(fleet.boxes[index], seeds=seeds)
    within(fleet, 20, lambda: all(seen(box) == 1 for box in fleet.boxes))
    fleet.run(fleet.now + 600)
    assert all(seen(box) == 1 for box in fleet.boxes)
    fleet.network.heal("islands")
    within(fleet, 62, lambda: all(seen(box) == 3 for box in fleet.boxes))


def test_islands_find_each_other_by_one_node_that_knew_the_other_side_of_old(fleet):
    fleet = fleet(4)
    for index, seeds in ((0, ()), (2, (0,))):
        fleet.start(fleet.boxes[index], seeds=seeds)
        remember_for(fleet.boxes[index], tombstone_s=20.0)
    within(fleet, 20, lambda: seen(fleet.boxes[0]) == 1)
    fleet.run(fleet.now + 15)
    fleet.network.partition("islands", (frozenset({0, 1}), frozenset({2, 3})))
    for index, seeds in ((1, (0,)), (3, (2,))):
        fleet.start(fleet.boxes[index], seeds=seeds)
        remember_for(fleet.boxes[index], tombstone_s=20.0)
    within(fleet, 300, lambda: all(known(box) == 1 for box in fleet.boxes))
    fleet.network.heal("islands")
    within(fleet, 1_200, lambda: all(seen(box) == 3 for box in fleet.boxes))


def test_a_node_that_is_alone_for_a_day_is_back_within_minutes(fleet):
    fleet = fleet(3, profile="lan")
    for index, box in enumerate(fleet.boxes):
        fleet.start(box, seeds=(0,) if index else ())
        remember_for(box, tombstone_s=60.0)
    within(fleet, 20, lambda: all(seen(box) == 2 for box in fleet.boxes))
    fleet.run(fleet.now + 15)
    for index in (0, 1):
        fleet.crash(fleet.boxes[index])
    fleet.run(fleet.now + 7_200)
    assert known(fleet.boxes[2]) == 0
    for index in (0, 1):
        fleet.start(fleet.boxes[index], seeds=())
    within(fleet, 90, lambda: all(seen(box) == 2 for box in fleet.boxes))


def test_daemons_without_datagrams_hold_each_other_alive_by_their_calls(fleet):
    fleet = fleet(3)
    for index, box in enumerate(fleet.boxes):
        fleet.start(box, seeds=(0,) if index else ())
    within(fleet, 20, lambda: all(seen(box) == 2 for box in fleet.boxes))
    fleet.wires.drops_datagrams = True
    fleet.run(fleet.now + 120)
    assert [seen(box) for box in fleet.boxes] == [2, 2, 2]
    counters = fleet.boxes[0].node.gossip.counters()
    assert counters["stream_pings_ok"] > 100
    assert "became_suspect" not in counters
    assert len(fleet.boxes[0].node.gossip.only_by_stream()) == 2
