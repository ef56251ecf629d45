"""One end per call: failover, refusals, deadlines, cycles, lost peers."""

import asyncio
import random

import pytest
from routing_world import (
    NOW,
    FakeClock,
    FakeInvoker,
    done,
    failing,
    node_id,
    offer,
    peer,
    view,
)

from meshd.clock import Instant
from meshd.errors import (
    BusyError,
    Code,
    DeadlineError,
    MeshError,
    NoCandidateError,
    PeerError,
    UsageError,
)
from meshd.model import Epoch, Load, MemberState
from meshd.routing.dispatcher import Dispatcher
from meshd.routing.request import DelegateRequest, request_from_params
from meshd.routing.resilience import PAUSE_FIRST_S
from meshd.routing.settings import BreakerSettings, RoutingSettings

ECHO = (offer(),)
SAFE = (offer(idempotent=True),)
REFUSED = PeerError("connection refused")
BROKEN = PeerError("link lost", definite=False)


class World:
    """A dispatcher on node 1, which offers nothing unless told, and its fakes."""

    def __init__(self, *peers, settings=None):
        self.clock, self.invoker = FakeClock(), FakeInvoker()
        self.view = view(*(peers or (me(), peer(2), peer(3))))
        self.local_params = []
        self.dispatcher = Dispatcher(
            clock=self.clock,
            view=lambda: self.view,
            invoker=self.invoker,
            local=self.local,
            local_offer=self.local_offer,
            random=random.Random(1),
            settings=settings,
            sleep=self.clock.sleep,
        )

    async def local_offer(self, params):
        return {"answer": "reject", "eta_s": 0.0, "queue": 0}

    async def local(self, params, *, timeout_s, sink=None):
        self.local_params.append(params)
        return done(1, load={"cpu_fraction": 0.5, "mem_fraction": 0.25})

    def answer(self, by_node):
        self.invoker.answers.update(by_node)

    async def delegate(self, trying=None, **fields):
        request = DelegateRequest(**{"capability": "echo", "input": {"x": 1}, **fields})
        return await self.dispatcher.delegate(request, trying=trying)

    def change(self, *peers):
        self.view = view(*peers)
        self.dispatcher.on_view_change(self.view)


def me(**changes):
    return peer(1, **{"capabilities": (), **changes})


def busy(eta_s=None, **data):
    return failing(BusyError("full", data={**data, **({} if eta_s is None else {"eta_s": eta_s})}))


async def under_way(world, **fields):
    """A delegation whose first try has reached the peer."""
    task = asyncio.create_task(world.delegate(**fields))
    async with asyncio.timeout(5):
        await world.invoker.started.wait()
    return task


async def test_the_result_has_the_shape_that_its_users_know():
    world = World(me(), peer(2))
    load = {"cpu_fraction": 0.125, "mem_fraction": 0.5, "slots": 4}
    world.answer({2: lambda p, t: done(2, {"y": 2}, load)})
    assert await world.delegate() == {
        "delegated_to": {
            "agent": "agent",
            "node": "n2",
            "cpu": 12.5,
            "mem": 50.0,
            "latency_ms": 1.0,
            "url": "http://127.0.0.1:1002",
        },
        "peer_result": {
            "agent": "agent", "node": "n2", "result": {"y": 2}, "rpc_latency_ms": 1.0,
        },
        "rpc_latency_ms": 0.0,
        "attempts": [
            {"node": node_id(2).hex(), "name": "n2", "outcome": "ok", "latency_ms": 0.0}
        ],
    }  # fmt: skip


async def test_unknown_figures_are_null():
    world = World(me(), peer(2, load=None, rtt_s=None))
    to = (await world.delegate())["delegated_to"]
    assert (to["cpu"], to["mem"], to["latency_ms"]) == (None, None, None)


