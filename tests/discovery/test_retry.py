"""Backoff for one and for thousands."""

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from meshd.clock import Instant
from meshd.discovery.retry import (
    ALONE_FIRST_S,
    ALONE_KEYS_PER_S,
    ALONE_LIMIT_S,
    CALM_FIRST_S,
    JITTER,
    LIMIT_S,
    Backoff,
    RetrySchedule,
    TokenBucket,
)


def near(delay, nominal):
    return nominal * (1 - JITTER) <= delay <= nominal * (1 + JITTER)


def test_backoff_doubles_to_its_limit_and_begins_again_after_a_reset():
    backoff = Backoff(random.Random(1), first_s=1, limit_s=60)
    assert all(near(backoff.next(), n) for n in (1, 2, 4, 8, 16, 32, 60, 60))
    backoff.reset()
    assert near(backoff.next(), 1)


def run(schedule, *, until, alone, alive=lambda _: False, start=0.0):
    """Instants at which each key came due, looked at every half second."""
    tries = {}
    for step in range(int(until * 2) + 1):
        now = Instant(start + step / 2)
        for key in schedule.due(now, alone=alone, is_alive=alive, limit=100):
            tries.setdefault(key, []).append(now)
    return tries


def test_alone_a_key_is_tried_at_once_and_then_after_1_2_4_seconds():
    schedule = RetrySchedule(random.Random(1))
    schedule.add("a", Instant(0))
    tries = run(schedule, until=40, alone=True)["a"]
    assert tries[0] == 0
    gaps = [b - a for a, b in itertools.pairwise(tries)]
    for gap, nominal in zip(gaps, (1, 2, 4, 8), strict=False):
        assert nominal * (1 - JITTER) <= gap <= nominal * (1 + JITTER) + 0.5


def test_in_company_the_first_try_comes_after_half_a_minute():
    schedule = RetrySchedule(random.Random(1))
    schedule.add("a", Instant(0))
    tries = run(schedule, until=200, alone=False)["a"]
    assert near(tries[0], CALM_FIRST_S) or tries[0] - 0.5 <= CALM_FIRST_S * (1 + JITTER)
    assert len(tries) == 3


def test_delays_stay_within_an_hour_for_ever():
    schedule = RetrySchedule(random.Random(1))
    schedule.add("a", Instant(0))
    now, last = Instant(0), None
    for _ in range(5000):
        now = Instant(now + 60)
        if schedule.due(now, alone=False, is_alive=lambda _: False, limit=1):
            assert last is None or now - last <= LIMIT_S * (1 + JITTER) + 60
            last = now
    assert last is not None
    assert now - last <= LIMIT_S * (1 + JITTER) + 60


def test_a_living_key_is_not_tried_and_starts_afresh_when_it_dies():
    schedule = RetrySchedule(random.Random(1))
    schedule.add("a", Instant(0))
    run(schedule, until=2000, alone=False)
    assert run(schedule, until=5000, alone=False, alive=lambda _: True, start=2000) == {}
    died = 7000.5
    tries = run(schedule, until=120, alone=False, start=died)["a"]
    assert tries[0] - died <= CALM_FIRST_S * (1 + JITTER) + 0.5


def test_becoming_alone_brings_all_keys_forward():
    schedule = RetrySchedule(random.Random(1))
    for key in "abc":
        schedule.add(key, Instant(0))
    run(schedule, until=5000, alone=False)
    due = schedule.due(Instant(5001), alone=True, is_alive=lambda _: False, limit=10)
    assert due == ["a", "b", "c"]


def test_a_key_added_while_alone_is_due_at_once():
    schedule = RetrySchedule(random.Random(1))
    schedule.due(Instant(0), alone=True, is_alive=lambda _: False, limit=1)
    schedule.add("a", Instant(0))
    assert schedule.due(Instant(0), alone=True, is_alive=lambda _: False, limit=1) == ["a"]
    assert near(ALONE_FIRST_S, 1)


