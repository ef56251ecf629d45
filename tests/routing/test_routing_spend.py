"""What calls cost, who pays, and what is refused for it."""

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_world import NOW, done, failing, node_id, offer, peer
from test_routing_dispatcher import BROKEN, World, me, under_way
from test_routing_resilient import bid, both_asked, warm

from meshd.clock import Instant
from meshd.errors import BudgetError, BusyError, Code, NoCandidateError, PeerError
from meshd.routing import spend, usual
from meshd.routing.settings import Overrides, RoutingSettings
from meshd.routing.spend import OTHERS, UNITS_MAX, Ledger, spend_shape, units_of
from meshd.routing.terms import NO_TERMS, parse_terms
from meshd.routing.usual import KEPT_S, SAMPLES_MAX, UsualUnits

FLAT = offer(cost_usd_per_call=0.5)
METERED = offer(cost_usd_per_call=0.1, cost_usd_per_unit=0.01)


def priced(n, offered=FLAT, **changes):
    return peer(n, capabilities=(offered,), **changes)


def begun(ledger, caller="a", offered=FLAT, *, n=2, now=NOW):
    return ledger.begin(caller, node_id(n), offered, now)


def bought(ledger, caller="a", offered=FLAT, units=None, *, is_charged=True, now=NOW, n=2):
    purchase = begun(ledger, caller, offered, n=n, now=now)
    reply = done(n) if units is None else {**done(n), "units": units}
    ledger.end(purchase, reply, now, is_charged=is_charged)
    return purchase.cost_usd


def answering(units):
    return lambda params, timeout_s: {**done(2), "units": units}


def terms(**asked):
    return parse_terms(**asked)[0]


# The ledger


def test_a_call_costs_its_price_and_that_of_the_units_it_took():
    ledger = Ledger()
    assert begun(ledger, offered=offer()) is None
    assert begun(ledger, offered=None) is None
    assert bought(ledger) == 0.5
    assert bought(ledger, offered=METERED, units=30.0) == pytest.approx(0.4)
    assert bought(ledger, offered=METERED) == pytest.approx(0.1)
    assert bought(ledger, is_charged=False) == 0.0
    (row,) = ledger.rows()
    assert (row.caller, row.capability, row.calls, row.units) == ("a", "echo", 3, 30.0)
    assert row.cost_usd == pytest.approx(1.0)


def test_the_usual_units_of_a_node_are_expected_of_its_next_call():
    ledger = Ledger()
    assert ledger.terms(None, "a", "echo", NOW) is None
    for units in (20.0, 30.0):
        bought(ledger, offered=METERED, units=units)
    assert ledger.terms(None, "a", "echo", NOW).units_at == {node_id(2): 20.0}
    assert begun(ledger, offered=METERED).cost_usd == pytest.approx(0.3)
    assert begun(ledger, offered=METERED, n=3).cost_usd == pytest.approx(0.11)


def test_one_answer_with_many_units_does_not_make_a_node_too_dear():
    ledger = Ledger({"caller_usd_per_hour": 1.0})
    bought(ledger, offered=METERED, units=UNITS_MAX)
    assert not ledger.is_short("b", node_id(2), METERED, NOW)
    for units in (10.0, UNITS_MAX):
        bought(ledger, offered=METERED, units=units)
    assert begun(ledger, "b", METERED).cost_usd == pytest.approx(0.2)


def test_many_units_at_one_node_do_not_make_others_too_dear_and_are_forgotten():
    ledger = Ledger({"caller_usd_per_hour": 1.0})
    for _ in range(2 * SAMPLES_MAX):
        bought(ledger, offered=METERED, units=UNITS_MAX)
    assert ledger.is_short("b", node_id(2), METERED, NOW)
    assert not ledger.is_short("b", node_id(3), METERED, NOW)
    later = Instant(NOW + KEPT_S)
    assert not ledger.is_short("b", node_id(2), METERED, later)
    assert ledger.terms(None, "b", "echo", later).units_at == {}


@given(st.lists(st.floats(0, UNITS_MAX), max_size=2 * SAMPLES_MAX))
def test_what_is_expected_was_asked_for_or_is_one_unit(asked):
    learned = UsualUnits()
    for units in asked:
        learned.learn("echo", node_id(2), units, NOW)
    expected = learned.expected("echo", node_id(2), NOW)
    assert expected in {1.0, *asked[-SAMPLES_MAX:]}
    assert learned.by_node("echo", NOW) == ({node_id(2): expected} if asked else {})


