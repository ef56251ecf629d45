"""Which calls go by a plan that stands, and which have one of their own."""

import pytest
from routing_world import NOW, done, fail_there, failing, node_id, offer, peer
from test_routing_dispatcher import REFUSED, World, busy, me

from meshd.clock import Instant
from meshd.errors import MeshError, NoCandidateError
from meshd.model import Load
from meshd.routing.matchers import parse_matchers
from meshd.routing.request import DelegateRequest
from meshd.routing.settings import RoutingSettings
from meshd.routing.terms import Terms


async def test_calls_right_after_one_of_short_work_share_its_look_at_the_peers_until_one_fails():
    quick = Load(slots=4, service_s=0.001)
    world = World(me(), *(peer(n, load=quick, load_at=Instant(NOW - 0.01)) for n in (2, 3)))
    for _ in range(3):
        await world.delegate()
    await world.delegate(policy="adaptive")
    await world.delegate(explain=True)
    world.answer({2: failing(REFUSED), 3: failing(REFUSED)})
    with pytest.raises(MeshError):
        await world.delegate()
    world.answer({2: lambda p, t: done(2), 3: lambda p, t: done(3)})
    await world.delegate()
    one, two, three, *others, last = world.dispatcher.decisions.last(9)
    assert one.made.scene is two.made.scene
    assert two.made.scene is three.made.scene
    assert all(other.made.scene is not three.made.scene for other in (*others, last))


def quick(n, **more):
    """A peer that does much in little time, by a report that leaves room for many."""
    load = Load(slots=8, service_s=0.0005)
    return peer(n, load=load, load_at=Instant(NOW - 0.1), **more)


async def standing_world():
    """A world in which a plan stands that both peers are in."""
    world = World(me(), quick(2), quick(3, capabilities=(offer(version="2.0.0", tags=("new",)),)))
    first = await world.delegate()
    second = await world.delegate()
    one, two = world.dispatcher.decisions.last(2)
    assert one.made.scene is two.made.scene
    assert first["delegated_to"]["node"] in {"n2", "n3"}
    assert second["delegated_to"]["node"] in {"n2", "n3"}
    return world, one.made.scene


@pytest.mark.parametrize(
    "wish",
    [
        {"to": "n3"}, {"version": "2"}, {"tags": ("new",)}, {"hops": (node_id(2).hex(),)},
        {"terms": Terms(matchers=parse_matchers(("x==1",))[0])}, {"policy": "random"},
        {"offers": 2}, {"affinity": "key"}, {"explain": True},
    ],
    ids=lambda wish: next(iter(wish)),
)  # fmt: skip
async def test_a_call_that_asks_for_anything_of_its_own_has_a_plan_of_its_own(wish):
    for _ in range(8):
        world, scene = await standing_world()
        for n in (2, 3):
            world.invoker.offers[n] = lambda _: {"answer": "accept", "eta_s": 0.1, "queue": 0}
        if "terms" in wish:
            with pytest.raises(NoCandidateError):
                await world.delegate(**wish)
        else:
            result = await world.delegate(**wish)
            if not wish.keys() & {"policy", "offers", "affinity", "explain"}:
                assert result["delegated_to"]["node"] == "n3"
        assert world.dispatcher.decisions.last(1)[0].made.scene is not scene


async def test_who_has_refused_a_call_is_not_asked_again_by_a_plan_that_stands():
    for _ in range(8):
        world, _ = await standing_world()
        world.answer({2: busy(eta_s=1.0)})
        result = await world.delegate()
        assert result["delegated_to"]["node"] == "n3"
        assert len(result["attempts"]) <= 2


async def test_what_may_cost_no_more_has_a_plan_for_each_call():
    world, scene = await standing_world()
    world.dispatcher.use(RoutingSettings(cost_usd_max=0.5))
    await world.delegate()
    await world.delegate()
    one, two = world.dispatcher.decisions.last(2)
    assert scene is not one.made.scene is not two.made.scene


async def test_while_a_circuit_is_open_each_call_has_a_plan_of_its_own():
    world = World(me(), *(quick(n) for n in (2, 3, 4)))
    await world.delegate()
    fail_there(world.dispatcher.breakers, world.view.by_node[node_id(2)], seen=world.view)
    results = [await world.delegate() for _ in range(8)]
    assert {r["delegated_to"]["node"] for r in results} <= {"n3", "n4"}
    one, two = world.dispatcher.decisions.last(2)
    assert one.made.scene is not two.made.scene


async def test_asking_for_a_plan_takes_nobodys_room():
    world, scene = await standing_world()
    request = DelegateRequest(capability="echo")
    asked = {id(world.dispatcher.plan(request).scene) for _ in range(200)}
    assert id(scene) not in asked
    await world.delegate()
    assert world.dispatcher.decisions.last(1)[0].made.scene is scene