async def test_work_may_run_on_this_node():
    world = World(me(capabilities=ECHO))
    result = await world.delegate()
    assert result["delegated_to"]["cpu"] == 50.0
    assert result["delegated_to"]["latency_ms"] == 0.0
    assert world.local_params[0]["hops"] == [node_id(1).hex()]
    assert world.invoker.asked == []


async def test_the_deadline_shrinks_on_the_way_and_this_node_joins_the_hops():
    world = World(me(), peer(2))
    first = node_id(9).hex()
    await world.delegate(deadline_s=0.2, hops=(first,), idempotency_key="k", trace="t")
    _, params, timeout_s = world.invoker.asked[0]
    assert params["deadline_ms"] == 180
    assert timeout_s == pytest.approx(0.2)
    assert params["hops"] == [first, node_id(1).hex()]
    assert (params["idempotency_key"], params["trace"]) == ("k", "t")


async def test_time_lost_on_a_first_try_is_not_given_to_the_second():
    world = World()

    def slow(params, timeout_s):
        world.clock.pass_s(4.0)
        raise REFUSED

    world.answer({2: slow, 3: slow})
    with pytest.raises(PeerError):
        await world.delegate(deadline_s=10.0)
    first, second = (p["deadline_ms"] for _, p, _ in world.invoker.asked)
    assert first == 9950
    assert 5950 - 1_000 * PAUSE_FIRST_S <= second <= 5950


async def test_a_deadline_in_a_later_try_says_that_it_is_not_the_whole_time():
    world = World()

    def slow(params, timeout_s):
        world.clock.pass_s(4.0)
        raise DeadlineError("it did not end", definite=True)

    world.answer({2: slow, 3: slow})
    with pytest.raises(DeadlineError, match=r"it did not end \(the last of 2 tries\)"):
        await world.delegate(deadline_s=10.0)


async def test_no_time_left_is_a_definite_deadline_error():
    world = World()
    with pytest.raises(DeadlineError) as caught:
        await world.delegate(deadline_s=0.0005)
    assert caught.value.definite
    assert world.invoker.asked == []


async def test_a_definite_error_moves_on_to_the_next_candidate():
    world = World()
    world.answer({2: failing(REFUSED)})
    for _ in range(4):  # whoever is drawn first
        result = await world.delegate()
        assert result["delegated_to"]["node"] == "n3"
    tried = [a for a in world.invoker.order if a == 2]
    assert tried


async def test_at_most_three_further_candidates_are_tried():
    world = World(me(), *(peer(n) for n in range(2, 9)))
    world.answer(dict.fromkeys(range(2, 9), failing(REFUSED)))
    with pytest.raises(PeerError) as caught:
        await world.delegate()
    assert len(set(world.invoker.order)) == len(world.invoker.order) == 4
    assert [a["outcome"] for a in caught.value.data["attempts"]] == ["error"] * 4
    assert caught.value.data["attempts"][0]["error"] == "connection refused"


async def test_a_busy_peer_among_failing_ones_buys_no_further_tries():
    patient = RoutingSettings(breaker=BreakerSettings(capability_failures=1_000))
    peers = (peer(n, capabilities=SAFE) for n in range(2, 12))
    world = World(me(), *peers, settings=patient)
    world.answer({2: busy(0.05), **dict.fromkeys(range(3, 12), failing(BROKEN))})
    for _ in range(8):  # whoever is drawn first
        before = len(world.invoker.order)
        with pytest.raises(MeshError):
            await world.delegate(deadline_s=60.0)
        assert sum(node != 2 for node in world.invoker.order[before:]) == 4


async def test_a_node_that_stops_sends_nothing_more_and_says_what_may_have_run():
    world = World(me(), peer(2, capabilities=SAFE), peer(3, capabilities=SAFE))

    def last_words(params, timeout_s):
        world.dispatcher.close()
        raise BROKEN

    world.answer(dict.fromkeys((2, 3), last_words))
    with pytest.raises(PeerError, match="stopping") as caught:
        await world.delegate()
    assert len(world.invoker.order) == 1
    assert not caught.value.definite
    with pytest.raises(PeerError, match="stopping") as caught:
        await world.delegate()
    assert len(world.invoker.order) == 1
    assert caught.value.definite


