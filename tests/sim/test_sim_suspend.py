"""A suspended machine: its monotonic clock stands still, its mail is lost, others go on without it.

The daemon notices by a clock that ran on; here the input says so.
"""

import pytest

from meshd.gossip.effects import Woken
from meshd.gossip.inputs import Resumed
from meshd.model import MemberState
from sim.world import World

NODES = 12
ALIVE, DEAD = MemberState.ALIVE, MemberState.DEAD


def held(world, by, about):
    return world.hosts[by].swim.members.get(world.hosts[about].id).state


def suspend(world, index, for_s):
    """Its mail is lost, for a machine that sleeps has no network; and its clock stands still."""
    host = world.hosts[index]
    world.sleep(host)
    world.run(world.now + for_s)
    host.inbox.clear()
    host.offset_s -= for_s
    host.asleep = False
    world.step(host, Resumed(for_s))
    world.rearm(host)


@pytest.mark.parametrize("for_s", [1.25, 600.0])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_who_was_suspended_is_back_at_once_and_accuses_nobody(seed, for_s):
    world = World(NODES, seed)
    world.start_converged()
    world.run(world.now + 5)
    woken, before = [], world.hosts[3].swim.me.incarnation
    world.on_effect.append(lambda host, e: woken.append(host.index) if type(e) is Woken else None)
    suspend(world, 3, for_s)
    assert woken == [3]
    swim = world.hosts[3].swim
    assert not any(swim.is_reachable(host.id) for host in world.hosts if host.index != 3)
    was_dead = held(world, 0, 3) is DEAD
    assert was_dead == (for_s > 60)
    world.run(world.now + 2)
    assert all(held(world, by, 3) is ALIVE for by in range(NODES) if by != 3)
    assert all(held(world, 3, about) is ALIVE for about in range(NODES))
    # Whoever was not missed has nothing to deny.
    assert (swim.me.incarnation > before) >= was_dead
    world.run(world.now + 60)
    assert all(held(world, 3, about) is ALIVE for about in range(NODES))
    assert all(swim.is_reachable(host.id) for host in world.hosts)


def test_what_was_a_member_before_a_sleep_and_is_gone_after_it_is_found_out():
    world = World(NODES, 1)
    world.start_converged()
    world.run(world.now + 5)
    world.crash(world.hosts[7])
    suspend(world, 3, 600.0)
    world.run(world.now + 20)
    assert held(world, 3, 7) is DEAD


def test_a_leaving_node_that_wakes_greets_nobody():
    world = World(NODES, 1)
    world.start_converged()
    world.run(world.now + 5)
    world.leave(world.hosts[3])
    host = world.hosts[3]
    sent = host.packets_sent
    world.step(host, Resumed(30.0))
    assert host.packets_sent == sent
