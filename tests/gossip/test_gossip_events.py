"""Users' events and queries: told once, heard once by each, answered to whoever asked."""

import msgspec
import pytest
from event_talk import (
    LONGEST,
    event,
    heard,
    names,
    of,
    rejected,
    sent,
    speak,
    tell,
    wall_ms,
)
from fabric import MESH, Fabric, meshed, node_id

from meshd.errors import BusyError, UsageError
from meshd.gossip import events as plane
from meshd.gossip.codec import decode, encode_body, encode_header
from meshd.gossip.config import profile
from meshd.gossip.effects import (
    DatagramRejected,
    QueryHeard,
    SendDatagram,
)
from meshd.gossip.inputs import (
    DatagramReceived,
    EventFired,
    JoinRequested,
    LeaveRequested,
    QueryFired,
)
from meshd.gossip.messages import EventDigest, Events, Join, Question, UserEvent
from meshd.gossip.recent import RECENT_MAX
from meshd.model import Address

# Telling and hearing


def test_an_event_is_heard_once_by_every_node_and_by_its_teller():
    fabric = meshed(12)
    tell(fabric, "deploy", b"v2")
    fabric.run(10)
    for node in fabric.nodes:
        (one,) = heard(node)
        assert (one.name, one.payload, one.origin) == ("deploy", b"v2", fabric.nodes[0].id)
        assert one.age_s < 1


def test_an_event_leaves_at_once_and_is_everywhere_in_a_moment():
    fabric = meshed(30)
    tell(fabric, "deploy")
    assert fabric.run(0.5, until=lambda: all(heard(node) for node in fabric.nodes))


@pytest.mark.parametrize("seed", range(4))
def test_lost_datagrams_are_made_good_by_comparing(seed):
    fabric = meshed(20, seed=seed)
    fabric.lose(0.3)
    for number in range(5):
        tell(fabric, f"event-{number}", by=number)
    fabric.run(15)
    for node in fabric.nodes:
        assert sorted(names(node)) == [f"event-{number}" for number in range(5)]


def test_both_sides_of_a_split_hear_the_others_events_once_it_has_healed():
    fabric = meshed(10)
    fabric.split(set(fabric.nodes[:4]))
    fabric.run(30)
    tell(fabric, "here", by=0)
    tell(fabric, "there", by=9)
    fabric.run(1)
    assert names(fabric.nodes[1]) == ["here"]
    assert names(fabric.nodes[8]) == ["there"]
    fabric.heal()
    fabric.run(25)
    for node in fabric.nodes:
        assert sorted(names(node)) == ["here", "there"]


def test_who_joins_within_a_minute_hears_what_was_told_lately_and_later_nothing():
    fabric = meshed(5)
    tell(fabric, "lately")
    fabric.run(30)
    late = fabric.add()
    fabric.step(late, JoinRequested((fabric.nodes[0].address,)))
    fabric.run(10)
    (one,) = heard(late)
    assert one.name == "lately"
    assert 30 <= one.age_s < 41
    fabric.run(40)
    later = fabric.add()
    fabric.step(later, JoinRequested((late.address,)))
    fabric.run(20)
    assert heard(later) == []


def test_a_restart_does_not_hear_again_what_its_last_run_heard():
    fabric = meshed(5)
    tell(fabric, "before")
    fabric.run(3)
    floor = fabric.nodes[4].swim.event_clock
    fabric.event_floor = floor
    again = fabric.restart(4, epoch=int(fabric.nodes[4].swim.me.epoch) + 60_000)
    fabric.step(again, JoinRequested((fabric.nodes[0].address,)))
    fabric.run(5)
    assert heard(again) == []
    tell(fabric, "after")
    fabric.run(5)
    assert names(again) == ["after"]
    tell(fabric, "own", by=4)
    assert heard(again)[-1].time > floor


