"""Budgets, second copies, bids and fallbacks: what a call may do beyond asking in turn."""

import asyncio

import pytest
from routing_world import NOW, done, failing, node_id, offer, peer
from test_routing_dispatcher import BROKEN, REFUSED, SAFE, World, me

from meshd.errors import BusyError, Code, DeadlineError, NoCandidateError, PeerError
from meshd.model import Load
from meshd.routing.offers import ACCEPT, COUNTER, REJECT, Offer, best_offer
from meshd.routing.resilience import HEDGE_SAMPLES_MIN, RETRIES_SAVED
from meshd.routing.router import ATTEMPTS_MAX
from meshd.routing.settings import BreakerSettings, RoutingSettings


def bid(answer=ACCEPT, eta_s=1.0, queue=0, **more):
    return lambda params: {"answer": answer, "eta_s": eta_s, "queue": queue, **more}


# Retries


async def test_once_the_budget_is_spent_a_failure_is_the_end():
    world = World(me(), peer(2), peer(3))
    resilience = world.dispatcher.resilience
    while resilience.may_retry(world.clock.now()):
        pass
    world.answer({2: failing(REFUSED), 3: failing(REFUSED)})
    with pytest.raises(PeerError, match="budget of retries is used up"):
        await world.delegate()
    assert len(world.invoker.asked) == 1
    assert resilience.retries == RETRIES_SAVED


async def test_a_refusal_costs_nothing_of_the_budget():
    world = World(me(), peer(2), peer(3))
    world.answer({2: failing(BusyError("full"))})
    for _ in range(10):
        await world.delegate()
    assert world.dispatcher.resilience.retries == 0


async def test_a_sole_worker_that_fails_costs_nothing_of_the_budget():
    patient = RoutingSettings(breaker=BreakerSettings(capability_failures=1_000))
    world = World(me(), peer(2), settings=patient)
    world.answer({2: failing(PeerError("connection refused"))})
    for _ in range(2 * int(RETRIES_SAVED)):
        with pytest.raises(PeerError, match=r"connection refused$"):
            await world.delegate()
    assert world.dispatcher.resilience.retries == 0
    assert world.clock.time == NOW, "there is nobody to pause for"


async def test_after_an_indefinite_failure_only_those_are_asked_who_may_run_it_twice():
    world = World(me(), peer(2, capabilities=SAFE), peer(3))
    world.answer({2: failing(PeerError("link lost", definite=False))})
    with pytest.raises(PeerError, match="link lost"):
        await world.delegate(policy="round_robin")
    assert world.invoker.order == [2]


async def test_a_later_try_of_the_same_work_pays_nothing_into_the_budget():
    world = World(me(), peer(2))
    resilience = world.dispatcher.resilience
    while resilience.may_retry(world.clock.now()):
        pass
    for _ in range(20):
        await world.delegate(is_repeat=True)
    assert not resilience.may_retry(world.clock.now())
    for _ in range(20):
        await world.delegate()
    assert resilience.may_retry(world.clock.now())


# Second copies


def warm(world, seconds=0.005):
    for _ in range(HEDGE_SAMPLES_MIN):
        world.dispatcher.resilience.answered("echo", seconds)


def slow_pair():
    world = World(me(), *(peer(n, capabilities=SAFE) for n in (2, 3)))
    warm(world)
    return world


async def both_asked(world):
    """A call whose first and second copy wait for their peers; these in the order of asking."""
    world.answer({2: asyncio.Event(), 3: asyncio.Event()})
    task = asyncio.create_task(world.delegate())
    async with asyncio.timeout(5):
        while len(world.invoker.asked) < 2:
            await asyncio.sleep(0)
    return task, *world.invoker.order


async def test_a_slow_peer_is_overtaken_by_a_second_copy_and_its_own_is_called_off():
    world = slow_pair()
    task, first, second = await both_asked(world)
    world.invoker.answers[second].set()
    result = await asyncio.wait_for(task, 5)
    assert result["peer_result"]["node"] == f"n{second}"
    assert [(a["name"], a["outcome"]) for a in result["attempts"]] == [
        (f"n{first}", "lost"),
        (f"n{second}", "ok"),
    ]
    assert world.dispatcher.resilience.hedges == 1
    assert not world.dispatcher.is_busy


async def test_a_first_that_answers_in_the_end_calls_off_the_second():
    world = slow_pair()
    task, first, _ = await both_asked(world)
    world.invoker.answers[first].set()
    result = await asyncio.wait_for(task, 5)
    assert result["peer_result"]["node"] == f"n{first}"
    async with asyncio.timeout(5):
        while world.dispatcher.is_busy:
            await asyncio.sleep(0)


