"""A simulated machine behind `meshd.platform.Platform`: what the production daemon runs on."""

import random
import socket
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any

from meshd.clock import Instant
from meshd.model import Address
from meshd.platform import MachineLoad
from sim.whole.loop import InlineExecutor, Lane, VirtualLoop
from sim.whole.streams import StreamSocket
from sim.whole.wires import Datagrams, Machine, Wires

WALL_START_MS = 1_700_000_000_000


class VirtualClock:
    """A machine's clocks: the loop's time, and a wall clock that may be wrong."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._start_s = loop.time()
        self.wall_s = 0.0
        """How far the wall clock is off."""

    def now(self) -> Instant:
        """Monotonic seconds."""
        return Instant(self._loop.time())

    def boot_s(self) -> float:
        """As `now`: these machines are not suspended."""
        return self._loop.time()

    def wall_ms(self) -> int:
        """Milliseconds since 1970 UTC."""
        return WALL_START_MS + int((self._loop.time() - self._start_s + self.wall_s) * 1_000)


class LaneRunner:
    """The protocol's thread: a lane of its own in the one loop."""

    def __init__(self, loop: VirtualLoop, lane: Lane) -> None:
        self._loop = loop
        self._context = lane.context()

    async def start(self, start: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `start()` there to its end."""
        await self._loop.create_task(start(), context=self._context)

    def call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Run `function` soon in the lane."""
        self._loop.call_soon(function, *arguments, context=self._context)

    async def stop(self) -> None:
        """Nothing to end: the loop is everybody's."""


class VirtualPlatform:
    """One machine for one run of a process. Satisfies `meshd.platform.Platform`."""

    def __init__(
        self,
        wires: Wires,
        machine: Machine,
        *,
        clock: VirtualClock,
        random_for: Callable[[str], random.Random],
        protocol: Lane,
        names: Callable[[str], str | None],
    ) -> None:
        self.clock = clock
        self.machine_load = MachineLoad()
        self._wires = wires
        self._machine = machine
        self._random_for = random_for
        self._protocol = protocol
        self._names = names

    def random(self, purpose: str) -> random.Random:
        """A generator of its own for each concern, drawn from the run's seed."""
        return self._random_for(purpose)

    def open_datagram(self, bind: Address, *, bytes_max: int) -> Datagrams:
        """Bind a UDP socket of this machine."""
        return Datagrams(self._wires, self._machine, bind.port, bytes_max)

    def bind_stream(self, bind: Address) -> socket.socket:
        """Bind a TCP socket of this machine."""
        return StreamSocket(self._wires, self._machine, bind.port)

    def open_stream(self, info: Any) -> socket.socket:
        """A TCP socket to connect with."""
        del info
        return StreamSocket(self._wires, self._machine)

    async def run_protocol(self, start: Callable[[], Coroutine[Any, Any, None]]) -> LaneRunner:
        """Run `start()` in the protocol's lane."""
        runner = LaneRunner(self._wires.loop, self._protocol)
        await runner.start(start)
        return runner

    def executor(self, workers: int) -> Executor:
        """Functions run at once, in no virtual time."""
        del workers
        return InlineExecutor()

    async def resolve(self, host: str, port: int) -> list[Address]:
        """A node's name, or an address.

        Raises:
            OSError: there is no such machine.
        """
        found = self._names(host)
        if found is None:
            raise OSError(f"no machine is called {host!r}")
        return [Address(found, port)]

    def sample_load(self) -> MachineLoad:
        """What the test says."""
        return self.machine_load
