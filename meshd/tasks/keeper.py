"""Tasks that a node accepted: run when their turn comes, kept until they are fetched or too old.

Each runs as one `delegate` call of this node under an idempotency key of its own, so that asking
the same worker again joins the first run instead of beginning a second.
"""

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

import msgspec

from meshd.clock import Clock, Seconds
from meshd.errors import (
    BusyError,
    Code,
    DeadlineError,
    MeshError,
    NoCandidateError,
    PeerError,
    UsageError,
)
from meshd.sink import Sink
from meshd.tasks.record import TaskRecord, error_shape, told
from meshd.tasks.store import MemoryStore, Store
from meshd.work.task import TaskState

OPEN_MAX = 10_000
"""Tasks that have not ended; one more is refused."""
ACTIVE_MAX = 256
"""Of these, how many are with workers or on their way; the others wait for their turn."""
ENDED_MAX = 1_000
ENDED_BYTES_MAX = 64 * 1_048_576
ENDED_S: Seconds = 3_600.0
"""What has ended is kept so many, so large and so long, at most."""
PAUSE_MIN_S: Seconds = 0.1
PAUSE_MAX_S: Seconds = 5.0
"""Between tries while nobody can take a task; news of the mesh end a pause early."""
RECOVERY_S: Seconds = 15.0
"""How long a node that starts anew waits to see the workers again that had its tasks."""
WATCHERS_MAX = 256
EVENTS_MAX = 1_024
"""That wait for one slow watcher; then it misses some, and is told so."""

DEADLINE_DEFAULT_S: Seconds = 3_600.0
DEADLINE_MAX_S: Seconds = 30 * 86_400.0


class Delegate(Protocol):
    """Has a task done; `trying(node, epoch)` is awaited before each peer is sent it."""

    def __call__(
        self,
        params: dict[str, Any],
        *,
        deadline_s: Seconds,
        sink: Sink,
        trying: Callable[[str, int], Awaitable[None]],
    ) -> Coroutine[Any, Any, Any]:
        """The result of the work alone. Raises MeshError."""
        ...


@dataclass(slots=True, eq=False)
class _Live:
    """A task in memory: its newest record, and who looks on."""

    record: TaskRecord
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    was_sent: bool = False
    """Whether an earlier process of this node had sent it to a worker."""
    job: asyncio.Task[None] | None = None
    watchers: list["_Watcher"] = field(default_factory=list)
    size: int = 0


