"""What happened to a member is kept short, with who said so."""

from meshd.clock import Instant
from meshd.gossip.explanation import PastEvent
from meshd.gossip.history import CONFIRMED, EVENTS_MAX, TOLD, UNANSWERED, History
from meshd.model import Address, Epoch, Incarnation, Member, MemberState, NodeId

NODE = NodeId(b"12345678")
ACCUSER = NodeId(b"accuser0")
TELLER = NodeId(b"teller00")


def _member(incarnation=3, state=MemberState.SUSPECT):
    return Member(NODE, Epoch(1), Incarnation(incarnation), state, Address("10.0.0.1", 1))


def test_events_come_back_as_they_were_noted_oldest_first():
    history = History()
    history.note(_member(), UNANSWERED, ACCUSER, None, Instant(1.5))
    history.note(_member(), CONFIRMED, ACCUSER, TELLER, Instant(2.0))
    history.note(_member(4, MemberState.ALIVE), TOLD, None, TELLER, Instant(2.5))
    assert history.of(NODE) == (
        PastEvent(1.5, MemberState.SUSPECT, 3, UNANSWERED, ACCUSER),
        PastEvent(2.0, MemberState.SUSPECT, 3, CONFIRMED, ACCUSER, TELLER),
        PastEvent(2.5, MemberState.ALIVE, 4, TOLD, None, TELLER),
    )


def test_only_the_last_events_are_kept_and_none_of_whom_is_forgotten():
    history = History()
    for number in range(EVENTS_MAX + 5):
        history.note(_member(number), TOLD, None, None, Instant(float(number)))
    events = history.of(NODE)
    assert len(events) == EVENTS_MAX
    assert events[0] == PastEvent(5.0, MemberState.SUSPECT, 5, TOLD)
    history.forget(NODE)
    history.forget(NODE)
    assert history.of(NODE) == ()
