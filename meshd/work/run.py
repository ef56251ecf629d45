"""One run of a handler, the answer it comes to, and what that answer says of the node."""

import asyncio
import hashlib
from collections.abc import Callable, Hashable
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from meshd.capability.definition import CapabilityDefinition
from meshd.clock import Seconds
from meshd.errors import Code, DeadlineError, MeshError, PeerError, UsageError, error_from_wire
from meshd.sink import Sink
from meshd.units import Charge
from meshd.work.admission import Outcome, Ticket
from meshd.work.offers import owner_of
from meshd.work.task import Task, TaskState


class WorkResult(msgspec.Struct, frozen=True, gc=False):
    """A handler's result, the agent that did it, how many seconds it ran, and the units it took."""

    agent: str
    result: Any
    service_s: Seconds
    units: float | None = None


@dataclass(slots=True)
class WorkCounters:
    """What has become of all requests so far; `repeated` ones were answered by an earlier run."""

    done: int = 0
    failed: int = 0
    refused: int = 0
    cancelled: int = 0
    expired: int = 0
    repeated: int = 0

    def count(self, state: TaskState) -> None:
        """Count a task that ended."""
        match state:
            case TaskState.COMPLETED:
                self.done += 1
            case TaskState.FAILED:
                self.failed += 1
            case TaskState.REJECTED:
                self.refused += 1
            case TaskState.CANCELLED:
                self.cancelled += 1
            case TaskState.EXPIRED:
                self.expired += 1
            case TaskState.SUBMITTED | TaskState.ACCEPTED | TaskState.WORKING:
                raise AssertionError(f"{state} is no end")


_OUTCOMES: Final = {
    TaskState.COMPLETED: Outcome.DONE,
    TaskState.EXPIRED: Outcome.TIMED_OUT,
    TaskState.FAILED: Outcome.FAILED,
}

Answer = WorkResult | MeshError
Answered = Callable[[Answer], object]
"""Takes the answer to one who waits for it."""

RunKey = tuple[str, str]


class Run(msgspec.Struct, eq=False):
    """One run and those who wait for its answer, which comes once.

    `context` holds the context variables of the first who asked for it: it says where the work
    came from, also if the run starts later, out of the queue. The run itself may go on after its
    answer: a thread cannot be stopped. `ends_at` is the latest deadline of those who wait, in the
    time of `loop`; it bounds the run also where nobody waits any more. `timeout_s` is how long it
    may run, at most. `waiting` has one entry for each who waits, to tell him by. `after` is what
    `runner` calls at its end if it cannot see to that itself.
    """

    task: Task
    definition: CapabilityDefinition
    prepared: Any
    priority: int
    timeout_s: Seconds
    loop: asyncio.AbstractEventLoop
    ends_at: Seconds
    context: Context
    key: RunKey | None = None
    digest: bytes = b""
    sink: Sink | None = None
    charge: Charge = msgspec.field(default_factory=Charge)
    waiting: list[Answered] = msgspec.field(default_factory=list)
    answer: Answer | None = None
    runner: asyncio.Task[None] | None = None
    after: Callable[[asyncio.Task[None]], None] | None = None
    alarm: asyncio.TimerHandle | None = None

    def tell(self) -> None:
        """Tell the answer to those who wait for it and have not been told."""
        assert self.answer is not None, "a run is told of once it has its answer"
        waiting, self.waiting = self.waiting, []
        for answered in waiting:
            answered(self.answer)

    @property
    def owner(self) -> Hashable | None:
        """The attachment that runs it, if any."""
        return owner_of(self.definition)

    @property
    def ticket(self) -> Ticket:
        """What admission decides on."""
        task = self.task
        return Ticket(task.id, task.capability, self.definition.manifest.concurrency, self.priority)

    def too_late(self) -> DeadlineError:
        """Its caller's deadline has passed."""
        if self.task.has_started:
            return self._late("the deadline passed while it ran", definite=False)
        return self._late("the deadline passed while it waited for a slot", definite=True)

    def too_long(self) -> DeadlineError:
        """It ran for as long as it may."""
        return self._late(f"it did not end within {self.timeout_s:.3g} s", definite=False)

    def cancelled(self, why: str) -> PeerError:
        """It was called off."""
        return PeerError(
            f"{self.task.capability}: {why}",
            code=Code.CANCELLED,
            definite=not self.task.has_started,
        )

    def broken(self, error: BaseException) -> PeerError:
        """What runs handlers failed itself, or a handler raised what is no `Exception`."""
        return PeerError(
            f"{self.task.capability}: internal error: {type(error).__name__}",
            code=Code.INTERNAL,
            definite=False,
        )

    def outcome(self) -> Outcome:
        """What its end says of the node."""
        if isinstance(self.answer, UsageError):
            # The caller's fault says nothing of this node.
            return Outcome.DROPPED
        return _OUTCOMES.get(self.task.state, Outcome.DROPPED)

    def is_final(self, answer: Answer) -> bool:
        """Whether a repeated request gets this answer, too, rather than a second try.

        An error that may have had an effect is final, unless running twice does no harm.
        """
        if isinstance(answer, WorkResult):
            return True
        return not answer.definite and not self.definition.manifest.idempotent

    def _late(self, why: str, *, definite: bool) -> DeadlineError:
        return DeadlineError(f"{self.task.capability}: {why}", definite=definite)


def deliver(answer: Answer) -> WorkResult:
    """The result, or the error as an exception of its own for each who waited."""
    if isinstance(answer, WorkResult):
        return answer
    raise copy_of(answer) from answer


def copy_of(error: MeshError) -> MeshError:
    """The same error once more: a traceback belongs to one who raises it."""
    data = {**error.data, "hint": error.hint, "definite": error.definite}
    return error_from_wire(error.code, error.message, data)


def check_digest(key: RunKey, first: bytes, now: bytes) -> None:
    """A key stands for one input.

    Raises:
        UsageError: it came with another one before.
    """
    if first != now:
        raise UsageError(
            f"{key[0]}: idempotency key {key[1]!r} was used with another input",
            hint="use a new key for each new request",
        )


def digest_of(value: Any) -> bytes:
    """A short digest of a JSON input.

    Raises:
        UsageError: it is not JSON.
    """
    try:
        text = msgspec.json.encode(value, order="sorted")
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            "an input with an idempotency key must be JSON", hint=str(error)[:200]
        ) from error
    return hashlib.blake2b(text, digest_size=16).digest()


def size_of(answer: Answer) -> int:
    """Roughly how many bytes an answer takes to keep."""
    if isinstance(answer, MeshError):
        return len(answer.message)
    try:
        return len(msgspec.json.encode(answer.result))
    except (TypeError, ValueError, RecursionError):
        # An attached program's result that is no JSON fails later, on its way out.
        return 0
