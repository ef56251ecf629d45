"""What lies between the sockets of simulated machines: addresses, packets, and their delays."""

import contextvars
import random
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from meshd.model import Address
from sim.network import Network
from sim.trace import DATAGRAM, Trace
from sim.whole.loop import KERNEL, VirtualLoop

if TYPE_CHECKING:
    from sim.whole.streams import Dial, Listener, Stream

IP_UDP_BYTES = 28
RECEIVE_BUFFER_DATAGRAMS = 1_024
"""What a socket keeps of a process that does not read; more is dropped by the kernel."""
LOOPBACK_S = 0.000_02


class Machine:
    """One machine's kernel: its address and its sockets. Its process may come and go."""

    def __init__(self, index: int, host: str) -> None:
        self.index = index
        self.host = host
        self.datagrams: dict[int, Datagrams] = {}
        self.listeners: dict[int, Listener] = {}
        self.streams: dict[Stream, None] = {}
        self.dials: dict[Dial, None] = {}
        """Connections that its process has asked for."""
        self.bytes_sent = 0
        self.packets_sent = 0
        self.late_s: tuple[float, float] | None = None
        """A starved process reads each datagram so much later, in order."""
        self.cost_s = 0.0
        """What reading one datagram costs a slow process."""
        self.read_at = 0.0
        self._next_port = 40_000

    def free_port(self) -> int:
        """A port for who does not name one."""
        self._next_port += 1
        return self._next_port

    def kill(self) -> None:
        """The process is gone: its kernel closes what it had open."""
        for endpoint in list(self.datagrams.values()):
            endpoint.close()
        for listener in list(self.listeners.values()):
            listener.close()
        for dial in list(self.dials):
            dial.drop()
        for stream in list(self.streams):
            stream.die()

    @property
    def open_sockets(self) -> int:
        """How many sockets of all kinds the process holds."""
        return len(self.datagrams) + len(self.listeners) + len(self.streams)


class Wires:
    """All machines, and the network between them."""

    def __init__(
        self, loop: VirtualLoop, network: Network, trace: Trace, rng: random.Random
    ) -> None:
        self.loop = loop
        self.network = network
        self.trace = trace
        self.machines: dict[str, Machine] = {}
        self.drops_datagrams = False
        """Whether firewalls everywhere drop UDP and let TCP pass."""
        self._late = rng

    def add(self, index: int, host: str) -> Machine:
        """Plug in a machine."""
        self.machines[host] = machine = Machine(index, host)
        return machine

    def arrivals(self, source: Machine, target: Machine, size: int) -> tuple[float, ...]:
        """When a packet that is sent now arrives: no time, one, or two."""
        if source is target:
            return (self.loop.time() + LOOPBACK_S,)
        return self.network.route(source.index, target.index, size, self.loop.time())

    def at(self, when: float, action: Callable[..., object], *arguments: Any) -> None:
        """Let a kernel do something later."""
        self.loop.call_at(when, action, *arguments, context=KERNEL)

    def send(self, source: "Datagrams", data: bytes, to: Address) -> None:
        """Put a datagram on its way."""
        machine = source.machine
        machine.packets_sent += 1
        machine.bytes_sent += len(data) + IP_UDP_BYTES
        target = self.machines.get(to.host)
        if target is None or self.drops_datagrams:
            return
        for when in self.arrivals(machine, target, len(data)):
            self.at(when, self._arrive, target, to.port, data, source.address)

    def _arrive(self, target: Machine, port: int, data: bytes, source: Address) -> None:
        endpoint = target.datagrams.get(port)
        if endpoint is None:
            return
        if target.late_s is None and not target.cost_s:
            self._take(endpoint, data, source)
            return
        now = self.loop.time()
        read_at = max(now, target.read_at)
        if target.late_s is not None:
            low_s, high_s = target.late_s
            read_at = max(target.read_at, now + low_s + (high_s - low_s) * self._late.random())
        target.read_at = read_at + target.cost_s
        self.at(target.read_at, self._take, endpoint, data, source, now)

    def _take(
        self, endpoint: "Datagrams", data: bytes, source: Address, since: float | None = None
    ) -> None:
        self.trace.add(self.loop.time(), DATAGRAM, endpoint.machine.index, data, source)
        if not endpoint.take(data, source, self.loop.time() if since is None else since):
            self.network.dropped += 1


class Datagrams:
    """A UDP socket. Satisfies `meshd.platform.DatagramEndpoint`."""

    def __init__(self, wires: Wires, machine: Machine, port: int, bytes_max: int) -> None:
        self._wires = wires
        self.machine = machine
        self.address = Address(machine.host, port)
        self._bytes_max = bytes_max
        self._inbox: deque[tuple[bytes, Address, float]] = deque()
        self._is_told = False
        self._is_open = True
        self._tell: Callable[[], None] | None = None
        machine.datagrams[port] = self

    def send(self, data: bytes, to: Address) -> bool:
        """Send one datagram; true, for the kernel takes any."""
        if self._is_open:
            self._wires.send(self, data, to)
        return self._is_open

    def receive(self, limit: int) -> list[tuple[bytes, Address, float]]:
        """Up to `limit` datagrams that wait, oldest first, and how long each waited."""
        inbox, now = self._inbox, self._wires.loop.time()
        some = [inbox.popleft() for _ in range(min(limit, len(inbox)))]
        return [(data, source, now - since) for data, source, since in some]

    def on_readable(self, callback: Callable[[], None]) -> None:
        """Call `callback`, in the lane of whoever asks now, whenever datagrams wait."""
        context = contextvars.copy_context()

        def read() -> None:
            self._is_told = False
            if self._inbox and self._is_open:
                callback()

        def tell() -> None:
            self._is_told = True
            self._wires.loop.call_soon(read, context=context)

        self._tell = tell

    def take(self, data: bytes, source: Address, since: float) -> bool:
        """The kernel has had a datagram for the process `since` then; false if there is no room."""
        if not self._is_open or len(self._inbox) >= RECEIVE_BUFFER_DATAGRAMS:
            return False
        self._inbox.append((data[: self._bytes_max + 1], source, since))
        if self._tell is not None and not self._is_told:
            self._tell()
        return True

    def close(self) -> None:
        """Release the port. Idempotent."""
        self._is_open = False
        self._inbox.clear()
        if self.machine.datagrams.get(self.address.port) is self:
            del self.machine.datagrams[self.address.port]
