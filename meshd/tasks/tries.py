"""One try of a task: who may be asked, what is written down before, and what a refusal means."""

from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Protocol

from meshd.clock import Clock, Seconds
from meshd.errors import Code, MeshError, NoCandidateError, PeerError
from meshd.sink import Sink
from meshd.tasks.live import Live, Looking
from meshd.tasks.record import TaskRecord
from meshd.tasks.store import Store
from meshd.work.idempotency import UNKNOWN_KEY
from meshd.work.task import TaskState

RECOVERY_S: Seconds = 15.0
"""How long a node that starts anew waits to see the workers again that had its tasks."""


class Delegate(Protocol):
    """Has a task done; refusals of all are told at once: the task waits here and not there."""

    def __call__(
        self,
        params: dict[str, Any],
        *,
        deadline_s: Seconds,
        sink: Sink,
        trying: Callable[[str, int], Awaitable[None]],
        is_repeat: bool,
        only_joins: bool,
    ) -> Coroutine[Any, Any, Any]:
        """The result of the work alone.

        Args:
            params: those of `delegate`.
            deadline_s: for all of it.
            sink: takes partial results and progress, where they come.
            trying: awaited with a node and its epoch before it is sent the work.
            is_repeat: this task was tried before; it is no further call.
            only_joins: nothing may begin: a worker that knows no run of this key refuses, with
                `UNKNOWN_KEY` as the reason in its error's data.

        Raises:
            MeshError: it came to nothing.
        """
        ...


class Tries:
    """What all tries of one node's tasks share. Belongs to one event loop."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        delegate: Delegate,
        may_repeat: Callable[[str], bool],
        lives: Callable[[str, int], bool],
    ) -> None:
        """As `Tasks` is given them."""
        self._store = store
        self._clock = clock
        self._delegate = delegate
        self._may_repeat = may_repeat
        self._lives = lives
        self._began_at = clock.now()

    def begin(self) -> None:
        """This process takes up what an earlier one accepted: `RECOVERY_S` count from now."""
        self._began_at = self._clock.now()

    async def wait(self, live: Live, error: MeshError) -> None:
        """A try surely came to nothing: the task waits for the next."""
        message = f"waits: {error.message}"
        live.is_refused = True
        if live.was_sent:
            # The earlier run stands as it stood: its worker alone may be asked.
            if live.record.message != message:
                live.note(self._clock.wall_ms(), message=message)
            return
        if live.record.node or live.record.message != message:
            live.record = live.record.waiting(self._clock.wall_ms(), message)
            live.tell()
        if live.is_marked:
            # Unwritten, it is tried again after the next try; until then a new process asks there.
            with suppress(OSError):
                await self._store.put(live.record)
                live.is_marked = False

    async def once(self, live: Live, left_s: Seconds) -> Any:
        """The result of the work.

        Raises:
            MeshError: it came to nothing, or may have been done and nobody knows.
        """
        record = live.record
        params = {**record.params, "idempotency_key": record.key}
        only_joins = live.was_sent and not self._may_begin_anew(record)
        if only_joins:
            # Only that worker may be asked again, and only for the run that it has or had.
            if not self._lives(record.node, record.epoch):
                if self._clock.now() < self._began_at + RECOVERY_S:
                    raise NoCandidateError("the worker that had it is not seen again yet")
                raise _may_have_been_done("is gone")
            params["to"] = record.node

        async def trying(node: str, epoch: int) -> None:
            if not only_joins:
                await self._mark(live, node, epoch)

        is_repeat, live.was_tried = live.was_tried, True
        try:
            return await self._delegate(
                params, deadline_s=left_s, sink=Looking(live, self._clock), trying=trying,
                is_repeat=is_repeat, only_joins=only_joins,
            )  # fmt: skip
        except MeshError as error:
            if only_joins and error.data.get("reason") == UNKNOWN_KEY:
                raise _may_have_been_done("knows nothing of it any more") from error
            raise

    def _may_begin_anew(self, record: TaskRecord) -> bool:
        return record.may_repeat or self._is_harmless(record)

    def _is_harmless(self, record: TaskRecord) -> bool:
        names = record.capability, *record.params.get("fallback", ())
        return all(self._may_repeat(name) for name in names)

    async def _mark(self, live: Live, node: str, epoch: int) -> None:
        """Write down who is about to be sent it.

        Raises:
            PeerError: that cannot be written, and so nothing is sent; definite.
        """
        before, now_ms = live.record, self._clock.wall_ms()
        is_known = live.is_marked and (before.node, before.epoch) == (node, epoch)
        live.record = before.advanced(
            TaskState.WORKING, now_ms, node=node, epoch=epoch, message="",
            may_repeat=self._is_harmless(before),
        )  # fmt: skip
        if not is_known:
            live.is_marked = True  # also where it cannot be written: nobody knows what was
            try:
                await self._store.put(live.record)
            except OSError as error:
                live.record = before
                raise PeerError(
                    f"it cannot be written down: {error}", code=Code.REJECTED
                ) from error
        live.was_sent = False
        live.tell()


def _may_have_been_done(why: str) -> PeerError:
    return PeerError(
        f"this node was started anew while a worker had the task, and the worker {why}:"
        " it may have been done",
        hint="only idempotent capabilities are begun anew",
        definite=False,
    )
