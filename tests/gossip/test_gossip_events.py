"""Users' events and queries: told once, heard once by each, answered to whoever asked."""

import msgspec
import pytest
from fabric import MESH, Fabric, Node, meshed, node_id
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshd.clock import Instant
from meshd.errors import BusyError, UsageError
from meshd.gossip import events as plane
from meshd.gossip import queries
from meshd.gossip.codec import decode, encode_body, encode_event, encode_header, event_key
from meshd.gossip.config import profile
from meshd.gossip.effects import (
    DatagramRejected,
    EventHeard,
    QueryAnswered,
    QueryEnded,
    QueryHeard,
    SendDatagram,
)
from meshd.gossip.inputs import (
    AnswerGiven,
    DatagramReceived,
    EventFired,
    JoinRequested,
    LeaveRequested,
    QueryFired,
    StateSet,
)
from meshd.gossip.messages import Answer, EventDigest, Events, Question, UserEvent
from meshd.gossip.queries import query_timeout_s
from meshd.gossip.recent import Buckets, EventQueue, Recent, RecentEvents
from meshd.model import Address, NodeId

LONGEST = "n" * 64


def heard(node: Node) -> list[EventHeard]:
    return [e for e in node.effects if isinstance(e, EventHeard)]


def names(node: Node) -> list[str]:
    return [e.name for e in heard(node)]


def rejected(node: Node) -> list[str]:
    return [e.reason for e in node.effects if isinstance(e, DatagramRejected)]


def of(node: Node, kind: type) -> list:
    return [e for e in node.effects if isinstance(e, kind)]


def sent(node: Node, kind: type) -> list:
    decoded = (decode(e.data, MESH).message for e in of(node, SendDatagram))
    return [message for message in decoded if isinstance(message, kind)]


def tell(fabric: Fabric, name: str, payload: bytes = b"", *, by: int = 0, **more: bool) -> None:
    fabric.step(fabric.nodes[by], EventFired(name, payload, **more))


def speak(fabric: Fabric, kind: int, fields: tuple, *, to: int = 0, by: int = 1) -> None:
    """A datagram as a member might send it."""
    source, target = fabric.nodes[by], fabric.nodes[to]
    data = encode_header(MESH, target.id, source.id) + encode_body(kind, fields)
    fabric.step(target, DatagramReceived(data, source.address))


def wall_ms(fabric: Fabric, index: int = 0) -> int:
    return fabric.nodes[index].swim.me.epoch + int((fabric.now - 1000.0) * 1_000)


def event(time: int, name: str = "x", origin: int = 1, **more: object) -> UserEvent:
    return UserEvent(time, node_id(origin), 0, name, b"", **more)


def recent(time: int, name: str = "x", born: float = 0.0, **more: object) -> Recent:
    return Recent.of(event(time, name, **more), Instant(born))


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
        (lambda now: event(now), 60_000, "event_old"),
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
    assert [type(e) for e in effects] == [DatagramRejected]


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


# Queries


def ask(fabric: Fabric, query: int = 7, *, by: int = 0, **more: object) -> None:
    fabric.step(fabric.nodes[by], QueryFired(query, "uptime", b"?", **more))


def answer_all(fabric: Fabric, payload: bytes = b"42", **more: bool) -> None:
    """Whoever hears a query answers it."""

    def watch(node: Node, effects: list) -> None:
        for effect in effects:
            if isinstance(effect, QueryHeard):
                answer = AnswerGiven(effect.origin, effect.query, payload, **more)
                fabric.step(node, answer)

    fabric.watchers.append(watch)


def answers(fabric: Fabric, index: int = 0) -> dict[NodeId, bytes]:
    found = of(fabric.nodes[index], QueryAnswered)
    return {e.node: e.payload for e in found if e.payload is not None}


def test_all_nodes_answer_a_query_and_its_end_comes_with_the_deadline():
    fabric = meshed(9)
    answer_all(fabric)
    began = fabric.now
    ask(fabric)
    assert fabric.run(1, until=lambda: len(answers(fabric)) == 9)
    acks = [e for e in of(fabric.nodes[0], QueryAnswered) if e.payload is None]
    assert len({e.node for e in acks}) == len(acks) == 9
    assert fabric.run(9, until=lambda: bool(of(fabric.nodes[0], QueryEnded)))
    assert fabric.now - began == pytest.approx(query_timeout_s(fabric.config, 9), abs=0.02)
    fabric.run(5)
    assert [node.swim.pending()["queries"] for node in fabric.nodes] == [0] * 9


def test_the_usual_time_for_answers_grows_with_the_mesh():
    assert query_timeout_s(profile("lan"), 0) == pytest.approx(3.2)
    assert query_timeout_s(profile("lan"), 50) == pytest.approx(6.4)


