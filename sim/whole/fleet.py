"""A fleet of simulated machines, each with the production daemon on it, and the faults that hit it.

It answers to the same faults as the level-1 `World` (`sim.faults`), and runs under one virtual
loop. Killing a process runs nothing of it any more; its machine's kernel closes its sockets.
"""

import asyncio
import gc
import math
import os
import random
import shutil
import tempfile
import weakref
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from meshd.capability.definition import CapabilityDefinition
from meshd.config import load_config
from meshd.daemon.node import Node
from meshd.errors import PeerError, UsageError
from meshd.gossip.config import GossipConfig, profile
from meshd.gossip.inputs import Input
from meshd.gossip.swim import Swim
from meshd.model import Address, MeshId
from meshd.routing.custom import Policies
from meshd.rpc.dispatch import run
from meshd.rpc.methods import CallContext
from meshd.security.identity import KEY_FILE, mesh_id
from sim.calm import Calm
from sim.network import Network, Shape
from sim.trace import ACTION, Trace
from sim.whole.loop import Lane, VirtualLoop
from sim.whole.machine import VirtualClock, VirtualPlatform
from sim.whole.wires import Machine, Wires
from sim.world import PORT, START_S, address_of

Answer = TypeVar("Answer")
Offers = Callable[[int], Iterable[CapabilityDefinition]]
Brings = Callable[[int], Policies]
MACHINES_MAX = 1_000


class Box:
    """One machine of the fleet, and the daemon that runs on it, if one does."""

    def __init__(self, index: int, machine: Machine, clock: VirtualClock) -> None:
        self.index = index
        self.machine = machine
        self.clock = clock
        self.node: Node | None = None
        self.runs = 0
        self.asleep = False
        self.blocked = False
        self.joined = False
        self.leaving = False
        self.started_at = self.thawed_at = -math.inf
        """When its process began, and when it last went on after it was held."""
        self.paused_at = self.blocked_until = -math.inf
        self.offset_s = 0.0
        """Level 1's leap of the monotonic clock; here all machines keep the loop's time."""
        self.ready: asyncio.Future[None] | None = None
        self.ended: asyncio.Future[None] | None = None
        self.main = Lane(f"node {index}")
        self.protocol = Lane(f"node {index}'s gossip")

    @property
    def name(self) -> str:
        """The node's name."""
        return f"node{self.index}"

    @property
    def address(self) -> Address:
        """Where it is reached."""
        return Address(self.machine.host, PORT)

    @property
    def is_up(self) -> bool:
        """Whether its process runs, be it asleep."""
        return self.node is not None

    @property
    def is_held(self) -> bool:
        """Whether its main loop stands still."""
        return self.asleep or self.blocked

    @property
    def is_member(self) -> bool:
        """Whether it runs, and has not said goodbye."""
        return self.node is not None and not self.leaving

    @property
    def swim(self) -> Swim | None:
        """Its running gossip's machine, to look at."""
        return self.node.gossip._swim if self.node and self.joined else None  # noqa: SLF001 - as level 1 looks at its hosts

    @property
    def mesh(self) -> MeshId:
        """The mesh that its daemon is in."""
        return mesh_id("default" if self.node is None else self.node.mesh)

    @property
    def late_s(self) -> tuple[float, float] | None:
        """How late its process reads datagrams, from and to; None for at once."""
        return self.machine.late_s

    @late_s.setter
    def late_s(self, value: tuple[float, float] | None) -> None:
        self.machine.late_s = value

    @property
    def cost_s(self) -> float:
        """What reading one datagram costs its process."""
        return self.machine.cost_s

    @cost_s.setter
    def cost_s(self, value: float) -> None:
        self.machine.cost_s = value

    @property
    def wall_s(self) -> float:
        """How far its wall clock is off."""
        return self.clock.wall_s

    @wall_s.setter
    def wall_s(self, value: float) -> None:
        self.clock.wall_s = value


