"""The short way: a call without a task leaves the same behind, and falls back where it must."""

import asyncio

import pytest
from direct_world import CALLER, DirectWorld, quick
from hypothesis import example, given, settings
from hypothesis import strategies as st
from routing_world import NOW, done, fail_there, node_id, offer, peer

from meshd.clock import Instant
from meshd.errors import BusyError, Code, DeadlineError, MeshError, PeerError, UsageError
from meshd.model import Epoch, Load, MemberState
from meshd.routing.custom import Policies
from meshd.routing.request import DelegateRequest
from meshd.routing.settings import BreakerSettings, RoutingSettings

ME = peer(1, capabilities=())
SAFE = (offer(idempotent=True),)
NO_HEDGES = RoutingSettings(is_hedging=False)
LOAD = {"cpu_fraction": 0.125, "mem_fraction": 0.5, "slots": 8, "service_s": 0.0005}

REPLIES = {
    "ok": lambda n: (done(n, {"y": n}), None),
    "loaded": lambda n: (done(n, {"y": n}, LOAD), None),
    "units": lambda n: ({**done(n), "units": 3.0}, None),
    "malformed": lambda n: ({"what": "is this"}, None),
    "endless": lambda n: ({**done(n), "rpc_latency_ms": 10**400}, None),
    "definite": lambda n: (None, PeerError("connection refused")),
    "indefinite": lambda n: (None, PeerError("link lost", definite=False)),
    "final": lambda n: (None, UsageError("bad input", code=Code.INVALID_PARAMS)),
    "late": lambda n: (None, DeadlineError("it did not end", definite=False)),
    "busy": lambda n: (None, BusyError("full", data={"load": LOAD})),
    "patient": lambda n: (None, BusyError("full", data={"eta_s": 0.01, "load": LOAD})),
    "never": lambda n: (None, BusyError("full", data={"eta_s": 10**400})),
}


def told(end):
    """A result, or all that an error says."""
    if isinstance(end, MeshError):
        return type(end), end.code, end.message, end.definite, end.data
    return end


class OneWay:
    """Calls in a world of their own, by one of both ways; `ends` are theirs, by number."""

    def __init__(self, *peers, is_short, settings=NO_HEDGES):
        self.world = DirectWorld(*peers, settings=settings)
        self.is_short = is_short
        self.calls, self.ends, self.shorts = [], {}, 0

    def begin(self):
        number = len(self.calls)

        def ended(end):
            assert number not in self.ends, "each call ends once"
            self.ends[number] = told(end)

        value = {"number": number}
        begun = None
        if self.is_short:
            begun = self.world.dispatcher.begin(
                "echo", value, ended, deadline_s=10.0, caller=CALLER
            )
            self.shorts += begun is not None
        if begun is None:
            begun = asyncio.ensure_future(self._delegate(value, ended))
        self.calls.append(begun)

    async def _delegate(self, value, ended):
        try:
            end = await self.world.delegate(value=value)
        except MeshError as error:
            end = error
        ended(end)

    def do(self, what, which, how):
        """One step; those that have nothing to act upon do nothing."""
        world = self.world
        running = world.open
        match what:
            case "begin":
                self.begin()
            case "answer" if running:
                sent = running[which % len(running)]
                sent.answer(*REPLIES[how](sent.n))
            case "deadline" if running:
                world.time_out(running[which % len(running)])
            case "cancel" if self.calls:
                self.calls[which % len(self.calls)].cancel()
            case "lost":
                world.dispatcher.peer_lost(node_id(2 + which % 3), is_certain=which % 2 == 0)
            case "time":
                world.clock.pass_s(0.001 + which)
            case _:
                pass

    async def run(self, steps, *, settled=True):
        for step in steps:
            self.do(*step)
            if settled:
                await self.world.settle()
        await self.world.settle()

    async def finish(self):
        for _ in range(100):
            if not self.world.open:
                return
            self.do("answer", 0, "final")
            await self.world.settle()
        raise AssertionError("there is no end of it")


