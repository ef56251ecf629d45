"""Test your agents on a whole mesh in virtual time: real daemons, simulated machines and network.

```python
from meshd.testing import Cluster, simulated

@simulated(nodes=3, program=offer_my_agents, seeds=20)
async def test_work_goes_on_beside_a_cut(cluster: Cluster) -> None:
    cluster.partition([0, 1], [2])
    assert await cluster[0].call("shout", {"text": "hello"}) == "HELLO"
```

The daemons, their gossip, HTTP and routing are the production code. Only time, sockets and chance
are simulated: a minute passes in milliseconds, and everything follows from the seed, so that a
failure comes again. Handlers wait with `asyncio.sleep`; `time.sleep` would take real time.
"""

import asyncio
import contextlib
import functools
import inspect
from collections.abc import Callable, Coroutine, Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

from meshd.capability.definition import CapabilityDefinition
from meshd.daemon.link import EmbeddedLink
from meshd.errors import PeerError, UsageError
from meshd.mesh import Mesh
from meshd.model import Address, MemberState
from meshd.view import ClusterView
from sim.network import Constant, Exponential, Shape, Uniform
from sim.trace import ACTION, STREAM
from sim.whole.fleet import Box, Fleet

__all__ = [
    "Cluster", "ClusterNode", "Constant", "Exponential", "Shape", "Uniform", "simulated",
]  # fmt: skip

SEEDS_PER_NODE = 3
LIMIT_S = 3_600.0
SETTLED_WITHIN_S = 30.0
POLL_S = 0.01
TRACE_LINES = 12

Answer = TypeVar("Answer")
Program = Callable[[Mesh, int], object]
Test = Callable[..., Coroutine[Any, Any, None]]