def test_times_of_one_node_rise_and_exceed_all_that_it_heard():
    fabric = meshed(3)
    tell(fabric, "a", by=0)
    tell(fabric, "b", by=0)
    fabric.run(1)
    tell(fabric, "c", by=1)
    first, second, third = (e.time for e in heard(fabric.nodes[1]))
    assert first < second < third


def test_the_newest_of_a_name_is_delivered_where_events_coalesce():
    fabric = meshed(4)
    for number in range(5):
        tell(fabric, "config", b"%d" % number, coalesce=True)
        tell(fabric, "other", coalesce=False)
    fabric.run(5)
    for node in fabric.nodes:
        told = [(e.name, e.payload) for e in heard(node) if e.name == "config"]
        assert told == [("config", b"4")]
        assert names(node).count("other") == 5


def test_an_older_event_of_a_name_that_comes_late_is_not_delivered():
    fabric = meshed(2)
    now = wall_ms(fabric)
    for time in (now, now - 5):
        told = UserEvent(time, node_id(1), plane.COALESCE, "config", b"%d" % time)
        speak(fabric, 12, (0, (told,)))
    fabric.run(3)
    assert [e.time for e in heard(fabric.nodes[0])] == [now]


def test_of_a_bounded_number_of_names_the_newest_is_remembered(monkeypatch):
    monkeypatch.setattr(plane, "NEWEST_MAX", 1)
    fabric = meshed(2)
    now = wall_ms(fabric)
    for time, name in ((now, "a"), (now + 1, "b"), (now - 1, "a")):
        speak(fabric, 12, (0, (UserEvent(time, node_id(1), plane.COALESCE, name, b""),)))
        fabric.run(2)
    assert [e.time - now for e in heard(fabric.nodes[0])] == [0, 1, -1]


def test_past_a_bound_of_names_events_no_longer_wait_for_newer_ones(monkeypatch):
    monkeypatch.setattr(plane, "COALESCING_MAX", 1)
    fabric = meshed(2)
    tell(fabric, "a", coalesce=True)
    tell(fabric, "b", coalesce=True)
    assert names(fabric.nodes[0]) == ["b"]
    fabric.run(2)
    assert names(fabric.nodes[0]) == ["b", "a"]


def test_a_node_alone_hears_itself_and_keeps_nothing_waiting():
    fabric = Fabric(1)
    tell(fabric, "alone")
    fabric.run(10)
    assert names(fabric.nodes[0]) == ["alone"]
    assert fabric.nodes[0].swim.pending()["events"] == 0


def test_a_split_that_heals_without_events_costs_no_digests():
    fabric = meshed(4)
    fabric.run(10)
    fabric.split(set(fabric.nodes[:2]))
    fabric.run(40)
    before = [len(sent(node, EventDigest)) for node in fabric.nodes]
    fabric.heal()
    assert fabric.run(30, until=fabric.converged)
    assert [len(sent(node, EventDigest)) for node in fabric.nodes] == before


def test_what_was_not_passed_on_for_want_of_room_is_counted(monkeypatch):
    monkeypatch.setattr(plane, "EVENTS_WAITING_MAX", 2)
    fabric = meshed(2)
    for number in range(5):
        tell(fabric, f"e{number}")
    assert fabric.nodes[0].swim.events_dropped == 3
    fabric.run(10)
    assert sorted(names(fabric.nodes[1])) == ["e0", "e1", "e2", "e3", "e4"]


def test_who_was_stopped_with_an_event_to_pass_on_sends_nothing_that_others_refuse_to_read():
    fabric = meshed(2)
    source, target = fabric.nodes
    fabric.lose(1.0)
    tell(fabric, "late")
    fabric.sleep(source)
    fabric.run(70)
    fabric.heal()
    fabric.wake(source)
    fabric.run(10)
    assert source.swim.pending()["events"] == 0
    assert names(target) == []
    assert not {"bad_payload", "event_old"} & set(rejected(target))