def three():
    return (
        ME,
        quick(2),
        quick(3, capabilities=SAFE),
        quick(4, capabilities=(offer(idempotent=True, cost_usd_per_call=0.25),)),
    )


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["begin"] * 4 + ["answer"] * 4 + ["deadline", "cancel", "lost", "time"]),
        st.integers(0, 5),
        st.sampled_from(sorted(REPLIES)),
    ),
    max_size=24,
)


LOST_TOGETHER = [
    ("begin", 0, "ok"), ("begin", 0, "ok"), ("answer", 0, "busy"), ("answer", 0, "busy"),
    ("begin", 0, "ok"), ("lost", 0, "ok"),
]  # fmt: skip


@settings(deadline=None, max_examples=150)
@example(LOST_TOGETHER)
@given(STEPS)
def test_both_ways_leave_the_same_books_and_the_same_ends(steps):
    async def live():
        short, long = (OneWay(*three(), is_short=is_short) for is_short in (True, False))
        for each in (short, long):
            await each.run([("begin", 0, "ok"), *steps])
            assert each.world.here == 0
        assert short.shorts >= 1
        assert [s.n for s in short.world.sent] == [s.n for s in long.world.sent]
        assert [s.params for s in short.world.sent] == [s.params for s in long.world.sent]
        assert short.ends == long.ends
        assert short.world.books() == long.world.books()
        for each in (short, long):
            await each.finish()
            assert len(each.ends) + cancelled(each) == len(each.calls)
            assert each.world.books()["running"] == {}
            assert all(row[0] == 0 for row in each.world.books()["records"].values())
        assert short.ends == long.ends
        assert short.world.books() == long.world.books()

    asyncio.run(live())


def cancelled(way):
    return sum(number not in way.ends for number in range(len(way.calls)))


@settings(deadline=None, max_examples=200)
@given(STEPS)
def test_a_call_ends_exactly_once_whatever_happens_in_one_turn_of_the_loop(steps):
    async def live():
        way = OneWay(*three(), is_short=True)
        await way.run([("begin", 0, "ok"), *steps], settled=False)
        await way.finish()
        gone = {
            which % (1 + sum(s[0] == "begin" for s in steps[:at]))
            for at, (what, which, _) in enumerate(steps)
            if what == "cancel"
        }
        assert set(range(len(way.calls))) - set(way.ends) <= gone
        books = way.world.books()
        assert books["running"] == {}
        assert all(row[0] == 0 for row in books["records"].values())
        assert all(not under_way for _, _, under_way in books["breakers"]["whole"].values())

    asyncio.run(live())


async def test_it_is_sent_at_once_and_answered_as_by_the_long_way():
    world = DirectWorld()
    direct = world.begin(value={"x": 1}, deadline_s=0.2, priority=7)
    assert direct is not None
    (sent,) = world.open
    assert sent.params == {
        "capability": "echo", "input": {"x": 1}, "deadline_ms": 180, "hops": [node_id(1).hex()],
        "priority": 7,
    }  # fmt: skip
    world.clock.pass_s(0.002)
    sent.answer(done(2, {"y": 2}, LOAD))
    (result,) = world.answers
    assert result == {
        "delegated_to": {
            "agent": "agent", "node": "n2", "cpu": 12.5, "mem": 50.0, "latency_ms": 1.0,
            "url": "http://127.0.0.1:1002",
        },
        "peer_result": {
            "agent": "agent", "node": "n2", "result": {"y": 2}, "rpc_latency_ms": 1.0,
        },
        "rpc_latency_ms": 2.0,
        "attempts": [
            {"node": node_id(2).hex(), "name": "n2", "outcome": "ok", "latency_ms": 2.0}
        ],
    }  # fmt: skip
    assert not world.dispatcher.is_busy


async def test_what_it_costs_is_told():
    world = DirectWorld(ME, quick(2, capabilities=(offer(cost_usd_per_call=0.5),)))
    assert world.begin() is not None
    world.open[0].answer({**done(2), "units": 2.0})
    assert (world.answers[0]["cost_usd"], world.answers[0]["units"]) == (0.5, 2.0)


def closed(world):
    world.dispatcher.close()


def unlinked(world):
    world.linked = False


def with_open_circuit(world):
    fail_there(world.dispatcher.breakers, world.view.by_node[node_id(2)], seen=world.view)


def failing_policy():
    policies = Policies()
    policies.add("mine", lambda peer, _: peer.nothing)
    return policies