def test_what_is_learned_of_units_is_bounded(monkeypatch):
    for name in ("CAPABILITIES_MAX", "NODES_MAX"):
        monkeypatch.setattr(usual, name, 2)
    learned = UsualUnits()
    for name, n in (("x", 2), ("y", 2), ("y", 3), ("y", 2), ("y", 4), ("z", 2)):
        learned.learn(name, node_id(n), 5.0, NOW)
        learned.learn(name, node_id(n), 5.0, NOW)
    assert learned.by_node("x", NOW) == {}
    assert learned.by_node("y", NOW) == {node_id(2): 5.0, node_id(4): 5.0}
    assert learned.by_node("z", NOW) == {node_id(2): 5.0}


def test_without_caps_nobody_is_short():
    assert not Ledger().is_short("a", node_id(2), FLAT, NOW)
    assert not Ledger({"caller_usd_per_hour": 0.1}).is_short("a", node_id(2), None, NOW)


def test_a_call_of_which_nobody_knows_what_it_took_costs_what_was_expected():
    ledger = Ledger({"caller_usd_per_hour": 1.0})
    for units in (20.0, 20.0):
        bought(ledger, "b", METERED, units)
    for reply in (None, {**done(2), "units": math.nan}, {**done(2), "units": UNITS_MAX * 2}):
        purchase = begun(ledger, "a", METERED)
        ledger.end(purchase, reply, NOW, is_charged=True)
        assert purchase.cost_usd == pytest.approx(0.3)
        assert purchase.units is None
    assert ledger.left_usd("a", NOW) == pytest.approx(0.1)
    assert begun(ledger, "b", METERED).cost_usd == pytest.approx(0.3)


def test_what_comes_back_goes_to_the_window_that_it_was_kept_in():
    ledger = Ledger({"caller_usd_per_hour": 1.0})
    old, dear = begun(ledger), begun(ledger, offered=METERED)
    late = Instant(NOW + 3_600)
    bought(ledger, now=late)
    ledger.end(old, None, late, is_charged=False)
    assert ledger.left_usd("a", late) == 0.5
    ledger.end(dear, {**done(2), "units": 11.0}, late, is_charged=True)
    assert ledger.left_usd("a", late) == pytest.approx(0.4), "what is on top counts now"


def test_who_has_no_name_pays_once():
    ledger = Ledger({"node_usd_per_hour": 1.0})
    bought(ledger, "")
    assert ledger.left_usd("", NOW) == 0.5


def test_a_cap_leaves_what_is_not_spent_and_begins_anew_after_its_time():
    ledger = Ledger({"caller_usd_per_hour": 1.0, "node_usd_per_day": 1.2})
    assert ledger.left_usd("a", NOW) == 1.0
    bought(ledger, "a")
    assert (ledger.left_usd("a", NOW), ledger.left_usd("b", NOW)) == (0.5, pytest.approx(0.7))
    bought(ledger, "b")
    assert ledger.left_usd("a", NOW) == pytest.approx(0.2)
    assert ledger.left_usd("a", Instant(NOW + 3_600)) == pytest.approx(0.2)
    assert ledger.left_usd("a", Instant(NOW + 86_400)) == 1.0


def test_what_is_under_way_counts_against_a_cap_until_it_has_ended():
    ledger = Ledger({"caller_usd_per_hour": 1.0})
    first, second = begun(ledger), begun(ledger)
    assert ledger.left_usd("a", NOW) == 0.0
    ledger.end(first, None, NOW, is_charged=False)
    assert ledger.left_usd("a", NOW) == 0.5
    late = Instant(NOW + 4_000)
    assert ledger.left_usd("a", late) == 1.0
    ledger.end(second, None, late, is_charged=False)
    assert ledger.left_usd("a", late) == 1.0


