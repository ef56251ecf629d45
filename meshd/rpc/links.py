"""One kept link per peer: calls of both sides, many at a time, over a WebSocket on the call port.

Who calls a peer first dials; the other side uses that link too, once the node that the dialler says
it is has confirmed that, at its own address. A peer without links is called by single requests.
Version and mesh are settled by the upgrade itself: subprotocol `meshd.link.1`, header `Meshd-Mesh`
(RFC 6455, section 1.9).
"""

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import msgspec
from aiohttp import web

from meshd.clock import Clock, Instant, Seconds
from meshd.errors import Code, DeadlineError, MeshError, PeerError
from meshd.model import Address, MemberState
from meshd.rpc.channel import Channel, ChannelLimits
from meshd.rpc.client import RpcClient
from meshd.rpc.frames import Socket
from meshd.rpc.limits import CallGate
from meshd.rpc.methods import CallContext, Registry
from meshd.rpc.server import RpcServer, remote_host
from meshd.sink import Sink

LINK_PATH = "/link"
LINK_PROTOCOL = "meshd.link.1"
MESH_HEADER = "Meshd-Mesh"
NODE_HEADER = "Meshd-Node"
LINK_HEADER = "Meshd-Link"
TOKEN_BYTES = 16
LINKS_MAX = 256
"""Kept links; past it further peers are POSTed to, and one that nobody uses is made to rest."""
PEERS_MAX = 4_096
"""Addresses of which something is remembered: failed dials, no links there."""
CALLS_MAX = 32_768
"""Of peers that run here over all links; each holds some kilobytes."""
CALLS_HOST_SHARE = 2
LINKS_HOST_SHARE = 2
"""One host may have half of all calls here, and half of all links: a mesh of two is one, too."""
DIAL_TIMEOUT_S: Seconds = 120.0
"""For the upgrade; a peer whose main loop is blocked is no dead one. TCP itself has 3 s."""
BACKOFF_FIRST_S: Seconds = 0.05
BACKOFF_MAX_S: Seconds = 5.0
REST_S: Seconds = 15.0
"""How often the node looks for links that nobody used since the last look, and closes those."""
LOOKS_DIALLED = 1
"""So many looks in a row must find a link unused; who dialled closes it, as a rule."""
LOOKS_ACCEPTED = 4
NO_LINKS_S: Seconds = 60.0
"""So long a peer that answered the upgrade with an HTTP error is called by POST."""
LINK_CALLS_MAX = CALLS_MAX // CALLS_HOST_SHARE
"""Under way on one link in one direction."""
LINK_LIMITS = ChannelLimits(
    outgoing_max=LINK_CALLS_MAX, incoming_max=LINK_CALLS_MAX, heartbeat_s=None
)
"""No heartbeat: gossip says who is gone, and the kernel which connection (`sockets.watch`)."""
_LONG_AGO = Instant(0.0)
Whose = Callable[[str, str], Address | None]


class DialledParams(msgspec.Struct, forbid_unknown_fields=True):
    """`dialled`: does the link with this token come from here, and lead to this node?"""

    token: str
    node: str


@dataclass(frozen=True, slots=True)
class _Claim:
    """A link whose dialler says that it is a certain node; nothing proves that yet."""

    channel: Channel
    token: str


@dataclass(frozen=True, slots=True)
class _Look:
    """What was seen of a link at the last look.

    `unused` is how many looks in a row have found nobody use it.
    """

    turnover: int
    unused: int = 0
    is_resting: bool = False


@dataclass(slots=True)
class _Peer:
    """What is known of one address."""

    channel: Channel | None = None
    claim: _Claim | None = None
    dialling: asyncio.Task[Channel | None] | None = None
    failures: int = 0
    dial_after: Instant = _LONG_AGO
    post_until: Instant = _LONG_AGO
    why: str = ""

    @property
    def is_linked(self) -> bool:
        """Whether calls may go over its channel."""
        channel = self.channel
        return channel is not None and not channel.closed and not channel.is_resting


