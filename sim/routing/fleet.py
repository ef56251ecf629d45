"""The nodes of a simulated mesh, with the production router's books and the worker's admission."""

import random
from collections.abc import Callable
from functools import partial

from meshd.capability.manifest import CapabilitySummary
from meshd.clock import Instant, Seconds
from meshd.gossip.codec import pack_load, unpack_load
from meshd.model import Address, Epoch, Incarnation, Load, MemberState, NodeId
from meshd.routing.breakers import Breakers
from meshd.routing.probes import MessageBudget
from meshd.routing.signals import Outstanding
from meshd.routing.waiting import WaitingRoom
from meshd.view import ClusterView, Peer
from meshd.work.admission import Admission, Outcome, Refuse, Ticket
from sim.routing.cells import (
    ANTAGONIST_FACTOR,
    ANTAGONIST_S,
    RTT_S,
    SLOTS,
    Cell,
    Kind,
)
from sim.world import START_S, World, node_id

CAPABILITY = "task"
VIEW_S: Seconds = 0.1
"""How often a node makes a new view of loads, at most: as the daemon does."""
NEVER_STALE_S: Seconds = 1e6
DEADLINE_S: Seconds = 1e4
WAITING_MAX = 100_000
SINKHOLE_S: Seconds = 0.005
_SUMMARY = (CapabilitySummary(CAPABILITY, "1.0.0", True, "agent", "", (), b""),)

Ended = Callable[[bool], None]


class Worker:
    """One node's slots and queue, by the production admission."""

    def __init__(self, world: World, speed: float, queue_max: int) -> None:
        self.speed = speed
        self.slowdown = 1.0
        self.fails = False
        self.done = 0
        self.expected = 0
        """Tasks on their way to it: who asks it cannot know of them."""
        self.admission = Admission(slots=SLOTS, queue_max=queue_max)
        self._world = world
        self._tasks: dict[str, tuple[Seconds, Ended]] = {}
        self._number = 0

    def submit(self, task_s: Seconds, ended: Ended) -> Refuse | None:
        """Take a task of so long at speed 1; the refusal if it is not taken."""
        self._number += 1
        ticket = Ticket(str(self._number), CAPABILITY)
        waited = self.admission.submit(ticket, DEADLINE_S)
        if isinstance(waited, Refuse):
            return waited
        self._tasks[ticket.id] = (task_s, ended)
        if ticket.id in self.admission._running:  # noqa: SLF001 - `running` is a copy of all
            self._start(ticket.id)
        return None

    def _start(self, ticket_id: str) -> None:
        takes_s = self._tasks[ticket_id][0] * self.slowdown / self.speed
        if self.fails:
            takes_s = SINKHOLE_S
        self._world.call_at(self._world.now + takes_s, partial(self._finish, ticket_id, takes_s))

    def _finish(self, ticket_id: str, took_s: Seconds) -> None:
        _, ended = self._tasks.pop(ticket_id)
        outcome = Outcome.FAILED if self.fails else Outcome.DONE
        for started in self.admission.finish(ticket_id, took_s, outcome):
            self._start(started)
        self.done += 1
        ended(not self.fails)

    @property
    def requests(self) -> int:
        """How many it has: run or wait."""
        return len(self.admission._running) + self.admission._queued  # noqa: SLF001 - copies cost

    def load(self) -> Load:
        """What it says of itself now."""
        work = self.admission.load()
        return Load(
            cpu_fraction=work.in_flight / work.slots, in_flight=work.in_flight, queue=work.queue,
            slots=work.slots, service_s=work.service_s, full=work.full,
            error_fraction=work.error_fraction,
        )  # fmt: skip


