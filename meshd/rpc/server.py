"""The HTTP face of a node: `POST /rpc`, health, metrics, and attached programs."""

import asyncio
import contextlib
import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import WSCloseCode, web
from aiohttp.http_exceptions import HttpProcessingError
from msgspec import json

from meshd.clock import Seconds
from meshd.errors import BusyError, Code, MeshError
from meshd.model import Address
from meshd.rpc.channel import Channel, ChannelLimits
from meshd.rpc.dispatch import answer, too_large
from meshd.rpc.frames import Socket
from meshd.rpc.gate import Door
from meshd.rpc.guard import browser_refusal
from meshd.rpc.jsonrpc import encode_batch, encode_error, parse_body
from meshd.rpc.limits import TIMEOUT_HEADER, CallGate, ServerLimits
from meshd.rpc.messages import Body, Refused, Request
from meshd.rpc.methods import CallContext, Registry
from meshd.rpc.sockets import Upgrade, accept, watch
from meshd.rpc.sse import answer_in_events, wants_events
from meshd.rpc.unix import BoundSocket, bind_control_socket
from meshd.sink import Sink

RETRY_AFTER_S = 1
BACKLOG = 512
_TCP_USER_TIMEOUT_S = 30
_ACCEPTS_PER_TURN = 16
_CLOSING_TURNS = 4
"""Of the loop, from an accepted connection over its refusal to the end of its transport."""

Probe = Callable[[], tuple[bool, dict[str, Any]]]
Route = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Probes:
    """What the plain GET addresses tell: (is it well, facts), and Prometheus text."""

    health: Probe = lambda: (True, {})
    ready: Probe = lambda: (True, {})
    metrics: Callable[[], str] = lambda: ""


class _HttpLog(logging.LoggerAdapter[logging.Logger]):
    """Counts what is no HTTP instead of logging each: a log must not be flooded from outside."""

    def __init__(self, logger: logging.Logger, counters: Counter[str]) -> None:
        super().__init__(logger)
        self._counters = counters

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log unless it is about a peer's broken HTTP."""
        if isinstance(kwargs.get("exc_info"), HttpProcessingError):
            self._counters["bad_http"] += 1
        else:
            super().log(level, msg, *args, **kwargs)


async def _ignore(channel: Channel) -> None:
    """Attach nobody in particular."""
    del channel


