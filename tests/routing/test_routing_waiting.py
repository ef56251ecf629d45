"""Calls that wait for a worker: how long, in which order, and how many."""

import asyncio

import pytest
from routing_world import NOW, done, failing
from routing_world import peer as seen_peer
from test_routing_dispatcher import SAFE, World, busy, me

from meshd.clock import Instant
from meshd.errors import BusyError, Code, NoCandidateError, PeerError
from meshd.routing.router import ATTEMPTS_MAX
from meshd.routing.settings import RoutingSettings
from meshd.routing.waiting import Place, WaitingRoom


def refused():
    return PeerError("connection refused")


def peer(n, **changes):
    """A peer that goes on to be heard of while virtual time passes."""
    return seen_peer(n, **{"heard_at": Instant(NOW + 1_000.0), **changes})


class Sleeps:
    """Sleeps that pass virtual time at once, and what happens at the end of the n-th."""

    def __init__(self, world):
        self.world = world
        self.taken = []
        self.at = {}
        world.dispatcher._patience.sleep = self

    async def __call__(self, seconds):
        self.taken.append(seconds)
        await self.world.clock.sleep(seconds)
        self.at.get(len(self.taken), lambda: None)()


class Held:
    """Sleeps that end when the test says so."""

    def __init__(self, world):
        self.ends = []
        self.world = world
        world.dispatcher._patience.sleep = self

    async def __call__(self, seconds):
        end = asyncio.Event()
        self.ends.append((seconds, end))
        await end.wait()

    async def until(self, count):
        """So many sleeps have begun."""
        async with asyncio.timeout(5):
            while len(self.ends) < count:
                await asyncio.sleep(0)


# How long


async def test_who_wants_to_wait_is_served_as_soon_as_somebody_can():
    world = World(me())
    with pytest.raises(NoCandidateError):
        await world.delegate()
    held = Held(world)
    task = asyncio.create_task(world.delegate(is_queued=True, deadline_s=10.0))
    await held.until(1)
    assert world.dispatcher.waiting == 1
    assert world.dispatcher.is_busy, "a new view must wake it"
    world.change(me(), peer(2))
    assert (await asyncio.wait_for(task, 5))["delegated_to"]["node"] == "n2"
    assert world.dispatcher.waiting == 0


async def test_who_wants_to_wait_does_so_until_the_deadline_however_often_it_is_woken():
    world = World(me())
    sleeps = Sleeps(world)
    sleeps.at[25] = lambda: world.change(me(), peer(2))
    result = await world.delegate(is_queued=True, deadline_s=30.0)
    assert result["delegated_to"]["node"] == "n2"
    assert world.clock.time - NOW == pytest.approx(25.0)


async def test_waiting_in_vain_ends_with_the_deadline_and_says_why():
    world = World(me(), peer(2, reachable=False))
    Sleeps(world)
    with pytest.raises(NoCandidateError, match="did not answer the last probe"):
        await world.delegate(is_queued=True, deadline_s=30.0)
    assert world.clock.time - NOW == pytest.approx(30.0)


@pytest.mark.parametrize("workers", [1, ATTEMPTS_MAX + 1])
async def test_workers_that_could_not_be_reached_are_asked_again_by_who_waits(workers):
    numbers = range(2, 2 + workers)
    world = World(me(), *(peer(n) for n in numbers))
    world.answer(dict.fromkeys(numbers, failing(refused())))
    sleeps = Sleeps(world)
    sleeps.at[20] = world.invoker.answers.clear
    result = await world.delegate(is_queued=True, deadline_s=60.0)
    assert result["attempts"][-1]["outcome"] == "ok"
    world.answer(dict.fromkeys(numbers, failing(refused())))
    with pytest.raises(PeerError, match="refused"):
        await world.delegate(deadline_s=60.0)


async def test_who_waits_retries_within_the_budget_and_waits_where_it_is_used_up():
    world = World(me(), peer(2), peer(3))
    while world.dispatcher.resilience.may_retry(world.clock.now()):
        pass
    spent = world.dispatcher.resilience.retries
    failures = [refused()]

    def fail_once(params, timeout_s):
        if failures:
            raise failures.pop()
        return done(2)

    world.answer({2: fail_once, 3: fail_once})
    sleeps = Sleeps(world)
    assert (await world.delegate(is_queued=True))["attempts"][-1]["outcome"] == "ok"
    assert sum(sleeps.taken) >= 4.9, "it waited until half of the budget was there"
    assert world.dispatcher.resilience.retries == spent + 1


async def test_news_of_the_mesh_is_no_reason_to_call_again_who_failed_just_now():
    world = World(me(), peer(2))
    world.answer({2: failing(refused())})
    held = Held(world)
    task = asyncio.create_task(world.delegate(is_queued=True, deadline_s=60.0))
    for number in range(1, 6):
        await held.until(number)
        world.clock.pass_s(0.1)
        world.change(me(), peer(2))
    await held.until(6)
    assert world.invoker.order == [2]
    assert held.ends[-1][0] == pytest.approx(0.5), "a second after the failure"
    world.change(me(), peer(2), peer(3))
    await held.until(7)
    held.ends[-1][1].set()  # the pause before a retry
    assert (await asyncio.wait_for(task, 5))["delegated_to"]["node"] == "n3"


@pytest.mark.parametrize(
    "error", [PeerError("link lost", definite=False), PeerError("a circle", code=Code.CYCLE)]
)
async def test_who_waits_does_not_wait_after_what_may_have_run_or_cannot_run(error):
    world = World(me(), peer(2, capabilities=SAFE))
    world.answer({2: failing(error)})
    with pytest.raises(PeerError, match=error.message):
        await world.delegate(is_queued=True)
    assert world.clock.time == NOW
    assert world.invoker.order == [2]