class Links:
    """All links of one node. Satisfies routing's `Invoker`. Belongs to one event loop."""

    def __init__(
        self,
        client: RpcClient,
        server: RpcServer,
        *,
        clock: Clock,
        random: Random,
        methods: Registry,
        mesh: str,
        node: str,
        whose: Whose,
        limits: ChannelLimits = LINK_LIMITS,
        links_max: int = LINKS_MAX,
        calls_max: int = CALLS_MAX,
    ) -> None:
        """Nothing is dialled yet; links are taken on the server's call port as soon as it starts.

        Args:
            client: dials, and calls peers that have no links.
            server: not yet started.
            clock: for pauses between dials.
            random: jitter of these pauses.
            methods: what peers may call here.
            mesh: its id; who tells another one is refused.
            node: own id, which peers are told.
            whose: the address of the node with this id, if it may dial from this host.
            limits: of each link.
            links_max: kept at a time, and taken at a time.
            calls_max: of peers that run at a time, over all links; more are refused as busy.
        """
        self._client = client
        self._server = server
        self._clock = clock
        self._random = random
        self._methods = methods
        self._hello = {MESH_HEADER: mesh, NODE_HEADER: node}
        self._whose = whose
        self._limits = limits
        self._links_max = links_max
        self._gate = CallGate(calls_max, max(1, calls_max // CALLS_HOST_SHARE))
        self._context = copy_context()
        """Of the node itself: a link outlives the call that it is dialled for."""
        self._peers: dict[Address, _Peer] = {}
        self._dialled: dict[Channel, None] = {}
        self._dialling: set[asyncio.Task[Channel | None]] = set()
        self._tokens: dict[str, Address] = {}
        self._by_host: Counter[str] = Counter()
        self._looks: dict[Channel, _Look] = {}
        self._sweeping: asyncio.Task[None] | None = None
        self.accepted = 0
        methods.add("dialled", DialledParams, self._answer_dialled)
        server.add_route("GET", LINK_PATH, self._accept, local=False)

    @property
    def open(self) -> tuple[Address, ...]:
        """The peers that a link leads to."""
        return tuple(address for address, peer in self._peers.items() if peer.is_linked)

    async def invoke(
        self,
        target: Address,
        method: str,
        params: dict[str, Any],
        *,
        timeout_s: Seconds,
        sink: Sink | None = None,
    ) -> Any:
        """Call `method` of the node at `target` and return its result.

        `sink` takes partial results and progress.

        Raises:
            MeshError: what the node answered.
            PeerError: it cannot be reached (definite), or was lost after sending (indefinite).
            DeadlineError: no answer within `timeout_s` (definite only if nothing was sent).
            UsageError: the parameters are not JSON values (definite).
        """
        peer = self._peers.get(target)
        if peer is not None and peer.is_linked:
            channel = peer.channel
        else:
            began = self._clock.now()
            channel = await self._reach(target, method, timeout_s)
            timeout_s -= self._clock.now() - began
        if channel is None:
            return await self._client.invoke(target, method, params, timeout_s=timeout_s, sink=sink)
        return await channel.call(method, params, timeout_s, sink=sink)

    def ready(self, target: Address) -> Channel | None:
        """The link to the node at `target`, if a call may go over it right now."""
        peer = self._peers.get(target)
        channel = peer.channel if peer is not None and peer.is_linked else None
        return channel if channel is not None and channel.has_room else None

    def on_member(self, target: Address, state: MemberState) -> None:
        """What gossip says of the node at `target` has changed."""
        if state is MemberState.ALIVE:
            self.forget(target)
        elif state is MemberState.DEAD:
            self.give_up(target)

    def forget(self, target: Address) -> None:
        """The node at `target` has changed: dial anew as if for the first time."""
        peer = self._peers.get(target)
        if peer is not None and not peer.is_linked and peer.dialling is None:
            self._peers[target] = _Peer(claim=peer.claim)

    def give_up(self, target: Address) -> None:
        """The node at `target` is dead: begin no call over a link to it, which may be dead as well.

        Calls under way are for whoever made them to give up, and so is a dial: a later call, to a
        node that is back, must not wait for one whose first packets were lost.
        """
        self._peers.pop(target, None)

    async def close(self) -> None:
        """Close all links, and end their calls. Idempotent."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        peers = list(self._peers.values())
        self._peers.clear()
        dialling = list(self._dialling)
        for task in dialling:
            task.cancel()
        await asyncio.gather(*dialling, return_exceptions=True)
        # All at once: each may wait for the other side's goodbye.
        channels = {peer.channel: None for peer in peers if peer.channel is not None}
        await asyncio.gather(*(channel.close() for channel in channels | self._dialled))

    async def _reach(self, target: Address, method: str, timeout_s: Seconds) -> Channel | None:
        """A link to `target`, dialled once for all who want it; None where it has none to give.

        Raises:
            PeerError: it cannot be reached, or could not a moment ago.
            DeadlineError: the dial takes longer than there is time.
        """
        peer, now = self._peer(target), self._clock.now()
        if now < peer.post_until:
            return None
        if peer.dialling is None:
            if now < peer.dial_after:
                raise PeerError(
                    f"{target} cannot be reached: {peer.why}",
                    hint=f"it is tried again in {peer.dial_after - now:.2g} s",
                )
            if not self._has_room():
                return None
            self._begin_dial(target, peer)
        dialling = peer.dialling
        assert dialling is not None
        done, _ = await asyncio.wait((dialling,), timeout=timeout_s)
        if not done:
            raise DeadlineError(f"{target} was not reached for {method!r} within {timeout_s:g} s")
        if dialling.cancelled():
            raise PeerError("this node is stopping", code=Code.CANCELLED)
        error = dialling.exception()
        if isinstance(error, PeerError):
            # One of its own for each who waits: a traceback belongs to one.
            raise PeerError(error.message, hint=error.hint, code=error.code) from error
        return dialling.result()

    def _begin_dial(self, target: Address, peer: _Peer) -> None:
        # In a context of its own: all that the other side ever calls over it runs in copies of it.
        peer.dialling = asyncio.create_task(
            self._dial(target, peer), name="meshd-dial", context=self._context.copy()
        )
        self._dialling.add(peer.dialling)
        peer.dialling.add_done_callback(self._dialled_or_not)

    def _dialled_or_not(self, dialling: asyncio.Task[Channel | None]) -> None:
        self._dialling.discard(dialling)
        if not dialling.cancelled():
            # Those who wait hear of a fault; where all have left, asyncio need not log it.
            dialling.exception()

    async def _dial(self, target: Address, peer: _Peer) -> Channel | None:
        token = secrets.token_hex(TOKEN_BYTES)
        self._tokens[token] = target
        channel: Channel | None = None
        try:
            channel = await self._claimed(target, peer)
            if channel is None:
                channel = await self._upgraded(target, token)
        except PeerError as error:
            peer.why = error.message
            pause_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2**peer.failures)
            peer.failures += 1
            peer.dial_after = Instant(self._clock.now() + self._random.uniform(0.0, pause_s))
            raise
        finally:
            peer.dialling = None
            if channel not in self._dialled:
                self._tokens.pop(token, None)
        peer.failures = 0
        if channel is None:
            peer.post_until = Instant(self._clock.now() + NO_LINKS_S)
        else:
            self._keep(peer, channel)
        return channel

    async def _upgraded(self, target: Address, token: str) -> Channel | None:
        """A link of our own to `target`, read already; None where it has none to give."""
        link = await self._client.upgrade(
            target, LINK_PATH, protocol=LINK_PROTOCOL,
            headers={**self._hello, LINK_HEADER: token}, limits=self._limits,
            timeout_s=DIAL_TIMEOUT_S,
        )  # fmt: skip
        if link is None:
            return None

        def closed(channel: Channel) -> None:
            self._dialled.pop(channel, None)
            self._tokens.pop(token, None)

        channel = self._channel(target.host, link)
        channel.start()
        self._dialled[channel] = None
        channel.on_closed(closed)
        self._watch(channel)
        return channel

    async def _claimed(self, target: Address, peer: _Peer) -> Channel | None:
        """The link that the node at `target` has dialled, if one is there and it says so itself.

        Whoever shares its host could claim its id; nobody else answers at its address.
        """
        claim = peer.claim
        if claim is None or not _is_usable(claim.channel):
            return None
        params = {"token": claim.token, "node": self._hello[NODE_HEADER]}
        try:
            answer = await self._client.invoke(target, "dialled", params, timeout_s=DIAL_TIMEOUT_S)
        except MeshError:
            return None
        peer.claim = None
        is_proven = isinstance(answer, dict) and answer.get("dialled") is True
        return claim.channel if is_proven and _is_usable(claim.channel) else None

    async def _answer_dialled(self, params: DialledParams, context: CallContext) -> dict[str, bool]:
        del context
        target = self._tokens.get(params.token)
        # Who was dialled knows the token as well, and must not show it to another node.
        is_so = target is not None and self._whose(params.node, target.host) == target
        return {"dialled": is_so}

    def _watch(self, channel: Channel) -> None:
        """Close the link some time after its last use."""

        def closed(channel: Channel) -> None:
            self._looks.pop(channel, None)
            sweeping = self._sweeping
            if not self._looks and sweeping is not None and sweeping is not asyncio.current_task():
                sweeping.cancel()

        self._looks[channel] = _Look(channel.turnover)
        channel.on_closed(closed)
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = asyncio.create_task(
                self._sweep(), name="meshd-links", context=self._context.copy()
            )

    async def _sweep(self) -> None:
        """Close links that rest, a look after both sides know that; end once there are none."""
        while self._looks:
            await asyncio.sleep(REST_S)
            for channel, before in list(self._looks.items()):
                is_used = channel.calls > 0 or channel.turnover != before.turnover
                if before.is_resting and not is_used:
                    await channel.close()
                    continue
                unused = 0 if is_used else before.unused + 1
                patience = LOOKS_DIALLED if channel in self._dialled else LOOKS_ACCEPTED
                if unused >= patience and not channel.is_resting:
                    channel.rest()
                if channel in self._looks:
                    self._looks[channel] = _Look(channel.turnover, unused, channel.is_resting)

    async def _accept(self, request: web.BaseRequest) -> web.StreamResponse:
        headers, host = request.headers, remote_host(request)
        refuse = self._server.refuse
        if headers.get(MESH_HEADER) != self._hello[MESH_HEADER]:
            hint = f"say which mesh in {MESH_HEADER}; give both the same --mesh, or join another"
            return refuse(403, Code.FORBIDDEN, "this node is of another mesh", hint)
        spoken = headers.get("Sec-WebSocket-Protocol", "")
        if LINK_PROTOCOL not in (each.strip() for each in spoken.split(",")):
            hint = f"offer {LINK_PROTOCOL}, or POST to /rpc"
            return refuse(400, Code.INVALID_REQUEST, "no such link is spoken here", hint)
        of_host_max = max(1, self._links_max // LINKS_HOST_SHARE)
        if self.accepted >= self._links_max or self._by_host[host] >= of_host_max:
            return refuse(503, Code.BUSY, "too many links lead here", "POST to /rpc")

        async def opened(channel: Channel) -> None:
            self._watch(channel)
            address = self._whose(headers.get(NODE_HEADER, ""), host)
            token = headers.get(LINK_HEADER, "")
            if address is not None and token:
                self._peer(address).claim = _Claim(channel, token)

        self.accepted += 1
        self._by_host[host] += 1
        try:
            return await self._server.upgrade(
                request, partial(self._channel, host), limits=self._limits, on_open=opened,
                protocols=(LINK_PROTOCOL,),
            )  # fmt: skip
        finally:
            self.accepted -= 1
            self._by_host[host] -= 1
            if not self._by_host[host]:
                del self._by_host[host]

    def _channel(self, host: str, socket: Socket) -> Channel:
        return Channel(
            socket, methods=self._methods, context=CallContext(remote=host, local=False),
            limits=self._limits, gate=self._gate,
        )  # fmt: skip

    def _peer(self, target: Address) -> _Peer:
        """What is known of an address; of one that nothing leads to, the oldest is forgotten."""
        peer = self._peers.get(target)
        if peer is None:
            if len(self._peers) >= PEERS_MAX:
                idle = (a for a, p in self._peers.items() if not p.is_linked and not p.dialling)
                self._peers.pop(next(idle, target), None)
            peer = self._peers[target] = _Peer()
        return peer

    def _keep(self, peer: _Peer, channel: Channel) -> None:
        def closed(_: Channel) -> None:
            if peer.channel is channel:
                peer.channel = None

        peer.channel = channel
        channel.on_closed(closed)

    def _has_room(self) -> bool:
        """Whether one more link may be dialled. If not, the least used is made to rest for it.

        Closed at once, it would lose a call that the other side begins. One at a time goes, so
        that more peers than there may be links do not take them from each other all the time.
        """
        if len(self._dialled) + len(self._dialling) < self._links_max:
            return True
        if not any(channel.is_resting for channel in self._dialled):
            idle = [channel for channel in self._dialled if not channel.calls]
            if idle:
                min(idle, key=self._use_of).rest()
        return False

    def _use_of(self, channel: Channel) -> tuple[int, int]:
        """What orders links by their use: how lately, then how much."""
        look = self._looks.get(channel, _Look(0))
        return -look.unused, channel.turnover - look.turnover


def _is_usable(channel: Channel) -> bool:
    return not channel.closed and not channel.is_resting
