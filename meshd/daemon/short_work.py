"""Calls of `work` that need no task of their own: the answer is called back, not awaited."""

from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import msgspec

from meshd.clock import Instant, Seconds
from meshd.deadline import Deadline
from meshd.errors import MeshError
from meshd.rpc.methods import Answered
from meshd.work.origin import ORIGIN, Origin
from meshd.work.run import Answer, Run, WorkResult

if TYPE_CHECKING:
    from meshd.daemon.node import Node


class ShortWork:
    """One such call, from the moment on in which it came."""

    __slots__ = ("_answered", "_began", "_node", "_run")

    def __init__(self, node: "Node", answered: Answered) -> None:
        self._node = node
        self._answered: Answered | None = answered
        self._began = node.clock.now()
        self._run: Run | None = None

    def begin(
        self,
        capability: str,
        value: Any,
        *,
        deadline_s: Seconds,
        priority: int,
        hops: tuple[str, ...],
    ) -> None:
        """Have it done by the node's worker, or answer why it is not."""
        node, context = self._node, copy_context()
        context.run(ORIGIN.set, Origin(hops, Deadline.after(deadline_s, self._began)))
        try:
            self._run = node.worker.begin(
                capability, value, self._done,
                deadline_s=deadline_s, priority=priority, context=context,
            )  # fmt: skip
        except MeshError as error:
            self._done(error)
        else:
            node.own_load.changed()

    def cancel(self, msg: str | None = None) -> None:
        """Its caller has left, or its link is lost."""
        run, self._run, self._answered = self._run, None, None
        if run is not None:
            self._node.worker.leave(run, self._done, msg)
            self._node.own_load.changed()

    def _done(self, answer: Answer) -> None:
        # Who waits for this knows it, too: without a cycle both are gone once it is over.
        answered, self._run, self._answered = self._answered, None, None
        assert answered is not None, "it ends once"
        node = self._node
        node.own_load.changed()
        if isinstance(answer, MeshError):
            answered(with_load(node, answer))
        else:
            answered(told(node, answer, self._began))


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
