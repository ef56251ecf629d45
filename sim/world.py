"""The simulated world: a virtual clock, one event queue, and nodes that run the real machine.

Everything follows from the seed: events are taken in the order of (time, number), each concern has
a random source of its own, and nothing is iterated whose order a hash decides.
"""

import hashlib
import heapq
import random
from collections import deque
from collections.abc import Callable
from itertools import count

from meshd.clock import Instant
from meshd.gossip.config import GossipConfig, profile
from meshd.gossip.dialects import Versions
from meshd.gossip.effects import Effect, SendDatagram, StreamPing
from meshd.gossip.inputs import (
    DatagramReceived,
    DeadlineReached,
    Input,
    JoinRequested,
    LeaveRequested,
    LoadSampled,
    RejoinRequested,
    StreamPinged,
)
from meshd.gossip.members import MemberTable, Summary, new_member
from meshd.gossip.swim import Swim
from meshd.model import Address, Epoch, Load, Member, MeshId, NodeId
from sim.calm import Calm
from sim.network import Network, Shape
from sim.trace import ACTION, DATAGRAM, READ, WAKE, Trace

MESH = MeshId(b"simulate")
START_S = 1_000.0
LONG_AGO_S = 0.0
"""The mesh of `start_converged` has been calm for longer than any bound."""
MET_MAX = 1_000
"""So many members all nodes of that mesh have heard: in the largest, memory is worth more."""
EPOCH_START_MS = 1_700_000_000_000
PORT = 6374
IP_UDP_BYTES = 28
RECEIVE_BUFFER_DATAGRAMS = 1_024
"""What a socket keeps of a process that does not read; more is dropped by the kernel."""
SEEK_INTERVAL_S = 3.0
"""When a newcomer tries its known addresses again; each further time it waits twice as long."""
SEEK_INTERVAL_MAX_S = 30.0
STREAM_PING_S = 0.005
"""A connection, a question and an answer."""
_NEVER = float("inf")
_EARLY_S = 1e-9

OnChange = Callable[["Host", Member | None, Member], None]
OnEffect = Callable[["Host", Effect], None]
OnSend = Callable[["Host", SendDatagram], None]
OnHost = Callable[["Host"], None]
Speak = Callable[[bytes], tuple[bytes, ...]]
"""What a process of another version says in place of a datagram of this one."""


class Host:
    """One machine with its address, its process (if it runs), and how well it is."""

    __slots__ = (
        "address", "armed_at", "asleep", "busy_until", "bytes_sent", "cost_s", "down_since",
        "epoch", "event_floor", "id", "inbox", "index", "joined", "late_s", "leaving", "left_at",
        "mesh", "offset_s", "packets_sent", "paused_at", "read_at", "runs", "saved_epoch", "seeds",
        "speak", "started_at", "stopped", "swim", "versions", "wall_s",
    )  # fmt: skip

    def __init__(self, index: int, mesh: MeshId) -> None:
        self.index = index
        self.mesh = mesh
        self.id = node_id(index)
        self.address = address_of(index)
        self.seeds: tuple[Address, ...] = ()
        self.swim: Swim | None = None
        self.epoch = EPOCH_START_MS
        self.saved_epoch = EPOCH_START_MS - 1
        self.event_floor = 0
        self.speak: Speak | None = None
        self.versions = Versions()
        self.paused_at = LONG_AGO_S
        self.runs = 0
        self.started_at = START_S
        self.down_since = START_S
        self.joined = False
        self.leaving = False
        self.stopped = False
        self.left_at = 0.0
        self.armed_at = _NEVER
        self.asleep = False
        self.late_s: tuple[float, float] | None = None
        self.cost_s = 0.0
        self.read_at = 0.0
        self.busy_until = 0.0
        self.offset_s = 0.0
        self.wall_s = 0.0
        self.inbox: deque[tuple[float, bytes, Address, float]] = deque()
        """What waits at the socket: when it is read, what, from where, since when."""
        self.packets_sent = 0
        self.bytes_sent = 0

    @property
    def is_up(self) -> bool:
        """Whether its process runs, be it asleep."""
        return self.swim is not None

    @property
    def is_member(self) -> bool:
        """Whether it runs, has met the mesh, and has not said goodbye."""
        return self.swim is not None and self.joined and not self.leaving