def test_a_refusal_says_which_cap_how_much_and_until_when():
    ledger = Ledger({"caller_usd_per_day": 0.6, "node_usd_per_hour": 9.0})
    bought(ledger, "agent a")
    assert ledger.refusal("agent a", "echo", 0.1, NOW) is None
    error = ledger.refusal("agent a", "echo", 0.5, Instant(NOW + 400))
    assert "agent a has $0.1 left for 'echo' of $0.6 per day" in error.message
    assert error.data == {
        "cap": "caller_usd_per_day", "cap_usd": 0.6, "spent_usd": 0.5, "resets_in_s": 86_000.0,
    }  # fmt: skip
    assert (error.code, error.definite) == (Code.OVER_BUDGET, True)
    assert "wait 86000 s" in error.hint
    assert "wait" not in ledger.refusal("agent a", "echo", 0.7, NOW).hint
    assert "one call asks $0.7" in ledger.refusal("agent b", "echo", 0.7, NOW).hint
    assert "this node has" in Ledger({"node_usd_per_day": 0.0}).refusal("a", "b", 1.0, NOW).message
    assert Ledger().refusal("a", "echo", 9.0, NOW) is None


def test_callers_and_rows_are_bounded_and_caps_hold_beyond(monkeypatch):
    for name in ("CALLERS_MAX", "ROWS_MAX"):
        monkeypatch.setattr(spend, name, 2)
    ledger = Ledger({"caller_usd_per_hour": 1.0})
    for caller in ("a", "b", "c", "d"):
        bought(ledger, caller)
    assert ledger.left_usd("a", NOW) == 0.5
    assert ledger.left_usd("e", NOW) == 0.0
    assert [(row.caller, row.calls) for row in ledger.rows()] == [(OTHERS, 2), ("a", 1), ("b", 1)]


def test_the_accounts_as_json():
    ledger = Ledger({"caller_usd_per_hour": 1.0, "node_usd_per_day": 3.0})
    bought(ledger, "b", METERED, 10.0)
    bought(ledger, "a")
    told = spend_shape(ledger, Instant(NOW + 600))
    assert [(row["caller"], row["calls"], row["units"]) for row in told["spent"]] == [
        ("a", 1, 0.0), ("b", 1, 10.0),
    ]  # fmt: skip
    assert (told["calls"], told["cost_usd"]) == (2, pytest.approx(0.7))
    assert [(cap["caller"], cap["cap"], cap["resets_in_s"]) for cap in told["caps"]] == [
        ("a", "caller_usd_per_hour", 3_000.0), (None, "node_usd_per_day", 85_800.0),
        ("b", "caller_usd_per_hour", 3_000.0),
    ]  # fmt: skip
    assert spend_shape(Ledger(), NOW)["spent"] == []
    assert spend_shape(Ledger({"node_usd_per_day": 3.0}), NOW)["caps"][0]["spent_usd"] == 0.0


@pytest.mark.parametrize(
    ("reply", "units"),
    [
        ({"units": 3}, 3.0),
        ({"units": 0.5}, 0.5),
        ({}, None),
        (None, None),
        ({"units": -1}, None),
        ({"units": True}, None),
        ({"units": "3"}, None),
        ({"units": math.nan}, None),
        ({"units": UNITS_MAX * 2}, None),
    ],
)
def test_units_that_make_no_sense_are_none(reply, units):
    assert units_of(reply) == units


steps = st.tuples(
    st.sampled_from("abc"), st.sampled_from([FLAT, METERED]), st.none() | st.floats(0, 100),
    st.booleans(), st.floats(0, 5_000),
)  # fmt: skip


@given(st.lists(steps, max_size=30))
def test_what_the_rows_say_is_what_the_calls_cost(taken):
    ledger = Ledger({"caller_usd_per_hour": 5.0, "node_usd_per_day": 9.0})
    now, total = NOW, 0.0
    for caller, offered, units, is_charged, later_s in taken:
        now = Instant(now + later_s)
        total += bought(ledger, caller, offered, units, is_charged=is_charged, now=now)
        assert all(spent.left_usd >= 0.0 for spent in ledger.standing(caller, now))
    assert sum(row.cost_usd for row in ledger.rows()) == pytest.approx(total)


# Calls


async def test_an_answer_says_what_it_cost_and_the_caller_pays():
    world = World(me(), priced(2, METERED))
    world.answer({2: answering(40)})
    result = await world.delegate(caller="agent a")
    assert (result["cost_usd"], result["units"]) == (pytest.approx(0.5), 40.0)
    (row,) = world.dispatcher.ledger.rows()
    assert (row.caller, row.calls, row.cost_usd) == ("agent a", 1, pytest.approx(0.5))


