"""The methods by which work is handed in now and fetched later: `task.submit` and its kin."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from meshd.clock import Seconds
from meshd.errors import NoCandidateError, UsageError
from meshd.model import NodeId
from meshd.routing.request import ID_DIGITS, choices_of
from meshd.routing.rules import completed
from meshd.rpc.methods import CallContext, Params, Registry
from meshd.sink import Sink
from meshd.tasks.keeper import Tasks
from meshd.tasks.record import TaskRecord, told
from meshd.tasks.store import MemoryStore, SqliteStore
from meshd.view import ClusterView, Peer
from meshd.work.task import TaskState

if TYPE_CHECKING:
    from meshd.daemon.node import Node

JOURNAL_FILE = "tasks.sqlite"
WAIT_DEFAULT_S: Seconds = 30.0
FORWARD_TIMEOUT_S: Seconds = 10.0
LIST_MAX = 1_000
CALLER = "_caller"
"""Under this name a task's parameters keep who handed it in, and so pays."""

TaskId = Annotated[str, msgspec.Meta(pattern=f"^[0-9a-f]{{{ID_DIGITS}}}-[0-9a-f]{{16}}$")]


class TaskParams(msgspec.Struct, forbid_unknown_fields=True):
    """`task.get`, `task.cancel`, `task.subscribe`: this one."""

    id: TaskId


class WaitParams(msgspec.Struct, forbid_unknown_fields=True):
    """`task.wait`: until this one has ended, or this long."""

    id: TaskId
    timeout_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = WAIT_DEFAULT_S


class ListParams(msgspec.Struct, forbid_unknown_fields=True):
    """`task.list`: the newest in these states; all if none are named."""

    state: tuple[TaskState, ...] = ()
    limit: Annotated[int, msgspec.Meta(ge=1, le=LIST_MAX)] = 100


