"""What tells events apart, holds them to a rate, and passes them on."""

import msgspec
import pytest
from event_talk import (
    event,
    heard,
    recent,
    tell,
)
from fabric import MESH, Fabric, node_id
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.clock import Instant
from meshd.gossip import recent as book
from meshd.gossip.codec import decode, encode_body, encode_event, encode_header, event_key
from meshd.gossip.config import profile
from meshd.gossip.messages import Events, Question, UserEvent
from meshd.gossip.recent import Buckets, EventQueue, Recent, RecentEvents

NOW = Instant(0.0)
LATE = 10**6


def test_what_is_older_than_the_oldest_that_is_remembered_counts_as_heard():
    held = RecentEvents(floor=0, maximum=2)
    for time in (5, 9, 7):
        held.add(recent(time), LATE)
    assert held.floor == 5
    assert held.is_old(event(5))
    assert not held.is_old(event(6))
    assert len(held) == 2
    assert not held.knows(event_key(event(5)))
    assert held.knows(event_key(event(7)))


def test_times_ahead_of_the_clock_silence_nobody_and_are_still_taken_once(monkeypatch):
    monkeypatch.setattr(book, "LET_GO_MAX", 2)
    held = RecentEvents(floor=0, maximum=1)
    for time in (900, 901, 902):
        held.add(recent(time), 100)
    assert held.floor == 0
    assert all(held.knows(event_key(event(time))) for time in (900, 901, 902))
    assert len(held.hashes()) == 3
    held.add(recent(903), 100)
    assert held.floor == 100
    assert not held.knows(event_key(event(900)))
    assert not held.is_old(event(101))


def test_only_young_events_and_open_queries_are_current():
    held = RecentEvents(floor=0)
    held.add(recent(1, "old", born=-61.0), 100)
    held.add(recent(2, "young", born=-59.0), 100)
    held.add(recent(3, "over", born=-3.0, question=Question(1, 2_000)), 100)
    held.add(recent(4, "open", born=-1.0, question=Question(2, 2_000)), 100)
    assert [each.event.name for each in held.current(Instant(0.0))] == ["open", "young"]


def test_in_a_full_queue_the_most_sent_makes_room():
    queue = EventQueue(2)
    first, second, third = (recent(n) for n in (1, 2, 3))
    queue.add(1, first)
    assert queue.take(1_000, 9, 1, NOW) == [first]
    queue.add(2, second)
    queue.add(3, third)
    assert queue.dropped == 1
    assert queue.take(1_000, 9, 5, NOW) == [second, third]


def test_what_others_no_longer_want_is_dropped_from_the_queue_unsent():
    queue = EventQueue(9)
    queue.add(1, recent(1, born=-61.0))
    young = recent(2)
    queue.add(2, young)
    queue.add(3, recent(3, born=-3.0, question=Question(1, 2_000)))
    assert queue.take(1_000, 9, 5, NOW) == [young]
    assert len(queue) == 1


def test_a_queue_sends_each_its_number_of_times_and_what_fits():
    queue = EventQueue(9)
    small, large = recent(1), recent(2, "n" * 60)
    queue.add(1, small)
    queue.add(2, large)
    assert queue.take(len(small.encoded), 2, 5, NOW) == [small]
    assert queue.take(1_000, 2, 5, NOW) == [large, small]
    assert queue.take(1_000, 2, 5, NOW) == [large]
    assert len(queue) == 0


def test_of_events_in_one_slot_the_newest_stays():
    queue = EventQueue(9)
    older, newer = recent(1), recent(2)
    queue.add("name", newer)
    queue.add("name", older)
    assert queue.take(1_000, 9, 5, NOW) == [newer]


def test_a_bucket_fills_again_and_the_one_watched_longest_is_forgotten():
    buckets = Buckets(1.0, 2, maximum=2)
    now = Instant(0.0)
    assert [buckets.take(b"a", now) for _ in range(3)] == [True, True, False]
    assert buckets.take(b"a", Instant(1.0))
    assert not buckets.take(b"a", Instant(1.0))
    buckets.take(b"b", Instant(1.0))
    buckets.take(b"c", Instant(1.0))
    assert buckets.take(b"a", Instant(1.0))


texts = st.text("abc", min_size=1, max_size=3)
told = st.builds(
    UserEvent,
    st.integers(0, 40),
    st.integers(0, 3).map(node_id),
    st.just(0),
    texts,
    st.binary(max_size=2),
)


@given(st.lists(told, max_size=60), st.integers(1, 8))
def test_none_is_taken_twice_in_whatever_order_they_come(arriving, maximum):
    held = RecentEvents(floor=-1, maximum=maximum)
    taken = []
    for one in arriving:
        key = event_key(one)
        if not held.knows(key) and not held.is_old(one):
            held.add(Recent.of(one, Instant(0.0)), LATE)
            taken.append(key)
        assert len(held) <= maximum
    assert len(taken) == len(set(taken))


@given(told, st.none() | st.builds(Question, st.integers(0, 9), st.integers(1, 9)))
def test_an_event_comes_out_of_a_datagram_as_it_went_in(one, question):
    one = msgspec.structs.replace(one, question=question)
    body = encode_body(12, (5,), (encode_event(one),))
    message = decode(encode_header(MESH, node_id(0), node_id(1)) + body, MESH).message
    assert message == Events(5, (one,))


@settings(max_examples=25)
@given(
    st.integers(0, 2**32),
    st.lists(st.tuples(st.integers(0, 4), texts, st.booleans()), max_size=12),
)
@pytest.mark.no_cover
def test_whatever_is_told_by_whom_each_hears_it_at_most_once_and_times_rise(seed, tellings):
    fabric = Fabric(5, seed=seed, config=profile("local"))
    fabric.join_all()
    fabric.run(2)
    fabric.lose(0.2)
    for by, name, coalesce in tellings:
        before = fabric.nodes[by].swim.event_clock
        tell(fabric, name, by=by, coalesce=coalesce)
        assert fabric.nodes[by].swim.event_clock > before
        fabric.run(0.3)
    fabric.heal()
    fabric.run(40)
    for node in fabric.nodes:
        keys = [(e.time, e.origin, e.name) for e in heard(node)]
        assert len(keys) == len(set(keys))
        plain = [name for _, name, coalesce in tellings if not coalesce]
        assert sorted(e.name for e in heard(node) if not e.coalesce) == sorted(plain)
