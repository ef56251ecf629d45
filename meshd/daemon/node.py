"""One whole node: the composition root, where all rooms meet and none knows another."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterable
from math import inf
from pathlib import Path
from typing import Any

from meshd.capability.definition import CapabilityDefinition
from meshd.clock import Instant, Seconds
from meshd.config import Config
from meshd.control import socket_path
from meshd.daemon.attach import Attachments
from meshd.daemon.control_methods import ControlMethods
from meshd.daemon.event_methods import EventMethods
from meshd.daemon.finding import Finding
from meshd.daemon.happenings import Happenings
from meshd.daemon.load_prober import LoadProber
from meshd.daemon.methods import RemoteMethods
from meshd.daemon.metrics import NodeMetrics
from meshd.daemon.naming import address_at
from meshd.daemon.own_load import OwnLoad
from meshd.daemon.place import BIND_TRIES, is_taken, no_free_port, own_hosts
from meshd.daemon.routing_watch import Reloaded
from meshd.daemon.run_keeper import RunKeeper
from meshd.daemon.settings import gossip_config, routing_settings, server_limits
from meshd.daemon.stopping import Stopping
from meshd.daemon.stream_ping import RpcStreamPinger
from meshd.daemon.task_methods import TaskMethods
from meshd.discovery.address import is_unspecified, parse_advertise, parse_bind
from meshd.errors import UsageError
from meshd.extension import Extension, Method
from meshd.gossip.dialects import Versions
from meshd.gossip.effects import (
    ConflictOver,
    ConflictSeen,
    Effect,
    IdentityRaised,
    MemberChanged,
    VersionRefused,
    Woken,
)
from meshd.gossip.service import GossipService
from meshd.load import default_slots
from meshd.model import Address, Epoch, MemberState, NodeId, Site
from meshd.platform import Platform
from meshd.routing.custom import Policies
from meshd.routing.dispatcher import Dispatcher
from meshd.rpc.client import RpcClient
from meshd.rpc.links import Links
from meshd.rpc.methods import CallContext, Handler, Params, Registry
from meshd.rpc.server import Probes, RpcServer
from meshd.security.identity import KEY_FILE, Identity, keep, load_or_create, mesh_id
from meshd.security.statedir import StateDir
from meshd.telemetry.log import LimitedLog, event, get_logger
from meshd.version import __version__
from meshd.view import ClusterView
from meshd.work.forward import HttpForward
from meshd.work.worker import CLOSE_S, Worker

LEAVE_TIMEOUT_S = 3.0
SERVER_GRACE_S = 5.0
HURRY_S = 0.2
"""What remains of each grace period once somebody asked twice for a stop."""
DESCRIBED_WITHIN_S = 1.0
FOREIGN_MAX = 16
"""Addresses kept of nodes that share no protocol version with this one; the oldest gives way."""
CONFLICT_TOLD_S = 120.0
"""How long another process with this node's key stays a problem after it was last heard."""
_TICK_S = 1.0

logger = get_logger(__name__)


