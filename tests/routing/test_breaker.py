"""One breaker: when it opens, for how long, whom it lets pass, what closes it."""

from hypothesis import given
from hypothesis import strategies as st
from routing_world import NOW

from meshd.clock import Instant
from meshd.routing.breaker import CALM_S, Breaker, BreakerState, Circuit, node_opening
from meshd.routing.settings import BreakerSettings
from meshd.routing.signals import Outcome

SETTINGS = BreakerSettings()
OK, FAILED, NEUTRAL = Outcome.OK, Outcome.FAILED, Outcome.NEUTRAL
CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


def at(seconds):
    return Instant(NOW + seconds)


class One:
    """A breaker as a capability at a node has it."""

    def __init__(self, settings=SETTINGS):
        self.settings = settings
        self.breaker = Breaker()

    def end(self, passage, outcome, now=NOW):
        self.breaker.end(
            passage,
            outcome,
            now,
            judge=lambda: node_opening(self.breaker, self.settings),
            window=self.settings.window,
            open_s_max=self.settings.open_s_max,
        )

    def results(self, *outcomes, now=NOW):
        for outcome in outcomes:
            self.end(self.breaker.begin(now), outcome, now)
        return self

    def state(self, now=NOW):
        return self.breaker.state(now)

    def text(self, now=NOW):
        return str(Circuit.of(self.breaker, "echo", None, now))


def opened():
    return One().results(FAILED, FAILED, FAILED)


def test_the_third_failure_in_a_row_opens_it_for_a_minute():
    one = One().results(FAILED, FAILED)
    assert one.state() is CLOSED
    one.results(FAILED)
    assert one.state() is one.state(at(59.9)) is OPEN
    assert one.state(at(60)) is HALF_OPEN
    assert one.text(at(18)) == "3 failures in a row; its circuit is open for another 42 s"


def test_a_success_between_failures_begins_the_count_anew():
    assert One().results(OK, *(FAILED, FAILED, OK) * 2, FAILED, FAILED).state() is CLOSED


def test_refusals_and_cancellations_say_nothing():
    one = One().results(FAILED, FAILED, *[NEUTRAL] * 50)
    assert one.state() is CLOSED
    assert one.results(FAILED).state() is OPEN


def test_fewer_than_four_fifths_of_the_last_twenty_open_it_for_half_a_minute():
    one = One().results(*[OK] * 30, FAILED, OK, FAILED, OK, FAILED, OK, FAILED, OK)
    assert one.state() is CLOSED  # 16 of 20
    one.results(FAILED)
    assert one.state(at(29.9)) is OPEN
    assert one.state(at(30)) is HALF_OPEN
    assert one.text().startswith("success 75% of the last 20; ")


def test_a_share_of_too_few_results_says_nothing():
    one = One().results(FAILED, FAILED, OK, FAILED, FAILED, OK, FAILED, FAILED, OK)
    assert one.state() is CLOSED
    assert one.results(FAILED).text().startswith("success 30% of the last 10; ")


def test_what_a_closed_circuit_forgets_is_the_oldest_result():
    few = One(BreakerSettings(window=10, samples_min=10))
    few.results(FAILED, FAILED, *[OK] * 10)
    assert few.breaker.successes == few.breaker.samples == 10


def test_another_window_holds_from_the_next_result():
    one = One().results(*[OK] * 19, FAILED)
    one.settings = BreakerSettings(window=4, samples_min=4)
    assert one.results(OK).state() is CLOSED
    assert (one.breaker.successes, one.breaker.samples) == (3, 4)
    assert one.results(FAILED).text().startswith("success 50% of the last 4; ")


def test_one_call_tries_a_half_open_circuit_and_its_success_closes_it():
    one, later = opened(), at(60)
    assert not one.breaker.is_barred(later)
    trial = one.breaker.begin(later)
    assert one.breaker.is_barred(later)
    assert one.breaker.begin(later) is not one.breaker.trial
    assert one.text(later).endswith("its circuit is half-open, and one call tries it now")
    one.end(trial, OK, later)
    assert one.state(later) is CLOSED
    assert one.results(FAILED, FAILED, now=later).state(later) is CLOSED, "it begins anew"


def test_a_trial_that_takes_longer_than_it_opened_at_first_bars_no_other():
    one = opened()
    first = one.breaker.begin(at(60))
    assert (one.breaker.is_barred(at(119)), one.breaker.barred_s(at(119))) == (True, 1.0)
    assert (one.breaker.is_barred(at(120)), one.breaker.barred_s(at(120))) == (False, 0.0)
    second = one.breaker.begin(at(120))
    assert second is one.breaker.trial
    assert one.breaker.is_barred(at(121))
    one.end(first, NEUTRAL, at(122))
    assert one.breaker.is_barred(at(122)), "the second still tries it"
    one.end(second, OK, at(123))
    assert (one.state(at(123)), one.breaker.barred_s(at(123))) == (CLOSED, 0.0)


def test_each_failed_trial_opens_it_for_longer_up_to_a_bound():
    one, now, lasted = opened(), NOW, []
    for _ in range(12):
        lasted.append(one.breaker.until - now)
        now = one.breaker.until
        one.results(FAILED, now=now)
    assert lasted == [min(60.0 * n, 600.0) for n in range(1, 13)]
    assert "3 failures in a row, then 12 failed trials; " in one.text(now)


