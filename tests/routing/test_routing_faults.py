"""A fault of ours, or of a value, costs the one call that meets it, and leaves no entry."""

import asyncio

import pytest
from direct_world import DirectWorld
from routing_world import done


async def test_an_input_that_no_json_can_hold_costs_its_call_alone():
    world = DirectWorld()
    world.refusal = KeyError("a value's own fault")
    assert world.begin(value=1) is not None
    (fault,) = world.answers
    assert isinstance(fault, KeyError)
    books = world.books()
    assert books["running"] == {}
    assert [record[0] for record in books["records"].values()] == [0], "none is in flight"
    assert not [w for w in world.dispatcher.breakers._whole.rows.values() if w.under_way]


@pytest.mark.parametrize(
    "breaks", ["peer_result", pytest.param("history", marks=pytest.mark.replaces)]
)
async def test_a_fault_of_ours_over_an_answer_is_told_once_and_leaves_no_try(monkeypatch, breaks):
    def fault(*args, **more):
        raise RuntimeError("a fault of ours")

    world = DirectWorld()
    if breaks == "peer_result":
        monkeypatch.setattr("meshd.routing.direct.peer_result", fault)
    else:
        monkeypatch.setattr(world.dispatcher.decisions, "add", fault)
    world.begin()
    world.sent[0].answer(done(2))
    await world.settle()
    (end,) = world.answers
    assert isinstance(end, RuntimeError)
    books = world.books()
    assert books["running"] == {}
    assert [record[0] for record in books["records"].values()] == [0], "none is in flight"


async def test_a_fault_of_ours_over_an_answer_to_a_task_leaves_no_try(monkeypatch):
    def fault(*args, **more):
        raise RuntimeError("a fault of ours")

    world = DirectWorld()
    monkeypatch.setattr("meshd.routing.tries.peer_result", fault)
    calling = asyncio.create_task(world.delegate())
    await world.settle()
    world.sent[0].answer(done(2))
    with pytest.raises(RuntimeError):
        await calling
    assert [record[0] for record in world.books()["records"].values()] == [0]
