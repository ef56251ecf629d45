"""What a simulated mesh works at: handlers of all kinds on its nodes, and clients that call them.

Every machine has a client of its own, a program beside the daemon, with its own source of chance.
Handlers write into the ledger when they begin and end.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from meshd.capability.definition import CapabilityDefinition, Declaration, define
from meshd.errors import MeshError
from meshd.gossip.effects import Effect
from meshd.rpc.dispatch import run
from meshd.rpc.methods import CallContext
from meshd.work.origin import ORIGIN, Origin
from sim.network import Shape
from sim.whole.fleet import Box, Fleet
from sim.whole.ledger import Call, End, Execution, Ledger, Work, end_of
from sim.whole.watch import Watch

SLOTS = 4
QUEUE = 6
DRAIN_S = 6.0
GRACE_S = 1.0
"""What a client waits beyond its deadline; nothing may ever take it."""
HANG_S = 1_000.0
EXPECTED = "this was to be expected"
REPEATED_SHARE = 0.6
"""Of calls with a key: how many come twice."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One capability: who offers it, how often it is wanted, how long it takes.

    Attributes:
        name: as called.
        every: offered where a node's number modulo this is ..
        of: .. below this.
        weight: how often clients want it; 0 if only handlers do.
        is_idempotent: as declared.
        mean_s: virtual seconds that a run takes, on average.
        onward: what its handler calls, through the mesh.
        fails: the share of runs that raise an error.
        blocks_s: how long it holds the main loop.
    """

    name: str
    every: int
    of: int
    weight: float
    is_idempotent: bool = False
    mean_s: float = 0.05
    onward: str = ""
    fails: float = 0.0
    blocks_s: float = 0.0


KINDS = {
    kind.name: kind
    for kind in (
        Kind("work_once", 2, 1, 6.0),
        Kind("work_again", 3, 2, 6.0, is_idempotent=True),
        Kind("relay", 2, 1, 1.5, onward="pass_on"),
        Kind("pass_on", 3, 2, 0.0, onward="work_again", is_idempotent=True),
        Kind("ring", 3, 2, 0.3, onward="ring"),
        Kind("seasonal", 2, 1, 2.0),
        Kind("slow", 3, 2, 0.5, mean_s=1.5, is_idempotent=True),
        Kind("shaky", 2, 1, 1.0, fails=0.3),
        Kind("grind", 4, 1, 0.1, blocks_s=0.4),
        Kind("even", 2, 1, 0.0, mean_s=0.4),
        Kind("brief", 3, 1, 0.0, mean_s=0.001),
        Kind("hang", 2, 1, 0.0, mean_s=HANG_S),
    )
}
_USUAL = {kind.name: kind.weight for kind in KINDS.values() if kind.weight}
_KEYED = frozenset({"work_once", "work_again", "seasonal"})


class Workplace(Fleet):
    """A fleet with work to do."""

    def __init__(
        self, nodes: int, seed: int, *, start_s: float, shape: Shape, profile: str = "lan"
    ) -> None:
        """Lay it out; nothing runs yet."""
        super().__init__(
            nodes, seed, start_s=start_s, offers=self._offered, shape=shape,
            settings={
                "slots": SLOTS, "queue": QUEUE, "drain_s": DRAIN_S, "profile": profile,
            },
        )  # fmt: skip
        self._began_at = self.now
        self.ledger = Ledger()
        self.failing: dict[int, float] = {}
        """The share of runs that fail, for nodes where that is not what the kind says."""
        self.withdrawn: dict[tuple[int, str], float] = {}
        """What a node no longer offers, and since when."""
        self.wanted: dict[str, float] = _USUAL
        """What clients call, and how often each."""
        self.index_of: dict[str, int] = {}
        """Nodes' ids, in hex, to their numbers."""
        self.is_closing = False
        """Whether all of it is being ended, without waiting for what runs."""
        self.on_effect: list[Callable[[Box, Effect], None]] = []
        """Called with what a node's gossip reports."""
        self._chance = [self.random(f"handlers/{index}") for index in range(nodes)]
        self.on_ready.append(self._watch)
        self.on_crash.append(lambda box: self.ledger.kill(box.index, self.now))

    def disturb(self, what: str, *, mild: bool = False) -> None:
        """As for any world; but a blocked main loop may kill nobody: gossip has its own thread."""
        super().disturb(what, mild=mild or what.startswith("block "))

    def was_calm(self, for_s: float) -> bool:
        """Whether nothing happened for so long, or ever, that may kill a live node."""
        return self.safe_since <= self._began_at or self.now - self.safe_since > for_s

    def _watch(self, box: Box) -> None:
        assert box.node is not None
        self.index_of[box.node.node_id.hex()] = box.index
        Watch(self, self.ledger, box, box.node)
        gossip = box.node.gossip
        told = gossip._listener  # noqa: SLF001 - a probe in the line, as a tester has it

        def listen(effect: Effect) -> None:
            told(effect)
            for tell in self.on_effect:
                tell(box, effect)

        gossip._listener = listen  # noqa: SLF001 - as above

    # Handlers

    def _offered(self, index: int) -> list[CapabilityDefinition]:
        return [self.definition(index, name) for name in KINDS if self.offers(index, name)]

    def offers(self, index: int, capability: str) -> bool:
        """Whether a node is to offer this now."""
        kind = KINDS[capability]
        return index % kind.every < kind.of and (index, capability) not in self.withdrawn

    def definition(self, index: int, capability: str) -> CapabilityDefinition:
        """A capability as a node offers it."""
        kind = KINDS[capability]

        async def handler(work: int) -> dict[str, Any]:
            return await self._perform(self.boxes[index], kind, work)

        return define(handler, Declaration(name=kind.name, idempotent=kind.is_idempotent))

    async def _perform(self, box: Box, kind: Kind, number: int) -> dict[str, Any]:
        ledger, origin = self.ledger, ORIGIN.get()
        deadline = self.now if origin.deadline is None else origin.deadline.at
        execution = Execution(
            ledger.works[number], ledger.executions, box.index, box.runs, self.now, deadline,
            origin.hops,
        )  # fmt: skip
        ledger.begin_execution(execution)
        try:
            await self._toil(box, kind, execution.work, origin)
        except asyncio.CancelledError:
            ledger.end_execution(execution, End.CANCELLED, self.now)
            raise
        except Exception:
            ledger.end_execution(execution, End.FAILED, self.now)
            raise
        ledger.end_execution(execution, End.DONE, self.now)
        return {"work": number, "execution": execution.number}

    async def _toil(self, box: Box, kind: Kind, work: Work, origin: Origin) -> None:
        rng = self._chance[box.index]
        fails = rng.random() < self.failing.get(box.index, kind.fails)
        if kind.blocks_s:
            self.block(box, kind.blocks_s)
        await asyncio.sleep(min(rng.expovariate(1 / kind.mean_s), 4 * kind.mean_s))
        if fails:
            raise RuntimeError(EXPECTED)
        if kind.onward:
            await self._onward(box, kind.onward, work, origin)

    async def _onward(self, box: Box, capability: str, parent: Work, origin: Origin) -> None:
        """A handler's own call into the mesh, with the params that `Mesh.delegate` sends."""
        assert origin.deadline is not None
        assert box.node is not None
        kind = KINDS[capability]
        work = self.ledger.want(capability, is_idempotent=kind.is_idempotent, parent=parent)
        left_s = max(0.001, origin.deadline.at - self.now)
        context = CallContext(remote="program", local=False, deadline_s=left_s + GRACE_S)
        params = {
            "capability": capability, "input": {"work": work.number},
            "deadline_ms": left_s * 1_000, "hops": list(origin.hops),
        }  # fmt: skip
        asking = run(box.node.registry, "delegate", params, context)
        await self._account(box, work, left_s, asking)

    # Clients

    async def call_once(self, box: Box, work: Work, deadline_s: float) -> Any:
        """One call of a client on a machine."""
        params: dict[str, Any] = {
            "capability": work.capability, "input": {"work": work.number},
            "deadline_ms": deadline_s * 1_000,
        }  # fmt: skip
        if work.key:
            params["idempotency_key"] = work.key
        asking = self.call(box, "delegate", params, deadline_s + GRACE_S)
        return await self._account(box, work, deadline_s, asking)

    def hang(self, box: Box, work: Work, deadline_s: float) -> None:
        """A call of a machine's client of which nobody waits for the end."""

        async def ask() -> None:
            with contextlib.suppress(MeshError):
                await self.call_once(box, work, deadline_s)

        self._keep(self.loop.create_task(ask()))

    async def _account(
        self, box: Box, work: Work, deadline_s: float, asking: Coroutine[Any, Any, Any]
    ) -> Any:
        ledger = self.ledger
        call = Call(work, box.index, box.runs, self.now, self.now + deadline_s)
        ledger.begin_call(call)
        try:
            answer = await asking
        except MeshError as error:
            if call.end is not End.KILLED:
                ledger.end_call(call, end_of(error), self.now, error=error)
            raise
        except asyncio.CancelledError:
            ledger.end_call(call, End.CANCELLED, self.now)
            raise
        ledger.end_call(call, End.DONE, self.now, result=answer)
        return answer


