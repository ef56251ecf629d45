"""Everything that touches the machine, behind one injected seam that the simulator replaces."""

import random
import socket
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, Protocol

import msgspec

from meshd.clock import Clock, Seconds
from meshd.model import Address

AddressInfo = tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[Any, ...]]
"""What `getaddrinfo` says of one address: family, kind, protocol, name, address."""


class MachineLoad(msgspec.Struct, frozen=True):
    """What the machine itself says: fractions 0..1."""

    cpu_fraction: float = 0.0
    mem_fraction: float = 0.0


class DatagramEndpoint(Protocol):
    """A bound UDP socket whose owner reads it when, and as far as, it likes."""

    @property
    def address(self) -> Address:
        """Where it is bound."""
        ...

    def send(self, data: bytes, to: Address) -> bool:
        """Send one datagram without blocking; false if the kernel would not take it."""
        ...

    def receive(self, limit: int) -> list[tuple[bytes, Address, Seconds]]:
        """Up to `limit` datagrams that are waiting now, oldest first, and how long each waited."""
        ...

    def on_readable(self, callback: Callable[[], None]) -> None:
        """Call `callback` in the running loop whenever datagrams wait."""
        ...

    def close(self) -> None:
        """Release the socket. Idempotent."""
        ...


class ProtocolRunner(Protocol):
    """Where the gossip shell runs: a thread with a loop of its own, or the caller's loop."""

    def call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Run `function` soon in the protocol's loop. Safe from any thread."""
        ...

    async def stop(self) -> None:
        """End the loop that this runner made and wait until it is gone."""
        ...


class Platform(Protocol):
    """One machine."""

    @property
    def clock(self) -> Clock:
        """The machine's clocks."""
        ...

    def random(self, purpose: str) -> random.Random:
        """A generator of its own for each concern, so that replays stay aligned."""
        ...

    def open_datagram(self, bind: Address, *, bytes_max: int) -> DatagramEndpoint:
        """Bind a UDP socket; port 0 picks one. Longer datagrams than `bytes_max` read as one more.

        Raises:
            OSError: the address cannot be bound.
        """
        ...

    def bind_stream(self, bind: Address) -> socket.socket:
        """Bind a TCP socket, not listening yet; port 0 picks one.

        Raises:
            OSError: the address cannot be bound.
        """
        ...

    def open_stream(self, info: AddressInfo) -> socket.socket:
        """A TCP socket to connect to an address of this kind with."""
        ...

    async def run_protocol(self, start: Callable[[], Coroutine[Any, Any, None]]) -> ProtocolRunner:
        """Run `start()` to its end in the protocol's loop, then keep that loop turning."""
        ...

    def executor(self, workers: int) -> Executor:
        """Threads for handlers that block."""
        ...

    async def resolve(self, host: str, port: int) -> list[Address]:
        """Addresses of a host name, in the resolver's order.

        Raises:
            OSError: the name does not resolve.
        """
        ...

    def sample_load(self) -> MachineLoad:
        """CPU and memory use since the last call."""
        ...
