"""Work that may run twice goes the short way, too, with a second copy for later."""

import asyncio

import pytest
from direct_world import DirectWorld, quick
from routing_world import done, offer, peer

from meshd.errors import PeerError
from meshd.routing.resilience import HEDGE_SAMPLES_MIN

SAFE = (offer(idempotent=True),)
OFTEN = 200
"""Calls that have paid for a few second copies."""


def hedging_world():
    """Two peers whose answers are known to take a millisecond: a second copy begins after five."""
    world = DirectWorld(
        peer(1, capabilities=()), quick(2, capabilities=SAFE), quick(3, capabilities=SAFE)
    )
    for _ in range(OFTEN):
        world.dispatcher.resilience.began()
    for _ in range(HEDGE_SAMPLES_MIN):
        world.dispatcher.resilience.answered("echo", 0.001)
    return world


async def second_copy(world):
    """The second copy, once it is sent."""
    async with asyncio.timeout(5):
        while len(world.sent) < 2:
            await asyncio.sleep(0)
    return world.sent[1]


def at_rest(world):
    """Nothing is under way any more, in the books neither."""
    books = world.books()
    assert books["running"] == {}
    assert not [node for node, record in books["records"].items() if record[0]]
    assert not [w for w in world.dispatcher.breakers._whole.rows.values() if w.under_way]
    return True


@pytest.mark.parametrize("is_bare", [False, True])
async def test_a_second_copy_that_is_first_answers_and_the_first_is_called_off(is_bare):
    world = hedging_world()
    assert world.begin(is_bare=is_bare) is not None
    copy = await second_copy(world)
    assert copy.n != world.sent[0].n
    copy.answer(done(copy.n, "quick"))
    await world.settle()
    (answer,) = world.answers
    assert (answer if is_bare else answer["peer_result"]["result"]) == "quick"
    assert world.called_off == [0]
    assert world.dispatcher.resilience.hedges == 1
    assert at_rest(world)
    tried = world.dispatcher.decisions.last(1)[0].told()["attempts"]
    assert [each["outcome"] for each in tried] == ["lost", "ok"]


async def test_a_first_copy_that_answers_after_all_ends_the_second():
    world = hedging_world()
    world.begin()
    copy = await second_copy(world)
    world.sent[0].answer(done(2, "late"))
    await world.settle()
    (answer,) = world.answers
    assert answer["peer_result"]["result"] == "late"
    assert copy.future.cancelled()
    assert at_rest(world)


async def test_an_answer_in_time_needs_no_second_copy():
    world = hedging_world()
    direct = world.begin()
    world.sent[0].answer(done(2))
    assert len(world.answers) == 1
    assert direct.hedge._timer.cancelled()
    assert world.dispatcher.resilience.hedges == 0


async def test_where_both_copies_fail_the_call_ends_once():
    world = hedging_world()
    world.begin()
    copy = await second_copy(world)
    world.sent[0].answer(error=PeerError("lost", definite=False))
    await world.settle()
    assert world.answers == [], "the second copy may still answer"
    copy.answer(error=PeerError("lost, too", definite=False))
    await world.settle()
    (end,) = world.answers
    assert isinstance(end, PeerError)
    assert not end.definite
    assert at_rest(world)


async def test_a_caller_who_leaves_calls_both_copies_off():
    world = hedging_world()
    direct = world.begin()
    copy = await second_copy(world)
    direct.cancel()
    await world.settle()
    assert world.answers == []
    assert world.called_off == [0]
    assert copy.future.cancelled()
    assert at_rest(world)


async def test_a_caller_who_leaves_while_the_second_copy_is_waited_for_calls_it_off():
    world = hedging_world()
    direct = world.begin()
    copy = await second_copy(world)
    world.sent[0].answer(error=PeerError("lost", definite=False))
    await world.settle()
    direct.cancel()
    await world.settle()
    assert world.answers == []
    assert copy.future.cancelled()
    assert at_rest(world)