async def test_where_the_first_fails_the_second_copy_is_waited_for():
    world = slow_pair()
    fails, gate = asyncio.Event(), asyncio.Event()

    async def invoke(target, method, params, *, timeout_s, sink=None):
        number = target.port - 1000
        world.invoker.asked.append((number, params, timeout_s))
        if len(world.invoker.asked) == 1:
            await fails.wait()
            raise BROKEN
        await gate.wait()
        return {"agent": "a", "node": f"n{number}", "result": 1, "rpc_latency_ms": 1.0}

    world.invoker.invoke = invoke
    task = asyncio.create_task(world.delegate())
    async with asyncio.timeout(5):
        while len(world.invoker.asked) < 2:
            await asyncio.sleep(0)
    fails.set()
    await asyncio.sleep(0)
    gate.set()
    result = await asyncio.wait_for(task, 5)
    assert result["peer_result"]["node"] == f"n{world.invoker.order[1]}"


async def test_a_second_copy_that_fails_changes_nothing_for_the_first():
    world = slow_pair()
    first_gate = asyncio.Event()

    async def invoke(target, method, params, *, timeout_s, sink=None):
        number = target.port - 1000
        world.invoker.asked.append((number, params, timeout_s))
        if len(world.invoker.asked) > 1:
            first_gate.set()
            raise REFUSED
        await first_gate.wait()
        return {"agent": "a", "node": f"n{number}", "result": 1, "rpc_latency_ms": 1.0}

    world.invoker.invoke = invoke
    result = await asyncio.wait_for(world.delegate(), 5)
    assert result["peer_result"]["node"] == f"n{world.invoker.order[0]}"
    assert [a["outcome"] for a in result["attempts"]] == ["error", "ok"]


@pytest.mark.parametrize(
    "late",
    [BusyError("full", data={"eta_s": 0.1, "load": {"in_flight": 7}}), PeerError("refused")],
)
async def test_a_second_copy_that_ends_badly_and_a_late_refusal_leave_the_call_going(late):
    world = slow_pair()
    first_gate, asked = asyncio.Event(), world.invoker.asked

    async def invoke(target, method, params, *, timeout_s, sink=None):
        number = target.port - 1000
        asked.append((number, params, timeout_s))
        if len(asked) == 1:
            await first_gate.wait()
            raise BusyError("full", data={"eta_s": 0.1})
        if len(asked) == 2:
            first_gate.set()
            raise late
        return done(number)

    world.invoker.invoke = invoke
    result = await asyncio.wait_for(world.delegate(), 5)
    first, second, last = world.invoker.order
    assert first != second
    kind = "busy" if isinstance(late, BusyError) else "error"
    assert [a["outcome"] for a in result["attempts"]] == [kind, "busy", "ok"]
    if kind == "busy":
        newest, _ = world.dispatcher.outstanding.newest(world.view.by_node[node_id(second)])
        assert newest.in_flight == 7
        assert world.dispatcher.resilience.retries == 0
    else:
        assert last == first, "who failed is not asked again"


async def test_where_the_second_copy_shows_that_the_call_is_at_fault_nobody_else_is_asked():
    world = World(me(), *(peer(n, capabilities=SAFE) for n in (2, 3, 4)))
    warm(world)
    first_gate = asyncio.Event()

    async def invoke(target, method, params, *, timeout_s, sink=None):
        world.invoker.asked.append((target.port - 1000, params, timeout_s))
        if len(world.invoker.asked) == 1:
            await first_gate.wait()
            raise BusyError("full", data={"eta_s": 0.1})
        first_gate.set()
        raise PeerError("a circle", code=Code.CYCLE)

    world.invoker.invoke = invoke
    with pytest.raises(PeerError, match="a circle"):
        await asyncio.wait_for(world.delegate(), 5)
    assert len(world.invoker.asked) == 2


@pytest.mark.parametrize(
    "why", ["not idempotent", "others not", "off", "pinned", "nobody else", "no budget"]
)
async def test_no_second_copy_where_it_may_do_harm_or_is_not_wanted(why):
    settings = RoutingSettings(is_hedging=why != "off")
    peers = [peer(n, capabilities=SAFE) for n in ((2,) if why == "nobody else" else (2, 3))]
    if why == "not idempotent":
        peers = [peer(2), peer(3)]
    if why == "others not":
        peers[1] = peer(3, load=Load(slots=4, service_s=60.0))
    world = World(me(), *peers, settings=settings)
    warm(world)
    if why == "no budget":
        while world.dispatcher.resilience.may_hedge(world.clock.now()):
            pass
    gate = asyncio.Event()
    world.answer({2: gate, 3: gate})
    task = asyncio.create_task(world.delegate(to="n2" if why == "pinned" else ""))
    await asyncio.wait_for(world.invoker.started.wait(), 5)
    asyncio.get_running_loop().call_later(0.05, gate.set)
    await asyncio.wait_for(task, 5)
    assert len(world.invoker.asked) == 1


# Bids