async def test_an_answer_without_units_costs_the_call_alone():
    world = World(me(), priced(2, METERED))
    result = await world.delegate()
    assert result["cost_usd"] == pytest.approx(0.1)
    assert "units" not in result
    assert "cost_usd" not in await World(me(), peer(2)).delegate()


async def test_a_try_that_surely_had_no_effect_is_free_and_one_that_may_have_is_not():
    world = World(me(), priced(2), priced(3))
    world.answer({2: failing(BusyError("full")), 3: failing(PeerError("refused"))})
    with pytest.raises(PeerError):
        await world.delegate()
    assert world.dispatcher.ledger.rows() == []
    world = World(me(), priced(2))
    world.answer({2: failing(BROKEN)})
    with pytest.raises(PeerError):
        await world.delegate()
    assert [row.calls for row in world.dispatcher.ledger.rows()] == [1]


async def test_a_call_that_is_called_off_may_have_had_an_effect():
    world = World(me(), priced(2))
    world.answer({2: asyncio.Event()})
    task = await under_way(world)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [row.calls for row in world.dispatcher.ledger.rows()] == [1]


async def test_a_call_that_may_have_had_an_effect_costs_what_was_expected_of_its_units():
    world = World(me(), priced(2, METERED), priced(3, METERED))
    world.answer({2: failing(BROKEN), 3: lambda params, timeout_s: {"units": 3.0}})
    for to in ("n2", "n3"):
        with pytest.raises(PeerError):
            await world.delegate(to=to)
    (row,) = world.dispatcher.ledger.rows()
    assert (row.calls, row.cost_usd) == (2, pytest.approx(0.22))


async def test_a_cap_holds_for_calls_that_wait_for_their_task_to_be_marked():
    settings = RoutingSettings(spend={"caller_usd_per_hour": 0.6})
    world = World(me(), priced(2), settings=settings)
    marked, marking = asyncio.Event(), []

    async def trying(to):
        marking.append(to.name)
        await marked.wait()

    def delegate():
        return asyncio.ensure_future(world.delegate(trying=trying, caller="a"))

    first, second = delegate(), delegate()
    with pytest.raises(BudgetError, match="a has"):
        await asyncio.wait_for(second, 5)
    assert (marking, first.done()) == (["n2"], False)
    marked.set()
    assert (await asyncio.wait_for(first, 5))["cost_usd"] == 0.5


async def test_who_cannot_be_marked_as_sent_there_is_free():
    settings = RoutingSettings(spend={"caller_usd_per_hour": 0.6})
    world = World(me(), priced(2), peer(3), settings=settings)

    async def trying(to):
        raise PeerError("the disk is full")

    for to in ("n2", "n3"):
        with pytest.raises(PeerError, match="disk is full"):
            await world.delegate(trying=trying, caller="a", to=to)
    assert world.dispatcher.ledger.left_usd("a", world.clock.now()) == 0.6
    assert world.dispatcher.ledger.rows() == []
    assert world.invoker.asked == []


async def test_a_cap_holds_for_calls_that_gather_bids():
    settings = RoutingSettings(spend={"caller_usd_per_hour": 0.6})
    world = World(me(), priced(2), priced(3), settings=settings)
    world.invoker.offers = {n: bid(eta_s=0.1) for n in (2, 3)}
    calls = [world.delegate(caller="a", offers=2) for _ in range(3)]
    ends = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5)
    assert sorted(type(end).__name__ for end in ends) == ["BudgetError", "BudgetError", "dict"]
    assert len(world.invoker.asked) == 1


async def test_two_copies_of_a_call_cost_twice():
    safe = offer(cost_usd_per_call=0.5, idempotent=True)
    world = World(me(), priced(2, safe), priced(3, safe))
    warm(world)
    task, _, second = await both_asked(world)
    world.invoker.answers[second].set()
    result = await asyncio.wait_for(task, 5)
    assert result["cost_usd"] == 0.5
    (row,) = world.dispatcher.ledger.rows()
    assert (row.calls, row.cost_usd) == (2, 1.0)


async def test_a_budget_leaves_out_who_is_too_expensive():
    world = World(me(), priced(2), priced(3, METERED))
    result = await world.delegate(terms=terms(cost_usd_max=0.2), explain=True)
    assert result["delegated_to"]["node"] == "n3"
    assert {
        "node": peer(2).node.hex(), "name": "n2", "why": "is too expensive: more than $0.2"
    } in result["explain"]["left_out"]  # fmt: skip


