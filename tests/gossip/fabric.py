"""A few gossip machines on one virtual clock: enough network for the protocol's own tests."""

import heapq
import random
from collections.abc import Callable

from meshd.clock import Instant
from meshd.gossip.config import GossipConfig, profile
from meshd.gossip.effects import Effect, SendDatagram
from meshd.gossip.inputs import DatagramReceived, DeadlineReached, Input, JoinRequested
from meshd.gossip.members import new_member
from meshd.gossip.swim import Swim
from meshd.model import Address, Epoch, MemberState, MeshId, NodeId

MESH = MeshId(b"test-net")
IP_UDP_BYTES = 28
LOOK_EVERY_S = 0.01


class Node:
    """One machine, its address, and all effects that it had."""

    def __init__(self, swim: Swim, address: Address) -> None:
        self.swim = swim
        self.address = address
        self.effects: list[Effect] = []
        self.up = True
        self.asleep = False
        self.mail: list[tuple[bytes, Address]] = []
        self.steps = 0
        self.packets = 0
        self.bytes = 0

    @property
    def id(self) -> NodeId:
        return self.swim.me.node


class Fabric:
    """Delivers datagrams after a delay, unless `drop(source, target)` says otherwise."""

    def __init__(self, count: int, *, seed: int = 1, config: GossipConfig | None = None) -> None:
        self.now = Instant(1000.0)
        self.rng = random.Random(seed)
        self.config = config or profile("lan")
        self.event_floor = 0
        self.checks_every = 1 if count <= 10 else 20
        self.nodes: list[Node] = []
        self.by_address: dict[Address, Node] = {}
        self.queue: list[tuple[float, int, Address, Address, bytes]] = []
        self.sent = 0
        self.largest = 0
        self.woken = 0
        self.wakes: list[tuple[float, int, Node]] = []
        self.watchers: list[Callable[[Node, list[Effect]], None]] = []
        self.drop: Callable[[Node, Node], bool] = lambda _source, _target: False
        for _ in range(count):
            self.add()

    def add(self, *, index: int | None = None, epoch: int = 1_000_000) -> Node:
        """A new node; with `index`, a restart of that one at a newer epoch."""
        number = len(self.nodes) if index is None else index
        address = Address(f"10.0.{number // 200}.{number % 200 + 1}", 6374)
        me = new_member(node_id(number), Epoch(epoch), address)
        chance = random.Random(self.rng.random())
        swim = Swim(me, MESH, self.config, chance, self.now, event_floor=self.event_floor)
        node = Node(swim, address)
        if index is None:
            self.nodes.append(node)
        else:
            self.crash(self.nodes[index])
            self.nodes[index] = node
        self.by_address[address] = node
        self._wake(node)
        return node

    def _wake(self, node: Node) -> None:
        at = node.swim.next_deadline()
        if at is not None:
            self.woken += 1
            heapq.heappush(self.wakes, (at, self.woken, node))

    def step(self, node: Node, event: Input) -> list[Effect]:
        effects = node.swim.step(event, self.now)
        node.steps += 1
        if node.steps % self.checks_every == 0:
            node.swim.validate()
        node.effects += effects
        for effect in effects:
            if isinstance(effect, SendDatagram):
                self._send(node, effect)
        for watcher in self.watchers:
            watcher(node, effects)
        self._wake(node)
        return effects

    def _send(self, node: Node, effect: SendDatagram) -> None:
        self.sent += 1
        self.largest = max(self.largest, len(effect.data))
        node.packets += 1
        node.bytes += len(effect.data) + IP_UDP_BYTES
        target = self.by_address.get(effect.to)
        if target is not None and not self.drop(node, target):
            delay = 0.0005 + self.rng.random() * 0.001
            entry = (self.now + delay, self.sent, node.address, effect.to, effect.data)
            heapq.heappush(self.queue, entry)

    def join_all(self, *, to: int = 0) -> None:
        """Everybody knocks at one node's door."""
        seed = self.nodes[to].address
        for node in self.nodes:
            if node.address != seed:
                self.step(node, JoinRequested((seed,)))

    def run(self, seconds: float, *, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass; true as soon as `until` holds, false if it never did."""
        end = self.now + seconds
        looked = 0.0
        while True:
            if until is not None and self.now >= looked:
                if until():
                    return True
                looked = self.now + LOOK_EVERY_S
            at = self._next_wake()
            if self.queue and self.queue[0][0] <= at:
                if self.queue[0][0] > end:
                    break
                self._deliver(heapq.heappop(self.queue))
            elif at > end:
                break
            else:
                node = heapq.heappop(self.wakes)[2]
                self.now = Instant(max(self.now, at))
                self.step(node, DeadlineReached())
        self.now = Instant(end)
        return until is not None and until()

    def _next_wake(self) -> float:
        while self.wakes:
            at, _, node = self.wakes[0]
            if node.up and not node.asleep and node.swim.next_deadline() == at:
                return at
            heapq.heappop(self.wakes)
        return float("inf")

    def _deliver(self, entry: tuple[float, int, Address, Address, bytes]) -> None:
        at, _, source, to, data = entry
        self.now = Instant(max(self.now, at))
        target = self.by_address.get(to)
        if target is None:
            return
        if target.asleep:
            target.mail.append((data, source))
        elif target.up:
            self.step(target, DatagramReceived(data, source))

    def sleep(self, node: Node) -> None:
        """The process is stopped: its mail waits, its timers do not fire."""
        node.asleep = True

    def wake(self, node: Node) -> None:
        """It goes on: all mail first, then the overdue timer."""
        node.asleep = False
        mail, node.mail = node.mail, []
        for data, source in mail:
            self.step(node, DatagramReceived(data, source))
        self.step(node, DeadlineReached())

    def crash(self, node: Node) -> None:
        """It is gone without a word."""
        node.up = False

    def restart(self, index: int, *, epoch: int) -> Node:
        """Start a node anew under its old id: it knows nobody."""
        return self.add(index=index, epoch=epoch)

    def knock(self, index: int) -> None:
        """Let a node try all other addresses, as a cache of known peers would have it."""
        others = tuple(n.address for n in self.nodes if n is not self.nodes[index])
        self.step(self.nodes[index], JoinRequested(others))

    def split(self, one_side: set[Node]) -> None:
        """No datagram passes between `one_side` and the rest until `heal`."""
        self.drop = lambda a, b: (a in one_side) != (b in one_side)

    def heal(self) -> None:
        """All datagrams pass again."""
        self.drop = lambda _source, _target: False

    def lose(self, fraction: float) -> None:
        """Lose this share of all datagrams from now on."""
        self.drop = lambda _source, _target: self.rng.random() < fraction

    def state(self, observer: int, subject: int) -> MemberState | None:
        member = self.nodes[observer].swim.members.get(self.nodes[subject].id)
        return None if member is None else member.state

    def all_see(self, state: MemberState, subject: int) -> bool:
        return all(
            self.state(index, subject) is state
            for index, node in enumerate(self.nodes)
            if node.up and index != subject
        )

    def converged(self) -> bool:
        """Every node that is up sees exactly those that are up as alive."""
        up = [n for n in self.nodes if n.up]
        return all(n.swim.members.live == len(up) for n in up) and (
            len({n.swim.members.view_hash for n in up}) == 1
        )

    def knows_state(self) -> bool:
        """Every node that is up holds the whole state of every other."""
        up = [n for n in self.nodes if n.up]
        return all(self._holds_state(one, other) for one in up for other in up)

    def _holds_state(self, observer: Node, subject: Node) -> bool:
        me = subject.swim.me
        held = observer.swim.state_of(me.node)
        if held is None:
            return me.state_version == 0
        return (held.epoch, held.version) == (me.epoch, me.state_version)

    def effects_of(self, kind: type) -> list[tuple[Node, Effect]]:
        """All effects of one kind so far, with the node that had them."""
        return [(node, e) for node in self.nodes for e in node.effects if isinstance(e, kind)]


def meshed(count: int, *, seed: int = 1, config: GossipConfig | None = None) -> Fabric:
    """A converged mesh of `count`, a few seconds old."""
    fabric = Fabric(count, seed=seed, config=config)
    fabric.join_all()
    assert fabric.run(30, until=fabric.converged)
    fabric.run(3)
    return fabric


def node_id(number: int) -> NodeId:
    """The id of the node with this index."""
    return NodeId(bytes([number * 37 % 256, 0, 0, 0, 0, 0, number // 256, number % 256 + 1]))