LOCAL = peer(1, load=Load(slots=8, service_s=0.0005), load_at=Instant(NOW - 0.1))
SLOW = peer(2, load=Load(slots=4, service_s=1.0))

CLOSED_WAYS = {
    "the node stops": ({}, closed, {}),
    "no link is open": ({}, unlinked, {}),
    "nobody offers it": ({}, None, {"capability": "other"}),
    "it has a fallback": ({"settings": RoutingSettings(fallback=("other",))}, None, {}),
    "a circuit is open": ({"peers": (ME, quick(2), quick(3))}, with_open_circuit, {}),
    "what callers spend is capped": (
        {"settings": RoutingSettings(spend={"node_usd_per_day": 5.0})}, None, {},
    ),
    "a price is too high": ({"settings": RoutingSettings(cost_usd_max=0.5)}, None, {}),
    "no time is left": ({}, None, {"deadline_s": 0.0009}),
    "this node itself is next": ({"peers": (LOCAL,)}, None, {}),
    "the work is long": ({"peers": (ME, SLOW)}, None, {}),
    "another policy holds": ({"settings": RoutingSettings(policy="random")}, None, {}),
    "a policy of one's own fails": (
        {
            "settings": RoutingSettings(policy="mine"),
            "policies": failing_policy(),
        },
        None, {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CLOSED_WAYS.values(), ids=CLOSED_WAYS)
async def test_where_it_is_closed_nothing_has_happened(case):
    made, prepare, asked = case
    world = DirectWorld(*made.get("peers", ()), **{k: v for k, v in made.items() if k != "peers"})
    if prepare is not None:
        prepare(world)
    before = world.books()
    assert world.begin(**asked) is None
    assert world.begin(**asked) is None, "nor a moment later"
    await world.settle()
    assert (world.sent, world.answers) == ([], [])
    assert world.books() == before


@pytest.mark.replaces
async def test_a_plan_that_could_not_stand_is_made_in_vain_once_in_a_while_only():
    world = DirectWorld(ME, SLOW)
    planned = []
    real = world.dispatcher._plan
    world.dispatcher._plan = lambda *given, **more: planned.append(1) or real(*given, **more)
    for _ in range(3):
        world.begin()
    assert len(planned) == 1
    world.clock.pass_s(0.005)
    world.begin()
    assert len(planned) == 2


async def share_of_this_node(*others, asks):
    """How many of 400 calls this node does itself, whose short way is asked so often before."""
    world = DirectWorld(LOCAL, *others, seed=5)
    for _ in range(400):
        if not any(world.begin() is not None for _ in range(asks)):
            call = asyncio.ensure_future(world.delegate())
            await world.settle()
            for sent in world.open:
                sent.answer(done(sent.n))
            await call
        for sent in world.open:
            sent.answer(done(sent.n))
        world.clock.pass_s(0.0004)
    return world.here


@pytest.mark.parametrize("others", [(quick(2),), (quick(2), quick(3, capabilities=SAFE))])
async def test_who_cannot_be_called_the_short_way_has_its_share_all_the_same(others):
    fair = await share_of_this_node(*others, asks=0)
    assert fair > 50
    for asks in (1, 2):  # a front end asks twice: where the call comes in, and where it is done
        here = await share_of_this_node(*others, asks=asks)
        assert 0.75 * fair < here < 1.33 * fair


async def test_a_failure_that_may_move_on_goes_on_elsewhere_and_is_answered_once():
    world = DirectWorld(ME, quick(2), quick(3))
    assert world.begin() is not None
    first = world.open[0]
    first.answer(error=PeerError("connection refused"))
    assert world.answers == []
    await world.settle()
    second = world.open[0]
    assert {first.n, second.n} == {2, 3}
    second.answer(done(second.n))
    await world.settle()
    (result,) = world.answers
    assert [a["outcome"] for a in result["attempts"]] == ["error", "ok"]
    assert world.dispatcher.counters["tries"] == 2
    assert world.dispatcher.counters["calls"] == 1


@pytest.mark.parametrize("how", ["indefinite", "final", "malformed", "endless", "late"])
async def test_a_failure_that_may_not_move_on_is_the_end(how):
    world = DirectWorld(ME, quick(2), quick(3))
    world.begin()
    world.open[0].answer(*REPLIES[how](2))
    (error,) = world.answers
    assert isinstance(error, MeshError)
    assert len(error.data["attempts"]) == 1
    assert world.dispatcher.decisions.last(1)[0].error == error.message
    await world.settle()
    assert len(world.answers) == len(world.sent) == 1


async def test_a_refusal_until_a_time_that_no_figure_holds_is_one_all_the_same():
    world = DirectWorld(ME, quick(2), quick(3))
    world.begin()
    world.open[0].answer(*REPLIES["never"](2))
    await world.settle()
    world.open[0].answer(done(world.open[0].n))
    await world.settle()
    assert [a["outcome"] for a in world.answers[0]["attempts"]] == ["busy", "ok"]


async def test_a_try_that_is_over_is_not_lost():
    world = DirectWorld()
    direct = world.begin()
    world.open[0].answer(done(2))
    direct.abandon("it is gone")
    await world.settle()
    assert not direct.lost
    assert len(world.answers) == 1


async def test_where_all_refuse_as_many_are_asked_as_by_the_long_way():
    asked = []
    for is_short in (True, False):
        way = OneWay(ME, *(quick(n) for n in range(2, 9)), is_short=is_short)
        way.begin()
        while not way.ends:
            await asyncio.sleep(0)
            for sent in way.world.open:
                sent.answer(*REPLIES["busy"](sent.n))
            if way.world.sleepers:
                break
        asked.append(len(way.world.sent))
        way.calls[0].cancel()
        await asyncio.sleep(0)
    assert asked == [4, 4]


async def test_a_caller_who_leaves_calls_the_try_off_and_hears_no_more():
    world = DirectWorld()
    direct = world.begin()
    direct.cancel()
    direct.cancel()
    assert world.called_off == [0]
    assert world.books()["running"] == {}
    world.dispatcher.peer_lost(node_id(2))
    await world.settle()
    assert world.answers == []
    (record,) = world.books()["records"].values()
    assert record[0] == 0
    assert world.books()["decisions"] == []


async def test_a_caller_may_leave_after_the_call_has_moved_on():
    world = DirectWorld(ME, quick(2), quick(3))
    direct = world.begin()
    world.open[0].answer(error=PeerError("connection refused"))
    await world.settle()
    assert len(world.open) == 1
    direct.cancel("bye")
    await world.settle()
    assert world.answers == []
    assert not world.dispatcher.is_busy
    assert all(row[0] == 0 for row in world.books()["records"].values())


async def test_whoever_leaves_as_the_answer_comes_hears_no_more():
    world = DirectWorld(ME, quick(2), quick(3))
    direct = world.begin()
    world.open[0].answer(error=PeerError("connection refused"))
    await world.settle()
    world.open[0].answer(error=UsageError("bad input", code=Code.INVALID_PARAMS))
    while not direct._task.done():
        await asyncio.sleep(0)
    direct.cancel()
    await world.settle()
    assert world.answers == []


async def test_if_what_it_waits_for_is_cancelled_the_call_ends_all_the_same():
    world = DirectWorld(ME, quick(2), quick(3))
    world.begin()
    world.open[0].answer(error=PeerError("connection refused"))
    await world.settle()
    world.open[0].future.cancel()
    await world.settle()
    (error,) = world.answers
    assert (error.code, error.definite) == (Code.CANCELLED, False)


@pytest.mark.parametrize("why", ["dead", "left", "gone", "restarted"])
@pytest.mark.parametrize("is_safe", [False, True])
async def test_a_peer_that_a_new_view_says_is_lost_ends_its_tries(why, is_safe):
    offers = SAFE if is_safe else (offer(),)
    world = DirectWorld(ME, quick(2, capabilities=offers), settings=NO_HEDGES)
    world.begin()
    changes = {
        "dead": {"state": MemberState.DEAD}, "left": {"state": MemberState.LEFT},
        "restarted": {"epoch": Epoch(2)},
    }  # fmt: skip
    kept = () if why == "gone" else (quick(2, capabilities=offers, **changes[why]),)
    world.change(ME, *kept, quick(3, capabilities=offers))
    assert world.answers == [], "not before the next turn of the loop"
    await world.settle()
    assert world.called_off == [0]
    if is_safe:
        world.open[0].answer(done(world.open[0].n))
        await world.settle()
        assert world.answers[0]["attempts"][0]["outcome"] == "lost"
    else:
        (error,) = world.answers
        assert "was lost while it had the work" in error.message
        assert not error.definite
    (streak,) = {kept["streak"] for kept in world.books()["breakers"]["own"].values()} or {"0"}
    assert streak == "0", "who was lost is not to blame"


@pytest.mark.parametrize("is_safe", [False, True])
@pytest.mark.parametrize("count", [1, 2])
async def test_mere_doubt_ends_only_what_may_run_twice_and_could_run_elsewhere(is_safe, count):
    offers = SAFE if is_safe else (offer(),)
    world = DirectWorld(
        ME, *(quick(n, capabilities=offers) for n in range(2, 2 + count)), settings=NO_HEDGES
    )
    world.begin()
    n = world.open[0].n
    world.dispatcher.peer_lost(node_id(n), "it is silent", is_certain=False)
    await world.settle()
    assert (world.called_off == [0]) == (is_safe and count == 2)


async def test_an_answer_that_comes_in_the_turn_in_which_its_peer_is_lost_counts():
    world = DirectWorld()
    world.begin()
    sent = world.open[0]
    world.dispatcher.peer_lost(node_id(2))
    sent.answer(done(2))
    await world.settle()
    assert [end["delegated_to"]["node"] for end in world.answers] == ["n2"]
    assert world.called_off == []


async def test_a_try_without_a_task_has_its_time_and_no_more():
    world = DirectWorld()
    world.begin(deadline_s=0.01)
    async with asyncio.timeout(5):
        while not world.answers:
            await asyncio.sleep(0)
    (error,) = world.answers
    assert isinstance(error, DeadlineError)
    assert "n2 did not answer within 0.01 s" in error.message
    assert not error.definite
    assert world.called_off == [0]


@pytest.mark.parametrize("is_definite", [True, False])
async def test_a_wire_that_fails_at_once_costs_one_try(is_definite):
    world = DirectWorld(ME, quick(2), quick(3))
    world.refusal = PeerError("the link got lost while sending", definite=is_definite)
    assert world.begin() is not None
    world.refusal = None
    await world.settle()
    assert world.called_off == []
    if is_definite:
        world.open[0].answer(done(world.open[0].n))
        await world.settle()
        assert len(world.answers[0]["attempts"]) == 2
    else:
        (error,) = world.answers
        assert error.message == "the link got lost while sending"
    assert world.books()["running"] == {}


async def test_a_wire_without_room_counts_as_a_peer_that_is_busy():
    world = DirectWorld(ME, quick(2), quick(3))
    world.has_room = False
    assert world.begin() is not None
    assert world.dispatcher.counters["refusals"] == 1
    await world.settle()
    world.open[0].answer(done(world.open[0].n))
    await world.settle()
    assert [a["outcome"] for a in world.answers[0]["attempts"]] == ["busy", "ok"]


async def test_calls_that_move_on_after_the_node_has_closed_end():
    world = DirectWorld(ME, quick(2), quick(3))
    world.begin()
    world.dispatcher.close()
    world.open[0].answer(error=PeerError("connection refused"))
    await world.settle()
    (error,) = world.answers
    assert error.code == Code.CANCELLED


async def test_a_circuit_that_its_failures_open_closes_the_way():
    world = DirectWorld(
        ME, quick(2), quick(3), settings=RoutingSettings(breaker=BreakerSettings(), retries=0)
    )
    for _ in range(40):
        if world.begin() is None:
            break
        world.open[0].answer(error=PeerError("link lost", definite=False))
        world.clock.pass_s(0.01)
    assert world.dispatcher.breakers.opened > 0
    assert world.begin() is None


async def test_the_request_that_it_makes_is_a_plain_one():
    world = DirectWorld()
    direct = world.begin(value=1, deadline_s=3.0)
    assert direct.call.request == DelegateRequest(
        capability="echo", input=1, deadline_s=3.0, caller=CALLER
    )
    direct.cancel()