async def test_an_indefinite_error_ends_the_call_unless_the_work_is_idempotent():
    world = World()
    world.answer({2: failing(BROKEN), 3: failing(BROKEN)})
    with pytest.raises(PeerError) as caught:
        await world.delegate()
    assert len(world.invoker.order) == 1
    assert not caught.value.definite


async def test_idempotent_work_moves_on_after_an_indefinite_error():
    world = World(me(), peer(2, capabilities=SAFE), peer(3, capabilities=SAFE))
    world.answer({2: failing(BROKEN)})
    await world.delegate()
    await world.delegate()
    assert world.invoker.order[-1] == 3


async def test_an_end_after_something_may_have_run_is_indefinite():
    world = World(me(), peer(2, capabilities=SAFE), peer(3, capabilities=SAFE))
    first = [PeerError("link lost", definite=False), PeerError("refused")]

    def next_failure(params, timeout_s):
        raise first.pop(0)

    world.answer(dict.fromkeys((2, 3), next_failure))
    with pytest.raises(PeerError, match="refused") as caught:
        await world.delegate()
    assert not caught.value.definite


@pytest.mark.parametrize("code", [Code.INVALID_PARAMS, Code.CYCLE, Code.CANCELLED])
async def test_the_callers_own_fault_is_not_tried_elsewhere(code):
    world = World()
    world.answer(dict.fromkeys((2, 3), failing(PeerError("no", code=code))))
    with pytest.raises(MeshError):
        await world.delegate()
    assert len(world.invoker.order) == 1


async def test_a_malformed_answer_is_the_peers_fault_and_indefinite():
    world = World(me(), peer(2))
    for junk in (None, [], {"result": 1}, {**done(2), "rpc_latency_ms": "x"}):
        world.answer({2: lambda p, t, junk=junk: [junk] if junk is None else junk})
        with pytest.raises(PeerError, match="not a valid result") as caught:
            await world.delegate()
        assert not caught.value.definite


async def test_a_busy_peer_passes_the_work_to_another_and_its_load_is_believed():
    world = World()
    world.answer({2: busy(1.0, load={"in_flight": 9, "slots": 4, "service_s": 0.1})})
    for _ in range(6):
        assert (await world.delegate())["delegated_to"]["node"] == "n3"
    assert world.invoker.order.count(2) <= 1  # nothing sent where it is full by its own word


async def test_when_all_are_busy_the_call_waits_for_room_and_asks_again():
    world = World()
    refusals = [2, 3]

    def full_once(params, timeout_s):
        if refusals:
            refusals.pop()
            raise BusyError("full", data={"eta_s": 0.4})
        return done(2)

    world.answer({2: full_once, 3: full_once})
    result = await world.delegate(deadline_s=5.0)
    assert [a["outcome"] for a in result["attempts"]] == ["busy", "busy", "ok"]
    assert 0.1 <= world.clock.time - NOW <= 0.3
    assert world.dispatcher.waiting == 0


async def test_when_all_stay_busy_the_call_ends_busy_by_its_deadline():
    world = World()
    world.answer(dict.fromkeys((2, 3), busy(0.5, queue=5)))
    with pytest.raises(BusyError) as caught:
        await world.delegate(deadline_s=2.0)
    assert world.clock.time - NOW <= 2.0
    assert caught.value.data["eta_s"] == 0.5
    assert caught.value.data["queue"] == 5
    assert caught.value.definite


async def test_an_offer_far_past_the_deadline_is_refused_at_once():
    world = World()
    world.answer({2: busy(100.0), 3: busy(90.0)})
    with pytest.raises(BusyError, match="busy") as caught:
        await world.delegate(deadline_s=2.0)
    assert caught.value.data["eta_s"] == 90.0
    assert world.clock.time == NOW


