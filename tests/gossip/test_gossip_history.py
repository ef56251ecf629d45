"""What happened to a member is kept short, and told in words."""

from meshd.clock import Instant
from meshd.gossip.history import CONFIRMED, LINES_MAX, TOLD, UNANSWERED, History
from meshd.model import Address, Epoch, Incarnation, Member, MemberState, NodeId

NODE = NodeId(b"12345678")
ACCUSER = NodeId(b"accuser0")


def _member(incarnation=3, state=MemberState.SUSPECT):
    return Member(NODE, Epoch(1), Incarnation(incarnation), state, Address("10.0.0.1", 1))


def test_events_are_told_in_words_oldest_first():
    history = History()
    history.note(_member(), UNANSWERED, ACCUSER, Instant(1.5))
    history.note(_member(), CONFIRMED, ACCUSER, Instant(2.0))
    history.note(_member(4, MemberState.ALIVE), TOLD, None, Instant(2.5))
    assert history.lines(NODE) == (
        (1.5, f"suspect @3: no answer to a probe (accuser {ACCUSER.hex()})"),
        (2.0, f"suspicion confirmed by {ACCUSER.hex()}"),
        (2.5, "alive @4: told by a peer"),
    )


def test_only_the_last_events_are_kept_and_none_of_whom_is_forgotten():
    history = History()
    for number in range(LINES_MAX + 5):
        history.note(_member(number), TOLD, None, Instant(float(number)))
    lines = history.lines(NODE)
    assert len(lines) == LINES_MAX
    assert lines[0] == (5.0, "suspect @5: told by a peer")
    history.forget(NODE)
    history.forget(NODE)
    assert history.lines(NODE) == ()
