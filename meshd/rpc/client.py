"""Calls to other nodes over kept HTTP connections, and the link to a local daemon."""

import asyncio
import itertools
import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast

import aiohttp
from aiohttp.abc import AbstractResolver, AbstractStreamWriter, ResolveResult
from aiohttp.payload import Payload
from yarl import URL

from meshd.clock import Seconds
from meshd.errors import (
    BusyError,
    Code,
    DeadlineError,
    DecodeError,
    MeshError,
    NoDaemonError,
    PeerError,
    UsageError,
)
from meshd.model import Address
from meshd.rpc.channel import Channel, ChannelLimits
from meshd.rpc.frames import Socket
from meshd.rpc.jsonrpc import encode_request, parse_response
from meshd.rpc.limits import TIMEOUT_HEADER
from meshd.rpc.messages import Response
from meshd.rpc.methods import CallContext, Registry
from meshd.rpc.sockets import Dialled, watch
from meshd.rpc.sse_reader import CONTENT_TYPE as EVENTS_TYPE
from meshd.rpc.sse_reader import answer_of
from meshd.sink import Sink

RESPONSE_BYTES_MAX = 8 * 1_048_576
CONNECTIONS_MAX = 512
CONNECTIONS_PER_PEER_MAX = 64
KEPT_S = 10.0
"""Below the server's idle timeout, so that a kept connection is ours to drop, not its."""
CONNECT_TIMEOUT_S = 3.0
_FORBIDDEN = 403
_HEADERS = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
_HOPELESS_STATUS = frozenset({400, 401, 403, 404, 405, 408, 411, 413, 414, 415, 421, 431})
"""Answers of an HTTP server that surely ran nothing."""


