"""The real machine behind `meshd.platform.Platform`."""

import asyncio
import contextlib
import contextvars
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, Final, cast

from meshd.clock import Instant
from meshd.daemon.place import bind_tcp
from meshd.gossip.transport import UdpEndpoint
from meshd.load import LoadSampler
from meshd.model import Address
from meshd.platform import AddressInfo, MachineLoad

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
STOP_TIMEOUT_S = 5.0
_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Linux has a clock that runs on in suspend; elsewhere the monotonic one may (macOS)."""


class SystemClock:
    """The system's clocks."""

    # As it is, without a function of ours around it: each call asks several times.
    now: Final = staticmethod(cast("Callable[[], Instant]", time.monotonic))
    """Monotonic seconds."""

    def boot_s(self) -> float:
        """Seconds since the machine started, with those in which it was suspended."""
        return time.clock_gettime(_BOOTTIME)

    def wall_ms(self) -> int:
        """Milliseconds since 1970 UTC."""
        return time.time_ns() // 1_000_000


class ThreadRunner:
    """An event loop on a thread of its own. Satisfies `meshd.platform.ProtocolRunner`."""

    def __init__(self, loop_factory: LoopFactory) -> None:
        self._loop = loop_factory()
        self._thread = threading.Thread(target=self._run, name="meshd-gossip", daemon=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    async def start(self, start: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start the thread and run `start()` there to its end."""
        self._thread.start()
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(start(), self._loop))

    def call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Run `function` soon in the protocol's loop. Silent once that has ended."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)

    async def stop(self) -> None:
        """End the loop and wait for its thread."""
        self.call(self._loop.stop)
        await asyncio.to_thread(self._thread.join, STOP_TIMEOUT_S)


class ContextThreads(ThreadPoolExecutor):
    """Threads that see the context variables of whoever handed them the work."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Run `fn` in a copy of the caller's context."""
        context = contextvars.copy_context()
        return super().submit(context.run, fn, *args, **kwargs)


class SystemPlatform:
    """This machine."""

    def __init__(self, loop_factory: LoopFactory = asyncio.new_event_loop) -> None:
        self.clock = SystemClock()
        self._loop_factory = loop_factory
        self._sampler = LoadSampler()

    def random(self, purpose: str) -> random.Random:
        """A freshly seeded generator: nothing here is to be predictable from outside."""
        del purpose
        return random.Random(secrets.randbits(128))

    def open_datagram(self, bind: Address, *, bytes_max: int) -> UdpEndpoint:
        """Bind a UDP socket.

        Raises:
            OSError: the address cannot be bound.
        """
        return UdpEndpoint(bind, bytes_max=bytes_max)

    def bind_stream(self, bind: Address) -> socket.socket:
        """Bind a TCP socket.

        Raises:
            OSError: the address cannot be bound.
        """
        return bind_tcp(bind.host, bind.port)

    def open_stream(self, info: AddressInfo) -> socket.socket:
        """A TCP socket to connect to an address of this kind with."""
        family, kind, protocol, _name, _address = info
        return socket.socket(family, kind, protocol)

    async def run_protocol(self, start: Callable[[], Coroutine[Any, Any, None]]) -> ThreadRunner:
        """Run `start()` on a new thread's loop and keep that turning."""
        runner = ThreadRunner(self._loop_factory)
        await runner.start(start)
        return runner

    def executor(self, workers: int) -> Executor:
        """Threads for handlers that block."""
        return ContextThreads(max_workers=workers, thread_name_prefix="meshd-work")

    async def resolve(self, host: str, port: int) -> list[Address]:
        """Addresses of a host name, IPv4 and IPv6.

        Raises:
            OSError: the name does not resolve.
        """
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        return list(dict.fromkeys(Address(str(entry[4][0]), port) for entry in found))

    def sample_load(self) -> MachineLoad:
        """CPU and memory use since the last call."""
        cpu_fraction, mem_fraction = self._sampler.sample()
        return MachineLoad(cpu_fraction, mem_fraction)