async def test_a_full_waiting_room_refuses():
    world = World(settings=RoutingSettings(queue_max=0))
    world.answer(dict.fromkeys((2, 3), busy(float("nan"))))
    with pytest.raises(BusyError, match="0 calls wait here already"):
        await world.delegate()


async def test_peers_known_to_be_full_are_waited_for_like_busy_ones():
    world = World(me(), peer(2, load=Load(full=True, slots=1, service_s=0.1)))

    async def sleep(seconds):
        world.clock.pass_s(seconds)
        world.view = view(me(), peer(2))

    world.dispatcher._patience.sleep = sleep
    assert (await world.delegate())["delegated_to"]["node"] == "n2"
    assert world.clock.time > NOW


async def test_nobody_capable_says_whom_it_considered():
    world = World(me(), peer(2, reachable=False))
    with pytest.raises(NoCandidateError) as caught:
        await world.delegate()
    assert "n2: did not answer the last probe" in caught.value.hint


async def test_too_many_hops_and_returning_work_are_cycles():
    world = World()
    others = tuple(node_id(n).hex() for n in range(5, 13))
    for hops in (others, (node_id(1).hex(), others[0])):
        with pytest.raises(PeerError) as caught:
            await world.delegate(hops=hops)
        assert caught.value.code == Code.CYCLE
        assert caught.value.definite
    assert world.invoker.asked == []


async def test_a_pinned_call_goes_to_its_node_alone():
    world = World()
    world.answer({3: failing(REFUSED)})
    with pytest.raises(PeerError, match="refused"):
        await world.delegate(to="n3")
    assert world.invoker.order == [3]


async def test_round_robin_takes_turns_and_an_unknown_policy_is_refused():
    world = World()
    for _ in range(4):
        await world.delegate(policy="round_robin")
    assert world.invoker.order == [2, 3, 2, 3]
    with pytest.raises(UsageError, match="no policy"):
        await world.delegate(policy="best")


async def test_explain_comes_with_the_result_and_without_calling():
    world = World()
    told = (await world.delegate(explain=True))["explain"]
    assert {row["name"] for row in told["candidates"]} == {"n2", "n3"}
    assert [row["name"] for row in told["left_out"]] == ["n1"]
    made = world.dispatcher.plan(DelegateRequest(capability="echo"))
    assert len(made.attempts) == 2
    assert len(world.invoker.asked) == 1


async def test_a_failing_peer_is_ejected():
    world = World(me(), peer(2), peer(3), peer(4))
    world.answer({2: failing(BROKEN)})
    for _ in range(40):
        with_failure = asyncio.create_task(world.delegate(policy="random"))
        await asyncio.wait([with_failure])
        with_failure.exception()
    assert world.invoker.order.count(2) == 3


async def test_a_dead_peers_idempotent_call_moves_on_at_once():
    world = World(me(), peer(2, capabilities=SAFE))
    world.answer({2: asyncio.Event()})
    task = await under_way(world)
    world.change(me(), peer(2, state=MemberState.DEAD), peer(3, capabilities=SAFE))
    async with asyncio.timeout(5):
        result = await task
    assert [a["outcome"] for a in result["attempts"]] == ["lost", "ok"]
    assert world.invoker.order == [2, 3]


@pytest.mark.parametrize(
    "now", [(), (peer(2, epoch=Epoch(2)),), (peer(2, state=MemberState.LEFT),)]
)
async def test_a_lost_peers_other_calls_end_with_an_indefinite_error(now):
    world = World(me(), peer(2))
    world.answer({2: asyncio.Event()})
    task = await under_way(world)
    world.change(me(), *now, peer(3))
    async with asyncio.timeout(5):
        with pytest.raises(PeerError, match="lost while it had the work") as caught:
            await task
    assert not caught.value.definite
    assert world.invoker.order == [2]


