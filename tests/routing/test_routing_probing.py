"""A call asks its best candidates for their load first, within its budgets, and loses nothing."""

import random
from collections.abc import Mapping

import pytest
from routing_world import (
    NOW,
    FakeClock,
    FakeInvoker,
    busy_load,
    fail_there,
    node_id,
    offer,
    peer,
    view,
)

from meshd.errors import BusyError, DeadlineError, PeerError, UsageError
from meshd.model import Load, MemberState
from meshd.routing.custom import Policies
from meshd.routing.dispatcher import Dispatcher
from meshd.routing.probes import NOT_FIRST, OVER_BUDGET, TOO_LATE
from meshd.routing.probing import PROBES_PER_S, PROBES_SAVED
from meshd.routing.request import DelegateRequest

OLD = NOW - 1


class FakeProber:
    """Answers for each node as it is told; who is not in `loads` is silent."""

    def __init__(self, loads: Mapping[int, Load]) -> None:
        self.loads = loads
        self.asked: list[tuple[tuple[int, ...], float]] = []
        self.here = Load(slots=4, service_s=0.2)
        self.meanwhile = lambda: None

    def load_here(self):
        return self.here

    async def probe(self, nodes, wait_s, is_enough):
        numbers = tuple(int.from_bytes(node) for node in nodes)
        self.asked.append((numbers, wait_s))
        self.meanwhile()
        return {node_id(n): (0.001, self.loads[n]) for n in numbers if n in self.loads}


class World:
    """A dispatcher on node 1, which offers nothing, four workers and a prober."""

    def __init__(self, loads=None, *, workers=(2, 3, 4, 5), policies=None, **told):
        self.clock, self.invoker, self.prober = FakeClock(), FakeInvoker(), FakeProber(loads or {})
        self.peers = {n: peer(n, load=busy_load(n - 2), load_at=OLD, **told) for n in workers}
        self.view = view(peer(1, capabilities=()), *self.peers.values())
        self.dispatcher = Dispatcher(
            clock=self.clock,
            view=lambda: self.view,
            invoker=self.invoker,
            local=self.no_local,
            local_offer=self.no_local,
            random=random.Random(1),
            prober=self.prober,
            policies=policies,
            sleep=self.clock.sleep,
        )

    async def no_local(self, *_, **__):
        raise AssertionError("nothing runs here")

    async def delegate(self, **fields):
        return await self.dispatcher.delegate(DelegateRequest(capability="echo", **fields))

    @property
    def firsts(self):
        return [nodes for nodes, _ in self.prober.asked]


async def test_the_better_of_the_best_two_gets_the_work():
    world = World({2: busy_load(6), 3: busy_load(2)})
    told = (await world.delegate(explain=True))["explain"]
    assert world.firsts == [(2, 3)]
    assert world.invoker.order == [3]
    assert told["chosen"]["name"] == "n3"
    assert {row["name"]: row["rif"] for row in told["probes"]} == {"n2": 6, "n3": 2}
    assert world.dispatcher.counters == {
        "calls": 1, "tries": 1, "refusals": 0, "probes": 2, "answered": 2, "over_budget": 0,
    }  # fmt: skip


async def test_where_the_best_two_are_busy_two_more_are_asked_and_then_no_more():
    world = World({n: busy_load(6) for n in (2, 3, 4)} | {5: busy_load(1)})
    await world.delegate()
    assert world.firsts == [(2, 3), (4, 5)]
    assert world.invoker.order == [5]
    world = World({n: busy_load(9 - n) for n in (2, 3, 4, 5)})
    await world.delegate()
    assert world.firsts == [(2, 3), (4, 5)]
    assert world.invoker.order == [5]


async def test_silence_costs_nothing_but_the_wait():
    world = World()
    await world.delegate()
    assert world.invoker.order == [2]
    assert world.dispatcher.counters["answered"] == 0


async def test_the_wait_is_a_twentieth_of_the_time_that_remains_at_most():
    world = World({2: busy_load(0)})
    await world.delegate(deadline_s=0.1)
    (asked,) = world.prober.asked
    assert asked[1] == pytest.approx(0.005)


