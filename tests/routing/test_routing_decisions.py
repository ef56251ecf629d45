"""The ring of last decisions: complete, bounded, and explained as the call itself would be."""

import pytest
from routing_world import failing, peer
from test_routing_dispatcher import World, me

from meshd.errors import MeshError, NoCandidateError, PeerError
from meshd.routing.decisions import DECISIONS_KEPT, Decisions


async def test_a_call_that_ends_well_is_kept_with_its_tries_and_its_plan():
    world = World()
    result = await world.delegate(explain=True)
    (decision,) = world.dispatcher.decisions.last(10)
    told = decision.told()
    assert (told["number"], told["capability"], told["ok"]) == (1, "echo", True)
    assert told["attempts"] == result["attempts"]
    assert told["explain"] == result["explain"]
    assert "error" not in told


async def test_a_call_that_fails_is_kept_with_its_error_and_who_was_left_out():
    world = World(me(), peer(2))
    world.answer({2: failing(PeerError("it broke", definite=False))})
    with pytest.raises(MeshError):
        await world.delegate()
    (decision,) = world.dispatcher.decisions.last(1)
    told = decision.told()
    assert (told["ok"], told["error"]) == (False, "it broke")
    assert [each["outcome"] for each in told["attempts"]] == ["error"]


async def test_a_call_that_nobody_can_take_is_explained_too():
    world = World(me())
    with pytest.raises(NoCandidateError):
        await world.delegate()
    (decision,) = world.dispatcher.decisions.last(1)
    told = decision.told()
    assert told["explain"]["chosen"] is None
    assert [row["why"] for row in told["explain"]["left_out"]] == ["does not offer it"]


async def test_the_fallback_is_a_decision_of_its_own():
    world = World()
    await world.delegate(capability="absent", fallback=("echo",))
    names = [each.capability for each in world.dispatcher.decisions.last(10)]
    assert names == ["absent", "echo"]


def test_the_oldest_are_forgotten_and_the_newest_told_in_order():
    decisions = Decisions()
    for number in range(DECISIONS_KEPT + 5):
        name = "even" if number % 2 == 0 else "odd"
        decisions.add(name, None, (), took_s=0.25, wall_ms=number)
    assert decisions.count == DECISIONS_KEPT + 5
    assert len(decisions.last(DECISIONS_KEPT + 5)) == DECISIONS_KEPT
    assert [each.wall_ms for each in decisions.last(2)] == [DECISIONS_KEPT + 3, DECISIONS_KEPT + 4]
    assert [each.wall_ms % 2 for each in decisions.last(3, "odd")] == [1, 1, 1]
    assert decisions.last(1)[0].told()["explain"] is None


async def test_what_was_estimated_of_every_peer_is_not_kept():
    world = World()
    await world.delegate(policy="fastest")
    (decision,) = world.dispatcher.decisions.last(1)
    assert decision.made.scene.known == {}
    assert decision.told()["explain"]["candidates"][0]["factors"]["service_s"] > 0
