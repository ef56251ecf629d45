"""The two ways in which a program is part of a mesh: attached to a daemon, or a node itself."""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from meshd.capability.definition import CapabilityDefinition
from meshd.capability.manifest import told_fields
from meshd.clock import Clock, Seconds
from meshd.config import Config, load_config
from meshd.control import choose_socket
from meshd.daemon.event_methods import PROGRAM_METHODS
from meshd.daemon.happenings import Answerer, Asked
from meshd.daemon.node import Node
from meshd.daemon.platform import SystemPlatform
from meshd.daemon.routing_watch import RoutingWatch
from meshd.daemon.short_work import ShortOrder, done_order
from meshd.deadline import Deadline
from meshd.errors import Code, MeshError, NoDaemonError, UsageError
from meshd.happening import payload_from, payload_shape
from meshd.load import default_slots
from meshd.routing.custom import Policies
from meshd.rpc.channel import Channel
from meshd.rpc.client import connect_channel
from meshd.rpc.dispatch import run
from meshd.rpc.methods import Answered, CallContext, Params, Registry
from meshd.sink import Sink
from meshd.telemetry.log import event, get_logger
from meshd.work.forward import HttpForward
from meshd.work.origin import ORIGIN, Origin
from meshd.work.worker import Worker

RECONNECT_FIRST_S: Seconds = 0.1
RECONNECT_LIMIT_S: Seconds = 5.0
REGISTER_TIMEOUT_S: Seconds = 10.0
DRAIN_S: Seconds = 10.0
AWAY_S: Seconds = 5.0
"""How long a call waits for a daemon that is away to come back."""

logger = get_logger(__name__)
Definitions = tuple[CapabilityDefinition, ...]


class Link(Protocol):
    """A program's connection to its node."""

    @property
    def kind(self) -> str:
        """`attached` or `embedded`."""
        ...

    @property
    def node_name(self) -> str:
        """The node's name."""
        ...

    @property
    def clock(self) -> Clock:
        """What deadlines are told by."""
        ...

    def offer(self, definitions: Definitions) -> None:
        """Offer more."""
        ...

    async def request(
        self, method: str, params: Any, timeout_s: Seconds, sink: Sink | None = None
    ) -> Any:
        """Call one of the node's remote methods; `sink` takes partial results and progress."""
        ...

    async def answer_queries(self, answerers: Mapping[str, Answerer]) -> None:
        """Answer queries of these names, and no others."""
        ...

    async def close(self) -> None:
        """Finish what runs, and leave."""
        ...


class EmbeddedLink:
    """This program is a node."""

    kind = "embedded"

    def __init__(self, node: Node, routing: RoutingWatch | None = None) -> None:
        self._node = node
        self._routing = routing
        self._has_news = False

    @classmethod
    async def open(
        cls,
        flags: Mapping[str, Any],
        definitions: Definitions,
        policies: Policies | None = None,
    ) -> "EmbeddedLink":
        """Start a node in this process, with policies of the program's own.

        Raises:
            UsageError: a setting is wrong, or the name is in use on this machine.
            OSError: the address cannot be bound.
        """
        added = () if policies is None else policies.added

        def read() -> Config:
            return load_config(flags, policies=added).config

        node = Node(read(), definitions, SystemPlatform(), control_path="", policies=policies)
        await node.start()
        routing = RoutingWatch(node, read)
        routing.start()
        return cls(node, routing)

    @property
    def node_name(self) -> str:
        """The node's name."""
        return self._node.name

    @property
    def node(self) -> Node:
        """The node."""
        return self._node

    @property
    def clock(self) -> Clock:
        """What deadlines are told by."""
        return self._node.clock

    def offer(self, definitions: Definitions) -> None:
        """Offer more."""
        self._node.worker.add(definitions)
        self._has_news = True

    async def request(
        self, method: str, params: Any, timeout_s: Seconds, sink: Sink | None = None
    ) -> Any:
        """Call one of the node's own methods, without a wire between."""
        if self._has_news:
            self._has_news = False
            await self._node.described()
        is_local = method in PROGRAM_METHODS
        context = CallContext("program", is_local, timeout_s, sink)
        return await run(self._node.registry, method, params, context)

    async def answer_queries(self, answerers: Mapping[str, Answerer]) -> None:
        """Answer queries of these names, and no others."""

        async def answer(asked: Asked) -> bytes:
            return await answerers[asked.name](asked)

        self._node.happenings.answer_with(tuple(answerers), answer, self)

    async def close(self) -> None:
        """Leave the mesh."""
        if self._routing is not None:
            await self._routing.stop()
        await self._node.stop(DRAIN_S)