class WatchedTable(MemberTable):
    """A member table that tells the world of each change."""

    def __init__(
        self,
        host: Host,
        on_change: list[OnChange],
        base: dict[NodeId, Member],
        rows: tuple[NodeId, ...],
        summary: Summary | None,
    ) -> None:
        super().__init__(base, rows, summary=summary)
        self._host = host
        self._on_change = on_change

    def put(self, member: Member) -> Member | None:
        """Store a record, and tell. The own epoch is kept on disk, as the daemon does."""
        if member.node == self._host.id:
            self._host.epoch = self._host.saved_epoch = member.epoch
        before = super().put(member)
        for tell in self._on_change:
            tell(self._host, before, member)
        return before


class World(Calm):
    """Hosts, the network between them, and time."""

    now: float = START_S

    def __init__(
        self,
        nodes: int,
        seed: int,
        *,
        shape: Shape | None = None,
        config: GossipConfig | None = None,
        meshes: int = 1,
        streams: bool = False,
    ) -> None:
        """Lay out `nodes` hosts; none of them runs yet.

        Args:
            nodes: how many.
            seed: what everything follows from.
            shape: the network's links; uniform 0.5 to 1.5 ms without loss if not given.
            config: the protocol's numbers; the lan profile if not given.
            meshes: how many separate meshes share the network, node i in mesh i modulo this.
            streams: whether pings over the call port are answered: TCP reaches whom no cut hides
                and who reads at once, whatever the share of datagrams that is lost. Off, so that
                experiments compare datagrams alone.
        """
        super().__init__(LONG_AGO_S, START_S)
        self.seed = seed
        self.now = START_S
        self.config = config or profile("lan")
        self.streams = streams
        self.network = Network(shape or Shape(), lambda what: self.random("network/" + what))
        self.trace = Trace(MESH, START_S)
        self.hosts = [Host(index, mesh_id(index % meshes)) for index in range(nodes)]
        self.on_change: list[OnChange] = []
        self.on_effect: list[OnEffect] = []
        self.on_send: list[OnSend] = []
        self.on_step: list[OnHost] = []
        self.on_down: list[OnHost] = []
        """Called before a process ends that said no goodbye."""
        self.on_start: list[OnHost] = []
        """Called when a process has started that has yet to find its mesh."""
        self.on_load: list[OnHost] = []
        """Called after a process took a sample of its load."""
        self.heard: DatagramReceived | None = None
        """What the step under way answers; None if nobody asked."""
        self.unruly: dict[NodeId, None] = {}
        """Ids whose epochs may fall, or which two processes use."""
        self.invented: dict[NodeId, float] = {}
        """Ids of nobody that forgers spread, and since when: tables may hold them for a moment."""
        self.clones: list[Host] = []
        """Further processes under an id of one of `hosts`."""
        self.is_visited = False
        """Whether users or people outside ever gave rise to packets."""
        self.is_halted = False
        """Set by whoever has seen enough: the run ends with the present event."""
        self._by_address = {host.address: host for host in self.hosts}
        self._by_id = {host.id: host for host in self.hosts}
        self._queue: list[tuple[float, int, int, Host | None, bytes, Address | None]] = []
        self._numbers = count()
        self._actions: dict[int, Callable[[], None]] = {}
        self._late = self.random("late")
        self._seeking = self.random("seeking")
        self._base: dict[NodeId, Member] = {}
        self._rows: tuple[NodeId, ...] = ()
        self._summary: Summary | None = None

    def random(self, concern: str) -> random.Random:
        """The source of chance of one concern."""
        return random.Random(f"{self.seed}/{concern}")

    def host_of(self, node: NodeId) -> Host | None:
        """The host with this id."""
        return self._by_id.get(node)

    def host_at(self, address: Address) -> Host | None:
        """The host, or its clone, at this address."""
        return self._by_address.get(address)

    def up(self) -> list[Host]:
        """The hosts whose process runs."""
        return [host for host in self.hosts if host.swim is not None]

    def members(self) -> list[Host]:
        """The hosts that everybody should hold alive."""
        return [host for host in self.hosts if host.is_member]

    # Starting and stopping

    def start_converged(self, first: int | None = None) -> None:
        """Start the `first` hosts (or all) as a mesh that has been up for long.

        Each one's table holds them all, and each has heard the others. The records are shared; each
        node keeps what differs.
        """
        hosts = self.hosts[:first]
        for mesh in {host.mesh: None for host in hosts}:
            ours = [host for host in hosts if host.mesh == mesh]
            records = [new_member(host.id, Epoch(host.epoch), host.address) for host in ours]
            self._base = {record.node: record for record in records}
            self._rows = tuple(self._base)
            counted = MemberTable(self._base, self._rows)
            self._summary = counted.summary
            met = dict.fromkeys(self._rows[:MET_MAX], Instant(START_S))
            for host in ours:
                self.start(host)
                host.joined = True
                if host.swim is not None:
                    host.swim._beliefs.heard_at.update(met)  # noqa: SLF001 - the mesh is old
        self._base, self._rows, self._summary = {}, (), None

    def start(self, host: Host, seeds: tuple[int, ...] | None = None) -> None:
        """Start a host's process; with `seeds`, let it look for others there.

        A run's epoch is the wall clock, or one above the last run's where that is later: the
        daemon keeps it on disk.
        """
        wall_ms = EPOCH_START_MS + int((self.now - START_S + host.wall_s) * 1_000)
        host.epoch = max(host.saved_epoch + 1, wall_ms) if host.runs else EPOCH_START_MS
        host.runs += 1
        host.started_at = self.now
        host.joined = host.leaving = host.asleep = host.stopped = False
        host.inbox.clear()
        host.busy_until = host.read_at = 0.0
        table = WatchedTable(host, self.on_change, self._base, self._rows, self._summary)
        me = new_member(host.id, Epoch(host.epoch), host.address)
        rng = self.random(f"node/{host.index}/{host.runs}")
        host.swim = Swim(
            me, host.mesh, self.config, rng, self._local(host), table, host.versions,
            host.event_floor,
        )  # fmt: skip
        self.rearm(host)
        if seeds is not None:
            for tell in self.on_start:
                tell(host)
            host.seeds = tuple(self.hosts[index].address for index in seeds if index != host.index)
            self._seek(host, host.runs)

    def _seek(self, host: Host, run: int, wait_s: float = SEEK_INTERVAL_S) -> None:
        """Knock at the known addresses, then again ever more seldom, as discovery does.

        Who has no address to try is the first of its mesh.
        """
        if host.swim is None or host.runs != run or host.leaving:
            return
        if not host.seeds:
            host.joined = True
            return
        if not host.asleep:
            self.step(host, JoinRequested(host.seeds))
        again_s = wait_s * (0.9 + 0.2 * self._seeking.random())
        longer_s = min(SEEK_INTERVAL_MAX_S, 2 * wait_s)
        self.call_at(self.now + again_s, lambda: self._seek(host, run, longer_s))

    def crash(self, host: Host) -> None:
        """The process ends without a word. Idempotent."""
        if host.swim is None:
            return
        if not host.leaving:
            for tell in self.on_down:
                tell(host)
        host.event_floor = host.swim.event_clock
        host.swim = None
        host.down_since = self.now
        host.armed_at = _NEVER
        host.inbox.clear()
        self.changed_at = self.now

    def leave(self, host: Host) -> None:
        """The node says goodbye; its process ends after the linger time."""
        if host.swim is None or host.leaving:
            return
        host.leaving = True
        host.left_at = self.now
        self.changed_at = self.now
        run = host.runs
        self.step(host, LeaveRequested())

        def end() -> None:
            if host.runs == run and host.leaving:
                self.crash(host)
                host.stopped = True

        self.call_at(self.now + self.config.leave_linger_s, end, f"{host.index} exits")

    def rejoin(self, host: Host) -> None:
        """The node comes back before its process has ended."""
        if host.swim is not None and host.leaving:
            host.leaving = False
            self.changed_at = self.now
            self.step(host, RejoinRequested())

    def forget_state(self, host: Host) -> None:
        """The state directory of a stopped host is lost: its next epoch is its clock's alone."""
        host.saved_epoch = Epoch(0)
        host.event_floor = 0
        self.unruly[host.id] = None

    def clone(self, host: Host, seeds: tuple[int, ...]) -> Host:
        """Start one more process under a host's id, at an address of its own."""
        clone = Host(len(self.hosts) + len(self.clones), host.mesh)
        clone.id = host.id
        self.unruly[host.id] = None
        clone.runs = host.runs
        clone.saved_epoch = host.saved_epoch
        self.clones.append(clone)
        self._by_address[clone.address] = clone
        self.start(clone)
        clone.seeds = tuple(self.hosts[index].address for index in seeds if index != host.index)
        self._seek(clone, clone.runs)
        return clone

    def end_clone(self, clone: Host) -> None:
        """A clone's process ends. The node itself did not crash, so nobody is told of a crash."""
        clone.leaving = True
        self.crash(clone)

    def sample(self, host: Host, load: Load) -> None:
        """A process takes a sample of its load."""
        if host.swim is not None and not host.asleep:
            self.step(host, LoadSampled(load))
            for tell in self.on_load:
                tell(host)

    def block(self, host: Host, for_s: float) -> None:
        """A handler holds the whole interpreter: mail and timers of the process are late."""
        self.sleep(host)
        run = host.runs

        def go_on() -> None:
            if host.runs == run:
                self.wake(host)

        self.call_at(self.now + for_s, go_on, f"{host.index} goes on")

    def sleep(self, host: Host) -> None:
        """The process is stopped (SIGSTOP): its mail waits, its timers do not fire."""
        host.asleep = host.swim is not None

    def wake(self, host: Host) -> None:
        """The process goes on: all mail first, then the overdue timer."""
        if not host.asleep:
            return
        host.asleep = False
        self._read(host, _NEVER)
        self.rearm(host)

    def recover(self, host: Host) -> None:
        """A starved or slow process is well again: it reads what waits, all at once."""
        host.late_s = None
        host.cost_s = host.read_at = host.busy_until = 0.0
        self._read(host, _NEVER)
        self.rearm(host)

    def end_faults(self) -> None:
        """Let everybody be well again, and the network whole: what comes must lead to agreement."""
        self.network.reset()
        for clone in self.clones:
            self.end_clone(clone)
        for host in self.hosts:
            if host.asleep:
                self.wake(host)
            if host.late_s is not None or host.cost_s:
                self.recover(host)
        self.settle_all()

    # Time

    def call_at(self, at: float, action: Callable[[], None], label: str = "") -> None:
        """Do something at a time; a label makes it a line of the trace."""
        number = next(self._numbers)
        self._actions[number] = action
        heapq.heappush(self._queue, (at, number, ACTION, None, label.encode(), None))

    def run(self, until: float) -> None:
        """Let time pass up to `until`, a time on the world's clock."""
        queue, trace, pop = self._queue, self.trace, heapq.heappop
        while queue and queue[0][0] <= until and not self.is_halted:
            at, number, kind, host, data, source = pop(queue)
            self.now = at
            if host is None:
                if data:
                    trace.add(at, ACTION, -1, data, None)
                self._actions.pop(number)()
            elif host.swim is None:
                continue
            elif kind == WAKE:
                if host.armed_at == at:
                    self._on_wake(host, host.swim)
            elif kind == DATAGRAM and source is not None:
                if host.asleep or host.late_s or host.cost_s:
                    self._on_late_arrival(host, data, source)
                else:
                    trace.add(at, DATAGRAM, host.index, data, source)
                    self.step(host, DatagramReceived(data, source))
            else:
                self._read(host, at)
        for host in self.hosts:
            if host.swim is not None:
                # As the daemon does when it makes a new view, or what changed would pile up.
                host.swim.drop_touched()
        if not self.is_halted:
            self.now = until

    def _local(self, host: Host) -> Instant:
        return Instant(self.now + host.offset_s)

    def _on_wake(self, host: Host, swim: Swim) -> None:
        """A wake-up is armed lazily: often the machine wants a later one by now."""
        host.armed_at = _NEVER
        if host.asleep:
            return
        if self.now < host.busy_until:
            host.armed_at = host.busy_until
            self._push(host.busy_until, WAKE, host)
            return
        due = swim.next_deadline()
        if due is not None and due - host.offset_s <= self.now + _EARLY_S:
            self.trace.add(self.now, WAKE, host.index, b"", None)
            self.step(host, DeadlineReached())
        else:
            self._arm(host, swim)

    def _arm(self, host: Host, swim: Swim) -> None:
        due = swim.next_deadline()
        if due is not None and due - host.offset_s < host.armed_at:
            host.armed_at = at = max(self.now, due - host.offset_s)
            self._push(at, WAKE, host)

    def rearm(self, host: Host) -> None:
        """A host's clock was changed: ask anew when it wants to be woken."""
        host.armed_at = _NEVER
        if host.swim is not None:
            self._arm(host, host.swim)

    def _push(
        self, at: float, kind: int, host: Host, data: bytes = b"", source: Address | None = None
    ) -> None:
        heapq.heappush(self._queue, (at, next(self._numbers), kind, host, data, source))

    def _on_late_arrival(self, host: Host, data: bytes, source: Address) -> None:
        """The packet is at the socket, but the process does not read it yet."""
        if len(host.inbox) >= RECEIVE_BUFFER_DATAGRAMS:
            self.network.dropped += 1
            return
        at = self.now
        if host.late_s is not None:
            low_s, high_s = host.late_s
            at = max(host.read_at, at + low_s + (high_s - low_s) * self._late.random())
        if host.cost_s:
            host.busy_until = max(at, host.busy_until) + host.cost_s
            at = host.busy_until
        host.read_at = at
        host.inbox.append((at, data, source, self.now))
        if not host.asleep:
            self._push(at, READ, host)

    def _read(self, host: Host, at: float) -> None:
        """Let a process take the mail that it gets to by `at`, in the order of its arrival."""
        while host.inbox and host.inbox[0][0] <= at and not host.asleep:
            _, data, source, arrived_at = host.inbox.popleft()
            self.trace.add(self.now, READ, host.index, data, source)
            self.step(host, DatagramReceived(data, source, self.now - arrived_at))

    # Steps

    def step(self, host: Host, event: Input) -> None:
        """Give one input to a node's machine, and do what it wants done."""
        swim = host.swim
        if swim is None:
            return
        self.heard = event if type(event) is DatagramReceived else None
        for effect in swim.step(event, Instant(self.now + host.offset_s)):
            if type(effect) is SendDatagram:
                self._send(host, effect)
            else:
                if self.streams and type(effect) is StreamPing:
                    self._ping_by_stream(host, effect)
                for tell in self.on_effect:
                    tell(host, effect)
        if not host.joined and swim.members.live > 1:
            # It knocked, or somebody else did: from now on all should know of it.
            host.joined = True
            self.changed_at = self.now
        for look in self.on_step:
            look(host)
        if swim is host.swim:
            self._arm(host, swim)

    def _ping_by_stream(self, host: Host, effect: StreamPing) -> None:
        target, run = self._by_address.get(effect.address), host.runs
        if target is None or target.swim is None or target.asleep or target.late_s is not None:
            return
        here, there = host.index, target.index
        if self.network.is_cut(here, there) or self.network.is_cut(there, here):
            return
        ok = target.id == effect.node

        def answer() -> None:
            if host.runs == run and not host.asleep:
                self.step(host, StreamPinged(effect.node, effect.sequence, ok))

        self.call_at(self.now + STREAM_PING_S, answer)

    def _send(self, host: Host, effect: SendDatagram) -> None:
        for tell in self.on_send:
            tell(host, effect)
        target = self._by_address.get(effect.to)
        for data in (effect.data,) if host.speak is None else host.speak(effect.data):
            size = len(data)
            host.packets_sent += 1
            host.bytes_sent += size + IP_UDP_BYTES
            if target is None:
                continue
            for at in self.network.route(host.index, target.index, size, self.now):
                event = (at, next(self._numbers), DATAGRAM, target, data, host.address)
                heapq.heappush(self._queue, event)

    def inject(self, source: Address, target: Host, data: bytes) -> None:
        """A datagram of somebody outside arrives now."""
        self.is_visited = True
        self._push(self.now, DATAGRAM, target, data, source)

    def digest(self) -> str:
        """Hash of all events so far and of all views now."""
        for host in self.hosts:
            if host.swim is not None:
                view = host.swim.members
                self.trace.note(self.now, host.index, f"{view.live} {view.view_hash:016x}")
        return self.trace.digest()


def node_id(index: int) -> NodeId:
    """The id of the host with this index."""
    return NodeId(hashlib.blake2b(b"%d" % index, digest_size=8).digest())


def mesh_id(index: int) -> MeshId:
    """The id of one of several meshes; the first one is the usual one."""
    return MESH if index == 0 else MeshId(b"other%03d" % index)


def address_of(index: int) -> Address:
    """The address of the host with this index, in 10.0.0.0/8."""
    low = index % 250 + 1
    return Address(f"10.{index // 62_500}.{index // 250 % 250}.{low}", PORT)