class RpcServer:
    """Serves one registry on a TCP port, and on a control socket with the control methods too.

    `on_attach(channel)` is awaited for each attached program before its first message is read: it
    adds methods to `channel.methods` and callbacks, and must not itself wait for a call.
    `host_names` are further names, in lower case, under which browsers may call this node.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        probes: Probes | None = None,
        limits: ServerLimits | None = None,
        channel_limits: ChannelLimits | None = None,
        on_attach: Callable[[Channel], Awaitable[None]] = _ignore,
        host_names: frozenset[str] = frozenset(),
    ) -> None:
        self.limits = limits or ServerLimits()
        self.counters: Counter[str] = Counter()
        self._registry = registry
        self._probes = probes or Probes()
        self._channel_limits = channel_limits or ChannelLimits()
        self._on_attach = on_attach
        self._host_names = host_names
        self._gates = {
            local: CallGate(self.limits.calls_max, self.limits.calls_per_remote_max)
            for local in (False, True)
        }
        self._routes: dict[tuple[str, bool], Mapping[str, Route]] = {}
        self._channels: dict[Channel, bool] = {}
        self._upgraded: set[web.RequestHandler] = set()
        self._faces: list[tuple[asyncio.Server, Door]] = []
        self._control: BoundSocket | None = None
        for local in (False, True):
            self._routes["/rpc", local] = {"POST": partial(self._serve_rpc, local=local)}
            for path, page in (
                ("/healthz", partial(_page, self._probes.health)),
                ("/readyz", partial(_page, self._probes.ready)),
                ("/metrics", partial(_metrics, self._probes)),
            ):
                self._routes[path, local] = {"GET": page, "HEAD": page}
        self._routes["/attach", True] = {"GET": self._serve_attach}

    @property
    def channels(self) -> tuple[Channel, ...]:
        """The links of attached programs, oldest first."""
        return tuple(channel for channel, local in self._channels.items() if local)

    def add_route(self, method: str, path: str, route: Route, *, local: bool) -> None:
        """Serve a further address, on the control socket (`local`) or on the TCP port."""
        self._routes[path, local] = {**self._routes.get((path, local), {}), method: route}

    async def start_tcp(self, bind: socket.socket | Address) -> Address:
        """Listen on a TCP socket that is bound already, or on an address; returns where.

        Raises:
            OSError: the address cannot be bound; nothing was started.
        """
        listener = bind if isinstance(bind, socket.socket) else _bind_tcp(bind)
        with contextlib.suppress(AttributeError, OSError):
            # Cuts who stops reading his answers (Linux; inherited by accepted sockets).
            listener.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _TCP_USER_TIMEOUT_S * 1_000
            )
        door = self._make_door(local=False)
        loop = asyncio.get_running_loop()
        # asyncio accepts as many in a turn as this backlog, before any door can turn one away.
        server = await loop.create_server(door, sock=listener, backlog=_ACCEPTS_PER_TURN)
        listener.listen(BACKLOG)
        self._faces.append((server, door))
        host, port = listener.getsockname()[:2]
        return Address(host, port)

    def reserve_control(self, path: str | Path) -> None:
        """Take the control socket `path`; who connects waits until `start_control` serves it.

        Raises:
            UsageError: it may not be made there, or a daemon already answers there.
        """
        self._control = bind_control_socket(Path(path))

    async def start_control(self, path: str | Path) -> None:
        """Serve the control socket `path`, reserved before or not.

        Raises:
            UsageError: it may not be made there, or a daemon already answers there.
        """
        if self._control is None:
            self.reserve_control(path)
        assert self._control is not None
        listener = self._control.socket
        door = self._make_door(local=True)
        server = await asyncio.get_running_loop().create_unix_server(door, sock=listener)
        self._faces.append((server, door))

    async def stop(self, grace_s: Seconds = 5.0) -> None:
        """Accept nobody more, give running calls `grace_s` to end, then close all. Idempotent."""
        await self._stop_accepting()
        links = [channel for channel, local in self._channels.items() if not local]
        await asyncio.gather(*(channel.drain(grace_s) for channel in links))
        await asyncio.gather(*(channel.close() for channel in self._channels))
        for _server, door in self._faces:
            await door.web_server.shutdown(grace_s)
        self._faces.clear()
        if self._control is not None:
            self._control.remove_file()
            self._control.socket.close()
            self._control = None
        await _let_transports_end()

    async def _stop_accepting(self) -> None:
        loop = asyncio.get_running_loop()
        for server, door in self._faces:
            door.is_open = False
            for listener in server.sockets:
                loop.remove_reader(listener.fileno())
        # asyncio loses a socket that it accepted in the turn before its server closes.
        await _let_transports_end()
        for server, door in self._faces:
            server.close()
            # aiohttp reads nothing more of what it shuts down: links have calls to end first.
            for connection in door.web_server.connections:
                if connection not in self._upgraded:
                    connection.close()

    def _make_door(self, *, local: bool) -> Door:
        web_server = web.Server(
            partial(self._serve, local=local),
            handler_cancellation=True,
            keepalive_timeout=self.limits.idle_timeout_s,
            lingering_time=self.limits.linger_s,
            auto_decompress=False,
            access_log=None,
            logger=_HttpLog(logging.getLogger("meshd.rpc.http"), self.counters),
        )
        return Door(web_server, self.limits, self.counters)

    async def _serve(self, request: web.BaseRequest, *, local: bool) -> web.StreamResponse:
        """Answer one HTTP request, on whichever socket it came."""
        headers = request.headers
        refusal = browser_refusal(
            headers.get("Host"),
            headers.get("Origin"),
            names=self._host_names,
            check_host=not local,
        )
        if refusal:
            hint = "call from a program, or over the node's address"
            return self.refuse(403, Code.FORBIDDEN, refusal, hint)
        routes = self._routes.get((request.path, local))
        if routes is None:
            return self.refuse(
                404, Code.INVALID_REQUEST, "there is nothing at this address", "POST to /rpc"
            )
        route = routes.get(request.method)
        if route is None:
            return self._refuse_method(", ".join(sorted(routes)))
        response = await route(request)
        if isinstance(response, web.Response):
            await self._write(request, response)
        return response

    async def _write(self, request: web.BaseRequest, response: web.Response) -> None:
        """Send the answer, or cut the connection of a client that does not take it."""
        if response.prepared:
            return
        try:
            async with asyncio.timeout(self.limits.write_timeout_s):
                await response.prepare(request)
                await response.write_eof()
        except ConnectionError:
            self.counters["caller_gone"] += 1
        except TimeoutError:
            self.counters["slow_reader"] += 1
            if request.transport is not None:
                request.transport.abort()

    async def _serve_rpc(self, request: web.BaseRequest, *, local: bool) -> web.StreamResponse:
        headers = request.headers
        content_type = headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if content_type != "application/json" or headers.get("Content-Encoding", "") not in _PLAIN:
            return self.refuse(
                415,
                Code.INVALID_REQUEST,
                "the body must be plain JSON",
                "send Content-Type: application/json and no Content-Encoding",
            )
        data = await self._read(request)
        if isinstance(data, web.Response):
            return data
        limits = self.limits
        body = parse_body(data, batch_max=limits.batch_max, depth_max=limits.depth_max)
        context = CallContext(
            remote="control" if local else remote_host(request),
            local=local,
            deadline_s=_deadline(headers.get(TIMEOUT_HEADER), limits.call_timeout_s),
        )
        if body.is_batch:
            return await self._answer_batch(body, context, len(data))
        entry = body.entries[0]
        if wants_events(request) and isinstance(entry, Request) and not entry.is_notification:
            return await self._answer_in_events(request, entry, context, len(data))
        return await self._answer_one(body.entries[0], context, len(data))

    async def _read(self, request: web.BaseRequest) -> bytes | web.Response:
        """The whole body, or the refusal of one that is too large or too slow."""
        limit = self.limits.body_bytes_max
        if (request.content_length or 0) > limit:
            return self._refuse_large()
        if _waits_for_continue(request):
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        data = bytearray()
        content = request.content
        try:
            async with asyncio.timeout(self.limits.read_timeout_s):
                while chunk := await content.readany():
                    data += chunk
                    if len(data) > limit:
                        return self._refuse_large()
        except TimeoutError:
            return self.refuse(
                408,
                Code.DEADLINE,
                f"the body did not arrive within {self.limits.read_timeout_s:g} s",
                "send it in one go",
            )
        except web.RequestPayloadError:
            return self.refuse(400, Code.PARSE, "the body is broken", "send valid HTTP")
        return bytes(data)

    async def _answer_one(
        self, entry: Request | Refused, context: CallContext, size: int
    ) -> web.Response:
        encoded, busy = await self._run(entry, context, size)
        if encoded is None:
            return _nothing()
        response = _json(encoded)
        if busy is not None:
            response.set_status(429 if busy.data.get("bound") == "remote" else 503)
            response.headers["Retry-After"] = str(RETRY_AFTER_S)
        return response

    async def _answer_in_events(
        self, http: web.BaseRequest, entry: Request, context: CallContext, size: int
    ) -> web.StreamResponse:
        async def run(sink: Sink) -> bytes:
            encoded, _busy = await self._run(entry, replace(context, sink=sink), size)
            assert encoded is not None, "only notifications have no answer"
            return encoded

        return await answer_in_events(
            http, entry.id, run, write_timeout_s=self.limits.write_timeout_s
        )

    async def _answer_batch(self, body: Body, context: CallContext, size: int) -> web.Response:
        each = size // len(body.entries)
        ends = await asyncio.gather(*(self._run(entry, context, each) for entry in body.entries))
        limit = self.limits.response_bytes_max
        answers: list[bytes] = []
        total = 0
        for entry, (encoded, _busy) in zip(body.entries, ends, strict=True):
            if encoded is None:
                continue
            total += len(encoded)
            fits = total <= limit
            answers.append(encoded if fits else encode_error(entry.id, too_large(total, limit)))
        return _json(encode_batch(answers)) if answers else _nothing()

    async def _run(
        self, entry: Request | Refused, context: CallContext, size: int
    ) -> tuple[bytes | None, BusyError | None]:
        """Run one element of `size` bytes; the answer's bytes are None for a notification."""
        if isinstance(entry, Refused):
            self.counters["refused_requests"] += 1
            return encode_error(entry.id, entry.error), None
        gate = self._gates[context.local]
        busy = gate.enter(context.remote, size)
        if busy is not None:
            self.counters["busy"] += 1
            return None if entry.is_notification else encode_error(entry.id, busy), busy
        self.counters["calls"] += 1
        try:
            encoded = await answer(
                entry, self._registry, context, bytes_max=self.limits.response_bytes_max
            )
        finally:
            gate.leave(context.remote, size)
        return None if entry.is_notification else encoded, None

    async def _serve_attach(self, request: web.BaseRequest) -> web.StreamResponse:
        if len(self.channels) >= self.limits.channels_max:
            return self.refuse(
                503, Code.BUSY, "too many programs are attached already", "detach one"
            )
        methods = Registry(parent=self._registry)
        limits = self._channel_limits
        return await self.upgrade(
            request, lambda socket: Channel(socket, methods=methods, limits=limits),
            limits=limits, on_open=self._on_attach, local=True,
        )  # fmt: skip

    async def upgrade(
        self,
        request: web.BaseRequest,
        make: Callable[[Socket], Channel],
        *,
        limits: ChannelLimits,
        on_open: Callable[[Channel], Awaitable[None]],
        protocols: tuple[str, ...] = (),
        local: bool = False,
    ) -> web.StreamResponse:
        """Turn a request into a channel and serve that until it closes.

        `on_open(channel)` is awaited before the first message is read.
        """
        accepted = accept(request, protocols)
        if accepted is None:
            return self.refuse(
                400, Code.INVALID_REQUEST, "this address speaks WebSocket", "send an upgrade"
            )
        response, connection = Upgrade(accepted), request.protocol
        try:
            await response.prepare(request)
            link = response.take_over(request, limits)
        except ConnectionError:
            self.counters["caller_gone"] += 1
            return response
        if not local:
            watch(link.get_extra_info("socket"))
        channel = make(link)
        self._channels[channel] = local
        self._upgraded.add(connection)
        try:
            await on_open(channel)
            await channel.run()
        finally:
            del self._channels[channel]
            self._upgraded.discard(connection)
            await link.close(WSCloseCode.GOING_AWAY)
        return response

    def _refuse_large(self) -> web.Response:
        limit = self.limits.body_bytes_max
        return self.refuse(
            413, Code.INVALID_REQUEST, f"the body is larger than {limit} bytes", "send less"
        )

    def _refuse_method(self, allowed: str) -> web.Response:
        response = self.refuse(
            405, Code.INVALID_REQUEST, "this method is not allowed here", f"use {allowed}"
        )
        response.headers["Allow"] = allowed
        return response

    def refuse(self, status: int, code: Code, message: str, hint: str) -> web.Response:
        """An HTTP error that is a JSON-RPC error too; the connection ends with it."""
        self.counters[f"http_{status}"] += 1
        error = MeshError(message, hint=hint, code=code)
        response = _json(encode_error(None, error))
        response.set_status(status)
        response.force_close()
        return response