class WorkOrder(msgspec.Struct, forbid_unknown_fields=True):
    """The daemon's call `work`: do this here."""

    capability: str
    input: Any = None
    timeout_s: float = 300.0
    hops: tuple[str, ...] = ()
    tells_units: bool = False


class QueryOrder(msgspec.Struct, forbid_unknown_fields=True):
    """The daemon's call `query`: answer this."""

    name: str
    node: str
    timeout_s: float
    payload: str | None = None
    payload_base64: str | None = None


class AttachedLink:
    """This program lends its functions to the local daemon, and calls through it."""

    kind = "attached"

    def __init__(self, path: str, name: str, definitions: Definitions, slots: int) -> None:
        self._path = path
        self._name = name
        self._platform = SystemPlatform()
        self.clock: Clock = self._platform.clock
        self._forward = HttpForward()
        self._worker = Worker(
            self._platform, definitions, name=name, slots=slots or default_slots(),
            queue_max=1_024, forward=self._forward,
        )  # fmt: skip
        self._channel: Channel | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()
        self._attached = asyncio.Event()
        self._offers: asyncio.Task[None] | None = None
        self._refused: MeshError | None = None
        self._answerers: Mapping[str, Answerer] = {}
        self.node_name = ""

    @classmethod
    async def open(
        cls,
        *,
        path: str | None,
        mesh: str | None,
        node: str | None,
        name: str,
        definitions: Definitions,
        slots: int,
    ) -> "AttachedLink":
        """Attach to the daemon that is meant.

        Raises:
            NoDaemonError: none answers.
            UsageError: several run and none was chosen, or the daemon refuses what is offered; or
                `slots` is no whole number.
        """
        if type(slots) is not int:
            raise UsageError(f"slots must be a whole number, not {slots!r}")
        chosen = choose_socket(path, mesh, node)
        link = cls(chosen.path, name, definitions, slots)
        try:
            await link._connect()
        except BaseException:
            await link.close()
            raise
        link._keeper = asyncio.create_task(link._keep(), name="meshd-attached")
        return link

    async def _connect(self) -> None:
        registry = Registry()
        registry.add("work", WorkOrder, self._on_work, beginner=self._begin_work)
        registry.add("query", QueryOrder, self._on_query)
        channel = await connect_channel(self._path, methods=registry)
        try:
            info = await channel.call("info", {}, REGISTER_TIMEOUT_S)
            self.node_name = str(info["name"])
            told: set[str] = set()
            # Until nothing was offered while the daemon was being told of the rest.
            while names := tuple(m.name for m in self._worker.manifests() if m.name not in told):
                await self._register(channel, names)
                told.update(names)
            if not told:
                # It introduces itself without an offer: what it calls is on its account.
                await self._register(channel, ())
            if self._answerers:
                await self._tell_queries(channel)
        except BaseException:
            await channel.close()
            raise
        self._channel = channel
        self._lost.clear()
        self._attached.set()
        channel.on_closed(self._on_lost)

    def _on_lost(self, channel: Channel) -> None:
        if channel is self._channel:
            self._attached.clear()
            self._lost.set()

    async def _register(self, channel: Channel, names: tuple[str, ...]) -> None:
        shapes = [told_fields(m) for m in self._worker.manifests() if m.name in names]
        params = {"agent": self._name, "capabilities": shapes}
        await channel.call("register", params, REGISTER_TIMEOUT_S)

    async def _keep(self) -> None:
        """Attach again whenever the daemon was away, with growing pauses."""
        pause_s = RECONNECT_FIRST_S
        while True:
            await self._lost.wait()
            self._channel = None
            try:
                await self._connect()
            except MeshError as error:
                event(logger, "warning", "daemon_away", reason=error.message, retry_s=pause_s)
                await asyncio.sleep(pause_s)
                pause_s = min(RECONNECT_LIMIT_S, pause_s * 2)
            else:
                event(logger, "info", "attached_again", node=self.node_name)
                pause_s = RECONNECT_FIRST_S

    async def _on_work(self, order: WorkOrder, context: CallContext) -> Any:
        deadline = Deadline.after(order.timeout_s, self._platform.clock.now())
        ORIGIN.set(Origin(order.hops, deadline))
        done = await self._worker.run(
            order.capability, order.input, deadline_s=order.timeout_s, sink=context.sink
        )
        return done_order(done, tells_units=order.tells_units)

    def _begin_work(
        self, params: Params, context: CallContext, answered: Answered
    ) -> ShortOrder | None:
        """`_on_work` the short way, unless partial results are asked for."""
        try:
            order = msgspec.convert(params, WorkOrder)
        except msgspec.ValidationError:
            return None  # it is told by the general way
        if context.sink is not None:
            return None
        work = ShortOrder(
            self._worker, self._platform.clock, answered, tells_units=order.tells_units
        )
        work.begin(order.capability, order.input, deadline_s=order.timeout_s, hops=order.hops)
        return work

    async def _on_query(self, order: QueryOrder, context: CallContext) -> dict[str, str]:
        del context
        answerer = self._answerers.get(order.name)
        if answerer is None:
            raise UsageError(f"this program answers no query {order.name!r}")
        payload = payload_from(order.payload, order.payload_base64)
        return payload_shape(
            await answerer(Asked(order.name, payload, order.node, order.timeout_s))
        )

    async def _tell_queries(self, channel: Channel) -> None:
        names = {"names": list(self._answerers)}
        await channel.call("answer_queries", names, REGISTER_TIMEOUT_S)

    async def answer_queries(self, answerers: Mapping[str, Answerer]) -> None:
        """Answer queries of these names, and no others.

        Raises:
            UsageError: another program answers one of them; then nothing has changed.
        """
        before, self._answerers = self._answerers, answerers
        channel = self._channel
        if channel is None:
            return  # attaching again tells it
        try:
            await self._tell_queries(channel)
        except MeshError:
            if channel.closed:
                return
            self._answerers = before
            raise

    def offer(self, definitions: Definitions) -> None:
        """Offer more; the daemon is told at once. If it refuses, the next request says so."""
        names = self._worker.add(definitions)
        before, channel = self._offers, self._channel

        async def tell() -> None:
            if before is not None:
                await before
            if channel is None:
                return  # attaching again registers all of it
            try:
                await self._register(channel, names)
            except MeshError as error:
                if channel.closed:
                    return
                # Kept, they would be refused again, and all others with them, at the next attach.
                self._worker.remove(names)
                self._refused = error
                event(logger, "error", "offer_refused", names=",".join(names), reason=str(error))

        self._offers = asyncio.get_running_loop().create_task(tell())

    async def request(
        self, method: str, params: Any, timeout_s: Seconds, sink: Sink | None = None
    ) -> Any:
        """Call one of the daemon's remote methods.

        Raises:
            UsageError: the daemon has refused what was offered before (told once).
            NoDaemonError: it is away, and stays away for `AWAY_S`.
            MeshError: what it answered.
        """
        if self._offers is not None:
            # What was offered before this call can be called by it.
            await asyncio.shield(self._offers)
        if self._refused is not None:
            refused, self._refused = self._refused, None
            raise refused
        if self._channel is not None and self._channel.closed:
            # The loop has yet to tell us: whoever asks again at once must wait, not fail and fail.
            self._on_lost(self._channel)
        if not self._attached.is_set():
            # A daemon that restarts is back in a moment: its callers need not notice.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(timeout_s, AWAY_S)):
                    await self._attached.wait()
        channel = self._channel
        if channel is None or not self._attached.is_set():
            raise NoDaemonError(
                f"the daemon at {self._path} is away", hint="start it again: meshd start"
            )
        try:
            return await channel.call(method, params, timeout_s, sink=sink)
        except MeshError as error:
            is_unknown = error.code == Code.METHOD_NOT_FOUND and "attempts" not in error.data
            if method != "call" or not is_unknown:
                raise
        # That daemon was started before this program's meshd was installed.
        envelope = await channel.call("delegate", params, timeout_s, sink=sink)
        return envelope["peer_result"]["result"]

    async def close(self) -> None:
        """Finish what runs, and detach. Idempotent."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        await self._worker.drain(DRAIN_S)
        if self._channel is not None:
            await self._channel.close()
            self._channel = None
        await self._worker.close()
        await self._forward.close()