def test_at_most_the_limit_is_due_and_nobody_is_forgotten():
    schedule = RetrySchedule(random.Random(1))
    for key in range(100):
        schedule.add(key, Instant(0))
    seen = []
    while batch := schedule.due(Instant(0), alone=True, is_alive=lambda _: False, limit=32):
        assert len(batch) <= 32
        seen += batch
    assert seen == list(range(100))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20)), max_size=300))
def test_removed_keys_never_come_due_and_leave_no_heap_behind(steps):
    schedule = RetrySchedule(random.Random(1))
    present = set()
    for add, key in steps:
        if add:
            schedule.add(key, Instant(0))
            present.add(key)
        else:
            schedule.remove(key)
            present.discard(key)
    assert len(schedule) == len(present)
    assert len(schedule._heap) <= 2 * 21 + 64 + 1
    due = schedule.due(Instant(1e6), alone=False, is_alive=lambda _: False, limit=1000)
    assert sorted(due) == sorted(present)


def test_thousands_that_come_and_go_leave_no_heap_behind():
    schedule = RetrySchedule(random.Random(1))
    for key in range(5000):
        schedule.add(key, Instant(0))
        schedule.remove(key)
    schedule.add("stays", Instant(0))
    assert len(schedule._heap) <= 70
    due = schedule.due(Instant(100), alone=False, is_alive=lambda _: False, limit=9)
    assert due == ["stays"]


def test_alone_a_key_is_tried_every_minute_for_ever():
    schedule = RetrySchedule(random.Random(1))
    schedule.add("a", Instant(0))
    tries = run(schedule, until=3_000, alone=True)["a"]
    assert max(b - a for a, b in itertools.pairwise(tries)) <= ALONE_LIMIT_S * (1 + JITTER) + 0.5


def test_alone_thousands_of_keys_are_tried_at_a_bounded_rate():
    schedule = RetrySchedule(random.Random(1))
    for key in range(2_000):
        schedule.add(key, Instant(0))
    run(schedule, until=4_000, alone=True)
    tries = run(schedule, until=1_000, alone=True, start=4_001)
    per_s = sum(map(len, tries.values())) / 1_000
    assert near(per_s, ALONE_KEYS_PER_S)
    assert len(tries) == 2_000


def test_of_what_is_due_a_share_is_tried_by_lot_and_the_delays_grow_all_the_same():
    schedule = RetrySchedule(random.Random(1))
    for key in range(1_000):
        schedule.add(key, Instant(0))
    tried = schedule.due(
        Instant(100), alone=False, is_alive=lambda _: False, limit=1_000, share=0.1
    )
    assert 60 < len(tried) < 140
    none_due = schedule.due(Instant(110), alone=False, is_alive=lambda _: False, limit=1_000)
    assert none_due == []


def test_other_delays_may_be_chosen():
    schedule = RetrySchedule(random.Random(1), first_s=2, limit_s=60)
    schedule.add("a", Instant(0))
    tries = run(schedule, until=600, alone=False)["a"]
    assert tries[0] <= 3
    assert max(b - a for a, b in itertools.pairwise(tries)) <= 60 * (1 + JITTER) + 0.5


def test_on_another_network_all_keys_are_due_at_once():
    schedule = RetrySchedule(random.Random(1))
    for key in "abc":
        schedule.add(key, Instant(0))
    run(schedule, until=5_000, alone=False)
    schedule.hurry(Instant(5_001))
    due = schedule.due(Instant(5_001), alone=False, is_alive=lambda _: False, limit=10)
    assert due == ["a", "b", "c"]


def test_a_bucket_lets_its_burst_through_and_then_its_rate():
    bucket = TokenBucket(per_s=2, burst=3)
    assert [bucket.take(Instant(0)) for _ in range(5)] == [True] * 3 + [False] * 2
    assert bucket.refused == 2
    assert [bucket.take(Instant(1)) for _ in range(3)] == [True, True, False]
    assert not bucket.take(Instant(0.5))