async def _let_transports_end() -> None:
    for _ in range(_CLOSING_TURNS):
        await asyncio.sleep(0)


_PLAIN = frozenset({"", "identity"})
_NAME = {"Server": "meshd"}
_JSON_HEADERS = {**_NAME, "Content-Type": "application/json"}


def _bind_tcp(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        listener.bind((address.host, address.port))
    except OSError:
        listener.close()
        raise
    return listener


def remote_host(request: web.BaseRequest) -> str:
    """The caller's address; an IPv4 caller of an IPv6 socket is known by its IPv4 address."""
    return (request.remote or "unknown").removeprefix("::ffff:")


def _waits_for_continue(request: web.BaseRequest) -> bool:
    return request.headers.get("Expect", "").lower() == "100-continue"


def _deadline(header: str | None, longest_s: Seconds) -> Seconds:
    """Seconds that the caller waits; no more than the server grants."""
    if header is None or not (header.isascii() and header.isdigit()):
        return longest_s
    return min(longest_s, int(header[:12]) / 1_000)


def _json(data: bytes) -> web.Response:
    return web.Response(body=data, headers=_JSON_HEADERS)


def _nothing() -> web.Response:
    return web.Response(status=204, headers=_NAME)


async def _page(probe: Probe, request: web.BaseRequest) -> web.Response:
    del request
    well, facts = probe()
    response = _json(json.encode(facts))
    response.set_status(200 if well else 503)
    return response


async def _metrics(probes: Probes, request: web.BaseRequest) -> web.Response:
    del request
    return web.Response(
        body=probes.metrics().encode(),
        headers={**_NAME, "Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
    )
