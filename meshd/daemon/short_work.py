"""Calls of `work` that need no task of their own: the answer is called back, not awaited."""

from abc import ABC, abstractmethod
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import msgspec

from meshd.clock import Clock, Instant, Seconds
from meshd.deadline import Deadline
from meshd.errors import MeshError
from meshd.priority import PRIORITY_DEFAULT
from meshd.rpc.methods import Answered
from meshd.work.origin import ORIGIN, Origin
from meshd.work.run import Answer, Run, WorkResult
from meshd.work.worker import Worker

if TYPE_CHECKING:
    from meshd.daemon.node import Node


class ShortWork(ABC):
    """One such call at a worker, from the moment on in which it came."""

    __slots__ = ("_answered", "_began", "_run", "_worker")

    def __init__(self, worker: Worker, clock: Clock, answered: Answered) -> None:
        self._worker = worker
        self._answered: Answered | None = answered
        self._began = clock.now()
        self._run: Run | None = None

    def begin(
        self,
        capability: str,
        value: Any,
        *,
        deadline_s: Seconds,
        priority: int = PRIORITY_DEFAULT,
        hops: tuple[str, ...],
    ) -> None:
        """Have it done, or answer why it is not."""
        context = copy_context()
        context.run(ORIGIN.set, Origin(hops, Deadline.after(deadline_s, self._began)))
        try:
            self._run = self._worker.begin(
                capability, value, self._done,
                deadline_s=deadline_s, priority=priority, context=context,
            )  # fmt: skip
        except MeshError as error:
            self._done(error)

    def cancel(self, msg: object = None) -> None:
        """Its caller has left, or its link is lost."""
        run, self._run, self._answered = self._run, None, None
        if run is not None:
            self._worker.leave(run, self._done, msg)

    def _done(self, answer: Answer) -> None:
        # Who waits for this knows it, too: without a cycle both are gone once it is over.
        answered, self._run, self._answered = self._answered, None, None
        assert answered is not None, "it ends once"
        answered(self._told(answer))

    @abstractmethod
    def _told(self, answer: Answer) -> Any:
        """What its caller is told."""


class ShortOrder(ShortWork):
    """A daemon's order to a program that is attached to it."""

    __slots__ = ("_tells_units",)

    def __init__(
        self, worker: Worker, clock: Clock, answered: Answered, *, tells_units: bool
    ) -> None:
        super().__init__(worker, clock, answered)
        self._tells_units = tells_units

    def _told(self, answer: Answer) -> Any:
        return (
            answer
            if isinstance(answer, MeshError)
            else done_order(answer, tells_units=self._tells_units)
        )


class ShortCall(ShortWork):
    """Another node's call, or a program's, at this node."""

    __slots__ = ("_node",)

    def __init__(self, node: "Node", answered: Answered) -> None:
        super().__init__(node.worker, node.clock, answered)
        self._node = node
        node.own_load.changed()

    def cancel(self, msg: object = None) -> None:
        """As above; the others are told that it ended."""
        super().cancel(msg)
        self._node.own_load.changed()

    def _told(self, answer: Answer) -> Any:
        node = self._node
        node.own_load.changed()
        if isinstance(answer, MeshError):
            return with_load(node, answer)
        return told(node, answer, self._began)


def done_order(done: WorkResult, *, tells_units: bool) -> Any:
    """What a program answers its daemon when the work is done."""
    return {"result": done.result, "units": done.units} if tells_units else done.result


def told(node: "Node", done: WorkResult, began: Instant) -> dict[str, Any]:
    """What `work` answers when it is done; `began` is when it came."""
    answer: dict[str, Any] = {
        "agent": done.agent,
        "node": node.name,
        "result": done.result,
        "rpc_latency_ms": round((node.clock.now() - began) * 1_000, 3),
        "load": node.own_load.lately(),
    }
    if done.units is not None:
        answer["units"] = done.units
    return answer


def with_load(node: "Node", error: MeshError) -> MeshError:
    """The same error, which says how busy the node is unless it does so already."""
    error.data.setdefault("load", msgspec.to_builtins(node.own_load.now()))
    return error