async def test_a_call_is_probed_for_once_however_often_it_is_refused():
    world = World({n: busy_load(0) for n in (2, 3, 4, 5)})

    def refuse(params, timeout_s):
        raise BusyError("full", data={"eta_s": 0.05, "load": {"in_flight": 9, "slots": 4}})

    world.invoker.answers = dict.fromkeys((2, 3, 4), refuse)
    await world.delegate()
    assert world.firsts == [(2, 3)]
    assert world.invoker.order[-1] == 5
    assert world.dispatcher.counters["refusals"] == len(world.invoker.order) - 1


async def test_who_dies_while_it_is_asked_is_not_given_the_work():
    world = World()

    def die():
        world.peers[2] = peer(2, state=MemberState.DEAD)
        world.view = view(peer(1, capabilities=()), *world.peers.values())

    world.prober.meanwhile = die
    await world.delegate()
    assert world.invoker.order == [3]


async def test_this_nodes_own_load_is_known_without_asking():
    world = World({2: busy_load(4)}, workers=(2,))
    world.prober.here = busy_load(7)
    world.view = view(peer(1, load=Load(slots=4, service_s=0.2)), *world.peers.values())
    await world.delegate()
    assert world.invoker.order == [2]


async def test_bids_take_the_place_of_probes():
    world = World({2: busy_load(0)})
    world.invoker.offers = {
        n: lambda _: {"answer": "accept", "eta_s": 1.0, "queue": 0} for n in (2, 3)
    }
    await world.delegate(offers=2)
    assert world.firsts == []


async def test_more_probes_than_a_second_may_cost_are_left_out():
    world = World({2: busy_load(2), 3: busy_load(2)})
    for _ in range(int(PROBES_SAVED)):
        await world.delegate()
        world.dispatcher.outstanding.reports.clear()
    assert world.dispatcher.counters["probes"] == PROBES_SAVED
    assert world.dispatcher.counters["over_budget"] > 0
    world.clock.pass_s(2 / PROBES_PER_S)
    await world.delegate()
    assert world.dispatcher.counters["probes"] == PROBES_SAVED + 2


async def test_where_all_are_gone_after_the_wait_the_call_is_planned_anew():
    world = World(workers=(2, 3))

    def replace_all():
        world.peers = {2: peer(2, state=MemberState.DEAD), 3: peer(3, state=MemberState.LEFT)}
        world.peers[9] = peer(9, load=busy_load(0))
        world.view = view(peer(1, capabilities=()), *world.peers.values())

    world.prober.meanwhile = replace_all
    told = (await world.delegate(explain=True))["explain"]
    assert world.invoker.order == [9]
    assert {row["name"] for row in told["probes"]} == {"n2", "n3"}, "they were asked"


async def test_a_circuit_that_opens_during_the_wait_keeps_the_work_away():
    world = World()
    world.prober.meanwhile = lambda: fail_there(world.dispatcher.breakers, world.peers[2])
    await world.delegate(policy="least_loaded")
    assert world.invoker.order == [3]


async def test_a_node_that_stops_during_the_wait_sends_nothing():
    world = World()
    world.prober.meanwhile = world.dispatcher.close
    with pytest.raises(PeerError, match="stopping"):
        await world.delegate()
    assert world.invoker.order == []


async def test_an_answer_is_as_old_as_it_is_and_not_as_the_wait():
    world = World({2: busy_load(1)})

    async def one_answers(nodes, wait_s, is_enough):
        answers = {node_id(2): (0.001, busy_load(1))}
        assert is_enough(answers)
        world.clock.pass_s(wait_s)
        return answers

    world.prober.probe = one_answers
    await world.delegate()
    signals = world.dispatcher.outstanding
    assert signals.reports[node_id(2)][1] == NOW
    assert signals.reports[node_id(2)][0] == busy_load(1)


async def test_with_too_little_time_left_nobody_is_asked_and_the_explanation_says_so():
    world = World({2: busy_load(0)})
    told = (await world.delegate(deadline_s=0.01, explain=True))["explain"]
    assert world.firsts == []
    assert told["not_probed"] == TOO_LATE


async def test_who_is_too_far_for_the_time_that_is_left_is_not_asked():
    world = World(rtt_s=0.008)
    told = (await world.delegate(deadline_s=0.05, explain=True))["explain"]
    assert world.firsts == []
    assert told["not_probed"] == TOO_LATE