def test_lost_answers_are_sent_again():
    fabric = meshed(20, seed=3)
    answer_all(fabric)
    fabric.lose(0.1)
    ask(fabric, wants_acks=False)
    fabric.run(6)
    assert len(answers(fabric)) == 20
    assert len([e for e in of(fabric.nodes[0], QueryAnswered) if e.payload is not None]) == 20


def test_only_those_who_are_named_answer_and_then_the_query_ends_at_once():
    fabric = meshed(6)
    answer_all(fabric)
    wanted = (fabric.nodes[2].id, fabric.nodes[4].id)
    ask(fabric, nodes=wanted)
    assert fabric.run(1, until=lambda: bool(of(fabric.nodes[0], QueryEnded)))
    assert answers(fabric).keys() == set(wanted)
    speak(fabric, 13, (7, 1, b"late"), by=3)
    assert rejected(fabric.nodes[0])[-1] == "unasked"
    assert answers(fabric).keys() == set(wanted)


def test_nobody_else_may_answer_what_was_asked_of_some():
    fabric = meshed(3)
    ask(fabric, nodes=(fabric.nodes[2].id,))
    speak(fabric, 13, (7, 1, b"forged"), by=1)
    assert answers(fabric) == {}
    assert rejected(fabric.nodes[0]) == ["unasked"]


def test_only_nodes_that_offer_a_capability_are_asked_for_it():
    fabric = meshed(4)
    answer_all(fabric)
    fabric.step(fabric.nodes[3], StateSet({"cap/ocr": b"it"}))
    fabric.step(fabric.nodes[2], StateSet({"cap/ocr": b"it"}))
    fabric.step(fabric.nodes[2], StateSet({"cap/ocr": None}))
    ask(fabric, capability="ocr")
    fabric.run(2)
    assert answers(fabric).keys() == {fabric.nodes[3].id}


def test_an_answer_that_is_too_long_becomes_a_refusal_in_words():
    fabric = meshed(2)
    answer_all(fabric, b"x" * 1_025)
    ask(fabric)
    fabric.run(1)
    told = [e for e in of(fabric.nodes[0], QueryAnswered) if e.payload is not None]
    assert {e.is_error for e in told} == {True}
    assert b"1025 bytes, more than the 1024" in told[0].payload


def test_an_answer_is_as_long_as_the_configured_datagram_allows():
    config = msgspec.structs.replace(profile("lan"), datagram_bytes_max=640)
    fabric = meshed(2, config=config)
    answer_all(fabric, b"x" * 553)
    ask(fabric, 2**32 - 1)
    fabric.run(1)
    assert fabric.largest == 640 - 48
    assert answers(fabric)[fabric.nodes[1].id] == b"x" * 553


def test_a_refusal_comes_as_one_and_only_the_first_answer_counts():
    fabric = meshed(2)
    answer_all(fabric, b"no", is_error=True)
    answer_all(fabric, b"yes")
    ask(fabric)
    fabric.run(1)
    told = [e for e in of(fabric.nodes[0], QueryAnswered) if e.payload is not None]
    assert [(e.payload, e.is_error) for e in told] == [(b"no", True)] * 2


def test_a_query_that_comes_after_its_time_is_not_answered():
    fabric = meshed(2)
    speak(fabric, 12, (2_000, (event(wall_ms(fabric), question=Question(1, 1_000)),)))
    assert of(fabric.nodes[0], QueryHeard) == []


def test_answers_nobody_waits_for_are_given_up():
    fabric = meshed(2)
    fabric.step(fabric.nodes[0], AnswerGiven(fabric.nodes[1].id, 5, b"unasked"))
    answer_all(fabric)
    speak(fabric, 12, (0, (event(wall_ms(fabric), origin=99, question=Question(1, 9_000)),)))
    fabric.run(10)
    assert sent(fabric.nodes[0], Answer) == []
    assert fabric.nodes[0].swim.pending()["queries"] == 0


def test_an_answer_is_sent_three_times_to_an_asker_that_is_silent():
    fabric = meshed(2)
    answer_all(fabric)
    question = Question(1, 60_000)
    speak(fabric, 12, (0, (event(wall_ms(fabric), question=question),)))
    fabric.drop = lambda _a, _b: True
    fabric.run(3)
    assert len(sent(fabric.nodes[0], Answer)) == queries.ANSWER_TRIES


def test_an_answer_that_came_twice_counts_once_and_is_confirmed_twice():
    fabric = meshed(2)
    ask(fabric)
    for _ in range(2):
        speak(fabric, 13, (7, 1, b"me"))
    assert answers(fabric) == {fabric.nodes[1].id: b"me"}
    assert [m.part for m in sent(fabric.nodes[0], Answer)] == [3, 3]


