"""Tasks that a node accepted: run when their turn comes, kept until they are fetched or too old.

Each runs as `delegate` calls of this node under an idempotency key of its own, so that asking the
same worker again joins the first run instead of beginning a second.
"""

import asyncio
import heapq
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import suppress
from functools import partial
from random import Random
from typing import Any

from meshd.clock import Clock, Seconds
from meshd.errors import (
    NOT_CALLED_OFF,
    BusyError,
    Code,
    DeadlineError,
    MeshError,
    PeerError,
)
from meshd.tasks.lanes import Lanes
from meshd.tasks.live import Live, size_of
from meshd.tasks.record import TaskRecord, error_shape
from meshd.tasks.store import MemoryStore, Store
from meshd.tasks.table import Table
from meshd.tasks.tries import Delegate, Tries
from meshd.tasks.watcher import Watcher
from meshd.work.run import digest_of
from meshd.work.task import TaskState

ACTIVE_MAX = 256
"""How many are with workers or on their way; the others wait for their turn."""
LOOK_S: Seconds = 60.0
"""Deadlines are of the wall clock, which may be set: they are looked at this often, at least."""
OVERDUE_LOOK_MS = 1_000
WATCHERS_MAX = 256

DEADLINE_DEFAULT_S: Seconds = 3_600.0
DEADLINE_MAX_S = 86_400.0