@pytest.mark.parametrize("doubt", [{"reachable": False}, {"state": MemberState.SUSPECT}])
async def test_mere_doubt_moves_idempotent_calls_only_and_only_where_others_can_take_them(doubt):
    for offered, others, moves in ((SAFE, True, True), (SAFE, False, False), (ECHO, True, False)):
        world = World(me(), peer(2, capabilities=offered))
        answer = asyncio.Event()
        world.answer({2: answer})
        task = await under_way(world)
        more = (peer(3, capabilities=offered),) if others else ()
        world.change(me(), peer(2, capabilities=offered, **doubt), *more)
        answer.set() if not moves else None
        async with asyncio.timeout(5):
            result = await task
        assert result["delegated_to"]["node"] == ("n3" if moves else "n2")


async def test_news_of_healthy_peers_and_of_oneself_disturbs_no_call():
    world = World(me(), peer(2))
    answer = asyncio.Event()
    world.answer({2: answer})
    task = await under_way(world)
    world.change(me(), peer(2))
    world.dispatcher.peer_lost(node_id(7))
    world.dispatcher._tries.running[node_id(1)] = {}
    world.change(me(state=MemberState.DEAD), peer(2))
    answer.set()
    async with asyncio.timeout(5):
        assert (await task)["delegated_to"]["node"] == "n2"


async def test_being_lost_twice_is_being_lost_once():
    world = World(me(), peer(2))
    world.answer({2: asyncio.Event()})
    task = await under_way(world)
    world.dispatcher.peer_lost(node_id(2))
    world.dispatcher.peer_lost(node_id(2))
    async with asyncio.timeout(5):
        with pytest.raises(PeerError):
            await task
    assert world.dispatcher._tries.running == {}


async def test_a_peer_that_never_answers_costs_the_deadline_and_no_more():
    world = World(me(), peer(2))
    world.answer({2: asyncio.Event()})
    async with asyncio.timeout(5):
        with pytest.raises(DeadlineError) as caught:
            await world.delegate(deadline_s=0.02)
    assert not caught.value.definite
    assert caught.value.data["attempts"][0]["outcome"] == "deadline"


async def test_a_cancelled_caller_leaves_nothing_behind():
    world = World(me(), peer(2))
    world.answer({2: asyncio.Event()})
    task = await under_way(world)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.dispatcher._tries.running == {}
    assert world.dispatcher.outstanding.requests(peer(2))[2] == 0


def test_params_become_a_request():
    hop = node_id(3).hex()
    request = request_from_params(
        {"need": {"capability": "echo", "version": "1", "tags": ["gpu"]}, "deadline_ms": 1500,
         "hops": [hop], "to": "n2", "input": 5},
    )  # fmt: skip
    assert (request.capability, request.version, request.tags) == ("echo", "1", ("gpu",))
    assert (request.deadline_s, request.hops, request.to, request.input) == (1.5, (hop,), "n2", 5)
    assert request_from_params({"need": "echo"}).capability == "echo"
    assert request_from_params({"capability": "echo"}).deadline_s is None


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ([], "object"),
        ({}, "capability"),
        ({"capability": "echo", "colour": 1}, "colour"),
        ({"need": {"tags": []}}, "capability"),
        ({"capability": "a", "need": "b"}, "not both"),
        ({"capability": "a", "deadline_ms": 0}, "deadline_ms"),
        ({"capability": "a", "deadline_ms": float("nan")}, "deadline_ms"),
        ({"capability": "a", "hops": ["xyz"]}, "hops"),
        ({"capability": "a", "hops": ["0" * 16] * 17}, "hops"),
        ({"capability": "a", "tags": ["t"] * 17}, "tags"),
        ({"capability": "a", "idempotency_key": "k" * 129}, "idempotency_key"),
        ({"capability": "a", "to": "a b"}, "node"),
        ({"capability": "a", "priority": 0}, "priority"),
        ({"capability": "a", "priority": 6}, "priority"),
        ({"capability": "a", "fallback": ["a b"]}, "fallback"),
        ({"capability": "a", "fallback": ["b"] * 5}, "fallback"),
        ({"capability": "a", "offers": 5}, "offers"),
    ],
)
def test_params_that_are_not_valid_say_why(params, said):
    with pytest.raises(UsageError, match=said):
        request_from_params(params)


