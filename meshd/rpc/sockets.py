"""A dialled WebSocket as channels need it, and what the kernel is told about a link."""

import contextlib
import socket
from typing import Any

import aiohttp

from meshd.clock import Seconds

KEEPALIVE_IDLE_S = 10
"""After so many seconds of silence the kernel asks the other one whether the link still stands."""
KEEPALIVE_EACH_S = 5
KEEPALIVE_TRIES = 3
UNHEARD_MAX_S: Seconds = 120.0
"""What was sent and is not taken for so long cuts a link: the other machine is gone, or that
process has not read for as long. It is what a dial has, too."""


class DialledSocket(aiohttp.ClientWebSocketResponse[Any]):
    """The end of who dialled."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # Kept from the beginning: what is being closed does not tell it any more.
        self._wire = None if self._conn is None else self._conn.transport

    def abort(self) -> None:
        """Cut the connection at once."""
        if self._wire is not None:
            self._wire.abort()


class OwnedSocket:
    """A dialled socket that closes its session with it."""

    def __init__(self, link: DialledSocket, session: aiohttp.ClientSession) -> None:
        self._link = link
        self._session = session
        self.send_frame = link.send_frame
        self.receive = link.receive
        self.abort = link.abort

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._link.closed

    async def close(self) -> bool:
        """Say goodbye, and close both."""
        try:
            return await self._link.close()
        finally:
            await self._session.close()


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