_FINAL = frozenset({Code.INVALID_PARAMS, Code.CYCLE})
"""What is wrong with the task itself: waiting mends nothing."""


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
            may_repeat: whether running this capability twice does no harm; false if unknown.
            lives: whether that process of that node (id, epoch) is still there.
        """
        self._node = node
        self._clock = clock
        self._random = random
        self._store = store or MemoryStore()
        self._tries = Tries(self._store, clock, delegate, may_repeat, lives)
        self._tasks = Table()
        self._lanes = Lanes()
        self._active = 0
        self._deadlines: list[tuple[int, str]] = []
        self._chores: set[asyncio.Task[Any]] = set()
        self._wake = asyncio.Event()
        self._tending: asyncio.Task[None] | None = None
        self._is_calm = asyncio.Event()
        self._is_calm.set()
        self._is_draining = False
        self._is_closed = False

    @property
    def open(self) -> int:
        """How many have not ended."""
        return self._tasks.open

    @property
    def is_waiting(self) -> bool:
        """Whether any waits for time to pass, or for news of the mesh."""
        return self._lanes.next_at is not None

    async def start(self) -> None:
        """Take up what an earlier process accepted.

        Raises:
            UsageError: the store cannot be used.
        """
        self._tries.begin()
        records = sorted(await self._store.load(), key=lambda each: each.submitted_ms)
        for record in records:
            live = self._tasks.enter(record, size_of(record))
            if record.has_ended:
                live.settled.set()
            else:
                live.was_sent = live.is_marked = live.was_tried = record.node != ""
                self._queue(live)
        for record in sorted(records, key=lambda each: each.updated_ms):
            if record.has_ended:
                self._tasks.ended.add(record.id, size_of(record), record.updated_ms)
        self._tending = asyncio.create_task(self._tend(), name="meshd-tasks")

    def look_again(self) -> None:
        """The mesh has changed: who waits for somebody to take a task may try again."""
        self._lanes.hurry(self._clock.now())
        self._wake.set()

    async def submit(self, capability: str, params: dict[str, Any]) -> TaskRecord:
        """Accept a task; once this returns it is safe in the store.

        A caller who leaves before that leaves an accepted task, or none.

        Args:
            capability: checked already.
            params: those of `delegate`, checked already; its deadline bounds the whole task.

        Raises:
            BusyError: too many are open here, or they are too large; definite.
            UsageError: the idempotency key stands for other input.
            PeerError: the store cannot keep it, or the node stops; definite.
        """
        given = {name: value for name, value in params.items() if name != "deadline_ms"}
        digest = digest_of(given.get("input")).hex()
        live = self._tasks.known(capability, given.get("idempotency_key", ""), digest)
        is_new = live is None
        if live is None:
            if self._is_draining:
                raise PeerError(
                    "this node is leaving", code=Code.REJECTED, hint="submit to another"
                )
            live = self._take_in(self._new_record(capability, given, digest, params))
        record = live.record
        if live.accepting is not None:
            error = await asyncio.shield(live.accepting)
            if error is not None:
                raise PeerError(error.message, hint=error.hint, code=error.code) from error
        return record if is_new else live.record

    def get(self, task_id: str) -> TaskRecord:
        """The newest record of a task.

        Raises:
            NoCandidateError: it is not known, or not any more.
        """
        live = self._tasks.find(task_id)
        self._tasks.ended.fetched(task_id)
        return live.record

    def list(self, states: Iterable[str] = (), limit: int = 100) -> list[TaskRecord]:
        """The newest tasks, of these states if any are given."""
        return self._tasks.newest(states, limit)

    async def wait(self, task_id: str, timeout_s: Seconds) -> TaskRecord:
        """The record once the task has ended, or when time is up or this node stops."""
        live = self._tasks.find(task_id)
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await live.settled.wait()
        self._tasks.ended.fetched(task_id)
        return live.record

    async def cancel(self, task_id: str) -> TaskRecord:
        """End a task, wherever it stands; one that has ended stays as it is.

        Once begun it is done, although its caller leaves.
        """
        live = self._tasks.find(task_id)
        await asyncio.shield(self._own(self._cancel(live)))
        return live.record

    async def watch(self, task_id: str) -> AsyncIterator[dict[str, Any]]:
        """What happens to a task from now on: first how it stands, last its end.

        Without an end where this node stops and the next process goes on.

        Raises:
            BusyError: too many look on already.
        """
        live = self._tasks.find(task_id)
        if len(live.watchers) >= WATCHERS_MAX:
            raise BusyError(f"{WATCHERS_MAX} others look on at this task already")
        watcher = Watcher()
        live.watchers.append(watcher)
        live.tell((watcher,))
        if self._is_closed:
            watcher.close()
        try:
            while (event := await watcher.next()) is not None:
                yield event
        finally:
            live.watchers.remove(watcher)

    async def drain(self) -> None:
        """Accept nothing more, and wait until those with workers have ended.

        Those that wait for a turn are begun where nobody would take them up later: without a
        journal. Whoever waits no longer may cancel it. `resume` accepts tasks again.
        """
        self._is_draining = True
        await self._is_calm.wait()

    def resume(self) -> None:
        """Accept tasks again after `drain`."""
        self._is_draining = False
        self.look_again()
        self._next_turns()

    async def close(self) -> None:
        """Stop; what is open is taken up by the next process, if the store outlives this one.

        If it does not, all that is open ends, and whoever waits is told.
        """
        self._is_draining = self._is_closed = True
        if self._tending is not None:
            self._tending.cancel()
            await asyncio.wait((self._tending,))
        if self._chores:
            await asyncio.wait(self._chores)
        jobs = [live.job for live in self._tasks if live.job is not None]
        for live in self._tasks:
            if live.job is not None and not live.record.has_ended:
                # The next process asks the worker for it, which must not hear of a call-off.
                live.job.cancel(NOT_CALLED_OFF if self._store.is_lasting else None)
        if jobs:
            await asyncio.wait(jobs)
        for live in self._tasks:
            if not self._store.is_lasting and not live.record.has_ended:
                await self._abandon(live)
            live.settled.set()
            for watcher in live.watchers:
                watcher.close()
        await self._store.close()

    # Accepting

    def _new_record(
        self, capability: str, given: dict[str, Any], digest: str, params: dict[str, Any]
    ) -> TaskRecord:
        now_ms = self._clock.wall_ms()
        deadline_s = min(DEADLINE_MAX_S, params.get("deadline_ms", DEADLINE_DEFAULT_S * 1e3) / 1e3)
        return TaskRecord(
            id=f"{self._node}-{self._random.getrandbits(64):016x}",
            capability=capability,
            params=given,
            submitted_ms=now_ms,
            updated_ms=now_ms,
            deadline_ms=now_ms + int(deadline_s * 1_000),
            state=TaskState.ACCEPTED,
            priority=given.get("priority", 3),
            digest=digest,
        )

    def _take_in(self, record: TaskRecord) -> Live:
        """Begin to accept a task.

        Raises:
            BusyError: there is no room.
        """
        size = size_of(record)
        self._tasks.room(size)
        live = self._tasks.enter(record, size)
        live.is_safe = False
        live.accepting = self._own(self._accept(live))
        return live

    async def _accept(self, live: Live) -> MeshError | None:
        """Put it in the store and give it its turn, or forget it; the error says why."""
        try:
            await self._store.put(live.record)
        except OSError as error:
            self._tasks.drop(live.record.id)
            why = f"the task cannot be kept: {error}"
            return PeerError(why, hint="submit to another node", code=Code.REJECTED)
        live.is_safe = True
        self._queue(live)
        return None

    def _own(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """What goes on although its caller leaves; `close` waits for it. Bounded by open tasks."""
        chore = asyncio.create_task(work, name="meshd-task-chore")
        self._chores.add(chore)
        chore.add_done_callback(self._chores.discard)
        return chore

    async def _cancel(self, live: Live) -> None:
        await self._stop_job(live)
        if not live.record.has_ended:
            error = PeerError("it was cancelled", code=Code.CANCELLED, definite=False)
            await self._end(live, TaskState.CANCELLED, error=error)

    async def _stop_job(self, live: Live) -> None:
        if live.job is not None and not live.record.has_ended:
            live.job.cancel()
            await asyncio.wait((live.job,))

    async def _abandon(self, live: Live) -> None:
        """End what nobody takes up later."""
        if live.record.state is TaskState.ACCEPTED:
            error = PeerError(
                "the node that kept it stopped before anybody could take it",
                hint="submit it to another node; with journal = true a node keeps its tasks",
                code=Code.REJECTED,
            )
            await self._end(live, TaskState.REJECTED, error=error)
        else:
            error = PeerError(
                "the node that kept it stopped while a worker had it: it may have been done",
                hint="with journal = true a node asks for it when it starts again",
                code=Code.CANCELLED,
                definite=False,
            )
            await self._end(live, TaskState.CANCELLED, error=error)

    # Turns

    def _queue(self, live: Live) -> None:
        live.lane, live.is_in_lane = live.lane_key(), True
        self._lanes.put(live.lane, live.turn)
        heapq.heappush(self._deadlines, (live.record.deadline_ms, live.record.id))
        if len(self._deadlines) > 2 * (self.open + ACTIVE_MAX):
            records = [each.record for each in self._tasks if not each.record.has_ended]
            self._deadlines = [(record.deadline_ms, record.id) for record in records]
            heapq.heapify(self._deadlines)
        self._wake.set()
        self._next_turns()

    def _next_turns(self) -> None:
        if self._is_closed or (self._is_draining and self._store.is_lasting):
            return
        while self._active < ACTIVE_MAX and (taken := self._lanes.take()) is not None:
            live = self._tasks.get(taken[0])
            assert live is not None, "what has ended waits for no turn"
            live.is_in_lane = False
            self._active += 1
            self._is_calm.clear()
            live.job = asyncio.create_task(self._run(live), name=f"task {live.record.id}")
            live.job.add_done_callback(partial(self._turn_over, live))

    def _turn_over(self, live: Live, job: asyncio.Task[None]) -> None:
        self._active -= 1
        live.job = None
        if not job.cancelled() and job.exception() is not None:
            _report(job.exception())
        if live.is_refused and not live.record.has_ended:
            chance = self._random.uniform(0.5, 1.0)
            self._lanes.refused(live.lane, live.turn, chance, self._clock.now())
            live.is_refused, live.is_in_lane = False, True
            self._wake.set()
        else:
            self._lanes.back(live.lane, is_done=live.record.state is TaskState.COMPLETED)
        self._next_turns()
        if not self._active:
            self._is_calm.set()

    async def _tend(self) -> None:
        """What time brings: pauses end, deadlines pass, what has ended grows too old."""
        while True:
            self._wake.clear()
            now_ms = self._clock.wall_ms()
            self._lanes.on_time(self._clock.now())
            self._next_turns()
            await asyncio.gather(*(self._expire(live) for live in self._overdue(now_ms)))
            await self._forget_old(now_ms)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._rest_s()):
                    await self._wake.wait()

    def _overdue(self, now_ms: int) -> Iterator[Live]:
        """Those whose deadline has passed; who is out ends by itself, or is looked at again."""
        while self._deadlines and self._deadlines[0][0] <= now_ms:
            live = self._tasks.get(heapq.heappop(self._deadlines)[1])
            if live is None or live.record.has_ended:
                continue
            if live.job is None:
                yield live
            else:
                heapq.heappush(self._deadlines, (now_ms + OVERDUE_LOOK_MS, live.record.id))

    async def _forget_old(self, now_ms: int) -> None:
        gone = self._tasks.ended.overdue(now_ms)
        for task_id in gone:
            self._tasks.drop(task_id)
        if gone:
            # What is not removed now is loaded again, and is too old then, too.
            with suppress(OSError):
                await self._store.remove(gone)

    def _rest_s(self) -> Seconds | None:
        """How long nothing happens by itself; None is for ever."""
        now, now_ms = self._clock.now(), self._clock.wall_ms()
        walls = [self._deadlines[0][0]] if self._deadlines else []
        oldest_ms = self._tasks.ended.next_ms
        walls += [] if oldest_ms is None else [oldest_ms]
        rests = [min(LOOK_S, (at_ms - now_ms) / 1_000) for at_ms in walls]
        pause_ends = self._lanes.next_at
        rests += [] if pause_ends is None else [pause_ends - now]
        return max(0.0, min(rests)) if rests else None

    # One try

    async def _run(self, live: Live) -> None:
        """One try: it ends the task, or surely came to nothing and leaves it waiting."""
        if live.record.has_ended:
            return
        left_s = (live.record.deadline_ms - self._clock.wall_ms()) / 1_000
        if left_s <= 0:
            await self._expire(live)
            return
        try:
            result = await self._tries.once(live, left_s)
        except MeshError as error:
            await self._failed(live, error)
        except Exception as error:  # noqa: BLE001 - a fault of ours must not leave it open for ever
            _report(error)
            message = f"internal error: {type(error).__name__}"
            ours = PeerError(message, code=Code.INTERNAL, definite=False)
            await self._end(live, TaskState.FAILED, error=ours)
        else:
            await self._end(live, TaskState.COMPLETED, result=result)

    async def _failed(self, live: Live, error: MeshError) -> None:
        """One try came to nothing: the task waits where that is surely all, and ends else."""
        if error.definite and error.code not in _FINAL:
            await self._tries.wait(live, error)
        elif isinstance(error, DeadlineError):
            await self._end(live, TaskState.EXPIRED, error=error)
        else:
            await self._end(live, TaskState.FAILED, error=error)

    async def _expire(self, live: Live) -> None:
        hint = f"it {live.record.message}" if live.record.message.startswith("waits") else ""
        error = DeadlineError(
            "its deadline passed before anybody could do it", hint=hint, definite=not live.was_sent
        )
        await self._end(live, TaskState.EXPIRED, error=error)

    async def _end(
        self, live: Live, state: TaskState, *, result: Any = None, error: MeshError | None = None
    ) -> None:
        record, now_ms = live.record, self._clock.wall_ms()
        if record.has_ended:
            return
        if record.state is TaskState.ACCEPTED and state in _AFTER_WORK:
            record = record.advanced(TaskState.WORKING, now_ms)
        shape = None if error is None else error_shape(error)
        live.record = record.ended(state, now_ms, result=result, error=shape)
        self._tasks.retire(live)
        if live.is_in_lane:
            live.is_in_lane = False
            self._lanes.drop(live.lane, record.id)
        try:
            await self._store.put(live.record)
        except OSError as failed:
            # It has ended all the same: who waits must hear of it.
            message = f"its end is not in the journal: {failed}"
            live.record = live.record.advanced(state, now_ms, message=message)
        live.settled.set()
        live.tell()
        self._wake.set()


_AFTER_WORK = frozenset({TaskState.COMPLETED, TaskState.FAILED})


def _report(error: BaseException | None) -> None:
    asyncio.get_running_loop().call_exception_handler(
        {"message": "a task's own job failed", "exception": error}
    )
