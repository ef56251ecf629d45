"""The life cycle of a task: legal transitions only."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.clock import Instant
from meshd.work.task import Task, TaskState, TransitionError, advance, is_end, may_follow

NEW = Task("t", "echo", Instant(1.0))
ENDS = {"completed", "failed", "cancelled", "rejected", "expired"}


def at(*states: str) -> Task:
    task = NEW
    for number, state in enumerate(states):
        task = advance(task, TaskState(state), Instant(2.0 + number))
    return task


def test_a_task_that_runs_to_its_end_knows_its_times():
    task = at("accepted", "working", "completed")
    assert (task.submitted_at, task.started_at, task.ended_at) == (1.0, 3.0, 4.0)
    assert task.has_started
    assert task.has_ended
    assert task.service_s(Instant(99.0)) == 1.0


def test_a_running_task_counts_until_now():
    task = at("accepted", "working")
    assert task.service_s(Instant(5.0)) == 2.0
    assert not task.has_ended


def test_a_task_that_never_ran_has_no_service_time():
    task = at("accepted", "expired")
    assert not task.has_started
    assert task.service_s(Instant(9.0)) == 0.0


@pytest.mark.parametrize(
    ("states", "next_state"),
    [
        ((), "working"),
        ((), "completed"),
        ((), "submitted"),
        (("accepted",), "completed"),
        (("accepted",), "failed"),
        (("accepted", "working"), "rejected"),
        (("accepted", "working"), "accepted"),
        (("rejected",), "accepted"),
    ],
)
def test_illegal_transitions_are_bugs(states, next_state):
    with pytest.raises(TransitionError, match=next_state):
        at(*states, next_state)


def test_ends_are_the_states_that_nothing_follows():
    assert {state.value for state in TaskState if is_end(state)} == ENDS


@given(st.lists(st.sampled_from(list(TaskState)), max_size=8))
def test_any_walk_ends_at_most_once_and_never_after_an_end(states):
    task = NEW
    ended = 0
    for state in states:
        if may_follow(state, task.state):
            assert not task.has_ended
            task = advance(task, state, Instant(2.0))
            ended += task.has_ended
    assert ended <= 1
    assert task.has_ended == (task.ended_at is not None)