async def test_calls_lost_to_one_missed_probe_do_not_eject_the_peer():
    others = [peer(n, capabilities=SAFE) for n in (3, 4)]
    world = World(me(), peer(2, capabilities=SAFE))
    world.answer({2: asyncio.Event()})
    tasks = [await under_way(world) for _ in range(4)]
    while len(world.invoker.asked) < 4:
        await asyncio.sleep(0)
    world.change(me(), peer(2, capabilities=SAFE, reachable=False), *others)
    async with asyncio.timeout(5):
        await asyncio.gather(*tasks)
    world.change(me(), peer(2, capabilities=SAFE), *others)
    made = world.dispatcher.plan(DelegateRequest(capability="echo"))
    assert "n2" in {c.peer.name for c in made.attempts}


async def test_what_is_handed_out_a_second_is_counted_failed_tries_and_own_work_too():
    world = World(me(capabilities=SAFE), peer(2, capabilities=SAFE, heard_at=Instant(NOW + 60)))
    assert world.dispatcher.dispatch_per_s == 0
    for _ in range(200):
        await world.delegate(policy="round_robin")
        world.clock.pass_s(0.1)
    assert len(world.local_params) == len(world.invoker.asked) == 100
    before = world.dispatcher.dispatch_per_s
    assert before == pytest.approx(10, rel=0.1)
    world.answer({2: failing(BROKEN)})
    attempts = []
    for _ in range(2):
        attempts += (await world.delegate(policy="round_robin"))["attempts"]
    assert [a["outcome"] for a in attempts].count("error") == 1
    assert world.dispatcher.dispatch_per_s == pytest.approx(before * (1 + 3 / 70), rel=0.01)


async def test_work_that_runs_here_may_go_on_here_as_often_as_hops_allow():
    here, other = node_id(1).hex(), node_id(9).hex()
    world = World(me(capabilities=ECHO))
    for hops in ((here, here), (other, here, here)):
        await world.delegate(hops=hops)
    assert world.local_params[0]["hops"] == [here] * 3
    with pytest.raises(PeerError) as caught:
        await world.delegate(hops=(here,) * RoutingSettings().hops_max)
    assert caught.value.code == Code.CYCLE


async def test_what_cannot_be_done_in_time_behind_ones_own_calls_opens_no_circuit():
    load = Load(slots=1, service_s=0.0005)
    world = World(me(), peer(2, load=load, load_at=Instant(NOW - 0.1)))
    answer = asyncio.Event()
    world.answer({2: answer})
    first = [asyncio.create_task(world.delegate()) for _ in range(110)]
    await world.invoker.started.wait()
    async with asyncio.timeout(5):
        late = [world.delegate(deadline_s=0.05) for _ in range(12)]
        ended = await asyncio.gather(*late, return_exceptions=True)
        assert all(isinstance(error, DeadlineError) for error in ended)
        assert not world.dispatcher.breakers.opened
        answer.set()
        await asyncio.gather(*first)


async def test_an_answer_that_is_here_is_not_lost_to_news_of_the_same_moment():
    world = World(me(), peer(2))
    answer = asyncio.Event()
    world.answer({2: answer})
    task = await under_way(world)
    answer.set()
    world.change(me(), peer(2, state=MemberState.LEFT))
    async with asyncio.timeout(5):
        assert (await task)["delegated_to"]["node"] == "n2"
