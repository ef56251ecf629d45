"""Who asked whom for its load: answers reach whoever waits, and nothing is left behind."""

import asyncio

import pytest

from meshd.clock import Instant
from meshd.gossip.questions import LoadQuestion, LoadQuestions
from meshd.model import Load, NodeId

A, B = NodeId(b"a" * 8), NodeId(b"b" * 8)
NOW = Instant(100.0)
IDLE, BUSY = Load(slots=4), Load(slots=4, in_flight=4)


def ask(questions, *nodes, is_enough=lambda _: False, now=NOW):
    question = LoadQuestion(nodes, is_enough)
    for node in nodes:
        questions.ask(node, question, now)
    return question


async def test_a_question_waits_for_all_who_were_asked():
    questions = LoadQuestions()
    question = ask(questions, A, B)
    waiting = asyncio.create_task(question.wait(5.0))
    questions.answered(A, 0.001, IDLE, NOW)
    await asyncio.sleep(0)
    assert question.is_open
    questions.answered(B, 0.002, BUSY, NOW)
    await waiting
    assert question.answers == {A: (0.001, IDLE), B: (0.002, BUSY)}
    assert not question.is_open
    assert len(questions) == 0


async def test_one_answer_may_be_enough_and_a_late_one_changes_nothing():
    questions = LoadQuestions()
    question = ask(questions, A, B, is_enough=lambda answers: A in answers)
    questions.answered(A, 0.001, IDLE, NOW)
    await question.wait(5.0)
    questions.answered(B, 0.001, IDLE, NOW)
    await asyncio.sleep(0)
    assert set(question.answers) == {A}
    assert question.is_open


async def test_time_ends_the_wait_and_who_is_forgotten_is_not_answered():
    questions = LoadQuestions()
    question = ask(questions, A, B)
    await question.wait(0.001)
    questions.forget(question)
    questions.forget(question)
    assert len(questions) == 0
    questions.answered(A, 0.001, IDLE, NOW)
    await asyncio.sleep(0)
    assert question.answers == {}


@pytest.mark.parametrize(("load", "asked_by"), [(None, NOW), (IDLE, Instant(NOW - 1))])
async def test_an_answer_without_load_or_to_an_earlier_question_is_none(load, asked_by):
    questions = LoadQuestions()
    question = ask(questions, A)
    questions.answered(A, 0.001, load, asked_by)
    await question.wait(0.001)
    assert question.answers == {}


async def test_two_that_ask_the_same_are_both_answered():
    questions = LoadQuestions()
    both = [ask(questions, A), ask(questions, A)]
    assert len(questions) == 2
    questions.answered(A, 0.001, IDLE, NOW)
    for question in both:
        await question.wait(5.0)
        assert question.answers == {A: (0.001, IDLE)}


def test_an_answer_to_a_loop_that_is_gone_is_nobodys():
    questions = LoadQuestions()

    async def begin():
        return ask(questions, A)

    question = asyncio.run(begin())
    questions.answered(A, 0.001, IDLE, NOW)
    assert question.answers == {}
