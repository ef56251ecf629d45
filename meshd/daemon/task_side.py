"""The side of a `Mesh` that is for work handed in now and fetched later."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine, Iterable
from typing import Any, TypeVar, Unpack

import msgspec

from meshd.clock import Seconds
from meshd.daemon.preferences import Preferences, params_of
from meshd.errors import DeadlineError, error_from_wire
from meshd.priority import PRIORITY_DEFAULT
from meshd.sink import PartQueue, Sink
from meshd.work.origin import ORIGIN

WAIT_S: Seconds = 30.0
"""One question's; a longer wait asks again."""
GRACE_S: Seconds = 2.0

Answer = TypeVar("Answer")


class TaskStatus(msgspec.Struct, frozen=True):
    """How a task stands.

    Attributes:
        id: what any node of the mesh finds it by.
        state: accepted (it waits for its turn, or for somebody who can), working, or how it ended:
            completed, failed, cancelled, expired, or rejected where its node stopped before
            anybody could take it.
        capability: what is to be done.
        fraction: how far it is, 0 .. 1, where its handler tells.
        message: the handler's word on that.
        parts: partial results so far.
        node: id of the node that works at it, in hex.
    """

    id: str
    state: str
    capability: str
    fraction: float | None = None
    message: str = ""
    parts: int = 0
    node: str = ""


class MeshTask:
    """A task that was handed in; made by `Mesh.submit` and `Mesh.task`."""

    def __init__(self, side: "TaskSide", task_id: str) -> None:
        self.id = task_id
        self._side = side

    async def status(self) -> TaskStatus:
        """How it stands.

        Raises:
            NoCandidateError: nobody keeps it any more.
        """
        return _status(await self._ask("task.get"))

    async def result(self, timeout_s: Seconds | None = None) -> Any:
        """Its result, once it has one.

        Raises:
            DeadlineError: not within `timeout_s`; the task goes on.
            MeshError: what it came to, if not to a result.
            NoCandidateError: nobody keeps it any more.
        """
        left_s = float("inf") if timeout_s is None else timeout_s
        while True:
            asked_s = min(WAIT_S, left_s)
            record = await self._ask("task.wait", asked_s, timeout_s=asked_s)
            if record.get("error"):
                error = record["error"]
                raise error_from_wire(error["code"], error["message"], error.get("data"))
            if record["state"] == "completed":
                return record.get("result")
            left_s -= asked_s
            if left_s <= 0:
                raise DeadlineError(
                    f"task {self.id} is {record['state']} after {timeout_s:g} s",
                    hint="it goes on; ask again",
                )

    async def cancel(self) -> TaskStatus:
        """End it, wherever it stands; one that has ended stays as it is."""
        return _status(await self._ask("task.cancel"))

    async def events(self, timeout_s: Seconds = 86_400.0) -> AsyncIterator[dict[str, Any]]:
        """What happens to it from now on: records, those of partial results with their `part`."""
        parts = PartQueue()
        asking = self._side._request(  # noqa: SLF001 - a part of the same side
            "task.subscribe", {"id": self.id}, timeout_s, parts
        )
        async for each in parts.of(asking, lambda _: None):
            yield each

    async def _ask(self, method: str, wait_s: Seconds = WAIT_S, **params: Any) -> dict[str, Any]:
        answer: dict[str, Any] = await self._side._request(  # noqa: SLF001 - as above
            method, {"id": self.id, **params}, wait_s + 5 * GRACE_S
        )
        return answer


class TaskSide(ABC):
    """What a program does with tasks, whichever way it is part of the mesh."""

    _usual_policy = ""
    """What calls name that neither name nor mean a policy; empty where the node knows by itself."""

    @abstractmethod
    async def _request(
        self, method: str, params: Any, timeout_s: Seconds = 10.0, sink: Sink | None = None
    ) -> Any:
        """Call a method of the node."""

    @abstractmethod
    def _wait(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        """Run `work` in the mesh's loop, from another thread."""

    async def submit(
        self,
        capability: str,
        input: Any = None,  # noqa: A002 - the field's name on the wire and in the manifest
        *,
        deadline_s: Seconds = 3_600.0,
        to: str = "",
        policy: str = "",
        idempotency_key: str = "",
        priority: int = PRIORITY_DEFAULT,
        fallback: Iterable[str] = (),
        offers: int = 0,
        **preferences: Unpack[Preferences],
    ) -> MeshTask:
        """Hand work in; it is done, and its result kept, while this program does other things.

        It waits while nobody can take it, up to `deadline_s` (a day at most). The node keeps it in
        memory, or with `journal = true` on disk, so that it survives a restart.

        Args:
            capability: its name.
            input: as for `call`.
            deadline_s: for all of it, waiting included.
            to: a node's name or id, to insist on it.
            policy: how to choose, if not as the node is configured.
            idempotency_key: a repeated key returns the first task.
            priority: 1 .. 5, the most urgent.
            fallback: capabilities to try with the same input where nobody can do this one.
            offers: ask so many candidates (up to 4) for a bid, and take the best.
            preferences: what is asked of whoever does it, as `call` takes it.

        Raises:
            BusyError: the node keeps too many open tasks.
            UsageError: the parameters are wrong.
        """
        optional = {
            "to": to, "idempotency_key": idempotency_key,
            "fallback": list(fallback), "offers": offers, "hops": list(ORIGIN.get().hops),
        }  # fmt: skip
        params = {
            "capability": capability, "input": input, "deadline_ms": deadline_s * 1_000,
            "priority": priority, **{name: value for name, value in optional.items() if value},
            **params_of(preferences, policy, self._usual_policy),
        }  # fmt: skip
        return MeshTask(self, (await self._request("task.submit", params))["id"])

    def task(self, task_id: str) -> MeshTask:
        """A task that was handed in before, here or elsewhere in the mesh, by its id."""
        return MeshTask(self, task_id)

    async def tasks(self, *states: str, limit: int = 100) -> list[TaskStatus]:
        """The tasks that this program's node keeps, the newest first."""
        answer = await self._request("task.list", {"state": list(states), "limit": limit})
        return [_status(record) for record in answer["tasks"]]

    def submit_sync(self, capability: str, input: Any = None, **choices: Any) -> MeshTask:  # noqa: A002 - see submit
        """`submit` for code that does not await."""
        return self._wait(self.submit(capability, input, **choices))

    def result_sync(self, task: MeshTask, timeout_s: Seconds | None = None) -> Any:
        """`task.result()` for code that does not await."""
        return self._wait(task.result(timeout_s))


def _status(record: dict[str, Any]) -> TaskStatus:
    return msgspec.convert(record, TaskStatus)
