"""What is kept of one task that somebody handed in."""

from typing import Any

import msgspec

from meshd.errors import MeshError, error_from_wire
from meshd.work.task import TaskState, is_end, may_follow


class TaskRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One task, as it stands and as it is stored.

    Attributes:
        id: the accepting node's id, a dash, and 16 hex digits: any node finds its keeper by it.
        capability: what is to be done.
        params: those of `delegate`, without the deadline; once it has ended, its key alone.
        state: where it stands.
        submitted_ms: wall-clock milliseconds since 1970.
        updated_ms: of its last change.
        deadline_ms: when it is given up.
        priority: 1 .. 5, the most urgent.
        digest: of what was handed in, in hex: a repeated key must come with the same.
        may_repeat: whether running it twice does no harm, as those said who could be sent it.
        node: id of the node that works at it, or did last, in hex.
        epoch: of that node's process.
        fraction: how far it is, 0 .. 1.
        message: the handler's word on that.
        parts: partial results so far.
        result: of a completed task.
        error: of one that came to nothing: `code`, `message`, `data`.
    """

    id: str
    capability: str
    params: dict[str, Any]
    submitted_ms: int
    updated_ms: int
    deadline_ms: int
    state: TaskState = TaskState.SUBMITTED
    priority: int = 3
    digest: str = ""
    may_repeat: bool = False
    node: str = ""
    epoch: int = 0
    fraction: float | None = None
    message: str = ""
    parts: int = 0
    result: Any = None
    error: dict[str, Any] | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing can follow."""
        return is_end(self.state)

    @property
    def key(self) -> str:
        """The idempotency key under which workers know it: the caller's own, or its id."""
        return str(self.params.get("idempotency_key") or f"task-{self.id}")

    def advanced(self, state: TaskState, now_ms: int, **changes: Any) -> "TaskRecord":
        """The record in its next state.

        Raises:
            AssertionError: a bug of ours: `state` cannot follow.
        """
        assert state is self.state or may_follow(state, self.state), f"{self.state} > {state}"
        return msgspec.structs.replace(self, state=state, updated_ms=now_ms, **changes)

    def waiting(self, now_ms: int, message: str) -> "TaskRecord":
        """It surely ran nowhere, and waits again: a process that takes it up may ask anybody."""
        assert not self.has_ended, f"{self.state} is an end"
        return msgspec.structs.replace(
            self, state=TaskState.ACCEPTED, updated_ms=now_ms, node="", epoch=0, message=message
        )

    def ended(self, state: TaskState, now_ms: int, **changes: Any) -> "TaskRecord":
        """The record at its end: what was handed in is kept no more, but for its key."""
        key = self.params.get("idempotency_key")
        params = {"idempotency_key": key} if key else {}
        return self.advanced(state, now_ms, params=params, **changes)

    def failure(self) -> MeshError | None:
        """Its error, as an exception."""
        if self.error is None:
            return None
        return error_from_wire(self.error["code"], self.error["message"], self.error.get("data"))


def told(record: TaskRecord) -> dict[str, Any]:
    """A record for those who ask, without what they handed in."""
    shape: dict[str, Any] = msgspec.to_builtins(
        msgspec.structs.replace(record, params={}), str_keys=True
    )
    for own in ("params", "digest", "may_repeat"):
        shape.pop(own, None)
    return {"schema": "meshd.task/1", "priority": record.priority, **shape,
            "state": str(record.state)}  # fmt: skip


def error_shape(error: MeshError) -> dict[str, Any]:
    """An error as it is kept."""
    data = {**error.data, "definite": error.definite}
    if error.hint:
        data["hint"] = error.hint
    return {"code": error.code, "message": error.message, "data": data}