class Clients:
    """A client on each machine."""

    def __init__(self, place: Workplace, calls_per_s: float) -> None:
        self._place = place
        self._calls_per_s = calls_per_s
        self._tasks: dict[asyncio.Task[None], None] = {}
        self.is_over = False

    def begin(self) -> None:
        """Let all of them call."""
        for box in self._place.boxes:
            self._go(self._client(box))

    def _go(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._place.loop.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))

    @property
    def open(self) -> int:
        """How many calls, and pauses between them, are under way."""
        return len(self._tasks)

    async def _client(self, box: Box) -> None:
        place = self._place
        rng = place.random(f"client/{box.index}")
        while True:
            await asyncio.sleep(rng.expovariate(self._calls_per_s))
            if self.is_over:
                return
            kind = KINDS[rng.choices(list(place.wanted), list(place.wanted.values()))[0]]
            deadline_s = rng.choice((1.0, 3.0, 5.0, 8.0))
            is_keyed, waits_s = rng.random() < 0.25, rng.uniform(0.0, 4.0)
            is_repeated = rng.random() < REPEATED_SHARE
            if box.is_member and box.joined and not box.asleep:
                key = f"{box.index}-{len(place.ledger.works)}" if is_keyed else ""
                work = place.ledger.want(
                    kind.name, is_idempotent=kind.is_idempotent,
                    key=key if kind.name in _KEYED else "",
                )  # fmt: skip
                self._go(self._ask(box, work, deadline_s))
                if work.key and is_repeated:
                    self._go(self._again(box, work, deadline_s, waits_s))

    async def _ask(self, box: Box, work: Work, deadline_s: float) -> None:
        try:
            await self._place.call_once(box, work, deadline_s)
        except MeshError:
            return

    async def _again(self, box: Box, work: Work, deadline_s: float, after_s: float) -> None:
        """Ask for the same once more, unless the process that would remember it is gone."""
        run = box.runs
        await asyncio.sleep(after_s)
        if box.runs == run and box.is_member and box.joined and not box.asleep:
            await self._ask(box, work, deadline_s)