class Fleet(Calm):
    """Machines, the network between them, and time."""

    def __init__(
        self,
        nodes: int,
        seed: int,
        *,
        start_s: float = START_S,
        offers: Offers = lambda _index: (),
        policies: Brings = lambda _index: Policies(),
        shape: Shape | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Lay out the machines; nothing runs yet.

        Args:
            nodes: how many.
            seed: what everything follows from.
            start_s: when time begins; traces count from `START_S`.
            offers: what the node with this index offers.
            policies: those that its program brings; asked for after its offers.
            shape: the network's links; 0.5 to 1.5 ms without loss if not given.
            settings: further settings of every node, by the names of `meshd start`'s flags.

        Raises:
            UsageError: `nodes` is not 1 to 1,000, or a setting is wrong.
        """
        if not 1 <= nodes <= MACHINES_MAX:
            raise UsageError(f"a cluster has 1 to {MACHINES_MAX} nodes, not {nodes}")
        super().__init__(start_s, start_s)
        self.seed = seed
        self.settings = dict(settings or {})
        self._offers, self._policies = offers, policies
        self.loop = VirtualLoop(start_s)
        self.network = Network(shape or Shape(), lambda what: self.random("network/" + what))
        self.trace = Trace(mesh_id(str(self.settings.get("mesh", "default"))), START_S)
        self.wires = Wires(self.loop, self.network, self.trace, self.random("late"))
        self.boxes = [self._box(index) for index in range(nodes)]
        self.is_halted = False
        self._directory = Path(tempfile.mkdtemp(prefix="meshd-sim-", dir=_memory()))
        self._lanes: list[Lane] = []
        self._killed: list[Node] = []
        self._kept: set[asyncio.Task[None]] = set()
        self.on_ready: list[Callable[[Box], None]] = []
        """Called in the node's lane when its daemon has started."""
        self.on_crash: list[Callable[[Box], None]] = []
        """Called just before a process is killed."""
        self.on_leave: list[Callable[[Box], None]] = []
        """Called when a daemon is asked to stop."""
        # Collected garbage may close a connection: when that happens must follow from the seed.
        # Also where nobody closes it: then at the latest when Python ends.
        self._clean_up = weakref.finalize(self, _clean_up, self._directory, gc.isenabled())
        gc.disable()

    def _box(self, index: int) -> Box:
        machine = self.wires.add(index, address_of(index).host)
        return Box(index, machine, VirtualClock(self.loop))

    def random(self, concern: str) -> random.Random:
        """The source of chance of one concern."""
        return random.Random(f"{self.seed}/{concern}")

    @property
    def hosts(self) -> list[Box]:
        """The machines, by the name that faults know."""
        return self.boxes

    @property
    def now(self) -> float:
        """Virtual seconds."""
        return self.loop.time()

    @property
    def elapsed_s(self) -> float:
        """Virtual seconds since the start."""
        return self.loop.time() - START_S

    @property
    def config(self) -> GossipConfig:
        """The protocol's numbers."""
        return profile(str(self.settings.get("profile", "lan")))

    def members(self) -> list[Box]:
        """Who should be held alive by all."""
        return [box for box in self.boxes if box.is_member]

    # Processes

    def start(self, box: Box, seeds: tuple[int, ...] | None = None) -> None:
        """Start a machine's daemon; it joins by the addresses of `seeds`."""
        box.runs += 1
        box.joined = box.leaving = box.asleep = box.blocked = False
        box.main = Lane(f"node {box.index}, run {box.runs}")
        box.protocol = Lane(f"node {box.index}'s gossip, run {box.runs}")
        self._lanes += (box.main, box.protocol)
        join = [str(self.boxes[index].address) for index in seeds or () if index != box.index]
        box.ready = self.loop.create_future()
        box.ended = self.loop.create_future()
        self.changed_at = box.started_at = self.now
        box.node = self.in_lane(box, lambda: self._make(box, join))
        self._keep(self.spawn(box, self._run(box, box.node)))

    def _make(self, box: Box, join: list[str]) -> Node:
        run = box.runs
        platform = VirtualPlatform(
            self.wires, box.machine, clock=box.clock, protocol=box.protocol,
            random_for=lambda what: self.random(f"node/{box.index}/{run}/{what}"),
            names=self._host_of,
        )  # fmt: skip
        directory = self._directory / box.name
        flags = {
            "name": box.name, "bind": str(box.address), "mdns": False, "join": join,
            "state_dir": str(directory), "advertise": str(box.address), **self.settings,
        }  # fmt: skip
        definitions, policies = self._offers(box.index), self._policies(box.index)
        config = load_config(flags, env={}, paths=(), policies=policies.added).config
        if run == 1:
            directory.mkdir(mode=0o700)
            (directory / KEY_FILE).write_bytes(_key(self.random(f"key/{box.index}")))
            (directory / KEY_FILE).chmod(0o600)
        return Node(config, definitions, platform, control_path="", policies=policies)

    async def _run(self, box: Box, node: Node) -> None:
        assert box.ready is not None
        try:
            await node.start()
        except Exception as error:  # noqa: BLE001 - told to whoever waits for the start
            box.ready.set_exception(error)
            self._clear(box)
        else:
            box.joined = True
            for tell in self.on_ready:
                tell(box)
            box.ready.set_result(None)

    def _host_of(self, name: str) -> str | None:
        if name in self.wires.machines:
            return name
        return next((box.machine.host for box in self.boxes if box.name == name), None)

    def crash(self, box: Box) -> None:
        """The process is killed. Idempotent."""
        if box.node is None:
            return
        self.changed_at = self.now
        for tell in self.on_crash:
            tell(box)
        for lane in (box.main, box.protocol):
            self.loop.end(lane)
        box.machine.kill()
        box.node.state.close()
        self._killed.append(box.node)
        self._clear(box)

    def _clear(self, box: Box) -> None:
        box.node = None
        box.asleep = box.blocked = False
        if box.ended is not None and not box.ended.done():
            box.ended.set_result(None)

    def leave(self, box: Box, drain_s: float | None = None) -> None:
        """The daemon is asked to stop: it drains (None: as configured), says goodbye, and ends."""
        node = box.node
        if node is None or box.leaving:
            return
        box.leaving = True
        self.changed_at = self.now
        for tell in self.on_leave:
            tell(box)

        async def stop() -> None:
            await node.stop(drain_s)
            if box.node is node and box.leaving:
                self._clear(box)
                self.changed_at = self.now

        self._keep(self.spawn(box, stop()))

    def exit(self, box: Box) -> None:
        """The process of a daemon that has stopped ends, with whatever else it still runs."""
        if box.node is None:
            for lane in (box.main, box.protocol):
                self.loop.end(lane)
            box.machine.kill()

    def rejoin(self, box: Box) -> None:
        """A stop cannot be taken back: the process starts again once it has ended."""

    def sleep(self, box: Box) -> None:
        """The process is stopped (SIGSTOP)."""
        box.asleep = box.node is not None
        for lane in (box.main, box.protocol):
            self.loop.freeze(lane)

    def wake(self, box: Box) -> None:
        """The process goes on."""
        box.asleep = False
        box.thawed_at = self.now
        self.loop.thaw(box.protocol)
        if not box.blocked:
            self.loop.thaw(box.main)

    def block(self, box: Box, for_s: float) -> None:
        """User code holds the main loop; gossip has its own thread and goes on."""
        if box.node is None:
            return
        lane, until = box.main, self.now + for_s
        box.blocked_until = max(until, box.blocked_until if box.blocked else 0.0)
        box.blocked = True
        self.loop.freeze(lane)

        def release() -> None:
            if box.main is lane and self.now >= box.blocked_until:
                box.blocked = False
                box.thawed_at = self.now
                if not box.asleep:
                    self.loop.thaw(lane)

        self.call_at(until, release, f"{box.index}'s handler returns")

    def recover(self, box: Box) -> None:
        """A starved or slow process is well again."""
        box.late_s = None
        box.cost_s = 0.0
        box.machine.read_at = 0.0

    def rearm(self, box: Box) -> None:
        """Timers are the loop's: nothing to do."""

    def step(self, box: Box, event: Input) -> None:
        """Give an input to a node's gossip."""
        if box.node is not None and box.joined:
            gossip = box.node.gossip
            self.in_lane(box, lambda: gossip._submit(event))  # noqa: SLF001 - as a fault of level 1 does

    def end_faults(self) -> None:
        """Let everybody be well again, and the network whole."""
        self.network.reset()
        for box in self.boxes:
            if box.asleep:
                self.wake(box)
            self.recover(box)
        self.settle_all()

    # Time

    def call_at(self, at: float, action: Callable[[], None], label: str = "") -> None:
        """Do something at a time; a label makes it a line of the trace."""

        def act() -> None:
            if label:
                self.trace.add(self.now, ACTION, -1, label.encode(), None)
            action()

        self.wires.at(at, act)

    def run(self, until: float) -> None:
        """Let time pass up to `until`."""
        if not self.is_halted:
            self.loop.run_until(until)

    def halt(self) -> None:
        """Stop with the present event."""
        self.is_halted = True
        if self.loop.is_running():
            self.loop.stop()

    def spawn(self, box: Box, work: Coroutine[Any, Any, Answer]) -> asyncio.Task[Answer]:
        """Run a coroutine as a task of the machine's process."""
        return self.loop.create_task(work, context=box.main.context())

    def _keep(self, task: asyncio.Task[None]) -> None:
        """Hold a task that nobody awaits: the loop itself would forget it."""
        self._kept.add(task)
        task.add_done_callback(self._kept.discard)

    def in_lane(self, box: Box, function: Callable[[], Answer]) -> Answer:
        """Call a function as code of the machine's process."""
        return box.main.context().run(function)

    async def call(self, box: Box, method: str, params: Any, timeout_s: float) -> Any:
        """Call a method of a node as a program on its machine does.

        Raises:
            PeerError: no daemon runs there, or it ended meanwhile.
            MeshError: what the node answered.
        """
        if box.node is None:
            raise PeerError(f"no daemon runs on {box.name}")
        context = CallContext(remote="program", local=False, deadline_s=timeout_s)
        return await self.run_in(box, run(box.node.registry, method, params, context))

    async def run_in(self, box: Box, work: Coroutine[Any, Any, Answer]) -> Answer:
        """Await a coroutine as code of a machine's process.

        Raises:
            PeerError: no daemon runs there, or it was killed meanwhile.
        """
        ended = box.ended
        if box.node is None or ended is None or not box.joined:
            work.close()
            raise PeerError(f"no daemon runs on {box.name}")
        asking = self.spawn(box, work)
        try:
            both: set[asyncio.Future[Any]] = {asking, ended}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            asking.cancel()
            raise
        if asking.done():
            return asking.result()
        asking.cancel()
        raise PeerError(f"the daemon on {box.name} ended during the call", definite=False)

    def close(self) -> None:
        """End all processes and forget everything. Idempotent."""
        if self.loop.is_closed():
            return
        for box in self.boxes:
            self.crash(box)
        self.loop.run_until_complete(_sweep_up(self._killed))
        for lane in self._lanes:
            if lane.graveyard:
                self.loop.bury(lane)
        self.loop.close()
        self._clean_up()

    def digest(self) -> str:
        """Hash of all that was delivered so far."""
        return self.trace.digest()


def _clean_up(directory: Path, collects: bool) -> None:
    """Remove what the fleet wrote, and let garbage be collected again if it was before."""
    shutil.rmtree(directory, ignore_errors=True)
    if collects:
        gc.enable()


async def _sweep_up(nodes: Collection[Node]) -> None:
    """Close what killed processes held: aiohttp complains of sessions that nobody closed."""
    for node in nodes:
        _let_links_go(node)
    closing = [
        asyncio.create_task(work)
        for node in nodes
        for work in (node.client.close(), node.streams.close(), node.forward.close())
    ]
    if closing:
        _, waiting = await asyncio.wait(closing, timeout=0)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*closing, return_exceptions=True)


def _let_links_go(node: Node) -> None:
    """Drop the links that a node had dialled.

    To close them properly waits for their readers, which were killed.
    """
    links = node._links  # noqa: SLF001 - nobody else has to end another's process
    for channel in [] if links is None else links._dialled:  # noqa: SLF001 - as above
        socket: Any = channel._socket  # noqa: SLF001 - as above
        socket._release()  # noqa: SLF001 - as above


def _memory() -> str | None:
    """A directory in memory, where the machine has one: daemons wait for their disks."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None  # noqa: S108 - mkdtemp makes a private one in it


def _key(rng: random.Random) -> bytes:
    key = Ed25519PrivateKey.from_private_bytes(rng.randbytes(32))
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
