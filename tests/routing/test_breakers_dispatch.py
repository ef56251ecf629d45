"""Circuits in calls: fallbacks taken at once, waiting for the better, one call that tries."""

import asyncio
import time

import msgspec
import pytest
from routing_world import failing, offer, peer
from test_routing_dispatcher import BROKEN, REFUSED, World, me

from meshd.errors import BusyError, Code, MeshError, PeerError
from meshd.model import Load
from meshd.routing.offers import ACCEPT
from meshd.routing.request import DelegateRequest
from meshd.routing.resilience import HEDGE_SAMPLES_MIN
from meshd.routing.settings import BreakerSettings, RoutingSettings

BOTH = (offer("echo"), offer("plain"))
SAFE = (offer(idempotent=True),)
TEN = 10


def world_of(count=3, **changes):
    return World(me(), *(peer(n, **changes) for n in range(2, 2 + count)))


async def fail_calls(world, calls, error=BROKEN, **fields):
    """So many calls with one failed try each."""
    for n in range(2, 12):
        world.answer({n: failing(error)})
    for _ in range(calls):
        with pytest.raises(MeshError):
            await world.delegate(**{"policy": "round_robin", **fields})
    world.invoker.asked.clear()
    world.invoker.answers.clear()


def bid(eta_s):
    return lambda params: {"answer": ACCEPT, "eta_s": eta_s, "queue": 0}


def later(world, seconds):
    """So much later, with everybody heard of just now."""
    world.clock.pass_s(seconds)
    now = world.clock.now()
    world.change(*(msgspec.structs.replace(p, heard_at=now) for p in world.view.peers))


async def refusal(world, **fields):
    with pytest.raises(PeerError) as caught:
        await world.delegate(**fields)
    return caught.value


async def test_what_fails_everywhere_is_refused_at_once_until_one_call_succeeds():
    world = world_of()
    await fail_calls(world, TEN)
    error = await refusal(world)
    assert (error.code, error.definite) == (Code.CIRCUIT_OPEN, True)
    assert world.invoker.asked == []
    later(world, 10)
    await world.delegate()
    await world.delegate()
    assert len(world.invoker.asked) == 2


async def test_the_fallback_is_taken_without_a_try_of_what_fails():
    world = world_of(capabilities=BOTH)
    await fail_calls(world, TEN)
    result = await world.delegate(fallback=("plain",))
    assert result["peer_result"]["result"] == "ok"
    assert [params["capability"] for _, params, _ in world.invoker.asked] == ["plain"]


async def test_full_nodes_do_not_hide_that_all_fail():
    world = world_of()
    await fail_calls(world, TEN)
    full = peer(4, load=Load(full=True, slots=4, service_s=0.1))
    world.change(me(), peer(2), peer(3), full)
    assert (await refusal(world)).code == Code.CIRCUIT_OPEN


async def test_who_waits_is_served_once_it_is_tried_again():
    world = world_of()
    await fail_calls(world, TEN)
    world.view.stale_after_s = 60.0
    began = world.clock.time
    await world.delegate(is_queued=True, deadline_s=60.0)
    assert 10 <= world.clock.time - began < 12


async def test_while_one_call_tries_it_the_others_are_refused():
    world = world_of()
    await fail_calls(world, TEN)
    later(world, 10)
    gates = {n: asyncio.Event() for n in (2, 3, 4)}
    world.answer(gates)
    world.invoker.started.clear()
    trial = asyncio.create_task(world.delegate())
    async with asyncio.timeout(5):
        await world.invoker.started.wait()
    assert "one call tries it now" in (await refusal(world)).message
    for gate in gates.values():
        gate.set()
    await asyncio.wait_for(trial, 5)
    await world.delegate()


async def test_a_call_that_opened_it_itself_tells_what_failed():
    world = world_of()
    await fail_calls(world, TEN - 1)
    world.answer(dict.fromkeys((2, 3, 4), failing(REFUSED)))
    error = await refusal(world)
    assert error.message.startswith("connection refused")
    assert len(world.invoker.asked) == 1, "nobody else is asked once it is open"


async def test_a_named_node_is_asked_whatever_failed():
    world = world_of()
    await fail_calls(world, TEN)
    await world.delegate(to="n2")
    assert world.invoker.order == [2]


async def test_answers_of_the_healthy_open_nothing():
    world = world_of()
    for error in (BusyError("full"), PeerError("no", code=Code.CIRCUIT_OPEN)):
        await fail_calls(world, 2 * TEN, error=error, is_patient=False)
    await world.delegate()
    assert world.dispatcher.breakers.opened == 0