def test_a_quiet_mesh_spends_nothing_on_events():
    fabric = meshed(5)
    fabric.run(10)
    before = [len(sent(node, EventDigest)) for node in fabric.nodes]
    fabric.run(60)
    assert [len(sent(node, EventDigest)) for node in fabric.nodes] == before


@pytest.mark.parametrize(
    ("fired", "text"),
    [
        (EventFired("not a name"), "not a valid name"),
        (EventFired("x", b"x" * 401), "401 bytes, more than the 400"),
        (QueryFired(1, "x", timeout_s=0.0), "timeout"),
        (QueryFired(1, "x", timeout_s=601.0), "timeout"),
        (QueryFired(1, "x", nodes=tuple(map(node_id, range(17)))), "may name 16 nodes"),
        (QueryFired(1, "x", capability="not a name"), "not a valid name"),
        (
            QueryFired(1, LONGEST, b"x" * 400, nodes=tuple(map(node_id, range(16)))),
            "query with its filters has",
        ),
    ],
)
def test_what_gossip_cannot_carry_is_refused_before_anything_is_told(fired, text):
    fabric = Fabric(1)
    with pytest.raises(UsageError, match=text):
        fabric.step(fabric.nodes[0], fired)
    assert fabric.nodes[0].swim.pending()["recent_events"] == 0
    assert fabric.nodes[0].swim.pending()["queries"] == 0


def test_the_largest_event_fits_the_smallest_datagram():
    config = msgspec.structs.replace(profile("lan"), datagram_bytes_max=640)
    fabric = meshed(3, config=config)
    tell(fabric, LONGEST, b"x" * 400)
    for node in fabric.nodes[:1]:
        fabric.step(
            node,
            QueryFired(2**32 - 1, LONGEST, b"x" * 226, 600.0, (node_id(1),) * 16, LONGEST[:40]),
        )
    fabric.run(5)
    assert fabric.largest <= 640 - 48
    assert all(names(node) == [LONGEST] for node in fabric.nodes)
    assert [q.payload for q in of(fabric.nodes[1], QueryHeard)] == []


def test_a_node_that_has_left_tells_nothing():
    fabric = meshed(2)
    fabric.step(fabric.nodes[0], LeaveRequested())
    with pytest.raises(UsageError, match="has left"):
        tell(fabric, "late")


def test_one_node_may_tell_so_much_and_no_more():
    fabric = Fabric(1)
    for _ in range(plane.EVENTS_BURST):
        tell(fabric, "much")
    with pytest.raises(BusyError, match="10 events a second"):
        tell(fabric, "more")
    fabric.run(0.2)
    tell(fabric, "later")


# What others may do to it


def test_a_hostile_member_is_held_to_the_rate_of_one_origin_and_strangers_share_one():
    fabric = meshed(2)
    for number in range(200):
        speak(fabric, 12, (0, (event(wall_ms(fabric) + number),)))
    assert len(heard(fabric.nodes[0])) == plane.EVENTS_BURST
    for number in range(200):
        speak(fabric, 12, (0, (event(wall_ms(fabric), origin=300 + number),)))
    assert len(heard(fabric.nodes[0])) == 2 * plane.EVENTS_BURST
    assert rejected(fabric.nodes[0]).count("event_rate") == 400 - 2 * plane.EVENTS_BURST


@pytest.mark.parametrize(
    ("told", "age_ms", "reason"),
    [
        (lambda now: event(now, "not a name"), 0, "bad_event"),
        (lambda now: event(now, question=Question(1, 1, b"1234567")), 0, "bad_event"),
        (lambda now: event(now + 90_000_000), 0, "event_ahead"),
        (event, 60_000, "event_old"),
        (lambda _: event(0), 0, "event_old"),
    ],
)
def test_what_cannot_be_an_event_is_dropped_and_counted(told, age_ms, reason):
    fabric = meshed(2)
    speak(fabric, 12, (age_ms, (told(wall_ms(fabric)),)))
    assert heard(fabric.nodes[0]) == []
    assert rejected(fabric.nodes[0]) == [reason]