class RpcClient:
    """One session for all peers: no connection is made for a call if one is kept.

    It dials the given address and nothing else: no names, no redirects, no proxies. Without `keep`
    each connection ends with its call.
    """

    def __init__(
        self,
        *,
        response_bytes_max: int = RESPONSE_BYTES_MAX,
        connections_max: int = CONNECTIONS_MAX,
        connections_per_peer_max: int = CONNECTIONS_PER_PEER_MAX,
        connect_timeout_s: Seconds = CONNECT_TIMEOUT_S,
        keep: bool = True,
        socket_factory: aiohttp.SocketFactoryType | None = None,
    ) -> None:
        self._response_bytes_max = response_bytes_max
        self._connections_max = connections_max
        self._connections_per_peer_max = connections_per_peer_max
        self._keep = keep
        self._socket_factory = socket_factory
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s)
        self._ids = itertools.count(1)
        self._session: aiohttp.ClientSession | None = None
        self._links_session: aiohttp.ClientSession | None = None

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

        `sink`, if any, has taken all partial results and progress before this returns. A server
        that gives none gives all in the result.

        Raises:
            MeshError: what the node answered.
            PeerError: it cannot be reached (definite), or was lost after sending (indefinite).
            DeadlineError: no answer within `timeout_s` (definite only if nothing was sent).
            UsageError: the parameters are not JSON values (definite).
        """
        request_id = next(self._ids)
        data = encode_request(request_id, method, params)
        body = _Body(data)
        try:
            async with asyncio.timeout(timeout_s):
                try:
                    status, answer = await self._post(target, body, timeout_s, sink)
                except _NEVER_RAN:
                    raise
                except aiohttp.ClientError:
                    if body.started:
                        raise
                    # A kept connection had ended before anything was written to it.
                    body = _Body(data)
                    status, answer = await self._post(target, body, timeout_s, sink)
        except _NEVER_RAN as error:
            raise _unreachable(target, error, sent=False) from None
        except TimeoutError:
            raise DeadlineError(
                f"{target} did not answer {method!r} within {timeout_s:g} s",
                definite=not body.started,
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise _unreachable(target, error, sent=body.started) from None
        return _unpack(target, request_id, status, answer)

    async def upgrade(
        self,
        target: Address,
        path: str,
        *,
        protocol: str,
        headers: Mapping[str, str],
        limits: ChannelLimits,
        timeout_s: Seconds = 3.0,
    ) -> Socket | None:
        """A WebSocket to `target` that speaks `protocol`; None where it has none to give.

        Raises:
            PeerError: it cannot be reached in time, or forbids this (definite).
        """
        try:
            async with asyncio.timeout(timeout_s):
                link = await self._open_links_session().ws_connect(
                    _url(target, path), protocols=(protocol,), headers=headers,
                )  # fmt: skip
        except aiohttp.WSServerHandshakeError as error:
            if error.status == _FORBIDDEN:
                raise PeerError(
                    f"{target} takes no link from this node",
                    hint="is it a node of the same mesh?",
                    code=Code.FORBIDDEN,
                ) from None
            return None
        except TimeoutError:
            raise PeerError(f"{target} cannot be reached: no answer in {timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _unreachable(target, error, sent=False) from None
        watch(link.get_extra_info("socket"))
        socket = cast("Dialled", link).take_over(limits)
        if link.protocol != protocol:
            await socket.close()
            return None
        return socket

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        sessions = [each for each in (self._session, self._links_session) if each is not None]
        self._session = self._links_session = None
        # Together: each waits for its connections to end.
        await asyncio.gather(*(session.close() for session in sessions))

    async def _post(
        self, target: Address, body: "_Body", timeout_s: Seconds, sink: Sink | None
    ) -> tuple[int, bytes | Response | None]:
        """Send one request; the body is None if it is larger than allowed."""
        headers = {**_HEADERS, TIMEOUT_HEADER: str(max(1, int(timeout_s * 1_000)))}
        if sink is not None:
            headers["Accept"] = EVENTS_TYPE
        async with self._open_session().post(
            _url(target), data=body, headers=headers, allow_redirects=False
        ) as response:
            if sink is not None and response.content_type == EVENTS_TYPE:
                read = answer_of(response.content, sink, bytes_max=self._response_bytes_max)
                return response.status, await read
            answer = await _read(response.content, self._response_bytes_max)
            if answer is None:
                response.close()
            return response.status, answer

    def _open_session(self) -> aiohttp.ClientSession:
        """The session; made on first use, because it belongs to the loop that runs then."""
        if self._session is None:
            self._session = self._make_session(self._connections_max)
        return self._session

    def _open_links_session(self) -> aiohttp.ClientSession:
        """That of links: as many as are asked for, and where the dialled address points only."""
        if self._links_session is None:
            guard = aiohttp.TraceConfig()
            guard.on_request_redirect.append(_refuse_redirect)
            self._links_session = self._make_session(0, guard)
        return self._links_session

    def _make_session(
        self, connections_max: int, *traces: aiohttp.TraceConfig
    ) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=connections_max,
                limit_per_host=self._connections_per_peer_max,
                keepalive_timeout=KEPT_S if self._keep else None,
                force_close=not self._keep,
                resolver=_NoNames(),
                use_dns_cache=False,
                socket_factory=self._socket_factory,
            ),
            timeout=self._timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            trace_configs=list(traces),
            ws_response_class=Dialled,
        )


async def _refuse_redirect(session: Any, context: Any, params: Any) -> None:
    """An upgrade is no download: a peer must not send this node to other addresses."""
    del session, context, params
    raise aiohttp.ClientConnectionError("it redirects")


async def connect_channel(
    path: str,
    *,
    methods: Registry | None = None,
    limits: ChannelLimits | None = None,
    timeout_s: Seconds = 5.0,
) -> Channel:
    """Attach to the daemon behind the control socket `path`; the channel is started.

    `methods` are what the daemon may call here. `await channel.close()` ends the link.

    Raises:
        NoDaemonError: nothing answers there.
        UsageError: permission denied.
        PeerError: what answers does not take attached programs now.
    """
    limits = limits or ChannelLimits()
    session = aiohttp.ClientSession(
        connector=aiohttp.UnixConnector(path),
        cookie_jar=aiohttp.DummyCookieJar(),
        ws_response_class=Dialled,
    )
    try:
        async with asyncio.timeout(timeout_s):
            link = await session.ws_connect("http://localhost/attach")
    except BaseException as error:
        await session.close()
        raise _attach_error(path, error) from error
    channel = Channel(
        cast("Dialled", link).take_over(limits, session.close),
        methods=methods,
        context=CallContext("daemon"),
        limits=limits,
    )
    channel.start()
    return channel


_NEVER_RAN = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)


class _Body(Payload):
    """A request body that knows whether any of the request may have left."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data, content_type="application/json")
        self._size = len(data)
        self.started = False

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write it all."""
        await self.write_with_length(writer, None)

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        """Write headers and body; `started` is set only if the connection still stands."""
        transport = getattr(writer, "transport", None)
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the kept connection had ended")
        self.started = True
        await writer.write(self._value[:content_length])

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The body as text."""
        return bytes(self._value).decode(encoding, errors)


