"""Queries: who is asked, who answers, and what comes back to the asker."""

import msgspec
import pytest
from event_talk import (
    event,
    of,
    rejected,
    sent,
    speak,
    wall_ms,
)
from fabric import Fabric, Node, meshed

from meshd.errors import BusyError
from meshd.gossip import events as plane
from meshd.gossip import queries
from meshd.gossip.config import profile
from meshd.gossip.effects import (
    QueryAnswered,
    QueryEnded,
    QueryHeard,
)
from meshd.gossip.inputs import (
    AnswerGiven,
    QueryFired,
    StateSet,
)
from meshd.gossip.messages import Answer, Question
from meshd.gossip.queries import query_timeout_s
from meshd.model import NodeId


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
    assert fabric.now - began == pytest.approx(query_timeout_s(fabric.config, 9), abs=0.05)
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


def test_a_receipt_of_an_answer_that_nobody_gave_is_nothing():
    fabric = meshed(2)
    before = len(fabric.nodes[0].effects)
    speak(fabric, 13, (7, 3, b""))
    assert fabric.nodes[0].effects[before:] == []


def test_one_node_may_ask_so_much_and_others_take_no_more_of_it():
    fabric = meshed(2)
    for number in range(40):
        question = Question(number, 5_000)
        speak(fabric, 12, (0, (event(wall_ms(fabric) + number, question=question),)))
    assert len(of(fabric.nodes[0], QueryHeard)) == plane.QUERIES_BURST
    for number in range(plane.QUERIES_BURST):
        ask(fabric, number)
    with pytest.raises(BusyError, match="2 queries, 16 at once"):
        ask(fabric, 99)
