"""One kept link per peer: calls of both sides, many at a time, over a WebSocket on the call port.

Who calls a peer first dials; the other side uses that link too, where it knows who dialled. A peer
without links is called by single requests. Version and mesh are settled by the upgrade itself:
subprotocol `meshd.link.1`, header `Meshd-Mesh` (RFC 6455, section 1.9).
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

from aiohttp import web

from meshd.clock import Clock, Instant, Seconds
from meshd.errors import Code, DeadlineError, PeerError
from meshd.model import Address
from meshd.rpc.channel import Channel, ChannelLimits
from meshd.rpc.client import RpcClient
from meshd.rpc.frames import Socket
from meshd.rpc.limits import CallGate
from meshd.rpc.methods import CallContext, Registry
from meshd.rpc.server import RpcServer, remote_host
from meshd.sink import Sink, is_optional

LINK_PATH = "/link"
LINK_PROTOCOL = "meshd.link.1"
MESH_HEADER = "Meshd-Mesh"
NODE_HEADER = "Meshd-Node"
LINKS_MAX = 256
"""Kept links; past it one that rests gives way, and while all work, further peers are POSTed to."""
PEERS_MAX = 4_096
"""Addresses of which something is remembered: failed dials, no links there."""
CALLS_MAX = 16_384
"""Under way on one link in one direction, and of peers here over all links."""
HEARTBEAT_S: Seconds = 10.0
DIAL_TIMEOUT_S: Seconds = 120.0
"""For the upgrade; a peer whose main loop is blocked is no dead one. TCP itself has 3 s."""
BACKOFF_FIRST_S: Seconds = 0.05
BACKOFF_MAX_S: Seconds = 5.0
REST_S: Seconds = 15.0
"""How often the node looks for links that nobody used since the last look, and closes those."""
NO_LINKS_S: Seconds = 60.0
"""So long a peer that answered the upgrade with an HTTP error is called by POST."""
LINK_LIMITS = ChannelLimits(outgoing_max=CALLS_MAX, incoming_max=CALLS_MAX, heartbeat_s=HEARTBEAT_S)
_LONG_AGO = Instant(0.0)
Whose = Callable[[str, str], Address | None]


@dataclass(slots=True)
class _Peer:
    """What is known of one address."""

    channel: Channel | None = None
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
        self._gate = CallGate(calls_max, calls_max)
        self._peers: dict[Address, _Peer] = {}
        self._dialled: dict[Channel, None] = {}
        self._sweeping: asyncio.Task[None] | None = None
        self.accepted = 0
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

        `sink` takes partial results and progress; only a link brings them. A sink that
        `is_optional` goes without where there is none.

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
            if sink is not None and not is_optional(sink):
                raise PeerError(f"{target} has no link to stream over", code=Code.REJECTED)
            return await self._client.invoke(target, method, params, timeout_s=timeout_s)
        return await channel.call(method, params, timeout_s, sink=sink)

    def adopt(self, target: Address, channel: Channel) -> None:
        """Call the peer at `target` over this link, which it dialled; a link that works stays."""
        peer = self._peer(target)
        if not peer.is_linked:
            self._keep(peer, channel)

    def forget(self, target: Address) -> None:
        """The node at `target` has changed: dial anew as if for the first time."""
        peer = self._peers.get(target)
        if peer is not None and not peer.is_linked and peer.dialling is None:
            del self._peers[target]

    async def close(self) -> None:
        """Close all links, and end their calls. Idempotent."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        peers = list(self._peers.values())
        self._peers.clear()
        dialling = [peer.dialling for peer in peers if peer.dialling is not None]
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
        if now < peer.post_until or not await self._make_room():
            return None
        if peer.dialling is None:
            if now < peer.dial_after:
                raise PeerError(
                    f"{target} cannot be reached: {peer.why}",
                    hint=f"it is tried again in {peer.dial_after - now:.2g} s",
                )
            peer.dialling = asyncio.create_task(self._dial(target, peer), name="meshd-dial")
        dialling = peer.dialling
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

    async def _dial(self, target: Address, peer: _Peer) -> Channel | None:
        try:
            link = await self._client.upgrade(
                target, LINK_PATH, protocol=LINK_PROTOCOL, headers=self._hello,
                limits=self._limits, timeout_s=DIAL_TIMEOUT_S,
            )  # fmt: skip
        except PeerError as error:
            peer.why = error.message
            pause_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2**peer.failures)
            peer.failures += 1
            peer.dial_after = Instant(self._clock.now() + self._random.uniform(0.0, pause_s))
            raise
        finally:
            peer.dialling = None
        peer.failures = 0
        if link is None:
            peer.post_until = Instant(self._clock.now() + NO_LINKS_S)
            return None
        channel = self._channel(target.host, link)
        channel.start()
        self._dialled[channel] = None
        channel.on_closed(lambda closed: self._dialled.pop(closed, None))
        self._keep(peer, channel)
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = asyncio.create_task(self._sweep(), name="meshd-links")
        return channel

    async def _sweep(self) -> None:
        """Close links that rest, a look after both sides know that; end once there are none."""
        seen: dict[Channel, int] = {}
        while self._dialled:
            for channel in list(self._dialled):
                if channel.calls or seen.get(channel) != channel.turnover:
                    continue
                if channel.is_resting:
                    await channel.close()
                else:
                    await channel.rest()
            seen = {channel: channel.turnover for channel in self._dialled}
            if seen:
                await asyncio.sleep(REST_S)

    async def _accept(self, request: web.BaseRequest) -> web.StreamResponse:
        headers, host = request.headers, remote_host(request)
        refuse = self._server.refuse
        mesh = headers.get(MESH_HEADER)
        if mesh is not None and mesh != self._hello[MESH_HEADER]:
            hint = "give both the same --mesh, or join another node"
            return refuse(403, Code.FORBIDDEN, "this node is of another mesh", hint)
        spoken = headers.get("Sec-WebSocket-Protocol", "")
        if LINK_PROTOCOL not in (each.strip() for each in spoken.split(",")):
            hint = f"offer {LINK_PROTOCOL}, or POST to /rpc"
            return refuse(400, Code.INVALID_REQUEST, "no such link is spoken here", hint)
        if self.accepted >= self._links_max:
            return refuse(503, Code.BUSY, "too many links lead here", "POST to /rpc")

        async def adopt(channel: Channel) -> None:
            address = self._whose(headers.get(NODE_HEADER, ""), host)
            if address is not None:
                self.adopt(address, channel)

        self.accepted += 1
        try:
            return await self._server.upgrade(
                request, partial(self._channel, host), limits=self._limits, on_open=adopt,
                protocols=(LINK_PROTOCOL,),
            )  # fmt: skip
        finally:
            self.accepted -= 1

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

    async def _make_room(self) -> bool:
        """Whether one more link may be had; one that rests is closed for it if need be."""
        if len(self._dialled) < self._links_max:
            return True
        resting = next((channel for channel in self._dialled if not channel.calls), None)
        if resting is None:
            return False
        await resting.close()
        return True
