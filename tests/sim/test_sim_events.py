"""Users' events in simulated meshes: they reach all, once each, through loss and splits."""

import pytest

from meshd.gossip.effects import EventHeard
from meshd.gossip.inputs import EventFired
from sim.faults import Tells
from sim.invariants.telling import EventsArrive, HeardOnce
from sim.network import Shape
from sim.runner import Judge, run
from sim.scenarios import SCENARIOS
from sim.world import World


@pytest.mark.parametrize("seed", range(3))
def test_an_event_reaches_all_of_fifty_nodes_although_one_packet_in_twenty_is_lost(seed):
    world = World(50, seed, shape=Shape(loss=0.05))
    world.start_converged()
    heard = []
    world.on_effect.append(
        lambda host, effect: heard.append(host.index) if type(effect) is EventHeard else None
    )
    world.step(world.hosts[7], EventFired("deploy", b"v2"))
    world.run(world.now + 15.0)
    assert sorted(heard) == list(range(50))


@pytest.mark.parametrize("loss", [0.0, 0.03])
def test_through_restarts_and_a_split_nobody_hears_an_event_twice(loss):
    result = run(SCENARIOS["told"].make(20, 11, 60.0, loss))
    assert result.violations == ()


def test_the_checkers_saw_something():
    judge = Judge(SCENARIOS["told"].make(12, 3, 40.0, 0.0))
    judge.run()
    (once,) = [each for each in judge._checkers if isinstance(each, HeardOnce)]
    (arrive,) = [each for each in judge._checkers if isinstance(each, EventsArrive)]
    assert len(once._heard) > 500
    assert arrive.asked > 200
    assert arrive.missed == 0


def test_an_event_told_in_the_past_is_seen():
    world = World(2, 1)
    world.start_converged()
    found = []
    HeardOnce(world, found.append)
    host = world.hosts[0]
    for time in (5, 4):
        for tell in world.on_effect:
            tell(host, EventHeard(time, host.id, "x", b"", False, 0.0))
    assert [each.text for each in found] == ["told x in its past"]


def test_users_who_tell_excuse_nobody_who_is_asleep_or_leaves():
    world = World(3, 1)
    world.start_converged()
    told = []
    world.on_effect.append(
        lambda host, effect: told.append(effect.origin) if type(effect) is EventHeard else None
    )
    world.sleep(world.hosts[1])
    world.leave(world.hosts[2])
    Tells(0.5, 5.0).apply(world)
    world.run(world.now + 2.0)
    assert set(told) == {world.hosts[0].id}
