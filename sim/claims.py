"""Two claims about named policies, as small simulations of one dispatcher and some workers.

Calls arrive at random; each worker has slots and a short queue and refuses beyond it. Policies,
filters and signals are the production code; only calls and time are simulated.
"""

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from random import Random

import msgspec

from meshd.capability.manifest import CapabilitySummary
from meshd.clock import Instant, Seconds
from meshd.model import Address, Epoch, Incarnation, Load, MemberState, NodeId
from meshd.routing.need import Need
from meshd.routing.router import ATTEMPTS_MAX, plan
from meshd.routing.settings import RoutingSettings
from meshd.routing.signals import Outcome, Outstanding
from meshd.view import ClusterView, Peer

SLOTS = 4
CALLS = 2_000
DEADLINE_S: Seconds = 30.0
GOSSIP_S: Seconds = 1.0
"""So old may be what is known of a worker that was not called."""

FAILED_FRACTION = 0.01
"""Of calls where prices are compared, wherever they run: success is equal then."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Workers of one kind: how many, how long a task takes there, and what it costs."""

    workers: int
    service_s: Seconds
    cost_usd: float = 0.0


@dataclass(frozen=True, slots=True)
class Figures:
    """What came of all calls: mean time until the answer, what they cost, how many succeeded."""

    mean_s: Seconds
    cost_usd: float
    success: float


@dataclass(slots=True)
class _Worker:
    peer: Peer
    service_s: Seconds
    cost_usd: float
    running: int = 0
    queue: deque[Callable[[], None]] = field(default_factory=deque)

    def load(self) -> Load:
        """As its replies say it."""
        return Load(
            in_flight=self.running, queue=len(self.queue), slots=SLOTS, service_s=self.service_s,
            full=self.is_full,
        )  # fmt: skip

    @property
    def is_full(self) -> bool:
        """Whether it refuses: no slot is free, and its queue is as long as a worker's is."""
        return self.running >= SLOTS and len(self.queue) > SLOTS


class _Run:
    """One run: events in time order, and what came of the calls."""

    def __init__(
        self, kinds: tuple[Kind, ...], policy: str, seed: int, failed_fraction: float
    ) -> None:
        self._failed_fraction = failed_fraction
        self._random = Random(seed)
        self._policy = policy
        self._outstanding = Outstanding()
        self._settings = RoutingSettings()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._now = Instant(0.0)
        self._workers = {worker.peer.node: worker for worker in _workers(kinds)}
        self._last: NodeId | None = None
        self.took_s: list[Seconds] = []
        self.cost_usd = 0.0
        self.failed = 0

    def play(self, calls: int, calls_per_s: float) -> Figures:
        """All calls, to the end of the last."""
        at = 0.0
        for _ in range(calls):
            at += self._random.expovariate(calls_per_s)
            self._at(at, self._arrives)
        for second in range(1, int(at / GOSSIP_S) + 1):
            self._at(second * GOSSIP_S, self._gossips)
        while self._events:
            now, _, happens = heapq.heappop(self._events)
            self._now = Instant(now)
            happens()
        success = (len(self.took_s) - self.failed) / calls
        return Figures(sum(self.took_s) / len(self.took_s), self.cost_usd, success)

    def _at(self, when: float, happens: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), happens))

    def _gossips(self) -> None:
        for worker in self._workers.values():
            worker.peer = msgspec.structs.replace(
                worker.peer, load=worker.load(), load_at=self._now
            )

    def _arrives(self) -> None:
        """Ask one after the other, each planned afresh, as the dispatcher does."""
        refused: frozenset[NodeId] = frozenset()
        for _ in range(ATTEMPTS_MAX):
            made = plan(
                self._view(), Need("work", tried=refused), self._now, random=self._random,
                outstanding=self._outstanding, settings=self._settings, policy=self._policy,
                last=self._last,
            )  # fmt: skip
            if made.chosen is None:
                return
            node = made.chosen.peer.node
            worker = self._workers[node]
            if not worker.is_full:
                self._last = node
                self._given(worker)
                return
            self._outstanding.on_reply(node, worker.load(), self._now)
            refused |= {node}

    def _given(self, worker: _Worker) -> None:
        began = self._now
        self._outstanding.begin(worker.peer, began)

        def starts() -> None:
            worker.running += 1
            self._at(self._now + self._random.expovariate(1.0 / worker.service_s), ends)

        def ends() -> None:
            worker.running -= 1
            if worker.queue:
                worker.queue.popleft()()
            is_good = self._random.random() >= self._failed_fraction
            node, took_s = worker.peer.node, self._now - began
            self._outstanding.end(
                node, Outcome.OK if is_good else Outcome.FAILED, self._now, took_s=took_s,
            )  # fmt: skip
            self._outstanding.on_reply(node, worker.load(), self._now)
            self.took_s.append(took_s)
            self.cost_usd += worker.cost_usd
            self.failed += not is_good

        if worker.running < SLOTS:
            starts()
        else:
            worker.queue.append(starts)

    def _view(self) -> ClusterView:
        peers = {worker.peer.node: worker.peer for worker in self._workers.values()}
        return ClusterView(
            version=1, me=NodeId(bytes(8)), by_node=peers, stale_after_s=float("inf")
        )