async def test_a_bidder_that_dies_before_it_gets_the_work_does_not_get_it():
    world = World(workers=(2, 3))

    def bid(params):
        world.peers[2] = peer(2, state=MemberState.DEAD)
        world.view = view(peer(1, capabilities=()), *world.peers.values())
        return {"answer": "accept", "eta_s": 0.1, "queue": 0}

    late = {"answer": "accept", "eta_s": 1.0, "queue": 0}
    world.invoker.offers = {2: bid, 3: lambda _: late}
    await world.delegate(offers=2)
    assert world.invoker.order == [3]


@pytest.mark.replaces
@pytest.mark.parametrize("passes_s", [0.1, 0.0])
async def test_what_is_overtaken_for_ever_ends_with_its_deadline(monkeypatch, passes_s):
    world = World()

    def overtaken(call, made):
        world.clock.pass_s(passes_s)
        return True

    monkeypatch.setattr(world.dispatcher, "_is_overtaken", overtaken)
    with pytest.raises(DeadlineError):
        await world.delegate(deadline_s=1.0)
    assert world.invoker.order == []


async def test_a_failed_reply_tells_its_load_before_the_failure_is_weighed():
    world = World(workers=(2,), capabilities=(offer(),))

    def fail(params, timeout_s):
        raise PeerError("lost", definite=False, data={"load": {"slots": 4, "service_s": 1.0}})

    world.invoker.answers = {2: fail}
    with pytest.raises(PeerError):
        await world.delegate()
    signals = world.dispatcher.outstanding
    assert signals.estimate(world.peers[2], world.clock.now()).penalty_s == pytest.approx(3.0)


async def test_later_tries_are_explained_as_that():
    world = World({2: busy_load(0)})

    def refuse(params, timeout_s):
        raise BusyError("full", data={"eta_s": 0.05, "load": {"in_flight": 9, "slots": 4}})

    world.invoker.answers = {2: refuse}
    told = (await world.delegate(explain=True))["explain"]
    assert told["probes"] == []
    assert told["not_probed"] == NOT_FIRST


async def test_over_the_budget_nobody_is_asked_and_the_explanation_says_so():
    world = World({n: busy_load(0) for n in (2, 3)})
    world.dispatcher._probing.messages.spend(1_000)
    told = (await world.delegate(explain=True))["explain"]
    assert world.firsts == []
    assert told["not_probed"] == OVER_BUDGET
    assert world.dispatcher.counters["over_budget"] == 1


async def test_a_second_look_that_is_over_the_budget_leaves_the_order_of_the_first():
    world = World({n: busy_load(6) for n in (2, 3)})
    messages = world.dispatcher._probing.messages
    world.prober.meanwhile = lambda: messages.spend(1_000)
    told = (await world.delegate(explain=True))["explain"]
    assert world.firsts == [(2, 3)]
    assert {row["name"] for row in told["probes"]} == {"n2", "n3"}


def policies_with(cost):
    policies = Policies()
    policies.add("odd", cost)
    return policies


async def test_a_policy_that_fails_after_a_try_does_not_hide_the_try():
    tried = []

    def cost(peer, estimate):
        if tried:
            raise ZeroDivisionError
        return float(peer.name[1:])

    def lose(params, timeout_s):
        tried.append(1)
        raise PeerError("lost", definite=False)

    offers = (offer(idempotent=True),)
    world = World(policies=policies_with(cost), capabilities=offers)
    world.invoker.answers = {2: lose}
    with pytest.raises(UsageError, match="the policy odd failed") as caught:
        await world.delegate(policy="odd")
    assert not caught.value.definite
    assert [each["name"] for each in caught.value.data["attempts"]] == ["n2"]


async def test_a_policy_that_fails_on_the_answers_ends_the_call_before_anything_is_sent():
    asked = []

    def cost(peer, estimate):
        if asked:
            raise ZeroDivisionError
        return 1.0

    world = World(policies=policies_with(cost))
    world.prober.meanwhile = lambda: asked.append(1)
    with pytest.raises(UsageError) as caught:
        await world.delegate(policy="odd")
    assert caught.value.definite
    assert world.invoker.order == []
