"""Decides about a connection before HTTP begins: how many there may be, in all and of one address.

Source: aiohttp bounds neither, and a file descriptor is what an idle attacker takes for free.
"""

import asyncio
from collections import Counter
from typing import cast

from aiohttp import web

from meshd.rpc.limits import ServerLimits

_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n"
    b"Content-Length: 0\r\nConnection: close\r\n\r\n"
)


class ConnectionGate(asyncio.Protocol):
    """Hands an accepted connection on to aiohttp, or turns it away."""

    def __init__(
        self, web_server: web.Server, limits: ServerLimits, counters: Counter[str]
    ) -> None:
        self._web_server = web_server
        self._limits = limits
        self._counters = counters

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection if there is room for it."""
        # A cast, because uvloop's transports are no subclass.
        stream = cast("asyncio.Transport", transport)
        if self._has_room(stream):
            handler = self._web_server()
            stream.set_protocol(handler)
            handler.connection_made(stream)
            return
        self._counters["connections_refused"] += 1
        stream.write(_FULL)
        stream.close()

    def _has_room(self, transport: asyncio.Transport) -> bool:
        connections = self._web_server.connections
        if len(connections) >= self._limits.connections_max:
            return False
        most = self._limits.connections_per_remote_max
        name = transport.get_extra_info("peername")
        if len(connections) < most or not isinstance(name, tuple):
            return True
        mine = sum(_host(connection.peername) == name[0] for connection in connections)
        return bool(mine < most)


def _host(peername: object) -> str | None:
    return str(peername[0]) if isinstance(peername, tuple) else None
