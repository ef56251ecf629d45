"""What became of every call, every try and every run of a handler: the truth that checkers ask.

Callers, routing and handlers all report here, in virtual time, whether their process lives on or
not. A `Work` is one wanted effect; it may be asked for by several calls under one key.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from meshd.errors import Code, MeshError
from meshd.view import Peer


class End(StrEnum):
    """How a call, a try or a run of a handler ended."""

    DONE = "done"
    FAILED = "failed"
    LATE = "late"
    BUSY = "busy"
    CANCELLED = "cancelled"
    KILLED = "killed"


@dataclass(slots=True, eq=False)
class Call:
    """One `delegate` of a client or of a handler: `by` is the machine, in its run `run`."""

    work: "Work"
    by: int
    run: int
    began: float
    deadline: float
    end: End | None = None
    ended: float = 0.0
    ends: int = 0
    error: MeshError | None = None
    result: Any = None


@dataclass(slots=True, eq=False)
class Execution:
    """One run of a handler on machine `at`; `hops` are the nodes that the work came through."""

    work: "Work"
    number: int
    at: int
    run: int
    began: float
    deadline: float
    hops: tuple[str, ...]
    end: End | None = None
    ended: float = 0.0


@dataclass(slots=True, eq=False)
class Try:
    """One `work` that routing sent from machine `by` to machine `to`.

    `row` is what the view of `by` said of `to` in that moment.
    """

    work: "Work"
    by: int
    run: int
    to: int
    began: float
    deadline: float
    hops: tuple[str, ...]
    row: Peer | None
    end: End | None = None
    ended: float = 0.0
    error: MeshError | None = None


@dataclass(slots=True, eq=False)
class Work:
    """One wanted effect, and all that was done for it. `parent` is the work whose handler asked."""

    number: int
    capability: str
    is_idempotent: bool
    key: str
    parent: "Work | None"
    calls: list[Call] = field(default_factory=list)
    tries: list[Try] = field(default_factory=list)
    executions: list[Execution] = field(default_factory=list)


class Listener:
    """Base of whoever watches the ledger: does nothing. What a subclass overrides is called."""

    def on_call(self, call: Call) -> None:
        """A call begins."""

    def on_call_end(self, call: Call) -> None:
        """A call has ended at its caller, or with it."""

    def on_try(self, tried: Try) -> None:
        """Routing asks a node, in this very moment."""

    def on_try_end(self, tried: Try) -> None:
        """A try has ended."""

    def on_execution(self, execution: Execution) -> None:
        """A handler begins."""

    def on_execution_end(self, execution: Execution) -> None:
        """A handler has ended."""


_HOOKS = ("on_call", "on_call_end", "on_try", "on_try_end", "on_execution", "on_execution_end")


class Ledger:
    """All works of a run."""

    def __init__(self) -> None:
        self.works: dict[int, Work] = {}
        self.open_calls: dict[Call, None] = {}
        self.open_tries: dict[Try, None] = {}
        self.running: dict[Execution, None] = {}
        self.executions = 0
        self._listeners: dict[str, list[Any]] = {name: [] for name in _HOOKS}

    def listen(self, listener: Listener) -> None:
        """Call what this listener overrides."""
        for name in _HOOKS:
            if getattr(type(listener), name) is not getattr(Listener, name):
                self._listeners[name].append(getattr(listener, name))

    def _tell(self, hook: str, entry: Call | Try | Execution) -> None:
        for listener in self._listeners[hook]:
            listener(entry)

    def want(
        self, capability: str, *, is_idempotent: bool, key: str = "", parent: Work | None = None
    ) -> Work:
        """A new effect is wanted."""
        work = Work(len(self.works), capability, is_idempotent, key, parent)
        self.works[work.number] = work
        return work

    def begin_call(self, call: Call) -> None:
        """Somebody calls."""
        call.work.calls.append(call)
        self.open_calls[call] = None
        self._tell("on_call", call)

    def end_call(
        self,
        call: Call,
        end: End,
        now: float,
        *,
        error: MeshError | None = None,
        result: Any = None,
    ) -> None:
        """The caller has its answer."""
        call.ends += 1
        call.end, call.ended, call.error, call.result = end, now, error, result
        self.open_calls.pop(call, None)
        self._tell("on_call_end", call)

    def begin_try(self, tried: Try) -> None:
        """Routing asks somebody."""
        tried.work.tries.append(tried)
        self.open_tries[tried] = None
        self._tell("on_try", tried)

    def end_try(self, tried: Try, end: End, now: float, error: MeshError | None = None) -> None:
        """It has its answer, or gave up."""
        tried.end, tried.ended, tried.error = end, now, error
        self.open_tries.pop(tried, None)
        self._tell("on_try_end", tried)

    def begin_execution(self, execution: Execution) -> None:
        """A handler runs."""
        self.executions += 1
        execution.work.executions.append(execution)
        self.running[execution] = None
        self._tell("on_execution", execution)

    def end_execution(self, execution: Execution, end: End, now: float) -> None:
        """It runs no more."""
        execution.end, execution.ended = end, now
        self.running.pop(execution, None)
        self._tell("on_execution_end", execution)

    def kill(self, by: int, now: float) -> None:
        """The process on machine `by` was killed: whatever it did ends there, without a word."""
        for execution in [each for each in self.running if each.at == by]:
            self.end_execution(execution, End.KILLED, now)
        for tried in [each for each in self.open_tries if each.by == by]:
            self.end_try(tried, End.KILLED, now)
        for call in [each for each in self.open_calls if each.by == by]:
            self.end_call(call, End.KILLED, now)

    def calls(self) -> Iterator[Call]:
        """All calls so far."""
        for work in self.works.values():
            yield from work.calls


def end_of(error: MeshError) -> End:
    """What an error stands for."""
    if error.code == Code.DEADLINE:
        return End.LATE
    return End.BUSY if error.code == Code.BUSY else End.FAILED
