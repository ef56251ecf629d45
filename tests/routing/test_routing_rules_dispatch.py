"""Calls keep to the settings of their capability, and to new ones from their next try on."""

import asyncio

import pytest
from routing_world import failing, offer, peer
from test_routing_dispatcher import REFUSED, SAFE, World, busy, me
from test_routing_resilient import warm

from meshd.errors import BudgetError, BusyError, DeadlineError, PeerError, UsageError
from meshd.routing.request import DelegateRequest
from meshd.routing.settings import Overrides, RoutingSettings


def ruled(*peers, **keys):
    return World(*peers, settings=RoutingSettings(by_capability={"echo": Overrides(**keys)}))


@pytest.mark.parametrize(("retries", "asked"), [(0, 1), (1, 2), (3, 4)])
async def test_so_many_further_candidates_are_asked_as_the_settings_say(retries, asked):
    world = ruled(me(), *(peer(n) for n in range(2, 8)), retries=retries)
    world.answer({n: failing(REFUSED) for n in range(2, 8)})
    with pytest.raises(PeerError):
        await world.delegate()
    assert len(world.invoker.asked) == asked


async def test_without_retries_one_busy_peer_is_the_end_of_a_round():
    world = ruled(me(), peer(2), peer(3), retries=0)
    world.answer({2: busy(eta_s=1e6), 3: busy(eta_s=1e6)})
    with pytest.raises(BusyError):
        await world.delegate()
    assert len(world.invoker.asked) == 1


async def test_a_call_that_names_no_deadline_has_that_of_its_capability():
    world = ruled(me(), peer(2), deadline_s=7.0)
    await world.delegate()
    await world.delegate(deadline_s=3.0)
    assert [round(timeout_s) for _, _, timeout_s in world.invoker.asked] == [7, 3]
    assert world.dispatcher.settings_for("other").deadline_s == RoutingSettings().deadline_s


@pytest.mark.parametrize("hedge", [True, False])
async def test_work_is_sent_twice_only_where_its_capability_may_be(hedge):
    world = ruled(me(), *(peer(n, capabilities=SAFE) for n in (2, 3)), hedge=hedge)
    warm(world)
    world.answer({2: asyncio.Event(), 3: asyncio.Event()})
    with pytest.raises(DeadlineError):
        await world.delegate(deadline_s=0.1)
    assert world.dispatcher.resilience.hedges == hedge


async def test_the_policy_of_a_capability_is_taken_and_its_source_told():
    world = ruled(me(), peer(2), peer(3), policy="round_robin")
    told = [(await world.delegate(explain=True, policy=p))["explain"] for p in ("", "random")]
    assert [(t["policy"], t["policy_from"]) for t in told] == [
        ("round_robin", "capability echo"), ("random", "the call"),
    ]  # fmt: skip
    other = world.dispatcher.plan(DelegateRequest(capability="other"))
    assert (other.policy, other.policy_from) == ("adaptive", "default")


async def test_a_cap_on_cost_holds_also_for_who_allows_more():
    priced = (offer(cost_usd_per_call=0.5),)
    cheap = (offer(cost_usd_per_call=0.1),)
    world = ruled(me(), peer(2, capabilities=priced), peer(3, capabilities=cheap), cost_usd_max=0.2)
    result = await world.delegate()
    assert result["peer_result"]["node"] == "n3"
    world.change(me(), peer(2, capabilities=priced))
    with pytest.raises(BudgetError, match=r"at most \$0.2"):
        await world.delegate()


async def test_new_settings_hold_for_the_next_try_of_calls_under_way():
    world = ruled(me(), peer(2), peer(3), policy="round_robin", retries=0)
    spend = {"caller_usd_per_hour": 1.0}

    def fails_after_new_settings(params, timeout_s):
        world.dispatcher.use(RoutingSettings(policy="random", spend=spend))
        raise REFUSED

    world.answer({2: fails_after_new_settings})
    result = await world.delegate(explain=True)
    assert world.invoker.order == [2, 3]
    assert result["explain"]["policy"] == "random"
    standing = world.dispatcher.ledger.standing("x", world.clock.now())
    assert [spent.cap for spent in standing] == ["caller_usd_per_hour"]


async def test_settings_that_cannot_hold_change_nothing():
    world = ruled(me(), peer(2), retries=1)
    with pytest.raises(UsageError):
        world.dispatcher.use(
            RoutingSettings(by_capability={"echo": Overrides(tiers={"least": 0.99})})
        )
    assert world.dispatcher.settings_for("echo").retries == 1


async def test_circuits_open_by_the_numbers_of_their_capability_and_by_new_ones_at_once():
    world = ruled(me(), peer(2), peer(3), retries=0, breaker={"failures": 5})
    world.answer({2: failing(REFUSED), 3: failing(REFUSED)})

    async def opened_by_failures(count):
        for _ in range(count):
            with pytest.raises(PeerError):
                await world.delegate(to="n2")
        return world.dispatcher.breakers.opened_at_nodes

    assert await opened_by_failures(3) == 0, "it would have by default"
    world.dispatcher.use(
        RoutingSettings(by_capability={"echo": Overrides(retries=0, breaker={"failures": 4})})
    )
    assert await opened_by_failures(1) == 1