class _Watcher:
    """A bounded queue of what happens to one task."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(EVENTS_MAX)
        self.missed = 0

    def tell(self, what: dict[str, Any]) -> None:
        try:
            self.queue.put_nowait({**what, "missed": self.missed} if self.missed else what)
            self.missed = 0
        except asyncio.QueueFull:
            self.missed += 1


class Tasks:
    """All tasks of one node. All methods belong to one event loop."""

    def __init__(
        self,
        *,
        node: str,
        clock: Clock,
        random: Random,
        delegate: Delegate,
        store: Store | None = None,
        may_repeat: Callable[[str], bool] = lambda _: False,
        lives: Callable[[str, int], bool] = lambda *_: False,
    ) -> None:
        """Nothing is opened yet.

        Args:
            node: own id in hex.
            clock: for pauses, ages and deadlines.
            random: ids and jitter.
            delegate: has the work done.
            store: where tasks are kept; None is memory alone.
            may_repeat: whether running this capability twice does no harm.
            lives: whether that process of that node (id, epoch) is still there.
        """
        self._node = node
        self._clock = clock
        self._random = random
        self._delegate = delegate
        self._store = store or MemoryStore()
        self._may_repeat = may_repeat
        self._lives = lives
        self._tasks: dict[str, _Live] = {}
        self._by_key: dict[tuple[str, str], str] = {}
        self._turns: list[tuple[int, int, str]] = []
        self._numbers = itertools.count()
        self._active = 0
        self._ended_bytes = 0
        self._ended: dict[str, None] = {}
        self._news = asyncio.Event()
        self._started_at = clock.now()
        self._is_calm = asyncio.Event()
        self._is_calm.set()
        self._is_draining = False

    @property
    def open(self) -> int:
        """How many have not ended."""
        return len(self._tasks) - len(self._ended)

    async def start(self) -> None:
        """Take up what an earlier process accepted.

        Raises:
            UsageError: the store cannot be used.
        """
        self._started_at = self._clock.now()
        for record in sorted(await self._store.load(), key=lambda each: each.submitted_ms):
            live = self._tasks[record.id] = _Live(record)
            live.was_sent = record.state is TaskState.WORKING and record.node != ""
            self._index(record)
            if record.has_ended:
                live.ended.set()
                self._retire(live)
            else:
                self._queue(live)

    def look_again(self) -> None:
        """The mesh has changed: who waits for somebody to take a task may try again."""
        self._news.set()
        self._news = asyncio.Event()

    async def submit(self, capability: str, params: dict[str, Any]) -> TaskRecord:
        """Accept a task; once this returns it is safe in the store.

        Args:
            capability: checked already.
            params: those of `delegate`, checked already; its deadline bounds the whole task.

        Raises:
            BusyError: too many are open here; definite.
            UsageError: the idempotency key stands for other input.
            PeerError: the store cannot keep it, or the node stops; definite.
        """
        given = {name: value for name, value in params.items() if name != "deadline_ms"}
        known = self._known(capability, given)
        if known is not None:
            return known
        if self._is_draining:
            raise PeerError("this node is leaving", code=Code.REJECTED, hint="submit to another")
        if self.open >= OPEN_MAX:
            raise BusyError(
                f"{self.open} tasks are open on this node", hint="submit to another node, or later"
            )
        now_ms = self._clock.wall_ms()
        deadline_s = min(DEADLINE_MAX_S, params.get("deadline_ms", DEADLINE_DEFAULT_S * 1e3) / 1e3)
        record = TaskRecord(
            id=f"{self._node}-{self._random.getrandbits(64):016x}",
            capability=capability,
            params=given,
            submitted_ms=now_ms,
            updated_ms=now_ms,
            deadline_ms=now_ms + int(deadline_s * 1_000),
            state=TaskState.ACCEPTED,
            priority=given.get("priority", 3),
        )
        live = self._tasks[record.id] = _Live(record)
        self._index(record)
        try:
            await self._store.put(record)
        except OSError as error:
            self._drop(live)
            raise PeerError(f"the task cannot be kept: {error}", code=Code.REJECTED) from error
        self._queue(live)
        return live.record

    def get(self, task_id: str) -> TaskRecord:
        """The newest record of a task.

        Raises:
            NoCandidateError: it is not known, or not any more.
        """
        return self._find(task_id).record

    def list(self, states: Iterable[str] = (), limit: int = 100) -> list[TaskRecord]:
        """The newest tasks, of these states if any are given."""
        wanted = set(states)
        found = (
            live.record
            for live in reversed(self._tasks.values())
            if not wanted or live.record.state in wanted
        )
        return list(itertools.islice(found, limit))

    async def wait(self, task_id: str, timeout_s: Seconds) -> TaskRecord:
        """The record once the task has ended, or when time is up."""
        live = self._find(task_id)
        try:
            async with asyncio.timeout(timeout_s):
                await live.ended.wait()
        except TimeoutError:
            pass
        return live.record

    async def cancel(self, task_id: str) -> TaskRecord:
        """End a task, wherever it stands; one that has ended stays as it is."""
        live = self._find(task_id)
        if live.record.has_ended:
            return live.record
        if live.job is not None:
            live.job.cancel()
            await asyncio.wait((live.job,))
        if not live.record.has_ended:
            error = PeerError("it was cancelled", code=Code.CANCELLED, definite=False)
            await self._end(live, TaskState.CANCELLED, error=error)
        return live.record

    async def watch(self, task_id: str) -> AsyncIterator[dict[str, Any]]:
        """What happens to a task from now on: first how it stands, last its end.

        Raises:
            BusyError: too many look on already.
        """
        live = self._find(task_id)
        if len(live.watchers) >= WATCHERS_MAX:
            raise BusyError(f"{WATCHERS_MAX} others look on at this task already")
        watcher = _Watcher()
        watcher.tell(told(live.record))
        live.watchers.append(watcher)
        try:
            while True:
                event = await watcher.queue.get()
                yield event
                if event.get("state") in _ENDS:
                    return
        finally:
            live.watchers.remove(watcher)

    async def drain(self) -> None:
        """Begin no further task, and wait until those with workers have ended.

        Whoever waits no longer may cancel it. `resume` begins tasks again.
        """
        self._is_draining = True
        self.look_again()
        await self._is_calm.wait()

    def resume(self) -> None:
        """Begin tasks again after `drain`."""
        self._is_draining = False
        self._next_turns()

    async def close(self) -> None:
        """Stop; what is open is taken up by the next process, if the store outlives this one."""
        self._is_draining = True
        jobs = [live.job for live in self._tasks.values() if live.job is not None]
        for job in jobs:
            job.cancel()
        if jobs:
            await asyncio.wait(jobs)
        await self._store.close()

    # Turns

    def _queue(self, live: _Live) -> None:
        turn = (-live.record.priority, next(self._numbers), live.record.id)
        heapq.heappush(self._turns, turn)
        self._next_turns()

    def _next_turns(self) -> None:
        while self._turns and self._active < ACTIVE_MAX and not self._is_draining:
            live = self._tasks.get(heapq.heappop(self._turns)[2])
            if live is None or live.record.has_ended:
                continue
            self._active += 1
            self._is_calm.clear()
            live.job = asyncio.create_task(self._run(live), name=f"task {live.record.id}")
            live.job.add_done_callback(self._turn_over)

    def _turn_over(self, job: asyncio.Task[None]) -> None:
        self._active -= 1
        if not self._active:
            self._is_calm.set()
        if not job.cancelled() and job.exception() is not None:
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a task's own job failed", "exception": job.exception(), "task": job}
            )
        self._next_turns()

    async def _run(self, live: _Live) -> None:
        """Try until it has ended, or its time is over."""
        pause_s = PAUSE_MIN_S
        while True:
            left_s = (live.record.deadline_ms - self._clock.wall_ms()) / 1_000
            if left_s <= 0:
                error = DeadlineError("its deadline passed before anybody could do it")
                await self._end(live, TaskState.EXPIRED, error=error)
                return
            try:
                result = await self._try(live, left_s)
            except (NoCandidateError, BusyError) as error:
                if not error.definite:
                    await self._end(live, TaskState.FAILED, error=error)
                    return
                # It surely did not run there: a process that takes it up may ask anybody.
                nowhere = {} if live.was_sent else {"node": "", "epoch": 0}
                await self._advance(
                    live, live.record.state, message=f"waits: {error.message}", **nowhere
                )
            except DeadlineError as error:
                await self._end(live, TaskState.EXPIRED, error=error)
                return
            except MeshError as error:
                await self._end(live, _state_after(error), error=error)
                return
            else:
                await self._end(live, TaskState.COMPLETED, result=result)
                return
            await self._pause(min(pause_s, left_s))
            pause_s = min(PAUSE_MAX_S, 2 * pause_s)
            if self._is_draining:
                self._queue(live)
                return

    async def _pause(self, longest_s: Seconds) -> None:
        news = self._news
        try:
            async with asyncio.timeout(longest_s * self._random.uniform(0.5, 1.0)):
                await news.wait()
        except TimeoutError:
            pass

    async def _try(self, live: _Live, left_s: Seconds) -> Any:
        record = live.record
        params = {**record.params, "idempotency_key": record.key}
        if live.was_sent and not self._may_repeat(record.capability):
            # Only that worker may be asked again.
            if not self._lives(record.node, record.epoch):
                if self._clock.now() < self._started_at + RECOVERY_S:
                    raise NoCandidateError("the worker that had it is not seen again yet")
                raise PeerError(
                    "this node was started anew while a worker had the task, and the worker is"
                    " gone: it may have been done",
                    hint="only idempotent capabilities are begun anew",
                    definite=False,
                )
            params["to"] = record.node

        async def trying(node: str, epoch: int) -> None:
            live.was_sent = False
            await self._advance(live, TaskState.WORKING, node=node, epoch=epoch)

        return await self._delegate(
            params, deadline_s=left_s, sink=_Looking(self, live), trying=trying
        )

    # Changes

    async def _advance(self, live: _Live, state: TaskState, **changes: Any) -> None:
        live.record = live.record.advanced(state, self._clock.wall_ms(), **changes)
        self._tell(live)
        await self._store.put(live.record)

    def _note(self, live: _Live, **changes: Any) -> None:
        """A change that need not outlive the process."""
        live.record = live.record.advanced(live.record.state, self._clock.wall_ms(), **changes)
        self._tell(live)

    async def _end(
        self, live: _Live, state: TaskState, *, result: Any = None, error: MeshError | None = None
    ) -> None:
        if live.record.state is TaskState.ACCEPTED and state in _AFTER_WORK:
            live.record = live.record.advanced(TaskState.WORKING, self._clock.wall_ms())
        shape = None if error is None else error_shape(error)
        record = live.record.advanced(state, self._clock.wall_ms(), result=result, error=shape)
        live.record = record
        self._retire(live)
        try:
            await self._store.put(record)
        except OSError as failed:
            # It has ended all the same: who waits must hear of it.
            self._note(live, message=f"its end is not in the journal: {failed}")
        live.ended.set()
        self._tell(live)
        await self._forget_old()

    def _tell(self, live: _Live, extra: dict[str, Any] | None = None) -> None:
        if live.watchers:
            event = {**told(live.record), **(extra or {})}
            for watcher in live.watchers:
                watcher.tell(event)

    # What is kept

    def _known(self, capability: str, given: dict[str, Any]) -> TaskRecord | None:
        """The task that was handed in under the same key.

        Raises:
            UsageError: with other input.
        """
        key = given.get("idempotency_key")
        live = self._tasks.get(self._by_key.get((capability, key), "")) if key else None
        if live is None:
            return None
        if live.record.params.get("input") != given.get("input"):
            raise UsageError(
                f"{capability}: idempotency key {key!r} was used with another input",
                hint="use a new key for each new request",
            )
        return live.record

    def _index(self, record: TaskRecord) -> None:
        key = record.params.get("idempotency_key")
        if key:
            self._by_key[record.capability, key] = record.id

    def _find(self, task_id: str) -> _Live:
        live = self._tasks.get(task_id)
        if live is None:
            raise NoCandidateError(
                f"no task {task_id[:80]!r} is kept here",
                hint=f"ended ones are kept for {ENDED_S:g} s at most; see meshd task list",
            )
        return live

    def _retire(self, live: _Live) -> None:
        live.size = len(msgspec.json.encode(live.record))
        self._ended[live.record.id] = None
        self._ended_bytes += live.size

    async def _forget_old(self) -> None:
        gone = []
        oldest_ms = self._clock.wall_ms() - int(ENDED_S * 1_000)
        for task_id in list(self._ended):
            live = self._tasks[task_id]
            is_full = len(self._ended) > ENDED_MAX or self._ended_bytes > ENDED_BYTES_MAX
            if not is_full and live.record.updated_ms >= oldest_ms:
                break
            self._drop(live)
            gone.append(task_id)
        if gone:
            await self._store.remove(gone)

    def _drop(self, live: _Live) -> None:
        record = live.record
        del self._tasks[record.id]
        if self._ended.pop(record.id, True) is None:
            self._ended_bytes -= live.size
        key = record.params.get("idempotency_key")
        if key:
            self._by_key.pop((record.capability, key), None)


class _Looking:
    """The sink of a task's own call: keeps how far it is, and passes all on to who looks on."""

    def __init__(self, tasks: Tasks, live: _Live) -> None:
        self._tasks = tasks
        self._live = live

    async def part(self, value: Any) -> None:
        """One more partial result."""
        live = self._live
        live.record = msgspec.structs.replace(live.record, parts=live.record.parts + 1)
        self._tasks._tell(live, {"part": value})  # noqa: SLF001 - one room's own kind

    def progress(self, fraction: float | None, message: str) -> None:
        """How far it is."""
        self._tasks._note(self._live, fraction=fraction, message=message)  # noqa: SLF001 - as above


_AFTER_WORK = frozenset({TaskState.COMPLETED, TaskState.FAILED})
_ENDS = frozenset(
    str(state)
    for state in (
        TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED, TaskState.REJECTED,
        TaskState.EXPIRED,
    )
)  # fmt: skip


def _state_after(error: MeshError) -> TaskState:
    return TaskState.CANCELLED if error.code == Code.CANCELLED else TaskState.FAILED
