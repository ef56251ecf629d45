"""A UDP socket that its owner reads when it likes: the machine's datagram endpoint.

asyncio's own datagram transport reads one packet per loop turn and lets overdue timers run first,
so a process that was stopped would accuse others before reading what they sent meanwhile. Here the
socket is ours: the owner drains it before it looks at its timers.
"""

import asyncio
import contextlib
import socket
import struct
import sys
import time
from collections.abc import Callable

from meshd.clock import Seconds
from meshd.model import Address

RECEIVE_BUFFER_BYTES = 4 * 1024 * 1024
_TIMESTAMP_NS = 35  # SO_TIMESTAMPNS, which the socket module does not name (Linux: socket(7))
_TIMESPEC = struct.Struct("@ll")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_TIMESPEC.size)


class UdpEndpoint:
    """A bound, non-blocking UDP socket. Satisfies `meshd.platform.DatagramEndpoint`."""

    def __init__(self, bind: Address, *, bytes_max: int) -> None:
        """Bind; port 0 lets the system pick.

        Args:
            bind: address and port.
            bytes_max: datagrams longer than this are read as `bytes_max + 1` bytes, so that the
                decoder sees that they were too long.

        Raises:
            OSError: the address cannot be bound.
        """
        family = socket.AF_INET6 if ":" in bind.host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._bytes_max = bytes_max
        self._loop: asyncio.AbstractEventLoop | None = None
        try:
            if family == socket.AF_INET6:
                # Dual stack where the wildcard is bound: one socket hears both families.
                self._socket.setsockopt(
                    socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(bind.host != "::")
                )
            # A burst must survive while the process is stopped; the kernel may grant less.
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
            # The kernel notes when each datagram came: so a process knows how late it reads them.
            if sys.platform == "linux":
                with contextlib.suppress(OSError):
                    self._socket.setsockopt(socket.SOL_SOCKET, _TIMESTAMP_NS, 1)
            self._socket.setblocking(False)
            self._socket.bind((bind.host, bind.port))
        except BaseException:
            self._socket.close()
            raise
        host, port = self._socket.getsockname()[:2]
        self._address = Address(host, port)
        self._is_dual = bind.host == "::"

    @property
    def address(self) -> Address:
        """Where it is bound."""
        return self._address

    def send(self, data: bytes, to: Address) -> bool:
        """Send without blocking; false if the kernel would not take it (it is lost, as UDP may)."""
        host = f"::ffff:{to.host}" if self._is_dual and ":" not in to.host else to.host
        try:
            self._socket.sendto(data, (host, to.port))
        except OSError:
            return False
        return True

    def receive(self, limit: int) -> list[tuple[bytes, Address, Seconds]]:
        """Up to `limit` datagrams that are waiting now, oldest first, and how long each waited."""
        waiting: list[tuple[bytes, Address, Seconds]] = []
        # Reports of failed sends come in between; a socket that only fails must not hold us here.
        for _ in range(limit):
            try:
                data, notes, _, source = self._socket.recvmsg(self._bytes_max + 1, _ANCILLARY_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                # An earlier send met a closed port (ICMP): an error of that packet, not of ours.
                continue
            host = source[0].removeprefix("::ffff:")
            waiting.append((data, Address(host, source[1]), _waited_s(notes)))
        return waiting

    def on_readable(self, callback: Callable[[], None]) -> None:
        """Call `callback` in the running loop whenever datagrams wait."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.fileno(), callback)

    def close(self) -> None:
        """Release the socket; in the loop's thread if it is watched. Idempotent."""
        if self._socket.fileno() < 0:
            return
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._socket.fileno())
        self._socket.close()


def _waited_s(notes: list[tuple[int, int, bytes]]) -> Seconds:
    """How long a datagram lay at the socket, by the kernel's note; 0 where there is none.

    Both times are of the wall clock, so that setting it falsifies what waits at that moment.
    """
    for level, kind, value in notes:
        if (level, kind) == (socket.SOL_SOCKET, _TIMESTAMP_NS) and len(value) == _TIMESPEC.size:
            seconds, nanoseconds = _TIMESPEC.unpack(value)
            waited_s: float = time.time() - seconds - nanoseconds * 1e-9
            return max(0.0, waited_s)
    return 0.0