class _NoNames(AbstractResolver):
    """Refuses to resolve: a peer's address is an IP address, and no name may rebind it."""

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        """Refuse."""
        del port, family
        raise OSError(f"{host[:80]!r} is not an IP address")

    async def close(self) -> None:
        """Nothing is held."""


@lru_cache(maxsize=4_096)
def _url(target: Address, path: str = "/rpc") -> URL:
    return URL.build(scheme="http", host=target.host, port=target.port, path=path)


async def _read(content: aiohttp.StreamReader, bytes_max: int) -> bytes | None:
    chunk = await content.readany()
    if content.at_eof() and len(chunk) <= bytes_max:
        return chunk
    data = bytearray()
    while chunk:
        data += chunk
        if len(data) > bytes_max:
            return None
        chunk = await content.readany()
    return bytes(data)


def _unpack(target: Address, request_id: int, status: int, answer: bytes | Response | None) -> Any:
    """The result in an HTTP answer.

    Raises:
        MeshError: the error in it, or what is wrong with it.
    """
    if answer is None:
        raise PeerError(f"the answer of {target} is larger than allowed", definite=False)
    try:
        response = parse_response(answer) if isinstance(answer, bytes) else answer
    except DecodeError:
        raise _not_rpc(target, status) from None
    if response.error is not None:
        raise response.error
    if response.id != request_id:
        raise PeerError(f"{target} answered another request", definite=False)
    return response.result


def _not_rpc(target: Address, status: int) -> MeshError:
    if status == 429:
        return BusyError(f"{target} takes no more calls for now")
    return PeerError(
        f"{target} did not answer in JSON-RPC (HTTP {status})",
        hint="is it a meshd node?",
        definite=status in _HOPELESS_STATUS or 300 <= status < 400,
    )


def _unreachable(target: Address, error: Exception, *, sent: bool) -> PeerError:
    if sent:
        return PeerError(f"the link to {target} got lost before its answer came", definite=False)
    cause = getattr(error, "os_error", error)
    number = cause.errno if isinstance(cause, OSError) else None
    reason = os.strerror(number) if number else str(error) or type(error).__name__
    return PeerError(f"{target} cannot be reached: {reason}", hint="is meshd running there?")


def _attach_error(path: str, error: BaseException) -> BaseException:
    cause = getattr(error, "os_error", error)
    if isinstance(cause, PermissionError):
        return UsageError(
            f"permission denied on {path}",
            hint="run as the user who started the daemon, or use another socket",
            code=Code.FORBIDDEN,
        )
    if isinstance(cause, FileNotFoundError | ConnectionRefusedError):
        return NoDaemonError(f"no daemon answers on {path}", hint="start it: meshd start")
    if isinstance(cause, aiohttp.ClientError | OSError):
        return PeerError(f"cannot attach to the daemon behind {path}: {cause}")
    return error