class TaskMethods:
    """What a node answers about tasks: its own, and others' by asking their keepers."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._tasks: Tasks | None = None
        self._news: dict[NodeId, tuple[object, ...]] = {}

    def register(self, registry: Registry) -> None:
        """Serve all of them."""
        registry.add("task.submit", None, self._submit)
        registry.add("task.get", TaskParams, self._get)
        registry.add("task.list", ListParams, self._list)
        registry.add("task.cancel", TaskParams, self._cancel)
        registry.add("task.wait", WaitParams, self._wait)
        registry.add("task.subscribe", TaskParams, self._subscribe)

    async def start(self, node: NodeId) -> None:
        """Take up what an earlier process accepted.

        Raises:
            UsageError: the journal cannot be used.
        """
        its = self._node
        is_kept = its.config.node.journal
        tasks = Tasks(
            node=node.hex(), clock=its.clock, random=its.platform.random("tasks"),
            delegate=self._delegate, may_repeat=its.methods.is_idempotent, lives=self._lives,
            store=SqliteStore(its.state.path / JOURNAL_FILE) if is_kept else MemoryStore(),
        )  # fmt: skip
        await tasks.start()
        self._tasks = tasks

    async def close(self) -> None:
        """Stop; with a journal, the next process goes on."""
        if self._tasks is not None:
            await self._tasks.close()

    async def drain(self) -> None:
        """Let those end that are with workers; without a journal the others have their turn too."""
        if self._tasks is not None:
            await self._tasks.drain()

    def resume(self) -> None:
        """Begin tasks again after `drain`."""
        if self._tasks is not None:
            self._tasks.resume()

    def on_view(self, view: ClusterView) -> None:
        """There is a new view; loads and signs of life alone are no news to who waits."""
        if self._tasks is None or not self._tasks.is_waiting:
            return
        news: dict[NodeId, tuple[object, ...]] = {
            node: (p.epoch, p.state, p.reachable, p.capabilities, _is_ready(p))
            for node, p in view.by_node.items()
        }
        if news != self._news:
            self._news = news
            self._tasks.look_again()

    @property
    def tasks(self) -> Tasks:
        """What this node keeps."""
        assert self._tasks is not None, "the node is not started"
        return self._tasks

    # How a task is done

    async def _delegate(
        self,
        params: dict[str, Any],
        *,
        deadline_s: Seconds,
        sink: Sink,
        trying: Callable[[str, int], Awaitable[None]],
        is_repeat: bool,
        only_joins: bool,
    ) -> Any:
        asked = {name: value for name, value in params.items() if name != CALLER}
        request = msgspec.structs.replace(
            self._node.methods.request_of(asked), deadline_s=deadline_s, is_patient=False,
            is_repeat=is_repeat, only_joins=only_joins, caller=params.get(CALLER, ""),
        )  # fmt: skip

        async def told_which(peer: Peer) -> None:
            await trying(peer.node.hex(), peer.epoch)

        done = await self._node.dispatcher.delegate(request, sink, told_which)
        return done["peer_result"]["result"]

    def _lives(self, node: str, epoch: int) -> bool:
        peer = self._node.view().get(NodeId(bytes.fromhex(node)))
        return peer is not None and peer.epoch == epoch

    # The methods

    async def _submit(self, params: Params, context: CallContext) -> dict[str, Any]:
        request = self._node.methods.request_of(params)
        # Kept with the task: whether it may begin anew depends on its fallbacks, too.
        settings = self._node.dispatcher.settings_for(request.capability)
        request = completed(request, settings)
        assert isinstance(params, dict), "checked before"
        given: dict[str, Any] = {
            "capability": request.capability, "input": request.input, "priority": request.priority,
            **choices_of(request), CALLER: context.who,
        }  # fmt: skip
        if request.deadline_s is not None:
            given["deadline_ms"] = request.deadline_s * 1_000
        return told(await self.tasks.submit(request.capability, given))

    async def _get(self, params: TaskParams, context: CallContext) -> Any:
        async def here() -> TaskRecord:
            return self.tasks.get(params.id)

        return await self._at_keeper("task.get", params, context, here, FORWARD_TIMEOUT_S)

    async def _cancel(self, params: TaskParams, context: CallContext) -> Any:
        async def here() -> TaskRecord:
            return await self.tasks.cancel(params.id)

        return await self._at_keeper("task.cancel", params, context, here, FORWARD_TIMEOUT_S)

    async def _wait(self, params: WaitParams, context: CallContext) -> Any:
        async def here() -> TaskRecord:
            return await self.tasks.wait(params.id, params.timeout_s)

        timeout_s = params.timeout_s + FORWARD_TIMEOUT_S
        return await self._at_keeper("task.wait", params, context, here, timeout_s)

    async def _list(self, params: ListParams, context: CallContext) -> dict[str, Any]:
        del context
        found = self.tasks.list(params.state, params.limit)
        return {"schema": "meshd.tasks/1", "tasks": [_row(record) for record in found]}

    async def _subscribe(self, params: TaskParams, context: CallContext) -> Any:
        if context.sink is None:
            raise UsageError(
                "task.subscribe tells what happens as it happens",
                hint="call it with Accept: text/event-stream, or use task.wait",
            )
        sink = context.sink

        async def here() -> TaskRecord:
            async for event in self.tasks.watch(params.id):
                await sink.part(event)
            return self.tasks.get(params.id)

        timeout_s = context.deadline_s or WAIT_DEFAULT_S
        return await self._at_keeper("task.subscribe", params, context, here, timeout_s)

    async def _at_keeper(
        self,
        method: str,
        params: msgspec.Struct,
        context: CallContext,
        here: Callable[[], Awaitable[TaskRecord]],
        timeout_s: Seconds,
    ) -> Any:
        """The answer of the node that keeps the task, which its id tells."""
        keeper = NodeId(bytes.fromhex(getattr(params, "id")[:ID_DIGITS]))  # noqa: B009 - each has one
        if keeper == self._node.node_id:
            return told(await here())
        peer = self._node.view().get(keeper)
        if peer is None:
            raise NoCandidateError(
                f"the node {keeper.hex()}, which keeps this task, is not in the mesh",
                hint="see meshd peers; it keeps its tasks over a restart if its journal is on",
            )
        return await self._node.links.invoke(
            peer.address, method, msgspec.to_builtins(params), timeout_s=timeout_s,
            sink=context.sink,
        )  # fmt: skip


def _is_ready(peer: Peer) -> bool:
    return peer.load is None or (peer.load.ready and not peer.load.draining)


def _row(record: TaskRecord) -> dict[str, Any]:
    """A task in a list: without its result."""
    return told(msgspec.structs.replace(record, result=None))