class Node:
    """One node: a worker, and what it knows of the others."""

    def __init__(self, fleet: "Fleet", index: int, worker: Worker) -> None:
        self.index = index
        self.id = node_id(index)
        self.worker = worker
        self.outstanding = Outstanding()
        self.breakers = Breakers()
        self.random = fleet.world.random(f"routing/{index}")
        self.budget = MessageBudget()
        self.waiting = WaitingRoom(WAITING_MAX)
        self.rows: dict[NodeId, Peer] = {}
        self.last: NodeId | None = None
        self._fleet = fleet
        self._view: ClusterView | None = None
        self._viewed_at = 0.0

    def view(self) -> ClusterView:
        """What it believes: old by up to `VIEW_S` where it has heard more since."""
        now = self._fleet.world.now
        if self._view is None or now - self._viewed_at >= VIEW_S:
            self._viewed_at = now
            self._view = ClusterView(
                version=1, me=self.id, by_node=dict(self.rows), stale_after_s=NEVER_STALE_S
            )
        return self._view

    def hear(self, peer: Peer) -> None:
        """Take in what another node says of itself."""
        held = self.rows.get(peer.node)
        if held is None or held.load_at is None or held.load_at <= (peer.load_at or 0.0):
            self.rows[peer.node] = peer


class Fleet:
    """All nodes, and the gossip between them."""

    def __init__(self, cell: Cell, seed: int, *, queue_max: int) -> None:
        self.cell = cell
        self.world = world = World(0, seed)
        self.network = world.random("routing/network")
        self.gossips = 0
        speeds = cell.speeds(world.random("routing/speeds"))
        self.capacity = sum(speed * SLOTS for speed in speeds)
        if cell.kind is Kind.ANTAGONIST:
            # Of what is left of it, on average, the cell's load is a share.
            self.capacity -= SLOTS * cell.antagonists * (1.0 - 1.0 / ANTAGONIST_FACTOR)
        self.nodes = [
            Node(self, index, Worker(world, speed, queue_max)) for index, speed in enumerate(speeds)
        ]
        self.by_id = {node.id: node for node in self.nodes}
        phase = world.random("routing/phase")
        for node in self.nodes:
            said = self.said_by(node)
            for other in self.nodes:
                other.hear(said)
        for node in self.nodes:
            world.call_at(START_S + phase.random() * cell.period, partial(self._gossip, node))
        if cell.kind is Kind.ANTAGONIST:
            self._slow_down(world.random("routing/antagonist"))
        if cell.kind is Kind.SINKHOLE:
            self.nodes[0].worker.fails = True

    def said_by(self, node: Node) -> Peer:
        """A node's row as others have it that hear from it now."""
        now = Instant(self.world.now)
        load = unpack_load(pack_load(node.worker.load()))
        return Peer(
            node=node.id, name=str(node.index), address=Address("10.0.0.1", node.index),
            state=MemberState.ALIVE, epoch=Epoch(1), incarnation=Incarnation(0),
            capabilities=_SUMMARY, load=load, load_at=now, heard_at=now,
            rtt_s=RTT_S,
        )  # fmt: skip

    def _gossip(self, node: Node) -> None:
        """Tell all; what is lost on the way is not told again before the next period."""
        self.gossips += 1
        said, loss, draw = self.said_by(node), self.cell.loss, self.network.random
        for other in self.nodes:
            if not loss or draw() >= loss:
                other.hear(said)
        self.world.call_at(self.world.now + self.cell.period, partial(self._gossip, node))

    def way_s(self) -> Seconds:
        """How long something is under way to or from another node."""
        return RTT_S * (0.4 + 0.2 * self.network.random())

    def is_lost(self) -> bool:
        """Whether a datagram does not arrive."""
        return self.cell.loss > 0.0 and self.network.random() < self.cell.loss

    def _slow_down(self, rng: random.Random) -> None:
        """For a while, a tenth of the nodes takes four times as long for whatever it begins."""
        chosen = rng.sample(self.nodes, self.cell.antagonists)
        lasts_s = rng.uniform(*ANTAGONIST_S)
        for node in chosen:
            node.worker.slowdown = ANTAGONIST_FACTOR

        def again() -> None:
            for node in chosen:
                node.worker.slowdown = 1.0
            self._slow_down(rng)

        self.world.call_at(self.world.now + lasts_s, again)