def test_a_time_far_ahead_does_not_push_own_times_out_of_bounds():
    fabric = meshed(2)
    day_ms = 86_400_000
    speak(fabric, 12, (0, (event(wall_ms(fabric) + day_ms),)))
    tell(fabric, "own")
    assert heard(fabric.nodes[0])[-1].time <= wall_ms(fabric) + day_ms // 2 + 1
    fabric.run(5)
    assert "own" in names(fabric.nodes[1])


def test_no_member_can_raise_the_floor_above_what_the_others_tell(monkeypatch):
    monkeypatch.setattr(plane.Buckets, "take", lambda *_: True)
    fabric = meshed(3)
    ahead = wall_ms(fabric) + 80_000_000
    for number in range(RECENT_MAX + 50):
        speak(fabric, 12, (0, (event(ahead + number),)))
    for by in (2, 0):
        tell(fabric, f"own{by}", by=by)
    fabric.run(10)
    for node in fabric.nodes:
        assert {"own0", "own2"} <= set(names(node))
        assert len(names(node)) == len(set(names(node))) + names(node).count("x") - 1


def test_events_of_strangers_are_not_taken():
    fabric = meshed(2)
    fabric.add()
    speak(fabric, 12, (0, (event(wall_ms(fabric)),)), by=2)
    assert heard(fabric.nodes[0]) == []
    assert rejected(fabric.nodes[0]) == ["not_a_member"]


def test_a_digest_from_another_address_gets_no_answer():
    fabric = meshed(2)
    tell(fabric, "x")
    target, source = fabric.nodes
    data = encode_header(MESH, target.id, source.id) + encode_body(14, (0, b"", False))
    effects = fabric.step(target, DatagramReceived(data, Address("10.9.9.9", 1)))
    assert [e.reason for e in effects if isinstance(e, DatagramRejected)] == ["unproven"]
    told = [decode(e.data, MESH).message for e in effects if isinstance(e, SendDatagram)]
    assert [type(each) for each in told] == [Join]  # who is there?


def test_digests_get_so_many_events_and_then_none_for_a_while():
    fabric = meshed(2)
    for number in range(50):
        tell(fabric, f"{number}-{'n' * 50}", b"x" * 400)
    before = len(sent(fabric.nodes[0], Events))
    for _ in range(40):
        speak(fabric, 14, (0, b"", False))
    answers = sent(fabric.nodes[0], Events)[before:]
    assert len(answers) == plane.HANDED_BURST
    assert all(1 <= len(each.events) <= 3 for each in answers)


def test_a_digest_tells_from_when_on_it_is_complete(monkeypatch):
    monkeypatch.setattr(plane, "DIGEST_EVENTS_MAX", 2)
    fabric = meshed(2)
    for number in range(4):
        tell(fabric, f"e{number}")
    fabric.run(5)
    digest = sent(fabric.nodes[0], EventDigest)[-1]
    times = [e.time for e in heard(fabric.nodes[0])]
    assert (digest.since, len(digest.hashes)) == (times[2], 8)
    before = len(sent(fabric.nodes[1], Events))
    speak(fabric, 14, (times[2], b"", True), to=1, by=0)
    (handed,) = sent(fabric.nodes[1], Events)[before:]
    assert [e.name for e in handed.events] == ["e2", "e3"]


def test_an_answer_to_a_digest_asks_for_nothing():
    fabric = meshed(2)
    before = len(fabric.nodes[0].effects)
    speak(fabric, 14, (0, b"1234", True))
    assert fabric.nodes[0].effects[before:] == []
    speak(fabric, 14, (0, b"1234", False))
    assert [m.is_answer for m in sent(fabric.nodes[0], EventDigest)][-1:] == [True]


def test_a_timer_of_nobody_is_a_bug_of_ours():
    fabric = Fabric(1)
    with pytest.raises(AssertionError, match="no such timer"):
        fabric.nodes[0].swim._events.on_due("nonsense", fabric.now)