def test_a_trial_that_says_nothing_leaves_its_place_to_another():
    one, later = opened(), at(60)
    one.results(NEUTRAL, now=later)
    assert not one.breaker.is_barred(later)
    assert (
        one.results(FAILED, now=later)
        .text(later)
        .startswith("3 failures in a row, then 1 failed trial; ")
    )


def test_calls_that_began_before_it_opened_add_nothing():
    one = One()
    early = [one.breaker.begin(NOW) for _ in range(6)]
    for passage in early[:3]:
        one.end(passage, FAILED)
    until = one.breaker.until
    one.end(early[3], FAILED, at(30))
    one.end(early[4], OK, at(30))
    one.end(early[5], FAILED, at(61))
    assert one.breaker.until == until
    assert one.breaker.openings == 1


def test_a_call_that_came_through_all_the_same_closes_it_but_never_prolongs_it():
    one = opened()
    until = one.breaker.until
    one.results(FAILED, FAILED, now=at(10))
    early = one.breaker.begin(at(11))
    one.end(early, FAILED, at(61))
    assert one.breaker.until == until
    assert one.results(OK, now=at(62)).state(at(62)) is CLOSED


def test_a_second_call_that_fails_while_one_tries_it_opens_it_and_the_first_adds_nothing():
    one, later = opened(), at(60)
    trial = one.breaker.begin(later)
    one.results(FAILED, now=later)
    assert one.breaker.trial is None
    until = one.breaker.until
    one.end(trial, FAILED, at(61))
    assert one.breaker.until == until


def test_who_opens_again_soon_stays_open_longer_and_after_a_calm_as_at_first():
    one, closed_at = opened(), at(60)
    one.results(OK, FAILED, FAILED, FAILED, now=closed_at)
    assert one.breaker.until == at(60 + 120)
    one.results(OK, now=at(180))
    calm = at(180 + CALM_S + 1)
    assert one.results(FAILED, FAILED, FAILED, now=calm).breaker.until == calm + 60


def test_a_caller_that_may_not_try_leaves_the_place_to_others():
    one, later = opened(), at(60)
    one.breaker.begin(later, may_try=False)
    assert one.breaker.trial is None


def test_news_end_an_opening_early_and_nothing_else():
    one = opened()
    one.breaker.hurry(at(5))
    assert one.state(at(5)) is HALF_OPEN
    one.breaker.hurry(at(7))
    assert one.breaker.until == at(5)
    closed = One()
    closed.breaker.hurry(NOW)
    assert closed.state() is CLOSED


def test_a_trial_that_news_brought_early_does_not_prolong_it_when_it_fails():
    one = opened()
    for n in range(1, 4):
        one.breaker.hurry(at(n))
        one.results(FAILED, now=at(n))
        assert one.breaker.until == at(n + 60)
    one.results(FAILED, now=at(63))
    assert one.breaker.until == at(63 + 120)


steps = st.lists(
    st.tuples(
        st.sampled_from(["begin", "end"]),
        st.sampled_from(list(Outcome)),
        st.floats(0, 90),
        st.integers(0, 9),
    ),
    max_size=120,
)


@given(steps)
def test_a_half_open_circuit_never_has_two_calls_and_an_open_one_none(moves):
    one, now, under_way = One(), 0.0, []
    for move, outcome, passes_s, which in moves:
        now += passes_s
        if move == "begin" and not one.breaker.is_barred(now):
            state = one.state(now)
            assert state is not OPEN
            under_way.append((one.breaker.begin(now), state, one.breaker.openings))
        elif under_way:
            passage, _, _ = under_way.pop(which % len(under_way))
            one.end(passage, outcome, now)
        openings = one.breaker.openings
        trials = [
            passage
            for passage, s, opening in under_way
            if s is HALF_OPEN and opening == openings and now - passage.began < 30
        ]
        if one.state(now) is HALF_OPEN:
            assert len(trials) <= one.breaker.is_barred(now)
        assert one.breaker.until is None or one.breaker.until <= now + SETTINGS.open_s_max


@given(steps, st.integers(1, 30))
def test_a_run_of_successes_closes_it_whatever_was_before(moves, successes):
    one, now = One(), 0.0
    for _, outcome, passes_s, _ in moves:
        now += passes_s
        one.results(outcome, now=now)
    now += SETTINGS.open_s_max
    assert one.results(*[OK] * successes, now=now).state(now) is CLOSED
    assert one.breaker.is_known_to_work


@given(st.lists(st.booleans(), max_size=60))
def test_it_opens_at_the_first_result_that_a_rule_forbids_and_not_before(results):
    one, seen, is_open = One(), [], False
    for is_good in results:
        one.results(OK if is_good else FAILED)
        seen.append(is_good)
        last = seen[-20:]
        in_a_row = seen[-3:] == [False] * 3
        is_poor = not is_good and len(last) >= 10 and sum(last) / len(last) < 0.8
        is_open = in_a_row or is_poor
        assert (one.state() is OPEN) == is_open
        if is_open:
            break
