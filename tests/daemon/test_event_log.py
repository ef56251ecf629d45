"""The log of what happened: numbered, bounded, and exact about what a reader lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.daemon.event_log import EventLog, kind_of
from meshd.errors import UsageError
from meshd.gossip.effects import MemberChanged
from meshd.gossip.history import RESTARTED
from meshd.gossip.members import in_state, new_member
from meshd.happening import Event, Kind, payload_from, payload_shape
from meshd.model import Address, Epoch, MemberState, NodeId

MEMBER = new_member(NodeId(b"12345678"), Epoch(1), Address("10.0.0.1", 1))
ALIVE, SUSPECT, DEAD, LEFT = MemberState


def filled(count, maximum=4):
    log = EventLog(maximum)
    for number in range(count):
        log.add(Kind.EVENT if number % 2 else Kind.DEAD, "aa", 1_000 + number)
    return log


def anything(_event):
    return True


def deaths(event):
    return event.type == "dead"


def numbers(page):
    return [each.seq for each in page.events]


def test_events_are_numbered_from_one():
    log = filled(3)
    page = log.read(0, anything)
    assert (numbers(page), page.next, page.lost, log.last) == ([1, 2, 3], 3, 0, 3)
    assert log.read(3, anything) == ((), 3, 0)


def test_an_empty_log_has_nothing_and_lost_nothing():
    log = EventLog()
    assert log.read(0, anything) == ((), 0, 0)
    assert log.after_last(5, anything) == 0


def test_a_reader_learns_exactly_how_many_it_lost():
    log = filled(10)
    page = log.read(2, anything)
    assert (numbers(page), page.lost) == ([7, 8, 9, 10], 4)


def test_a_page_ends_at_its_limit_and_the_next_goes_on_from_there():
    log = filled(4)
    first = log.read(0, deaths, 1)
    assert (numbers(first), first.next) == ([1], 1)
    assert numbers(log.read(first.next, deaths, 1)) == [3]
    assert log.read(3, deaths).next == 4


def test_the_last_few_are_those_that_are_wanted():
    log = filled(4)
    assert log.after_last(1, deaths) == 2
    assert log.after_last(9, deaths) == 0
    assert log.after_last(0, deaths) == 4


@given(st.lists(st.integers(0, 7), max_size=30), st.integers(1, 6), st.integers(1, 5))
def test_whatever_is_written_between_reads_all_is_read_in_order_or_counted_as_lost(
    bursts, maximum, limit
):
    log = EventLog(maximum)
    after = lost = 0
    seen = []
    for burst in bursts:
        for _ in range(burst):
            log.add(Kind.DEAD, "aa", 1)
        page = log.read(after, anything, limit)
        after, lost = page.next, lost + page.lost
        seen += numbers(page)
    while (page := log.read(after, anything, limit)).events:
        after = page.next
        seen += numbers(page)
    assert seen == sorted(set(seen))
    assert len(seen) + lost == log.last == after


@pytest.mark.parametrize(
    ("before", "after", "reason", "kind"),
    [
        (None, ALIVE, "heard of", Kind.JOINED),
        (None, SUSPECT, "heard of", Kind.JOINED),
        (None, LEFT, "heard of", Kind.LEFT),
        (ALIVE, SUSPECT, "no answer to a probe", Kind.SUSPECT),
        (SUSPECT, ALIVE, "refuted", Kind.REFUTED),
        (SUSPECT, DEAD, "not refuted in time", Kind.DEAD),
        (DEAD, ALIVE, "refuted", Kind.ALIVE),
        (LEFT, ALIVE, "refuted", Kind.ALIVE),
        (ALIVE, ALIVE, "told by a peer", Kind.UPDATED),
        (DEAD, ALIVE, RESTARTED, Kind.RESTARTED),
        (ALIVE, LEFT, "said goodbye", Kind.LEFT),
    ],
)
def test_a_change_of_a_record_is_an_event_of_one_type(before, after, reason, kind):
    assert kind_of(MemberChanged(in_state(MEMBER, after), before, reason)) is kind


@given(st.binary(max_size=40))
def test_a_payload_comes_out_of_json_as_it_went_in(payload):
    shape = payload_shape(payload)
    assert payload_from(shape.get("payload"), shape.get("payload_base64")) == payload
    assert Event(1, 1, "event", "aa", **shape).data == payload


def test_a_payload_has_one_form():
    assert payload_from(None, None) == b""
    with pytest.raises(UsageError, match="not both"):
        payload_from("a", "YQ==")
    with pytest.raises(UsageError, match="no base64"):
        payload_from(None, "!")
