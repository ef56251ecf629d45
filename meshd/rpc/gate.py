"""Decides about a connection before HTTP begins: how many there may be, in all and of one address.

Source: aiohttp bounds neither, and a file descriptor is what an idle attacker takes for free.
"""

import asyncio
import resource
import sys
from collections import Counter
from typing import cast

from aiohttp import web

from meshd.rpc.jsonrpc import encode_error
from meshd.rpc.limits import ServerLimits, busy

_BODY = encode_error(None, busy("no more connections are taken here for now", "connections"))
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(_BODY), _BODY)
)
"""Says in JSON-RPC that nothing ran, so that a caller may safely go elsewhere."""


class Door:
    """One listening socket's way in to its web server; shut, it lets nobody through."""

    def __init__(
        self, web_server: web.Server, limits: ServerLimits, counters: Counter[str]
    ) -> None:
        self.web_server = web_server
        self.is_open = True
        self._limits = limits
        self._connections_max = min(limits.connections_max, _affordable())
        self._counters = counters

    def __call__(self) -> asyncio.Protocol:
        """The protocol of a connection that was just accepted."""
        return _Arrival(self)

    def receive(self, transport: asyncio.Transport) -> None:
        """Hand the connection on to HTTP, or turn it away."""
        if not self.is_open:
            # It was accepted just before the listener closed.
            transport.abort()
        elif self._has_room(transport):
            handler = self.web_server()
            transport.set_protocol(handler)
            handler.connection_made(transport)
        else:
            self._counters["connections_refused"] += 1
            transport.write(_FULL)
            transport.close()

    def _has_room(self, transport: asyncio.Transport) -> bool:
        connections = self.web_server.connections
        if len(connections) >= self._connections_max:
            return False
        most = self._limits.connections_per_remote_max
        name = transport.get_extra_info("peername")
        if len(connections) < most or not isinstance(name, tuple):
            return True
        mine = sum(_host(connection.peername) == name[0] for connection in connections)
        return bool(mine < most)


class _Arrival(asyncio.Protocol):
    """A connection until the door has decided."""

    def __init__(self, door: Door) -> None:
        self._door = door

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask the door."""
        # A cast, because uvloop's transports are no subclass.
        self._door.receive(cast("asyncio.Transport", transport))


def _affordable() -> int:
    """How many connections leave half of the process's file descriptors for everything else.

    Source: asyncio, out of descriptors, fails to accept and logs that thousands of times a second.
    """
    try:
        soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    except (OSError, ValueError):
        return sys.maxsize
    return sys.maxsize if soft == resource.RLIM_INFINITY else max(1, soft // 2)


def _host(peername: object) -> str | None:
    return str(peername[0]) if isinstance(peername, tuple) else None