class Node:
    """A node of a mesh, running in this process's event loop (its gossip on a thread).

    Life: `Node(...)` binds nothing; `await start()` joins; `await stop()` leaves and releases all.
    """

    _conflict_until = 0.0

    def __init__(
        self,
        config: Config,
        definitions: Iterable[CapabilityDefinition],
        platform: Platform,
        *,
        extensions: Iterable[Extension] = (),
        control_path: str | None = None,
        policies: Policies | None = None,
    ) -> None:
        """Put the node together.

        Args:
            config: checked already by `meshd.config`.
            definitions: what it offers from the start.
            platform: the machine.
            extensions: further rooms.
            control_path: the control socket's path; the usual one if None, none if empty.
            policies: those that the program brings.

        Raises:
            UsageError: a setting or capability cannot be used; nothing was opened.
        """
        settings = config.node
        self.config = config
        self.platform = platform
        self.name, self.mesh = settings.name, settings.mesh
        self.clock = platform.clock
        self.started_at = self.clock.now()
        self.gossip_config = gossip_config(config)
        self.extensions = tuple(extensions)
        self.state = StateDir(Path(settings.state_dir))
        self._run_keeper = RunKeeper(self.state)
        self.slots = settings.slots or default_slots()
        self._bind = parse_bind(settings.bind)
        self.finding = Finding(self)
        usual = socket_path(self.mesh, self.name)
        self.control_path = usual if control_path is None else control_path
        self.forward = HttpForward()
        self.worker = Worker(
            platform, definitions, name=self.name, slots=self.slots, queue_max=settings.queue,
            forward=self.forward, on_change=self._describe,
        )  # fmt: skip
        self.client = RpcClient(socket_factory=platform.open_stream)
        self.streams = RpcStreamPinger(platform)
        self.policies, self.registry = policies or Policies(), Registry()
        self.is_leaving = False
        self.own_load = OwnLoad(self)
        self.stopping = Stopping()
        self.hurried = asyncio.Event()
        self._gossip: GossipService | None = None
        self._last_view: ClusterView | None = None
        self._dispatcher: Dispatcher | None = None
        self._server: RpcServer | None = None
        self._links: Links | None = None
        self._waiters: dict[asyncio.Future[None], Callable[[ClusterView], bool]] = {}
        self._ticking: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[int] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._limited = LimitedLog(logger)
        self._identity: Identity | None = None
        self.problems: dict[str, str] = {}
        self.foreign: dict[Address, tuple[str, Instant]] = {}  # versions spoken, last noticed when
        self.happenings = Happenings(self)
        self._reload: Callable[[], Reloaded] | None = None
        self.methods = RemoteMethods(self)
        self.task_methods = TaskMethods(self)
        self._register_methods()
        self._attachments = Attachments(self, EventMethods(self, self.registry))
        self._metrics = NodeMetrics(self)

    def _register_methods(self) -> None:
        self.methods.register(self.registry)
        self.task_methods.register(self.registry)
        ControlMethods(self).register(self.registry)
        for extension in self.extensions:
            for name, method in extension.methods().items():
                self.registry.add(name, None, _plain(method))

    # Parts that exist once it runs

    @property
    def gossip(self) -> GossipService:
        """The running gossip."""
        assert self._gossip is not None, "the node is not started"
        return self._gossip

    @property
    def dispatcher(self) -> Dispatcher:
        """What sends work to peers."""
        assert self._dispatcher is not None, "the node is not started"
        return self._dispatcher

    @property
    def links(self) -> Links:
        """What calls peers."""
        assert self._links is not None, "the node is not started"
        return self._links

    @property
    def server(self) -> RpcServer:
        """What answers calls."""
        assert self._server is not None, "the node is not started"
        return self._server

    def view(self) -> ClusterView:
        """The newest snapshot; once stopped, the last: calls may still be about to end."""
        if self._gossip is None and self._last_view is not None:
            return self._last_view
        return self.gossip.view

    async def wait_view(
        self, wanted: Callable[[ClusterView], bool], timeout_s: Seconds
    ) -> ClusterView:
        """The first view for which `wanted` holds; the newest one if time runs out first."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = wanted  # before the look, or a view could come in between unseen
        if not wanted(self.view()):
            await asyncio.wait([waiter], timeout=timeout_s)
        self._waiters.pop(waiter, None)
        return self.view()

    async def described(self) -> None:
        """Wait until the own view tells what this node has said of itself.

        So the next call finds what is offered here, and who asks at once its name.
        """
        number = self.gossip.descriptions
        await self.wait_view(lambda view: view.description >= number, DESCRIBED_WITHIN_S)

    def _on_view(self, view: ClusterView) -> None:
        self.dispatcher.on_view_change(view)
        self.happenings.on_view(view)
        self.task_methods.on_view(view)
        for waiter, wanted in list(self._waiters.items()):
            if not waiter.done() and wanted(view):
                waiter.set_result(None)

    def _is_view_awaited(self) -> bool:
        """Whether somebody here waits for more than news. Asked by the protocol's thread."""
        return bool(self._waiters) or self.dispatcher.is_busy or self.happenings.is_waiting

    @property
    def node_id(self) -> NodeId:
        """Own id."""
        return self.view().me

    @property
    def address(self) -> Address:
        """The address that others are told."""
        return self.gossip.address

    # Life

    async def start(self) -> None:
        """Take the state directory, bind, serve, join.

        Raises:
            UsageError: another daemon has the state directory or the control socket.
            OSError: the address cannot be bound. Whatever was opened is closed again.
        """
        self._loop = asyncio.get_running_loop()
        self.state.open()
        try:
            await self._start()
        except BaseException:
            await self._close()
            raise

    async def _start(self) -> None:
        self._identity = identity = load_or_create(self.state.path)
        epoch = self.state.begin_run(self.clock.wall_ms())
        self._run_keeper.begin(epoch)
        tcp = self._bind_both(identity.node, epoch)
        gossip = self.gossip
        self._server = RpcServer(
            self.registry, probes=Probes(self._health, self._ready, self._metrics.expose),
            limits=server_limits(self.config), on_attach=self._attachments.attach,
            host_names=_host_names(),
        )  # fmt: skip
        self._links = Links(
            self.client, self._server, clock=self.clock, random=self.platform.random("links"),
            methods=self.registry, mesh=mesh_id(self.mesh).hex(), node=identity.node.hex(),
            whose=lambda node, host: address_at(self.view(), node, host),
        )  # fmt: skip
        self._dispatcher = Dispatcher(
            clock=self.clock, view=self.view, invoker=self._links, wires=self._links.ready,
            local=self.methods.work_here,
            local_offer=self.methods.offer_here, prober=LoadProber(gossip, self.own_load.now),
            policies=self.policies,
            random=self.platform.random("routing"), settings=routing_settings(self.config.routing),
        )  # fmt: skip
        await self._server.start_tcp(tcp)
        if self.control_path:
            # Taken before anybody hears of this node, served when there is something to tell.
            self._server.reserve_control(self.control_path)
        gossip.on_view(self._on_view, self._is_view_awaited)
        self.happenings.start()
        await gossip.start()
        self._describe()
        self.own_load.tell()
        await self.described()
        await self.task_methods.start(identity.node)
        for extension in self.extensions:
            await extension.start(self)
        await self.finding.start()
        if self.control_path:
            await self._server.start_control(self.control_path)
        self._ticking = asyncio.create_task(self._tick(), name="meshd-tick")
        event(logger, "info", "started", node=self.name, id=self.node_id.hex(), mesh=self.mesh,
              address=str(self.address))  # fmt: skip

    def _bind_both(self, node: NodeId, epoch: Epoch) -> socket.socket:
        """Bind gossip and calls to one port number; port 0 finds one that is free for both."""
        for _ in range(BIND_TRIES):
            gossip = GossipService(
                platform=self.platform, mesh=mesh_id(self.mesh), node=node, epoch=epoch,
                bind=self._bind, advertise=self._advertised, config=self.gossip_config,
                listener=self._on_effect, event_floor=self.happenings.begin(epoch),
                streams=self.streams, load_now=self.own_load.if_changed,
            )  # fmt: skip
            self._gossip = gossip
            try:
                return self.platform.bind_stream(gossip.bound)
            except OSError as error:
                gossip.release()
                self._gossip = None
                if self._bind.port or not is_taken(error):
                    raise
        raise no_free_port(self._bind.host)

    def _advertised(self, bound: Address) -> tuple[Address, ...]:
        settings = self.config.node
        if settings.advertise:
            return parse_advertise(settings.advertise, bound.port)
        now = () if self._gossip is None else [a.host for a in self._gossip.addresses]
        hosts = own_hosts(bound.host, settings.iface, now)
        return tuple(Address(host, bound.port) for host in hosts)

    async def stop(self, drain_s: Seconds | None = None) -> None:
        """Finish what runs, say goodbye, release everything. Idempotent."""
        try:
            if self._gossip is not None:
                await self._cancel_leaving()
                await self._leave(self.config.node.drain_s if drain_s is None else drain_s)
                await self._linger()
        finally:
            await self._close()

    async def _linger(self) -> None:
        """Go on answering for one probe interval, so that whoever probes hears that we left.

        One node in a few thousand missed the goodbye. Where nobody is left, nobody is waited for.
        """
        others = (p for p in self.view().in_state(MemberState.ALIVE) if p.node != self.node_id)
        if not self.gossip.is_aside and any(others):
            config = self.gossip_config
            linger_s = min(config.leave_linger_s, config.probe_interval_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(linger_s):
                    await self.hurried.wait()

    async def leave(self, drain_s: Seconds) -> int:
        """Take no more work, finish what runs, say goodbye; returns how often that was sent.

        It goes on although its caller waits no longer: half a leave would leave a node that takes
        no work and that nobody knows to be gone. A new one replaces it, a rejoin calls it off.
        """
        await self._cancel_leaving()
        self._leaving = asyncio.create_task(self._leave(drain_s), name="meshd-leave")
        return await asyncio.shield(self._leaving)

    async def _cancel_leaving(self) -> None:
        leaving, self._leaving = self._leaving, None
        if leaving is not None:
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)

    async def _leave(self, drain_s: Seconds) -> int:
        self.is_leaving = True
        self.own_load.tell()
        await self._drain(drain_s)
        event(logger, "info", "leaving", node=self.name)
        return await self.gossip.leave(LEAVE_TIMEOUT_S)

    async def _drain(self, drain_s: Seconds) -> None:
        """Let running work end for so long, or until somebody asks to hurry."""

        async def drain() -> None:
            await asyncio.gather(self.worker.drain(drain_s), self._drain_tasks(drain_s))

        waits = [
            asyncio.create_task(drain(), name="meshd-drain"),
            asyncio.create_task(self.hurried.wait(), name="meshd-hurry"),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _drain_tasks(self, drain_s: Seconds) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                await self.task_methods.drain()

    async def rejoin(self) -> None:
        """Come back after a leave, or from the middle of one."""
        await self._cancel_leaving()
        if self.is_leaving:
            self.is_leaving = False
            self.worker.resume()
            self.task_methods.resume()
            self.gossip.rejoin()
            self.own_load.tell()

    def reload_with(self, reload: Callable[[], Reloaded]) -> None:
        """What `reload` reads and takes the files by."""
        self._reload = reload

    def reload(self) -> Reloaded:
        """Read files again: the names of capabilities, and keys of `[routing]`, that changed.

        Raises:
            UsageError: they are wrong now, or this node has nothing to read them from; nothing
                changed.
        """
        if self._reload is None:
            raise UsageError("this node's capabilities come from a program, not from files")
        return self._reload()

    async def _close(self) -> None:
        await self._cancel_leaving()
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.gather(self._ticking, return_exceptions=True)
            self._ticking = None
        self.own_load.close()
        # Whoever waits for news is let go, and so does not hold up the server.
        await self.happenings.close()
        await self.finding.stop()
        await self.task_methods.close()
        if self._dispatcher is not None:
            self._dispatcher.close()
        # Before the server: whoever waits for work that is cut off gets an answer, not a dead line.
        await self.worker.close(HURRY_S if self.hurried.is_set() else CLOSE_S)
        if self._server is not None:
            for extension in reversed(self.extensions):
                await extension.stop()
            await self._server.stop(HURRY_S if self.hurried.is_set() else SERVER_GRACE_S)
            self._server = None
        if self._gossip is not None:
            self._last_view = self._gossip.view
            await self._gossip.stop()
            self.happenings.keep_clock()
            self._run_keeper.keep()
            self._gossip = None
        if self._links is not None:
            await self._links.close()
        await self.client.close()
        await self.forward.close()
        self.state.close()

    # What others are told

    def _describe(self) -> None:
        """Tell the mesh what is offered here."""
        if self._gossip is not None:
            self._gossip.describe(
                name=self.name, version=__version__, manifests=tuple(self.worker.manifests()),
                site=Site(self.config.node.region, self.config.node.labels),
            )  # fmt: skip
            self.happenings.redescribed(self.node_id)

    @property
    def is_running(self) -> bool:
        """Whether gossip runs."""
        return self._gossip is not None

    @property
    def dispatch_per_s(self) -> float:
        """Tasks that this node hands out a second."""
        return 0.0 if self._dispatcher is None else self._dispatcher.dispatch_per_s

    async def _tick(self) -> None:
        """Once a second: look at the machine and its address, tell the load, remember who lives."""
        while True:
            before = self.clock.now()
            await asyncio.sleep(_TICK_S)
            try:
                self.own_load.sample(max(0.0, self.clock.now() - before - _TICK_S))
                self.finding.remember()
                self.happenings.look_at_health()
                if not self.config.node.advertise and is_unspecified(self.gossip.bound.host):
                    await self._look_at_address()
                if self.clock.now() >= self._conflict_until:
                    self.problems.pop("identity", None)
                await self._keep_state()
            except Exception as error:  # noqa: BLE001 - the next second may go better
                # Ending here would freeze the load that others choose by, and nobody would know.
                self.problems["tick"] = f"the machine cannot be looked at: {error!r}"
                self._limited.event("warning", "tick_failed", reason=repr(error))
            else:
                self.problems.pop("tick", None)

    async def _look_at_address(self) -> None:
        """Follow the machine to another network (DHCP, a laptop that moves)."""
        now = await asyncio.to_thread(self._advertised, self.gossip.bound)
        old = self.gossip.addresses
        if now != old:
            told = {"old": ",".join(map(str, old)), "new": ",".join(map(str, now))}
            event(logger, "info", "address_changed", **told)
            self.gossip.set_address(*now)
            self.finding.hurry()

    async def _keep_state(self) -> None:
        """Write what changed, and again what the disk did not take: it may have room by now."""
        if self._run_keeper.is_due or self.state.problem:
            await asyncio.to_thread(self._run_keeper.keep)
        if self.happenings.is_clock_news:
            await asyncio.to_thread(self.happenings.keep_clock)
        if self._identity is not None and not self._identity.kept:
            self._identity = await asyncio.to_thread(keep, self._identity, self.state.path)

    # What gossip reports, from its own thread

    def _on_effect(self, effect: Effect) -> None:
        self.happenings.on_effect(effect)
        match effect:
            case MemberChanged():
                member = effect.member
                if self._loop is not None:
                    told = member.address, member.state
                    self._loop.call_soon_threadsafe(self.links.on_member, *told)
                event(logger, "info", f"member_{member.state.name.lower()}",
                      id=member.node.hex(), address=str(member.address),
                      incarnation=member.incarnation, reason=effect.reason)  # fmt: skip
            case IdentityRaised():
                self._run_keeper.raised(effect)
            case ConflictSeen():
                # Who stands aside tells so until it is over; the other, for a while.
                self._conflict_until = inf if effect.aside else self.clock.now() + CONFLICT_TOLD_S
                self.problems["identity"] = conflict_told(effect, self.state.path)
                self._limited.event("error", "identity_conflict", address=str(effect.address),
                                    aside=effect.aside)  # fmt: skip
            case Woken():
                event(logger, "info", "woken", slept_s=round(effect.slept_s, 1))
                if self._loop is not None:
                    self._loop.call_soon_threadsafe(self.finding.hurry)
            case ConflictOver():
                self.problems.pop("identity", None)
                event(logger, "warning", "identity_conflict_over")
            case VersionRefused():
                speaks = str(Versions(effect.oldest, effect.newest))
                self.foreign.pop(effect.address, None)
                if len(self.foreign) == FOREIGN_MAX:
                    del self.foreign[next(iter(self.foreign))]
                self.foreign[effect.address] = speaks, self.clock.now()
                self._limited.event("warning", "other_version", address=str(effect.address),
                                    speaks=speaks, ours=str(Versions()))  # fmt: skip
            case _:
                pass

    # What the server asks

    def _health(self) -> tuple[bool, dict[str, Any]]:
        return True, {"status": "ok", "loop_lag_s": round(self.own_load.lag_s, 3)}

    def _ready(self) -> tuple[bool, dict[str, Any]]:
        ready = not self.is_leaving
        return ready, {"status": "ready" if ready else "draining"}


def conflict_told(conflict: ConflictSeen, state_dir: Path) -> str:
    """What is wrong when two processes have one key, and how to mend it."""
    where = f"another process at {conflict.address} runs with this node's key"
    if not conflict.aside:
        return f"{where}; it began later and stands aside: give it a state directory of its own"
    return (
        f"{where} and began first, so this one takes no part: stop it, remove"
        f" {state_dir / KEY_FILE} (or give another --state-dir), and start it again"
    )


def _host_names() -> frozenset[str]:
    name = socket.gethostname().lower()
    return frozenset({name, f"{name}.local"})


def _plain(method: Method) -> Handler:
    async def call(params: Params, context: CallContext) -> Any:
        del context
        return await method(params)

    return call
