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


class Node:
    """One machine, its address, and all effects that it had."""

    def __init__(self, swim: Swim, address: Address) -> None:
        self.swim = swim
        self.address = address
        self.effects: list[Effect] = []
        self.up = True
        self.paused_until: float | None = None
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
        self.nodes: list[Node] = []
        self.by_address: dict[Address, Node] = {}
        self.queue: list[tuple[float, int, Address, Address, bytes]] = []
        self.sent = 0
        self.drop: Callable[[Node, Node], bool] = lambda _source, _target: False
        for _ in range(count):
            self.add()

    def add(self, *, index: int | None = None, epoch: int = 1_000_000) -> Node:
        """A new node; with `index`, a restart of that one at a newer epoch."""
        number = len(self.nodes) if index is None else index
        node_id = NodeId(bytes([number * 37 % 256, 0, 0, 0, 0, 0, number // 256, number % 256 + 1]))
        address = Address(f"10.0.{number // 200}.{number % 200 + 1}", 6374)
        me = new_member(node_id, Epoch(epoch), address)
        swim = Swim(me, MESH, self.config, random.Random(self.rng.random()), self.now)
        node = Node(swim, address)
        if index is None:
            self.nodes.append(node)
        else:
            self.nodes[index] = node
        self.by_address[address] = node
        return node

    def step(self, node: Node, event: Input) -> list[Effect]:
        effects = node.swim.step(event, self.now)
        node.swim.validate()
        node.effects += effects
        for effect in effects:
            if isinstance(effect, SendDatagram):
                self.sent += 1
                node.packets += 1
                node.bytes += len(effect.data) + 28
                target = self.by_address.get(effect.to)
                if target is not None and not self.drop(node, target):
                    delay = 0.0005 + self.rng.random() * 0.001
                    entry = (self.now + delay, self.sent, node.address, effect.to, effect.data)
                    heapq.heappush(self.queue, entry)
        return effects

    def join_all(self, *, to: int = 0) -> None:
        """Everybody knocks at one node's door."""
        seed = self.nodes[to].address
        for node in self.nodes:
            if node.address != seed:
                self.step(node, JoinRequested((seed,)))

    def run(self, seconds: float, *, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass; true as soon as `until` holds, false if it never did."""
        end = self.now + seconds
        while True:
            if until is not None and until():
                return True
            deadlines = [
                (at, index)
                for index, node in enumerate(self.nodes)
                if node.up and (at := node.swim.next_deadline()) is not None
            ]
            at, index = min(deadlines, default=(float("inf"), -1))
            if self.queue and self.queue[0][0] <= at:
                at, _, source, to, data = heapq.heappop(self.queue)
                if at > end:
                    heapq.heappush(self.queue, (at, 0, source, to, data))
                    break
                self.now = Instant(max(self.now, at))
                target = self.by_address[to]
                if target.up:
                    self.step(target, DatagramReceived(data, source))
            else:
                if at > end:
                    break
                self.now = Instant(max(self.now, at))
                self.step(self.nodes[index], DeadlineReached())
        self.now = Instant(end)
        return until is not None and until()

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