async def test_nobody_within_the_budget_is_an_error_that_names_the_cheapest():
    world = World(me(), priced(2), priced(3, METERED))
    with pytest.raises(BudgetError, match=r"nobody takes 'echo' for at most \$0.05") as caught:
        await world.delegate(terms=terms(cost_usd_max=0.05))
    assert caught.value.data["cheapest_usd"] == pytest.approx(0.11)
    assert "the cheapest asks $0.11" in caught.value.hint
    assert world.invoker.asked == []


async def test_where_others_are_only_away_it_is_not_the_price():
    world = World(me(), priced(2), priced(3, offer(), reachable=False))
    with pytest.raises(NoCandidateError):
        await world.delegate(terms=terms(cost_usd_max=0.05))


async def test_a_cap_refuses_what_is_beyond_it_and_lets_free_work_go_on():
    settings = RoutingSettings(spend={"caller_usd_per_hour": 0.6})
    world = World(me(), priced(2), settings=settings)
    await world.delegate(caller="a")
    with pytest.raises(BudgetError, match=r"a has \$0.1 left") as caught:
        await world.delegate(caller="a")
    assert caught.value.data["resets_in_s"] == 3_600.0
    await world.delegate(caller="b")
    world.change(me(), priced(2), priced(3, offer()))
    assert (await world.delegate(caller="a"))["delegated_to"]["node"] == "n3"
    world.change(me(), priced(2))
    world.clock.pass_s(3_600.0)
    world.change(me(), priced(2, heard_at=world.clock.now()))
    assert (await world.delegate(caller="a"))["cost_usd"] == 0.5


async def test_a_budget_below_the_cap_is_told_as_the_budget():
    settings = RoutingSettings(spend={"caller_usd_per_hour": 9.0})
    with pytest.raises(BudgetError, match="nobody takes"):
        await World(me(), priced(2), settings=settings).delegate(terms=terms(cost_usd_max=0.05))


async def test_a_bound_of_the_settings_is_told_as_theirs_and_the_calls_own_as_its_own():
    spend = {"caller_usd_per_hour": 0.6}
    by_capability = {"ec*": Overrides(cost_usd_max=0.2)}
    settings = RoutingSettings(spend=spend, by_capability=by_capability)
    world = World(me(), priced(2), settings=settings)
    with pytest.raises(BudgetError, match=r"\$0.2, the cost_usd_max of this .*ec\*") as caught:
        await world.delegate(terms=terms(cost_usd_max=0.3))
    assert caught.value.data["bound_from"] == "capability ec*"
    with pytest.raises(BudgetError, match=r"at most \$0.1 \(the") as caught:
        await world.delegate(terms=terms(cost_usd_max=0.1))
    assert caught.value.data["bound_from"] == "the call"
    world.dispatcher.use(RoutingSettings(spend=spend, cost_usd_max=0.3))
    with pytest.raises(BudgetError, match=r"settings \(default\)"):
        await world.delegate()
    world.dispatcher.use(RoutingSettings(spend=spend, cost_usd_max=0.55))
    await world.delegate(caller="a")
    with pytest.raises(BudgetError, match="a has"):
        await world.delegate(caller="a", terms=terms(cost_usd_max=0.2))


async def test_a_fallback_is_tried_where_the_first_is_too_expensive():
    cheap = offer("rough", cost_usd_per_call=0.01)
    world = World(me(), priced(2), peer(3, capabilities=(cheap,)))
    result = await world.delegate(terms=terms(cost_usd_max=0.05), fallback=("rough",))
    assert result["delegated_to"]["node"] == "n3"


async def test_a_difficulty_or_a_key_means_the_policy_that_looks_at_it():
    world = World(me(), priced(2, offer(proficiency=0.9)), priced(3, offer(proficiency=0.6)))

    async def policy(**asked):
        answer = await world.delegate(explain=True, **asked)
        return answer["explain"]["policy"], answer["delegated_to"]["node"]

    assert await policy(terms=terms(difficulty=0.5)) == ("skill", "n3")
    assert (await policy(affinity="user-7"))[0] == "sticky"
    assert (await policy(affinity="user-7", policy="random"))[0] == "random"
    assert await policy(to="n2", affinity="user-7") == ("pinned", "n2")
    assert (await policy(terms=NO_TERMS))[0] == "adaptive"