async def test_of_those_who_bid_the_first_to_be_done_gets_the_work():
    world = World(me(), peer(2), peer(3), peer(4))
    world.invoker.offers = {2: bid(eta_s=3.0), 3: bid(eta_s=0.5), 4: bid(COUNTER, eta_s=0.1)}
    assert (await world.delegate(offers=3))["delegated_to"]["node"] == "n3"
    assert sorted(world.invoker.bids) == [2, 3, 4]


async def test_without_a_usable_bid_the_plan_decides():
    world = World(me(), peer(2), peer(3))
    world.invoker.offers = {2: failing_bid, 3: lambda params: "nonsense"}
    assert (await world.delegate(offers=2))["delegated_to"]["node"] in {"n2", "n3"}


def failing_bid(params):
    raise REFUSED


async def test_this_node_bids_too_and_bids_bring_load():
    world = World(me(capabilities=(offer(),)), peer(2))
    load = {"in_flight": 3, "slots": 4}
    world.invoker.offers = {2: bid(eta_s=0.1, load=load)}
    assert (await world.delegate(offers=2))["delegated_to"]["node"] == "n2"
    newest, _ = world.dispatcher.outstanding.newest(world.view.by_node[node_id(2)])
    assert newest.in_flight == 3


@pytest.mark.parametrize(
    "told",
    [None, "accept", {}, {"answer": "perhaps", "eta_s": 1, "queue": 0},
     {"answer": ACCEPT, "eta_s": "soon", "queue": 0}, {"answer": ACCEPT, "eta_s": 1, "queue": "x"},
     {"answer": ACCEPT, "eta_s": float("inf"), "queue": 0},
     {"answer": ACCEPT, "eta_s": float("nan"), "queue": 0},
     {"answer": ACCEPT, "eta_s": 10**400, "queue": 0}, {"answer": [], "eta_s": 1, "queue": 0}],
)  # fmt: skip
def test_what_is_no_bid_is_none(told):
    assert Offer.of(peer(2), told) is None


def test_nobody_who_would_take_it_is_no_best_bid():
    offers = [Offer(peer(2), answer, 0.1, 0, None) for answer in (COUNTER, REJECT)]
    assert best_offer(offers) is None


# Fallbacks


async def test_where_nobody_does_the_first_the_fallback_is_called_with_the_same_input():
    world = World(me(), peer(2, capabilities=(offer("plain"),)))
    await world.delegate(capability="fancy", fallback=("fancier", "plain"))
    assert world.invoker.asked[0][1]["capability"] == "plain"
    assert world.invoker.asked[0][1]["input"] == {"x": 1}
    with pytest.raises(NoCandidateError, match="fanciest"):
        await world.delegate(capability="fancy", fallback=("fanciest",))


@pytest.mark.parametrize("error", [PeerError("connection refused"), BusyError("full")])
async def test_where_the_last_who_does_the_first_cannot_be_had_the_fallback_is_called(error):
    world = World(me(), peer(2, capabilities=(offer("fancy"),)), peer(3, capabilities=SAFE))
    error.data["eta_s"] = 900.0
    world.answer({2: failing(error)})
    result = await world.delegate(capability="fancy", fallback=("echo",))
    assert [(a["name"], a["outcome"] == "ok") for a in result["attempts"]] == [
        ("n2", False),
        ("n3", True),
    ]


@pytest.mark.parametrize(
    "error",
    [
        PeerError("link lost", definite=False),
        PeerError("no", code=Code.INVALID_PARAMS),
        DeadlineError("it waited too long"),
    ],
)
async def test_what_is_not_for_want_of_somebody_has_no_fallback(error):
    world = World(me(), peer(2, capabilities=(offer("fancy"),)), peer(3, capabilities=SAFE))
    world.answer({2: failing(error)})
    with pytest.raises(type(error)):
        await world.delegate(capability="fancy", fallback=("echo",))
    assert world.invoker.order == [2]


@pytest.mark.parametrize("load", [None, Load(full=True, slots=1, service_s=0.1)])
async def test_who_is_not_patient_hears_at_once_that_all_are_busy_and_takes_no_room(load):
    busy = range(2, 8)
    world = World(me(), *(peer(n) if load is None else peer(n, load=load) for n in busy))
    world.answer(dict.fromkeys(busy, failing(BusyError("full", data={"eta_s": 0.1}))))
    began = world.clock.time
    with pytest.raises(BusyError, match="does not wait") as caught:
        await world.delegate(is_patient=False, fallback=("plain",), deadline_s=60.0)
    assert len(world.invoker.asked) == (ATTEMPTS_MAX if load is None else 0)
    assert caught.value.definite
    assert caught.value.data["eta_s"] >= 0
    assert world.clock.time == began
    assert world.dispatcher.waiting == 0


async def test_what_is_only_to_be_joined_is_asked_for_as_such():
    world = World(me(), peer(2))
    await world.delegate(idempotency_key="k")
    await world.delegate(idempotency_key="k", only_joins=True)
    assert [params.get("only_joins") for _, params, _ in world.invoker.asked] == [None, True]
