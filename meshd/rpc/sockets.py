"""Upgrades, as aiohttp makes and answers them, and what the kernel is told about a link."""

import base64
import binascii
import contextlib
import hashlib
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.http_websocket import WS_KEY

from meshd.clock import Seconds
from meshd.rpc.channel import ChannelLimits
from meshd.rpc.websocket import WebSocket

KEEPALIVE_IDLE_S = 10
"""After so many seconds of silence the kernel asks the other one whether the link still stands."""
KEEPALIVE_EACH_S = 5
KEEPALIVE_TRIES = 3
UNHEARD_MAX_S: Seconds = 120.0
"""What was sent and is not taken for so long cuts a link: the other machine is gone, or that
process has not read for as long. It is what a dial has, too."""
_KEY_BYTES = 16


class Dialled(aiohttp.ClientWebSocketResponse[Any]):
    """What aiohttp gives for an upgrade that was answered well; `take_over` makes a link of it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        assert self._conn is not None
        assert self._conn.transport is not None
        assert self._conn.protocol is not None
        self._wire = self._conn.transport
        self._handler = self._conn.protocol
        self._early = _Early()
        # aiohttp sets its own parser next, and nothing may reach that: it would be lost.
        if not self._wire.is_closing():
            self._wire.pause_reading()
        self._handler.set_parser(self._early, self._reader)

    def take_over(
        self, limits: ChannelLimits, let_go: Callable[[], Awaitable[None]] | None = None
    ) -> WebSocket:
        """The link. Its `close` awaits `let_go`, too."""
        return WebSocket(
            self._wire, self._handler, limits=limits, is_client=True,
            early=bytes(self._early.data), release=self._response.close, let_go=let_go,
        )  # fmt: skip


class Upgrade(web.StreamResponse):
    """The answer to a request to upgrade; prepared, it may be taken over once."""

    _length_check = False

    def __init__(self, accepted: Mapping[str, str]) -> None:
        """`accepted` is what `accept` gave for the request."""
        super().__init__(status=101, headers=accepted)
        self.force_close()

    def take_over(self, request: web.BaseRequest, limits: ChannelLimits) -> WebSocket:
        """The link.

        Raises:
            ConnectionError: it is lost already.
        """
        handler, wire = request.protocol, request.transport
        if wire is None:
            raise ConnectionResetError("the connection was lost during its upgrade")
        early = _Early()
        handler.set_parser(early)  # type: ignore[arg-type]
        handler.keep_alive(False)
        return WebSocket(wire, handler, limits=limits, is_client=False, early=bytes(early.data))

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing: what comes after an upgrade is the link's."""
        del data


def accept(request: web.BaseRequest, protocols: tuple[str, ...]) -> dict[str, str] | None:
    """The headers that accept an upgrade, with one of these protocols if it offers one.

    None where the request is no upgrade to WebSocket. Source: RFC 6455, section 4.2.
    """
    headers = request.headers
    hops = {each.strip().lower() for each in headers.get("Connection", "").split(",")}
    key = headers.get("Sec-WebSocket-Key", "")
    is_upgrade = headers.get("Upgrade", "").strip().lower() == "websocket" and "upgrade" in hops
    is_known = headers.get("Sec-WebSocket-Version", "") == "13"
    if not (is_upgrade and is_known and _is_key(key)) or request.body_exists:
        return None
    digest = hashlib.sha1(key.encode() + WS_KEY, usedforsecurity=False).digest()
    accepted = {
        "Upgrade": "websocket",
        "Connection": "upgrade",
        "Sec-WebSocket-Accept": base64.b64encode(digest).decode(),
    }
    offered = (each.strip() for each in headers.get("Sec-WebSocket-Protocol", "").split(","))
    spoken = next((each for each in offered if each in protocols), None)
    return accepted if spoken is None else {**accepted, "Sec-WebSocket-Protocol": spoken}


def _is_key(key: str) -> bool:
    try:
        return len(base64.b64decode(key)) == _KEY_BYTES
    except (binascii.Error, ValueError):
        return False


class _Early:
    """A parser for aiohttp that only keeps what came in one packet with the upgrade."""

    def __init__(self) -> None:
        self.data = bytearray()

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Keep it."""
        self.data += data
        return False, b""

    def feed_eof(self) -> None:
        """Nothing: the connection's next protocol learns of that itself."""


def watch(link: Any) -> None:
    """Have the kernel look after a TCP socket: whether the other machine, and process, are there.

    A WebSocket's own heartbeat asks the other side's main loop instead, and so takes one that
    user code blocks for dead. The other kernel answers for a process that is blocked or stopped,
    and tells of one that ended. Where the system has no such option it does without.

    Args:
        link: a socket, or what a transport gives for one.
    """
    for level, name, value in (
        ("SOL_SOCKET", "SO_KEEPALIVE", 1),
        ("IPPROTO_TCP", "TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
        ("IPPROTO_TCP", "TCP_KEEPINTVL", KEEPALIVE_EACH_S),
        ("IPPROTO_TCP", "TCP_KEEPCNT", KEEPALIVE_TRIES),
        ("IPPROTO_TCP", "TCP_USER_TIMEOUT", int(UNHEARD_MAX_S * 1_000)),
    ):
        with contextlib.suppress(AttributeError, OSError):
            link.setsockopt(getattr(socket, level), getattr(socket, name), value)
