"""All circuits of a node: who is ejected, and how many at most; what fails everywhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_world import (
    NOW,
    ask,
    begin,
    end,
    fail_everywhere,
    fail_there,
    node_id,
    offer,
    peer,
    view,
)

from meshd.clock import Instant
from meshd.model import Epoch, MemberState
from meshd.routing.breaker import BreakerState
from meshd.routing.breakers import CAPABILITIES_MAX, CIRCUITS_MAX, FAILED_AT_MAX, Breakers
from meshd.routing.filters import Reason, Rejection
from meshd.routing.settings import BreakerSettings
from meshd.routing.signals import Outcome

OK, FAILED, NEUTRAL = Outcome.OK, Outcome.FAILED, Outcome.NEUTRAL
ONE, TWO, THREE = peer(1), peer(2), peer(3)
MANY = [peer(n) for n in range(1, 7)]


def at(seconds):
    return Instant(NOW + seconds)


def out(breakers, candidates, now=NOW, capability="echo"):
    return [p.name for p, _ in breakers.admit(candidates, capability, now).ejected]


def kept(breakers, candidates, now=NOW, capability="echo"):
    return breakers.admit(candidates, capability, now).kept


# At a node


def test_who_failed_three_times_is_left_out_until_one_call_there_succeeded():
    breakers, three = Breakers(), [ONE, TWO, THREE]
    fail_there(breakers, TWO, times=2)
    assert kept(breakers, three) == three
    fail_there(breakers, TWO, times=1)
    assert kept(breakers, three) == [ONE, THREE]
    assert breakers.opened == breakers.opened_at_nodes == 1
    assert breakers.admit(three, "echo", at(60)).trials == [TWO.node]
    trial = begin(breakers, TWO, now=at(60))
    assert out(breakers, three, at(60)) == ["n2"]
    assert breakers.is_barred_at(TWO, "echo", at(60))
    end(breakers, trial, OK, now=at(61))
    assert kept(breakers, three, at(61)) == three
    assert not breakers.is_barred_at(TWO, "echo", at(61))


def test_never_more_than_a_third_is_left_out_and_those_with_the_longest_to_go():
    breakers = Breakers()
    for after_s, bad in enumerate(MANY[:4]):
        fail_there(breakers, bad, now=at(after_s))
    assert out(breakers, MANY, at(5)) == ["n4", "n3"]
    assert len(kept(breakers, MANY, at(5))) == 4
    assert out(breakers, MANY[:2], at(5)) == []


def rejections(*reasons):
    return [Rejection(node_id(20 + n), f"n{20 + n}", why) for n, why in enumerate(reasons)]


def test_a_third_is_one_of_all_that_could_serve_it_whether_they_have_room_or_not():
    breakers = Breakers()
    fail_there(breakers, TWO)

    def ejected(candidates, *reasons):
        admitted = breakers.admit(candidates, "echo", NOW, rejections(*reasons))
        return [p.name for p, _ in admitted.ejected]

    assert ejected([TWO], Reason.FULL, Reason.TRIED) == ["n2"]
    assert ejected([TWO], Reason.FULL, Reason.NOT_READY) == ["n2"]
    assert ejected([ONE, TWO], Reason.DRAINING) == ["n2"]
    assert ejected([TWO], Reason.DRAINING, Reason.NOT_READY) == [], "nobody to wait for"
    assert ejected([TWO], Reason.FULL, Reason.DEAD, Reason.NOT_OFFERED) == []


def test_what_fails_at_a_node_ejects_nothing_else_of_it():
    breakers, three = Breakers(), [ONE, TWO, THREE]
    fail_there(breakers, TWO, capability="other")
    assert kept(breakers, three) == three
    assert out(breakers, three, capability="other") == ["n2"]


def test_a_node_with_two_open_circuits_gets_only_what_is_known_to_work_there():
    breakers, three = Breakers(), [ONE, TWO, THREE]
    ask(breakers, TWO, OK, capability="sound")
    ask(breakers, TWO, FAILED, capability="poor")
    fail_there(breakers, TWO, capability="a")
    fail_there(breakers, TWO, capability="b", now=at(10))
    ((ejected, why),) = breakers.admit(three, "echo", at(10)).ejected
    assert ejected is TWO
    assert why == "2 of its other circuits are open, so many for another 50 s"
    assert out(breakers, three, at(10), "poor") == ["n2"]
    assert out(breakers, three, at(10), "sound") == []
    assert out(breakers, three, at(60)) == [], "one of the two is half-open by then"


def test_a_node_that_was_started_anew_is_forgiven():
    breakers, anew = Breakers(), peer(2, epoch=Epoch(2))
    fail_there(breakers, TWO)
    fail_there(breakers, TWO, capability="other")
    old = begin(breakers, TWO, capability="third")
    assert not breakers.is_barred_at(anew, "echo", NOW)
    assert breakers.shown(view(ONE, anew), NOW) == []
    assert out(breakers, [ONE, anew, THREE]) == []
    fail_there(breakers, anew, capability="third", times=2)
    end(breakers, old, FAILED)  # of the earlier run
    assert out(breakers, [ONE, anew, THREE], capability="third") == []


def test_a_call_to_a_new_run_begins_a_new_circuit():
    breakers, anew = Breakers(), peer(2, epoch=Epoch(2))
    fail_there(breakers, TWO)
    fail_there(breakers, TWO, capability="other")
    fail_there(breakers, anew)
    assert out(breakers, [ONE, anew, THREE]) == ["n2"]
    assert [c.capability for c in breakers.shown(view(ONE, anew), NOW)] == ["echo"]


# Wherever it is offered


def refused(breakers, candidates=MANY, now=NOW, capability="echo"):
    return breakers.refusal(capability, candidates, now)


def test_ten_failures_in_a_row_at_three_nodes_open_the_capability_and_one_call_tries_it():
    breakers, seen = Breakers(), view(*MANY)
    fail_everywhere(breakers, view(*MANY[:3]), times=9)
    assert refused(breakers) is None
    ask(breakers, ONE, FAILED, seen=seen)
    circuit = refused(breakers)
    assert (circuit.state, circuit.left_s) == (BreakerState.OPEN, 10.0)
    assert refused(breakers, capability="other") is None
    assert refused(breakers, now=at(10)) is None
    trial = begin(breakers, ONE, now=at(10))
    assert refused(breakers, now=at(10)).state is BreakerState.HALF_OPEN
    end(breakers, trial, FAILED, now=at(10), seen=seen)
    assert refused(breakers, now=at(29.9))
    assert refused(breakers, now=at(30)) is None
    ask(breakers, ONE, OK, now=at(30))
    assert refused(breakers, now=at(30)) is None
    assert breakers.opened_whole == 2


def test_a_success_anywhere_begins_the_count_anew_and_closes_it_whenever_it_began():
    breakers, seen = Breakers(), view(*MANY)
    early = begin(breakers, ONE)
    fail_everywhere(breakers, seen, times=9)
    ask(breakers, ONE, OK)
    fail_everywhere(breakers, seen, times=9)
    assert refused(breakers) is None
    fail_everywhere(breakers, seen, times=1)
    assert refused(breakers)
    end(breakers, early, OK, now=at(5))
    assert refused(breakers, now=at(5)) is None


def test_one_node_that_fails_is_no_capability_that_does_while_others_offer_it():
    breakers = Breakers()
    fail_there(breakers, TWO, times=50, seen=view(ONE, TWO, peer(9, capabilities=())))
    assert refused(breakers) is None
    gone = peer(1, state=MemberState.DEAD)
    ask(breakers, TWO, FAILED, seen=view(gone, TWO, peer(9, capabilities=()), me=9))
    assert refused(breakers, [TWO])


def test_while_a_node_that_has_not_failed_works_for_us_it_is_not_open():
    breakers, seen = Breakers(), view(*MANY)
    slow = begin(breakers, peer(6))
    fail_everywhere(breakers, view(*MANY[:3]), times=20)
    assert refused(breakers) is None
    end(breakers, slow, NEUTRAL)
    ask(breakers, ONE, FAILED, seen=seen)
    assert refused(breakers)


def test_a_node_that_hangs_holds_it_closed_for_half_a_minute_after_its_last_call():
    breakers, seen = Breakers(), view(*MANY)
    hanging = [begin(breakers, peer(6), now=at(n)) for n in range(2)]
    end(breakers, hanging[0], NEUTRAL)
    fail_everywhere(breakers, view(*MANY[:3]), times=20)
    ask(breakers, ONE, FAILED, now=at(30.9), seen=seen)
    assert refused(breakers, now=at(30.9)) is None
    ask(breakers, ONE, FAILED, now=at(31), seen=seen)
    assert refused(breakers, now=at(31))


def test_what_failed_at_very_many_nodes_fails_everywhere_whoever_still_works():
    settings = BreakerSettings(capability_failures=FAILED_AT_MAX + 10)
    breakers, seen = Breakers(lambda _capability: settings), view(*MANY)
    begin(breakers, peer(9_999))
    for n in range(1, FAILED_AT_MAX + 11):
        assert refused(breakers) is None
        ask(breakers, peer(n), FAILED, seen=seen)
    assert refused(breakers)


def test_one_call_adds_one_failure_wherever_it_fails():
    breakers, seen = Breakers(), view(*MANY)
    for _ in range(9):
        for n, node in enumerate(MANY[:4]):
            breakers.end(begin(breakers, node), FAILED, NOW, lambda: seen, is_repeat=n > 0)
    assert refused(breakers) is None
    ask(breakers, ONE, FAILED, seen=seen)
    assert refused(breakers)
    trial = begin(breakers, ONE, now=at(10))
    breakers.end(trial, FAILED, at(10), lambda: seen, is_repeat=True)
    assert refused(breakers, now=at(11)), "a trial tells, whoever makes it"


@pytest.mark.parametrize(("open_s", "most"), [(10.0, 60.0), (90.0, 90.0)])
def test_a_whole_capability_is_never_open_for_long(open_s, most):
    settings = BreakerSettings(capability_open_s=open_s)
    breakers, seen, now = Breakers(lambda _capability: settings), view(*MANY), NOW
    fail_everywhere(breakers, seen)
    for _ in range(12):
        now = Instant(now + refused(breakers, now=now).left_s)
        ask(breakers, ONE, FAILED, now=now, seen=seen)
    assert refused(breakers, now=now).left_s == most


def test_calls_that_name_their_node_fail_for_themselves_alone():
    breakers, seen = Breakers(), view(*MANY)
    for n in range(30):
        ask(breakers, MANY[n % 6], FAILED, seen=seen, is_pinned=True)
    assert refused(breakers) is None
    fail_everywhere(breakers, seen)
    begin(breakers, ONE, now=at(10), is_pinned=True)
    assert refused(breakers, now=at(10)) is None, "it takes nobody's place"
    ask(breakers, TWO, OK, now=at(9), is_pinned=True)
    assert refused(breakers, now=at(9)) is None


def test_who_came_since_it_opened_is_tried_at_once():
    breakers, seen = Breakers(), view(*MANY)
    fail_everywhere(breakers, seen)
    newcomer, more = peer(7), view(*MANY, peer(7))
    assert refused(breakers, now=at(3))
    assert refused(breakers, [*MANY, newcomer], now=at(3)) is None
    assert refused(breakers, now=at(3)), "who looks changes nothing"
    assert breakers.passing("echo", [*MANY, newcomer], at(3)) == [newcomer]
    ask(breakers, newcomer, FAILED, now=at(3), seen=more)
    assert refused(breakers, [*MANY, newcomer], now=at(4)).left_s == pytest.approx(9)
    anew = peer(1, epoch=Epoch(2))
    assert refused(breakers, [anew, *MANY[1:]], now=at(4)) is None


def test_a_trial_of_a_whole_capability_that_says_nothing_leaves_its_place_to_another():
    breakers, seen = Breakers(), view(*MANY)
    fail_everywhere(breakers, seen)
    ask(breakers, ONE, NEUTRAL, now=at(10), seen=seen)
    assert refused(breakers, now=at(10)) is None
    begin(breakers, ONE, now=at(10))
    assert refused(breakers, now=at(10))


def test_who_was_in_doubt_since_it_opened_is_no_news():
    breakers, seen = Breakers(), view(*MANY)
    fail_everywhere(breakers, seen)
    flapped = [peer(n, changed_at=at(2)) for n in range(1, 7)]
    assert refused(breakers, flapped, now=at(3))


# All of them


def test_what_is_not_closed_is_shown_whole_capabilities_first():
    breakers, seen = Breakers(), view(*MANY, peer(7))
    fail_everywhere(breakers, view(*MANY[:3]), times=10)
    fail_there(breakers, peer(7), capability="b", seen=seen)
    fail_there(breakers, peer(8), capability="c", seen=seen)  # nobody knows it any more
    shown = breakers.shown(seen, at(30))
    assert [(c.capability, c.node, c.state.value) for c in shown] == [
        ("echo", None, "half_open"),
        ("b", node_id(7), "open"),
        ("echo", node_id(1), "open"),
        ("echo", node_id(2), "open"),
        ("echo", node_id(3), "open"),
    ]
    assert (shown[1].why, shown[1].left_s, shown[1].repeats) == ("3 failures in a row", 30.0, 1)


def test_the_longest_unused_closed_circuit_goes_first_and_then_the_longest_unused():
    breakers = Breakers(circuits_max=3, capabilities_max=99)
    three = [ONE, TWO, THREE]
    fail_there(breakers, ONE)
    ask(breakers, TWO, OK)
    fail_there(breakers, THREE, times=2)
    ask(breakers, TWO, OK)
    ask(breakers, peer(4), OK)  # THREE goes, and with it its two failures
    assert breakers.forgotten == 1
    assert out(breakers, three) == ["n1"]
    fail_there(breakers, TWO, now=at(1))
    fail_there(breakers, peer(4))
    fail_there(breakers, THREE, times=1)  # all three are open: ONE, longest unused, goes
    assert breakers.forgotten == 2
    assert out(breakers, three, at(1)) == ["n2"]


def test_a_call_whose_circuit_was_forgotten_meanwhile_ends_without_a_trace():
    breakers = Breakers(circuits_max=1)
    crossings = [begin(breakers, TWO) for _ in range(3)]
    ask(breakers, ONE, OK)
    for crossing in crossings:
        end(breakers, crossing, FAILED)
    assert kept(breakers, [ONE, TWO, THREE]) == [ONE, TWO, THREE]


def test_capabilities_are_bounded_too():
    breakers = Breakers(capabilities_max=2)
    for name in "abc":
        ask(breakers, ONE, OK, capability=name)
    assert breakers.forgotten == 1
    assert CIRCUITS_MAX >= 4_096
    assert CAPABILITIES_MAX >= 512


moves = st.lists(
    st.tuples(
        st.integers(1, 9),
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from([OK, FAILED, FAILED, FAILED, NEUTRAL]),
        st.floats(0, 20),
    ),
    max_size=150,
)


@given(moves, st.sets(st.integers(1, 9), min_size=1))
def test_whatever_fails_at_least_two_thirds_may_be_asked_and_an_open_one_only_beyond(made, who):
    breakers, now = Breakers(), 0.0
    offers = (offer("a"), offer("b"), offer("c"))
    mesh = {n: peer(n, capabilities=offers) for n in range(1, 10)}
    for n, capability, outcome, passes_s in made:
        now += passes_s
        ask(breakers, mesh[n], outcome, now=now, capability=capability)
    candidates = [mesh[n] for n in sorted(who)]
    admitted = breakers.admit(candidates, "a", now)
    ejected = [p for p, _ in admitted.ejected]
    assert sorted(p.node for p in [*admitted.kept, *ejected]) == [p.node for p in candidates]
    assert len(ejected) <= len(candidates) // 3
    barred = [p for p in candidates if breakers.is_barred_at(p, "a", now)]
    assert len([p for p in barred if p in ejected]) <= len(ejected)
    if len(ejected) < len(candidates) // 3:
        assert all(p in ejected for p in barred)
    assert not set(admitted.trials) & {p.node for p in barred}
    assert all(str(why) for _, why in admitted.ejected)


def test_a_success_where_nothing_failed_closes_the_circuit_of_the_whole_capability():
    seen, breakers = view(*(peer(n) for n in range(2, 12)), me=2), Breakers()
    fail_everywhere(breakers, seen)
    assert breakers.is_barred("echo", NOW)
    assert not breakers.is_barred_at(seen.by_node[node_id(5)], "echo", NOW)
    ask(breakers, seen.by_node[node_id(5)], Outcome.OK, seen=seen)
    assert not breakers.is_barred("echo", NOW)
