"""A token bucket fills with time, holds no more than it can, and never goes below nothing."""

from hypothesis import given
from hypothesis import strategies as st

from meshd.bucket import TokenBucket
from meshd.clock import Instant


def at(seconds):
    return Instant(float(seconds))


def test_it_begins_full_and_is_empty_when_all_is_taken():
    bucket = TokenBucket(1.0, 3.0)
    assert [bucket.take(at(0)) for _ in range(4)] == [True, True, True, False]


def test_it_fills_with_time_up_to_its_size():
    bucket = TokenBucket(2.0, 3.0)
    while bucket.take(at(0)):
        pass
    assert not bucket.take(at(0.4))
    assert bucket.take(at(0.5))
    assert bucket.tokens(at(100)) == 3.0


def test_it_says_how_long_until_the_next():
    bucket = TokenBucket(4.0, 1.0)
    assert bucket.wait_s(at(0)) == 0.0
    assert bucket.take(at(0))
    assert bucket.wait_s(at(0)) == 0.25
    empty = TokenBucket(0.0, 1.0)
    assert empty.take(at(0))
    assert empty.wait_s(at(5)) == float("inf")


def test_what_is_put_in_by_hand_fits_or_is_lost():
    bucket = TokenBucket(0.0, 2.0)
    while bucket.take(at(0)):
        pass
    bucket.add(0.5, at(0))
    assert not bucket.take(at(0))
    bucket.add(0.5, at(0))
    assert bucket.take(at(0))
    bucket.add(100.0, at(0))
    assert bucket.tokens(at(0)) == 2.0


def test_a_clock_that_stands_or_goes_back_takes_nothing_away():
    bucket = TokenBucket(1.0, 2.0)
    assert bucket.take(at(10))
    assert bucket.tokens(at(5)) == 1.0


@given(
    st.floats(0.1, 1e3),
    st.floats(1.0, 1e3),
    st.lists(st.floats(0.0, 10.0), min_size=1, max_size=200),
)
def test_over_any_time_no_more_is_taken_than_there_was(rate, burst, pauses):
    bucket, now, taken = TokenBucket(rate, burst), 0.0, 0
    for pause in pauses:
        now += pause
        taken += bucket.take(at(now))
    assert taken <= burst + rate * now + 1e-6
