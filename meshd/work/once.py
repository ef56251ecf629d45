"""What carries an idempotency key happens once: repeats join it, or get its first answer."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Generic, TypeVar

import msgspec

from meshd.clock import Clock, Seconds
from meshd.errors import Code, DeadlineError, MeshError, PeerError
from meshd.work.idempotency import Memory
from meshd.work.run import RunKey, check_digest, copy_of, digest_of

AnswerT = TypeVar("AnswerT")


@dataclass(slots=True, eq=False)
class _Flight(Generic[AnswerT]):
    """One piece of work under way, and how many wait for it."""

    digest: bytes
    task: asyncio.Task[AnswerT]
    waiters: int = 0


class Once(Generic[AnswerT]):
    """First answers by capability and key. All methods belong to one event loop.

    What is under way is bounded by its callers, what is remembered by `Memory`.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock: Final = clock
        self._under_way: Final[dict[RunKey, _Flight[AnswerT]]] = {}
        self._memory: Final[Memory[AnswerT | MeshError]] = Memory()

    async def run(
        self,
        key: RunKey,
        value: Any,
        work: Callable[[], Coroutine[Any, Any, AnswerT]],
        *,
        timeout_s: Seconds,
        may_repeat: Callable[[], bool],
    ) -> AnswerT:
        """The answer of `work()`, or of the first work under this key; `value` is its input.

        `work` keeps to a deadline of its own; `timeout_s` is how long a repeat waits for it.

        An error that surely had no effect is forgotten, and so is every error where `may_repeat()`
        then says that a second run does no harm. Who is cancelled leaves; the last one to leave
        ends the work.

        Raises:
            UsageError: the key was used with another input, or the input is no JSON.
            DeadlineError: no answer within `timeout_s` (indefinite).
            MeshError: what the work raised.
        """
        digest = digest_of(value)
        flight = self._under_way.get(key)
        if flight is None:
            first = self._memory.get(key, self._clock.now())
            if first is not None:
                check_digest(key, first.digest, digest)
                return _deliver(first.value)
            flight = _Flight(digest, asyncio.create_task(work(), name="meshd-once"))
            self._under_way[key] = flight
            flight.task.add_done_callback(partial(self._on_end, key, digest, may_repeat))
        check_digest(key, flight.digest, digest)
        flight.waiters += 1
        try:
            # wait() leaves the task alone when this caller is cancelled: others may want it.
            done, _ = await asyncio.wait((flight.task,), timeout=timeout_s)
        finally:
            flight.waiters -= 1
            if not flight.waiters:
                flight.task.cancel()
        if not done:
            raise DeadlineError(f"{key[0]}: no answer within {timeout_s:.3g} s", definite=False)
        return _deliver(_answer_of(key, flight.task))

    def _on_end(
        self,
        key: RunKey,
        digest: bytes,
        may_repeat: Callable[[], bool],
        task: asyncio.Task[AnswerT],
    ) -> None:
        del self._under_way[key]
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, MeshError):
            return  # a fault of ours: whoever waits hears of it, and it is nobody's answer
        answer = _answer_of(key, task)
        if isinstance(answer, MeshError):
            if answer.definite or may_repeat():
                return
            size = len(answer.message)
        else:
            size = len(msgspec.json.encode(answer))
        self._memory.put(key, answer, digest=digest, size=size, now=self._clock.now())


def _answer_of(key: RunKey, task: asyncio.Task[AnswerT]) -> AnswerT | MeshError:
    """What an ended task came to.

    Raises:
        Exception: a fault of ours, which is nobody's answer.
    """
    if task.cancelled():
        return PeerError(f"{key[0]}: its caller went away", code=Code.CANCELLED, definite=False)
    error = task.exception()
    if isinstance(error, MeshError):
        return error
    return task.result()


def _deliver(answer: AnswerT | MeshError) -> AnswerT:
    if isinstance(answer, MeshError):
        raise copy_of(answer) from answer
    return answer