class ClusterNode:
    """One machine of a cluster and the node that runs there.

    `mesh` is the SDK's object of the running node; a restart makes a new one, by your program.
    """

    def __init__(self, fleet: Fleet, box: Box) -> None:
        self._fleet = fleet
        self._box = box
        self.index = box.index
        self.name = box.name
        self.mesh = Mesh(box.name)
        self._paused_until = 0.0

    @property
    def address(self) -> Address:
        """Where others reach it."""
        return self._box.address

    @property
    def is_up(self) -> bool:
        """Whether its process runs."""
        return self._box.is_up

    @property
    def view(self) -> ClusterView:
        """What it knows of the mesh now.

        Raises:
            UsageError: it is down.
        """
        node = self._box.node
        if node is None or not self._box.joined:
            raise UsageError(f"{self.name} is down", hint="restart it first")
        return node.view()

    def sees(self, other: "ClusterNode") -> MemberState | None:
        """What it believes of another node; None if it knows nothing of it."""
        return next((p.state for p in self.view.peers if p.name == other.name), None)

    # Calls, as a program on this machine makes them

    async def call(self, capability: str, input: Any = None, **choices: Any) -> Any:  # noqa: A002 - as in Mesh.call
        """`Mesh.call` from this node.

        Raises:
            PeerError: this node is down, or was killed during the call.
            MeshError: see `Mesh.call`.
        """
        return await self.run(self.mesh.call(capability, input, **choices))

    async def delegate(
        self,
        capability: str,
        input: Any = None,  # noqa: A002 - as in Mesh.delegate
        **choices: Any,
    ) -> dict[str, Any]:
        """`Mesh.delegate` from this node: who did it, and what was tried.

        Raises:
            PeerError: this node is down, or was killed during the call.
            MeshError: see `Mesh.delegate`.
        """
        return await self.run(self.mesh.delegate(capability, input, **choices))

    async def run(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        """Await a coroutine as code of this node's process: it is killed when that is.

        Raises:
            PeerError: this node is down, or was killed meanwhile.
        """
        return await self._fleet.run_in(self._box, work)

    # Faults

    def crash(self) -> None:
        """Kill its process: nothing of it runs any more. Idempotent."""
        self._fleet.crash(self._box)

    async def restart(self) -> None:
        """Start its process anew, with the key and the state that are on its disk.

        Raises:
            UsageError: the daemon refuses to start.
        """
        self.crash()
        await self.start()

    async def start(self) -> None:
        """Start its process, and wait until it serves. Nothing happens if it runs.

        Raises:
            UsageError: the daemon refuses to start.
            PeerError: it was killed while it started.
        """
        box = self._box
        if not box.is_up:
            self._fleet.start(box, tuple(range(min(SEEDS_PER_NODE, len(self._fleet.boxes)))))
        ready, ended = box.ready, box.ended
        assert ready is not None
        assert ended is not None
        await asyncio.wait((ready, ended), return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            raise PeerError(f"{self.name} was killed while it started")
        ready.result()

    async def leave(self) -> None:
        """Stop it as `meshd stop` does: finish what runs, say goodbye, end."""
        box = self._box
        self._fleet.leave(box)
        if box.ended is not None:
            await asyncio.shield(box.ended)
            self._fleet.exit(box)

    def pause(self, for_s: float) -> None:
        """Stop the whole process for so long (SIGSTOP, a laptop that sleeps)."""
        fleet, box = self._fleet, self._box
        run, until = box.runs, fleet.now + for_s
        self._paused_until = max(until, self._paused_until if box.asleep else 0.0)
        fleet.sleep(box)

        def wake() -> None:
            # Another run, or a longer pause, is not this one's to end.
            if box.runs == run and fleet.now >= self._paused_until:
                fleet.wake(box)

        fleet.call_at(until, wake, f"{box.index} goes on")

    def block(self, for_s: float) -> None:
        """Let a handler hold its main loop for so long; gossip goes on in its own thread."""
        self._fleet.block(self._box, for_s)


class Cluster:
    """Some machines with a node on each, started and met.

    Use it by `@simulated`, or by hand: `with Cluster(3) as cluster: cluster.run(test(cluster))`.
    """

    def __init__(
        self,
        nodes: int = 3,
        *,
        seed: int = 0,
        program: Program | None = None,
        agents: Iterable[Any] = (),
        network: Shape | None = None,
        **settings: Any,
    ) -> None:
        """Lay it out; nodes start with `run`.

        Args:
            nodes: how many machines, 1 to 1,000.
            seed: what everything follows from.
            program: called with the `Mesh` and the index of each node whenever that starts; offers
                what the node offers, adds policies of its own. What it makes belongs to that run,
                as in a process.
            agents: decorated functions, objects or modules that every node offers.
            network: delay, loss and the like of all links; 0.5 to 1.5 ms without loss if not given.
            settings: further settings of each node, by the names of `meshd start`'s flags. The
                profile is `local` unless said.

        Raises:
            UsageError: an argument is wrong, or it is made by code of an event loop.
        """
        _check_no_loop_runs()
        self.seed = seed
        self._program = program
        if not isinstance(agents, Iterable):
            raise UsageError("agents are several", hint="agents=[...]")
        if network is not None and not isinstance(network, Shape):
            raise UsageError(f"{network!r} is no network", hint="network=Shape(loss=0.1)")
        self._agents = tuple(agents)
        self._fleet = Fleet(
            nodes, seed, offers=self._offers, shape=network,
            policies=lambda index: self.nodes[index].mesh.policies,
            settings={"profile": "local", **settings},
        )  # fmt: skip
        self._fleet.on_ready.append(self._adopt)
        self.nodes = tuple(ClusterNode(self._fleet, box) for box in self._fleet.boxes)

    def _offers(self, index: int) -> tuple[CapabilityDefinition, ...]:
        node = self.nodes[index]
        node.mesh = mesh = Mesh(node.name)
        if self._agents:
            mesh.offer(*self._agents)
        if self._program is not None:
            self._program(mesh, index)
        return mesh.definitions

    def _adopt(self, box: Box) -> None:
        assert box.node is not None
        self.nodes[box.index].mesh.use(EmbeddedLink(box.node))

    # Running

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def run(self, work: Coroutine[Any, Any, Answer], *, limit_s: float = LIMIT_S) -> Answer:
        """Start the nodes, let them meet, and run `work` to its end in virtual time.

        Args:
            work: the test.
            limit_s: virtual seconds that it may take.

        Raises:
            TimeoutError: it took longer.
            AssertionError: an exception reached the event loop, which nobody handled.
            UsageError: the cluster is closed.
        """
        if self._fleet.loop.is_closed():
            work.close()
            raise UsageError("the cluster is closed", hint="make another")
        try:
            answer = self._fleet.loop.run_until_complete(self._bounded(work, limit_s))
        except BaseException as error:
            error.add_note(self._where())
            raise
        if self._fleet.loop.problems:
            raise AssertionError("\n".join((*self._fleet.loop.problems, self._where())))
        return answer

    async def _bounded(self, work: Coroutine[Any, Any, Answer], limit_s: float) -> Answer:
        try:
            await self._start()
        except BaseException:
            work.close()
            raise
        limit = asyncio.timeout(limit_s)
        try:
            async with limit:
                return await work
        except TimeoutError as error:
            if limit.expired():
                raise TimeoutError(f"not done within {limit_s:g} virtual s") from error
            raise

    async def _start(self) -> None:
        down = [node for node in self.nodes if self._fleet.boxes[node.index].runs == 0]
        if down:
            await asyncio.gather(*(node.start() for node in down))
            await self.settled()

    def _where(self) -> str:
        # What was done and called says more than the pings in between.
        lines = self._fleet.trace.tail(kinds=(ACTION, STREAM))[-TRACE_LINES:]
        told = "".join(f"\n  {line}" for line in lines)
        return f"seed {self.seed}, {self.now:.3f} virtual s after the start; the last events:{told}"

    def close(self) -> None:
        """Kill what runs and remove what it wrote. Idempotent."""
        self._fleet.close()

    @property
    def now(self) -> float:
        """Virtual seconds since the start."""
        return self._fleet.elapsed_s

    @property
    def digest(self) -> str:
        """Hash of all that was sent and done so far: equal seeds give equal ones."""
        return self._fleet.digest()

    def __getitem__(self, index: int) -> ClusterNode:
        return self.nodes[index]

    def __len__(self) -> int:
        return len(self.nodes)

    def __iter__(self) -> Iterator[ClusterNode]:
        return iter(self.nodes)

    # Waiting

    async def sleep(self, seconds: float) -> None:
        """Let virtual time pass."""
        await asyncio.sleep(seconds)

    async def until(
        self, condition: Callable[[], object], *, within_s: float = SETTLED_WITHIN_S, what: str = ""
    ) -> None:
        """Wait until `condition()` holds.

        Raises:
            TimeoutError: it did not, for `within_s` virtual seconds.
        """
        give_up = self.now + within_s
        while not condition():
            if self.now >= give_up:
                text = what or getattr(condition, "__name__", "the condition")
                raise TimeoutError(f"{text} did not come true within {within_s:g} virtual s")
            await asyncio.sleep(POLL_S)

    async def settled(self, *, within_s: float = SETTLED_WITHIN_S) -> None:
        """Wait until the running nodes believe exactly each other alive, and all can be called.

        Capabilities are known then, and nobody's last probe of another is unanswered.

        Raises:
            TimeoutError: they did not; the message names one who misses one.
        """
        give_up = self.now + within_s
        while problem := self._unsettled():
            if self.now >= give_up:
                raise TimeoutError(f"after {within_s:g} virtual s {problem}")
            await asyncio.sleep(POLL_S)

    def _unsettled(self) -> str:
        up = [n for n in self.nodes if n.is_up]
        offered = {n.name: {d.manifest.name for d in n.mesh.definitions} for n in up}
        for node in up:
            alive = {p.name: p for p in node.view.in_state(MemberState.ALIVE)}
            for name, offers in offered.items():
                if name not in alive:
                    return f"{node.name} does not believe {name} alive"
                if not alive[name].reachable:
                    return f"{node.name} had no answer from {name} yet"
                if {c.name for c in alive[name].capabilities} != offers:
                    return f"{node.name} does not know what {name} offers"
            for name in alive:
                if name not in offered:
                    return f"{node.name} still believes {name} alive"
        return ""

    # The network

    def partition(self, *groups: Iterable[int], name: str = "partition") -> None:
        """Let nothing pass between different groups of nodes, by index, until `heal`.

        Who is in no group still reaches everybody.

        Raises:
            UsageError: there are fewer than two groups, or a node is in two of them.
        """
        sets = tuple(frozenset(group) for group in groups)
        self._check(*sets)
        if len(sets) < 2 or len(frozenset().union(*sets)) < sum(map(len, sets)):
            told = ", ".join(str(sorted(group)) for group in sets)
            raise UsageError(
                f"a partition needs two groups or more without a node in common, not {told}",
                hint="as in partition([0, 1], [2])",
            )
        self._fleet.network.partition(name, sets)
        self._note(f"{name}: " + " | ".join(str(sorted(group)) for group in sets))

    def cut(self, sources: Iterable[int], targets: Iterable[int], *, name: str = "cut") -> None:
        """Let nothing pass from `sources` to `targets`, one way, until `heal`."""
        one, other = frozenset(sources), frozenset(targets)
        self._check(one, other)
        self._fleet.network.cut(name, one, other)
        self._note(f"{name}: nothing from {sorted(one)} to {sorted(other)}")

    def isolate(self, index: int, *, name: str = "isolate") -> None:
        """Cut one node off from all others until `heal`."""
        self.partition([index], set(range(len(self))) - {index}, name=name)

    def heal(self, name: str | None = None) -> None:
        """End the cuts of this name, or all. Idempotent."""
        self._fleet.network.heal(name)
        self._note("all cuts heal" if name is None else f"{name} heals")

    def shape(self, network: Shape) -> None:
        """From now on all links are like this."""
        self._fleet.network.shape = network

    def lossy(self, index: int, loss: float | None) -> None:
        """All links of one node lose this share (0 .. 1) of their packets; None ends that."""
        self._check({index})
        if loss is not None and not 0 <= loss <= 1:
            raise UsageError(f"a share is 0 to 1, not {loss}", hint="0.3 is 30 %")
        self._fleet.network.override_node(index, loss)
        self._note(f"node {index} loses {loss or 0:.0%}")

    def _note(self, text: str) -> None:
        self._fleet.trace.add(self._fleet.now, ACTION, -1, text.encode(), None)

    def _check(self, *groups: Iterable[int]) -> None:
        odd = sorted({i for group in groups for i in group if not 0 <= i < len(self)})
        if odd:
            raise UsageError(f"no node {odd[0]}", hint=f"nodes are 0 to {len(self) - 1}")


def simulated(
    nodes: int = 3, *, seeds: int | Iterable[int] = 1, limit_s: float = LIMIT_S, **options: Any
) -> Callable[[Test], Callable[..., None]]:
    """Make a plain test of an async one that takes a `cluster`; it runs once for each seed.

    Whatever else the test takes, pytest's fixtures and parameters, is passed on.

    Args:
        nodes: how many machines.
        seeds: how many seeds (0, 1, ...), or which ones. The first that fails ends the test, and
            the error's note says which it was.
        limit_s: virtual seconds that each run may take.
        options: further arguments of `Cluster`.

    Raises:
        UsageError: what is decorated is no async function that takes a `cluster`, or there is no
            seed.
    """
    if callable(nodes):
        raise UsageError("the decorator is called", hint="@simulated()")
    chosen = tuple(range(seeds) if isinstance(seeds, int) else seeds)
    if not chosen:
        raise UsageError("without a seed nothing would run", hint="seeds=1 or more, or [7]")

    def decorate(test: Test) -> Callable[..., None]:
        name, signature = getattr(test, "__name__", repr(test)), inspect.signature(test)
        if not inspect.iscoroutinefunction(test):
            raise UsageError(f"{name!r} is not an async function")
        if "cluster" not in signature.parameters:
            raise UsageError(f"{name!r} takes no `cluster`", hint=f"async def {name}(cluster)")

        def run(*given: Any, **named: Any) -> None:
            for seed in chosen:
                with Cluster(nodes, seed=seed, **options) as cluster:
                    cluster.run(test(*given, cluster=cluster, **named), limit_s=limit_s)

        functools.update_wrapper(run, test)
        # pytest would look through it, and take `cluster` for a fixture.
        del run.__wrapped__  # type: ignore[attr-defined]
        others = [each for key, each in signature.parameters.items() if key != "cluster"]
        run.__signature__ = signature.replace(parameters=others)  # type: ignore[attr-defined]
        return run

    return decorate


def _check_no_loop_runs() -> None:
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()
        raise UsageError(
            "an event loop runs here already, and a cluster has its own",
            hint="make it in a plain function; @simulated() does",
        )