def _workers(kinds: tuple[Kind, ...]) -> list[_Worker]:
    each = [kind for kind in kinds for _ in range(kind.workers)]
    return [
        _Worker(_peer(number, kind), kind.service_s, kind.cost_usd)
        for number, kind in enumerate(each, 1)
    ]


def _peer(number: int, kind: Kind) -> Peer:
    offered = CapabilitySummary(
        "work", "1.0.0", False, "agent", "", (), b"", cost_usd_per_call=kind.cost_usd
    )
    return Peer(
        node=NodeId(number.to_bytes(8)), name=f"n{number}", address=Address("127.0.0.1", number),
        state=MemberState.ALIVE, epoch=Epoch(1), incarnation=Incarnation(0),
        capabilities=(offered,), load=Load(slots=SLOTS, service_s=kind.service_s),
        load_at=Instant(0.0), heard_at=Instant(0.0), rtt_s=0.001,
    )  # fmt: skip


def simulate(
    kinds: tuple[Kind, ...],
    policy: str,
    *,
    calls_per_s: float,
    calls: int = CALLS,
    seed: int = 1,
    failed_fraction: float = 0.0,
) -> Figures:
    """What comes of so many calls by a policy."""
    return _Run(kinds, policy, seed, failed_fraction).play(calls, calls_per_s)


MIXED_SPEED = (Kind(5, 0.1), Kind(5, 1.0))
"""Half of the workers take ten times as long."""

MIXED_PRICE = (Kind(4, 0.2, 0.001), Kind(3, 0.2, 0.004), Kind(3, 0.2, 0.01))
"""Workers as fast as one another, at three prices."""


def claims(seed: int = 1, calls: int = CALLS) -> dict[str, float]:
    """How many times faster than at random, and what share of the spend is saved.

    `mean_ratio`: mean time with `random` over that with `fastest`. `spend_saved`: 1 less the spend
    with `cheapest` over that with `adaptive`, which looks at no price; `success_difference` is by
    how much the shares of calls that succeed then differ.
    """
    slow = simulate(MIXED_SPEED, "random", calls_per_s=12.0, calls=calls, seed=seed)
    fast = simulate(MIXED_SPEED, "fastest", calls_per_s=12.0, calls=calls, seed=seed)
    dear, cheap = (
        simulate(
            MIXED_PRICE, policy, calls_per_s=40.0, calls=calls, seed=seed,
            failed_fraction=FAILED_FRACTION,
        )
        for policy in ("adaptive", "cheapest")
    )  # fmt: skip
    return {
        "mean_random_s": slow.mean_s,
        "mean_fastest_s": fast.mean_s,
        "mean_ratio": slow.mean_s / fast.mean_s,
        "spend_adaptive_usd": dear.cost_usd,
        "spend_cheapest_usd": cheap.cost_usd,
        "spend_saved": 1.0 - cheap.cost_usd / dear.cost_usd,
        "success_difference": abs(cheap.success - dear.success),
    }