async def test_who_waits_stays_though_the_best_offer_is_far_past_the_deadline():
    world = World(me(), peer(2))
    world.answer({2: busy(900.0)})
    sleeps = Sleeps(world)
    sleeps.at[5] = world.invoker.answers.clear
    result = await world.delegate(is_queued=True, deadline_s=30.0)
    assert [a["outcome"] for a in result["attempts"]] == ["busy"] * 5 + ["ok"]
    world.answer({2: busy(900.0)})
    with pytest.raises(BusyError):
        await world.delegate(deadline_s=30.0)


# How many, and in which order


async def test_a_full_room_refuses_and_who_waits_gives_way_to_what_is_more_urgent():
    world = World(me(), settings=RoutingSettings(queue_max=1))
    held = Held(world)
    first = asyncio.create_task(world.delegate(is_queued=True, priority=2))
    await held.until(1)
    with pytest.raises(NoCandidateError):
        await world.delegate(is_queued=True, priority=2)
    urgent = asyncio.create_task(world.delegate(is_queued=True, priority=4))
    with pytest.raises(NoCandidateError):
        await asyncio.wait_for(first, 5)
    world.change(me(), peer(2))
    await asyncio.wait_for(urgent, 5)
    assert world.dispatcher.waiting == 0


async def test_when_somebody_comes_the_most_urgent_ask_first_and_the_oldest_of_them():
    world = World(me())
    held, tasks = Held(world), []
    for text, priority in (("a", 2), ("b", 5), ("c", 2), ("d", 5)):
        tasks.append(
            asyncio.create_task(world.delegate(is_queued=True, priority=priority, input=text))
        )
        await held.until(len(tasks))
    world.change(me(), peer(2))
    await asyncio.wait_for(asyncio.gather(*tasks), 5)
    assert [params["input"] for _, params, _ in world.invoker.asked] == ["b", "d", "a", "c"]


async def test_when_there_is_room_the_most_urgent_goes_in_whosever_turn_it_is():
    world = World(me(), peer(2))
    world.answer({2: busy(0.5)})
    held = Held(world)
    usual = asyncio.create_task(world.delegate(input="usual"))
    await held.until(1)
    world.clock.pass_s(0.1)
    world.answer({2: busy(20.0)})
    urgent = asyncio.create_task(world.delegate(input="urgent", priority=5))
    await held.until(2)
    world.invoker.answers.clear()
    world.invoker.asked.clear()
    held.ends[0][1].set()
    await asyncio.wait_for(urgent, 5)
    assert not usual.done()
    assert held.ends[2][0] > 0.5, "it has the other's time now"
    held.ends[2][1].set()
    await asyncio.wait_for(usual, 5)
    assert [params["input"] for _, params, _ in world.invoker.asked] == ["urgent", "usual"]


async def test_a_cancelled_caller_leaves_its_place():
    world = World(me())
    held = Held(world)
    task = asyncio.create_task(world.delegate(is_queued=True))
    await held.until(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.dispatcher.waiting == 0


# The room alone


def place(priority=3, *, due=1.0, latest=100.0, capability="echo", is_for_room=True):
    return Place(capability, priority, is_for_room, Instant(due), Instant(latest))


def room_of(*places, places_max=8):
    room = WaitingRoom(places_max)
    for each in places:
        assert room.enter(each)
    return room


def test_a_room_without_places_takes_nobody():
    room = WaitingRoom(0)
    assert not room.enter(place(5))
    assert (len(room), room.refused) == (0, 1)


def test_of_a_full_room_the_last_of_the_least_urgent_gives_way():
    low, late, high = place(1), place(1), place(4)
    room = room_of(low, high, late, places_max=3)
    assert not room.enter(place(1))
    assert room.enter(place(2))
    assert [each.is_displaced for each in (low, late, high)] == [False, True, False]
    assert late.is_woken
    room.leave(late)
    assert (len(room), room.refused) == (3, 2)


def test_a_turn_goes_to_the_first_and_its_own_time_to_who_gave_it():
    urgent, usual = place(5, due=9.0), place(due=1.0)
    room = room_of(usual, urgent)
    assert not room.takes_turn(usual)
    assert (urgent.is_woken, usual.due) == (True, 9.0)
    room.leave(urgent)
    assert room.takes_turn(usual)


@pytest.mark.parametrize(
    "before",
    [
        place(5, due=9.0, capability="other"),
        place(5, due=9.0, is_for_room=False),
        place(5, due=0.5),
        place(1, due=9.0),
    ],
)
def test_a_turn_is_kept_where_nobody_before_wants_it(before):
    one = place(due=1.0)
    assert room_of(before, one).takes_turn(one)
    assert not before.is_woken


def test_who_has_no_time_to_give_gives_none():
    last = place(due=5.0, latest=5.0)
    assert room_of(place(5, due=9.0), last).takes_turn(last)
    short = place(due=1.0, latest=2.0)
    assert not room_of(place(5, due=9.0), short).takes_turn(short)
    assert short.due == 2.0


def test_news_is_for_those_who_wait_for_anybody():
    anybody, room_only = place(is_for_room=False), place()
    room = room_of(anybody, room_only)
    room.tell_news()
    assert (anybody.is_woken, room_only.is_woken) == (True, False)
    assert room.takes_turn(anybody)
