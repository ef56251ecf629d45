"""The life of a task: which states there are and which may follow which."""

from enum import StrEnum
from typing import Final

import msgspec

from meshd.clock import Instant, Seconds


class TaskState(StrEnum):
    """Where a task stands. The last five are ends."""

    SUBMITTED = "submitted"
    ACCEPTED = "accepted"
    WORKING = "working"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    EXPIRED = "expired"


_NEXT: Final[dict[TaskState, tuple[TaskState, ...]]] = {
    TaskState.SUBMITTED: (
        TaskState.ACCEPTED,
        TaskState.REJECTED,
        TaskState.CANCELLED,
        TaskState.EXPIRED,
    ),
    # An accepted task that waits is rejected when its capability leaves before it could run.
    TaskState.ACCEPTED: (
        TaskState.WORKING,
        TaskState.REJECTED,
        TaskState.CANCELLED,
        TaskState.EXPIRED,
    ),
    TaskState.WORKING: (
        TaskState.COMPLETED,
        TaskState.FAILED,
        TaskState.CANCELLED,
        TaskState.EXPIRED,
    ),
    TaskState.COMPLETED: (),
    TaskState.FAILED: (),
    TaskState.CANCELLED: (),
    TaskState.REJECTED: (),
    TaskState.EXPIRED: (),
}


# A member of an enumeration is looked up anew each time it is named in full.
_WORKING: Final = TaskState.WORKING


class TransitionError(AssertionError):
    """A state was to follow another that it cannot follow: a bug of ours, never of a peer's."""


class Task(msgspec.Struct, frozen=True, gc=False):
    """One piece of work that somebody asked for.

    `started_at` is set once it works, `ended_at` once it has ended.
    """

    id: str
    capability: str
    submitted_at: Instant
    state: TaskState = TaskState.SUBMITTED
    started_at: Instant | None = None
    ended_at: Instant | None = None

    @property
    def has_started(self) -> bool:
        """Whether its handler ran, so that it may have had an effect."""
        return self.started_at is not None

    @property
    def has_ended(self) -> bool:
        """Whether nothing can follow."""
        return is_end(self.state)

    def service_s(self, now: Instant) -> Seconds:
        """Seconds that its handler ran until now or until its end; 0.0 if it never did."""
        if self.started_at is None:
            return 0.0
        return max(0.0, (now if self.ended_at is None else self.ended_at) - self.started_at)


def is_end(state: TaskState) -> bool:
    """Whether no state follows this one."""
    return not _NEXT[state]


def may_follow(state: TaskState, after: TaskState) -> bool:
    """Whether `state` may come right after `after`."""
    return state in _NEXT[after]


def advance(task: Task, state: TaskState, now: Instant) -> Task:
    """The task in its next state.

    Raises:
        TransitionError: `state` cannot follow the task's; the task is unchanged.
    """
    if state not in _NEXT[task.state]:
        raise TransitionError(f"task {task.id}: {state} cannot follow {task.state}")
    # Not `replace`: this happens three times in each call.
    return Task(
        task.id,
        task.capability,
        task.submitted_at,
        state,
        now if state is _WORKING else task.started_at,
        None if _NEXT[state] else now,
    )
