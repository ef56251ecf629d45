"""Budgets of retries and second copies, and the pauses between tries."""

from random import Random

import pytest

from meshd.clock import Instant
from meshd.routing.resilience import (
    CAPABILITIES_MAX,
    HEDGE_AFTER_MIN_S,
    HEDGE_FRACTION,
    HEDGE_SAMPLES_MIN,
    HEDGES_SAVED,
    PAUSE_FIRST_S,
    PAUSE_MAX_S,
    RETRIES_PER_S,
    RETRIES_SAVED,
    RETRY_FRACTION,
    SAMPLES_KEPT,
    Resilience,
)

START = Instant(0.0)


def spent(resilience: Resilience, now: Instant = START) -> int:
    count = 0
    while resilience.may_retry(now):
        count += 1
    return count


def test_retries_are_a_fifth_of_calls_and_ten_a_second_once_savings_are_gone():
    resilience = Resilience(Random(1))
    assert spent(resilience) == RETRIES_SAVED
    for _ in range(1_000):
        resilience.began()
        resilience.may_retry(START)
    assert resilience.retries == pytest.approx(RETRIES_SAVED + 1_000 * RETRY_FRACTION, abs=1)
    assert spent(resilience, Instant(1.0)) == pytest.approx(RETRIES_PER_S, abs=1)


def test_what_calls_bring_is_there_when_it_is_asked_for_and_no_more_than_can_be_saved():
    resilience = Resilience(Random(1))
    spent(resilience)
    for _ in range(100):
        resilience.began()
    assert spent(resilience) == pytest.approx(100 * RETRY_FRACTION, abs=1)
    for _ in range(10_000):
        resilience.began()
    assert spent(resilience) == RETRIES_SAVED


def test_who_is_patient_leaves_half_of_what_is_saved_to_the_others():
    resilience = Resilience(Random(1))
    while resilience.may_retry(START, is_patient=True):
        pass
    assert resilience.retries == RETRIES_SAVED / 2 + 1
    assert spent(resilience) == RETRIES_SAVED / 2 - 1
    assert not resilience.may_retry(Instant(4.0), is_patient=True)
    assert resilience.may_retry(Instant(5.0), is_patient=True)


def test_second_copies_are_a_twentieth_of_calls():
    resilience = Resilience(Random(1))
    while resilience.may_hedge(START):
        pass
    assert resilience.hedges == HEDGES_SAVED
    for _ in range(1_000):
        resilience.began()
        resilience.may_hedge(Instant(1e6))
    assert resilience.hedges == pytest.approx(HEDGES_SAVED + 1_000 * HEDGE_FRACTION, abs=1)


def test_pauses_are_drawn_from_zero_to_a_bound_that_doubles():
    resilience = Resilience(Random(1))
    for failures in (1, 2, 3, 50):
        longest = min(PAUSE_MAX_S, PAUSE_FIRST_S * 2 ** (failures - 1))
        pauses = [resilience.pause_s(failures) for _ in range(300)]
        assert max(pauses) <= longest
        assert max(pauses) > 0.9 * longest
        assert min(pauses) < 0.1 * longest


def test_a_second_copy_waits_for_the_95th_percentile_of_what_was_seen():
    resilience = Resilience(Random(1))
    for number in range(HEDGE_SAMPLES_MIN - 1):
        resilience.answered("echo", number / 100)
    assert resilience.hedge_after_s("echo") is None
    for number in range(SAMPLES_KEPT):
        resilience.answered("echo", number / 100)
    assert resilience.hedge_after_s("echo") == pytest.approx(0.95)
    for _ in range(SAMPLES_KEPT):
        resilience.answered("echo", 5.0)
    assert resilience.hedge_after_s("echo") == 5.0, "what is old is forgotten"
    assert resilience.hedge_after_s("other") is None
    for _ in range(SAMPLES_KEPT):
        resilience.answered("echo", 0.0001)
    assert resilience.hedge_after_s("echo") == HEDGE_AFTER_MIN_S


def test_of_many_capabilities_the_longest_unused_is_forgotten():
    resilience = Resilience(Random(1))
    for number in range(CAPABILITIES_MAX + 1):
        for _ in range(HEDGE_SAMPLES_MIN):
            resilience.answered(f"c{number}", 1.0)
    assert resilience.hedge_after_s("c0") is None
    assert resilience.hedge_after_s("c1") == 1.0
