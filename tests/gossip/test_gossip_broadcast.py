"""Rumours go out least sent first, a limited number of times, one for each subject."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.gossip.broadcast import RICH_SENDS, BroadcastQueue, transmit_limit


@pytest.mark.parametrize(
    ("members", "limit"), [(0, 4), (1, 4), (9, 4), (10, 8), (99, 8), (100, 12), (10_000, 20)]
)
def test_the_limit_grows_with_the_logarithm_of_the_mesh(members, limit):
    assert transmit_limit(4, members) == limit


def test_each_rumour_leaves_as_often_as_the_limit_says():
    queue = BroadcastQueue()
    queue.add("a", b"a" * 20)
    sent = [queue.take(100, 3) for _ in range(5)]
    assert sent == [[b"a" * 20]] * 3 + [[], []]
    assert not queue


def test_the_least_sent_goes_first_and_then_the_newest():
    queue = BroadcastQueue()
    queue.add("old", b"o" * 20)
    assert queue.take(20, 9) == [b"o" * 20]
    queue.add("one", b"1" * 20)
    queue.add("two", b"2" * 20)
    assert queue.take(40, 9) == [b"2" * 20, b"1" * 20]
    assert queue.take(60, 9) == [b"2" * 20, b"1" * 20, b"o" * 20]


def test_a_newer_rumour_replaces_the_older_one_and_counts_anew():
    queue = BroadcastQueue()
    queue.add("a", b"x" * 20)
    queue.take(100, 9)
    assert queue.sent("a") == 1
    queue.add("a", b"y" * 20)
    assert (queue.sent("a"), queue.peek("a"), len(queue)) == (0, b"y" * 20, 1)


def test_what_does_not_fit_waits_and_what_is_excluded_is_not_counted():
    queue = BroadcastQueue()
    queue.add("long", b"l" * 50)
    queue.add("short", b"s" * 20)
    queue.add("mine", b"m" * 20)
    assert queue.take(30, 9, exclude="mine") == [b"s" * 20]
    assert queue.sent("mine") == 0
    assert queue.take(500, 9, count=2) == [b"m" * 20, b"l" * 50]


def test_a_search_for_what_fits_ends_after_a_few_misfits():
    queue = BroadcastQueue()
    queue.add("fits", b"f" * 10)
    for number in range(10):
        queue.add(number, b"x" * 50)
    assert queue.take(20, 9) == []


def test_what_a_rumour_brings_along_is_said_while_hardly_anybody_has_heard_it():
    queue = BroadcastQueue(crowd=0)
    queue.add("a", b"lean", b"lean and rich")
    assert queue.is_rich
    assert queue.take(8, 9) == [b"lean"]
    assert [queue.take(100, 9) for _ in range(RICH_SENDS)][-2:] == [[b"lean and rich"], [b"lean"]]
    assert not queue.is_rich
    for forget in (queue.discard, lambda a: queue.heard(a, 9), lambda a: queue.amend(a, b"new")):
        queue.add("a", b"lean", b"lean and rich")
        forget("a")
        assert not queue.is_rich
    queue.add("a", b"lean", b"lean and rich")
    assert queue.take(100, 1) == [b"lean and rich"]
    assert not queue.is_rich


def test_a_forgotten_subject_is_gone_and_may_be_forgotten_again():
    queue = BroadcastQueue()
    queue.add("a", b"a" * 20)
    queue.discard("a")
    queue.discard("a")
    assert (queue.peek("a"), queue.sent("a"), queue.take(100, 9)) == (None, None, [])


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(18, 60)), max_size=20),
    st.lists(st.integers(0, 200), max_size=40),
)
def test_no_datagram_overflows_and_nothing_is_sent_more_often_than_the_limit(rumours, rooms):
    queue = BroadcastQueue()
    for number, (subject, size) in enumerate(rumours):
        queue.add(subject, bytes([number]) * size)
    counts: dict[bytes, int] = {}
    for room in rooms:
        taken = queue.take(room, 4)
        assert sum(map(len, taken)) <= room
        for rumour in taken:
            counts[rumour] = counts.get(rumour, 0) + 1
    assert all(count <= 4 for count in counts.values())


def test_in_a_crowd_a_rumour_that_is_heard_again_counts_as_sent():
    queue = BroadcastQueue(crowd=2)
    for subject in "abc":
        queue.add(subject, subject.encode())
    queue.heard("b", 3)
    queue.heard("unknown", 3)
    assert (queue.sent("a"), queue.sent("b"), queue.sent("c")) == (0, 1, 0)
    queue.heard("b", 2)
    assert queue.sent("b") is None
    queue.heard("a", 3)
    assert queue.sent("a") == 0, "two are no crowd"


def test_a_further_opinion_is_fresh_but_in_a_crowd_takes_its_elders_place():
    queue = BroadcastQueue(crowd=1)
    queue.amend("a", b"new")
    assert queue.sent("a") == 0
    queue.take(100, 5)
    queue.amend("a", b"alone")
    assert (queue.sent("a"), queue.peek("a")) == (0, b"alone")
    queue.add("b", b"b")
    queue.take(100, 5)
    queue.amend("a", b"crowded")
    assert (queue.sent("a"), queue.peek("a")) == (1, b"crowded")