async def test_of_two_calls_that_gathered_bids_together_one_tries():
    world = world_of()
    await fail_calls(world, 3, to="n2")
    later(world, 60)
    world.invoker.offers = {n: bid(eta_s) for n, eta_s in ((2, 0.1), (3, 1.0), (4, 2.0))}
    gate = asyncio.Event()
    world.answer({2: gate})
    first, second = (asyncio.create_task(world.delegate(offers=3)) for _ in range(2))
    ended, _ = await asyncio.wait({first, second}, timeout=5, return_when="FIRST_COMPLETED")
    assert len(ended) == 1
    assert sorted(world.invoker.order) == [2, 3]
    gate.set()
    await asyncio.wait_for(asyncio.gather(first, second), 5)


async def test_of_two_calls_that_gathered_bids_together_one_tries_a_whole_capability():
    world = world_of()
    await fail_calls(world, TEN)
    later(world, 10)
    world.invoker.offers = {n: bid(1.0) for n in (2, 3, 4)}
    gate = asyncio.Event()
    world.answer(dict.fromkeys((2, 3, 4), gate))
    calls = [asyncio.create_task(world.delegate(offers=3)) for _ in range(2)]
    (refused,), (tries,) = await asyncio.wait(calls, timeout=5, return_when="FIRST_COMPLETED")
    assert refused.exception().code == Code.CIRCUIT_OPEN
    gate.set()
    await asyncio.wait_for(tries, 5)
    assert len(world.invoker.asked) == 1


async def test_of_two_second_copies_one_tries():
    loads = {n: Load(in_flight=n, slots=4, service_s=0.1) for n in range(2, 6)}
    world = World(me(), *(peer(n, capabilities=SAFE, load=load) for n, load in loads.items()))
    await fail_calls(world, 3, to="n3", error=REFUSED)
    later(world, 60)
    for _ in range(HEDGE_SAMPLES_MIN):
        world.dispatcher.resilience.answered("echo", 0.005)
    gate = asyncio.Event()
    world.answer(dict.fromkeys(loads, gate))
    calls = [asyncio.create_task(world.delegate(policy="least_loaded")) for _ in range(2)]
    async with asyncio.timeout(5):
        while len(world.invoker.asked) < 2:
            await asyncio.sleep(0)
        time.sleep(0.02)  # plays work: the loop is blocked, and then both timers are due at once
        while world.dispatcher.resilience.hedges < 2:
            await asyncio.sleep(0)
        while 3 not in world.invoker.order:
            await asyncio.sleep(0)
    assert world.invoker.order.count(3) == 1
    gate.set()
    await asyncio.wait_for(asyncio.gather(*calls), 5)


async def test_who_fails_does_not_get_what_the_others_have_no_room_for():
    full = Load(full=True, slots=4, service_s=0.1)
    world = world_of()
    await fail_calls(world, 3, to="n2")
    world.change(me(), peer(2), peer(3, load=full), peer(4, load=full))
    with pytest.raises(BusyError):
        await world.delegate(is_patient=False)
    assert world.invoker.asked == []


async def test_who_fails_is_not_asked_after_the_others_have_refused():
    world = world_of()
    await fail_calls(world, 3, to="n2")
    busy = failing(BusyError("full", data={"eta_s": 0.1}))
    world.answer({3: busy, 4: busy})
    with pytest.raises(BusyError):
        await world.delegate(is_patient=False)
    assert sorted(world.invoker.order) == [3, 4]


async def test_a_call_that_fails_at_node_after_node_counts_once():
    world = world_of()
    for _ in range(TEN - 1):
        await fail_calls(world, 1, error=REFUSED)
        assert world.dispatcher.breakers.opened_whole == 0
    await fail_calls(world, 1, error=REFUSED)
    assert world.dispatcher.breakers.opened_whole == 1


async def test_new_settings_of_breakers_hold_from_the_next_result():
    world = world_of()
    await fail_calls(world, 2, to="n2")
    world.dispatcher.use(RoutingSettings(breaker=BreakerSettings(failures=5)))
    await fail_calls(world, 2, to="n2")
    assert world.dispatcher.breakers.opened == 0
    await fail_calls(world, 1, to="n2")
    assert world.dispatcher.breakers.opened == 1


async def test_what_may_not_be_written_down_leaves_no_call_under_way():
    world = world_of()

    async def trying(peer):
        raise PeerError("the disk is full", code=Code.REJECTED)

    await fail_calls(world, 4, to="n2")
    later(world, 60)
    request = DelegateRequest(capability="echo", input=1, to="n2")
    with pytest.raises(PeerError, match="disk"):
        await world.dispatcher.delegate(request, None, trying)
    assert world.dispatcher.breakers.shown(world.view, world.clock.now())[0].state == "half_open"
    await world.delegate(to="n2")
    assert world.dispatcher.breakers.shown(world.view, world.clock.now()) == []