def test_own_queries_are_bounded_and_so_are_answers(monkeypatch):
    fabric = meshed(3)
    monkeypatch.setattr(queries, "ANSWERS_MAX", 1)
    monkeypatch.setattr(queries, "OPEN_MAX", 1)
    ask(fabric)
    with pytest.raises(BusyError, match="already wait"):
        ask(fabric, 8)
    for node in (1, 2):
        speak(fabric, 13, (7, 1, b"me"), by=node)
    assert len(answers(fabric)) == 1
    assert rejected(fabric.nodes[0]) == ["too_many_answers"]


def test_the_oldest_query_makes_room_for_one_too_many(monkeypatch):
    monkeypatch.setattr(queries, "ANSWERING_MAX", 1)
    fabric = meshed(2)
    for query in (1, 2):
        told = event(wall_ms(fabric) + query, question=Question(query, 5_000))
        speak(fabric, 12, (0, (told,)))
    asker = fabric.nodes[1].id
    for query in (1, 2):
        fabric.step(fabric.nodes[0], AnswerGiven(asker, query, b"%d" % query))
    assert [m.payload for m in sent(fabric.nodes[0], Answer)] == [b"2"]


def test_an_own_answer_after_the_end_is_dropped():
    fabric = Fabric(1)
    ask(fabric, timeout_s=0.5)
    node = fabric.nodes[0]
    node.swim._events._queries._asked.clear()
    fabric.step(node, AnswerGiven(node.id, 7, b"late"))
    assert answers(fabric) == {}


# The parts


def test_what_is_older_than_the_oldest_that_is_remembered_counts_as_heard():
    held = RecentEvents(floor=0, maximum=2)
    for time in (5, 9, 7):
        held.add(recent(time))
    assert held.floor == 5
    assert held.is_old(event(5))
    assert not held.is_old(event(6))
    assert len(held) == 2
    assert not held.knows(event_key(event(5)))
    assert held.knows(event_key(event(7)))


def test_only_young_events_and_open_queries_are_current():
    held = RecentEvents(floor=0)
    held.add(recent(1, "old", born=-61.0))
    held.add(recent(2, "young", born=-59.0))
    held.add(recent(3, "over", born=-3.0, question=Question(1, 2_000)))
    held.add(recent(4, "open", born=-1.0, question=Question(2, 2_000)))
    assert [each.event.name for each in held.current(Instant(0.0))] == ["open", "young"]


def test_in_a_full_queue_the_most_sent_makes_room():
    queue = EventQueue(2)
    first, second, third = (recent(n) for n in (1, 2, 3))
    queue.add(1, first)
    assert queue.take(1_000, 9, 1) == [first]
    queue.add(2, second)
    queue.add(3, third)
    assert queue.dropped == 1
    assert queue.take(1_000, 9, 5) == [second, third]


def test_a_queue_sends_each_its_number_of_times_and_what_fits():
    queue = EventQueue(9)
    small, large = recent(1), recent(2, "n" * 60)
    queue.add(1, small)
    queue.add(2, large)
    assert queue.take(len(small.encoded), 2, 5) == [small]
    assert queue.take(1_000, 2, 5) == [large, small]
    assert queue.take(1_000, 2, 5) == [large]
    assert len(queue) == 0


def test_of_events_in_one_slot_the_newest_stays():
    queue = EventQueue(9)
    older, newer = recent(1), recent(2)
    queue.add("name", newer)
    queue.add("name", older)
    assert queue.take(1_000, 9, 5) == [newer]


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
            held.add(Recent.of(one, Instant(0.0)))
            taken.append(key)
        assert len(held) <= maximum
    assert len(taken) == len(set(taken))


@given(told, st.none() | st.builds(Question, st.integers(0, 9), st.integers(1, 9)))
def test_an_event_comes_out_of_a_datagram_as_it_went_in(one, question):
    one = msgspec.structs.replace(one, question=question)
    body = encode_body(12, (5,), (encode_event(one),))
    message = decode(encode_header(MESH, node_id(0), node_id(1)) + body, MESH).message
    assert message == Events(5, (one,))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(0, 2**32),
    st.lists(st.tuples(st.integers(0, 4), texts, st.booleans()), max_size=12),
)
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
    fabric.run(8)
    for node in fabric.nodes:
        keys = [(e.time, e.origin, e.name) for e in heard(node)]
        assert len(keys) == len(set(keys))
        plain = [name for _, name, coalesce in tellings if not coalesce]
        assert sorted(e.name for e in heard(node) if not e.coalesce) == sorted(plain)
