"""One run: calls come at every node, are sent somewhere, are refused or done, and are counted."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from meshd.clock import Instant, Seconds
from meshd.model import Load, NodeId
from meshd.priority import PRIORITY_DEFAULT
from meshd.routing.breakers import Crossing
from meshd.routing.probes import Answers, Probes
from meshd.routing.signals import Outcome
from meshd.routing.waiting import Place
from meshd.view import Peer
from meshd.work.admission import Refuse
from sim.routing.cells import SERVICE_S, SLOTS, Cell
from sim.routing.fleet import CAPABILITY, DEADLINE_S, Fleet, Node

TRIES_MAX = 4
"""Candidates that one call asks before it waits, or of which so many failed it has failed."""
WAIT_S: tuple[Seconds, Seconds] = (0.005, 1.0)
"""Bounds of the wait after refusals, as in the dispatcher."""
WARM_PER_SLOT = 20
"""Calls a slot before any is counted: averages settle, queues fill."""


class Call:
    """One piece of work on its way."""

    __slots__ = (
        "failed", "has_probed", "is_counted", "node", "offer_s", "refused", "started", "task_s",
    )  # fmt: skip

    def __init__(self, node: Node, task_s: Seconds, now: float, *, is_counted: bool) -> None:
        self.node = node
        self.task_s = task_s
        self.started = now
        self.is_counted = is_counted
        self.has_probed = False
        self.offer_s: Seconds | None = None
        self.refused: frozenset[NodeId] = frozenset()
        self.failed: frozenset[NodeId] = frozenset()


@dataclass(frozen=True, slots=True)
class _Try:
    """One call at one node."""

    call: Call
    target: Node
    began: Instant
    crossing: Crossing


class Way(Protocol):
    """A way to choose workers."""

    @property
    def queue_max(self) -> int:
        """How many tasks may wait at a worker."""
        ...

    def choose(self, run: "Run", call: Call) -> None:
        """Send the call somewhere, at once or later."""
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """What one run comes to.

    Attributes:
        mean_s, p50_s, p99_s: of the calls that were done, from first to last, waits included.
        messages: probes, answers and refusals with what was refused, a call.
        refusals, failures: a call; the latter are ends, not tries.
        skew: the most tasks that a node did, to the mean, by the time that its speed makes of them.
    """

    mean_s: Seconds
    p50_s: Seconds
    p99_s: Seconds
    messages: float
    refusals: float
    failures: float
    skew: float


class Run:
    """The calls of one cell, chosen for in one way, from one seed."""

    def __init__(
        self, cell: Cell, way: Way, seed: int, calls: int, *, is_retrying: bool = True
    ) -> None:
        self.cell = cell
        self.fleet = fleet = Fleet(cell, seed, queue_max=way.queue_max)
        self.world = fleet.world
        self.messages = 0
        self._way = way
        self._tries_max = TRIES_MAX if is_retrying else 1
        self._arrivals = self.world.random("routing/arrivals")
        self._tasks = self.world.random("routing/tasks")
        self._rate = cell.load * fleet.capacity / SERVICE_S
        self._warm = WARM_PER_SLOT * len(fleet.nodes) * SLOTS
        self._left = calls
        self._total = calls + self._warm
        self._begun = 0
        self._took: list[Seconds] = []
        self._failures = self._refusals = 0
        self._next()

    def found(self) -> Found:
        """Run to the end."""
        self.world.run(float("inf"))
        took = sorted(self._took)
        count = len(took)
        calls = count + self._failures
        shares = [node.worker.done / node.worker.speed for node in self.fleet.nodes]
        return Found(
            mean_s=sum(took) / count,
            p50_s=took[count // 2],
            p99_s=took[int(count * 0.99)],
            messages=self.messages / calls,
            refusals=self._refusals / calls,
            failures=self._failures / calls,
            skew=max(shares) * len(shares) / sum(shares),
        )

    def _next(self) -> None:
        if self._begun < self._total:
            at = self.world.now + self._arrivals.expovariate(self._rate)
            self.world.call_at(at, self._begin)

    def _begin(self) -> None:
        node = self._arrivals.choice(self.fleet.nodes)
        is_counted = self._begun >= self._warm
        self._begun += 1
        call = Call(node, self.cell.task(self._tasks), self.world.now, is_counted=is_counted)
        self._next()
        node.budget.began()
        self._way.choose(self, call)

    # What ways do

    def later(self, wait_s: Seconds, action: Callable[[], None]) -> None:
        """Do something after a while."""
        self.world.call_at(self.world.now + wait_s, action)

    def tell(self, call: Call, messages: int) -> None:
        """Count messages of a call that is counted."""
        if call.is_counted:
            self.messages += messages

    def send(self, call: Call, peer: Peer) -> None:
        """Give the call to a node."""
        now, node = Instant(self.world.now), call.node
        crossing = node.breakers.begin(peer, CAPABILITY, now)
        node.outstanding.begin(peer, now)
        target = self.fleet.by_id[peer.node]
        target.worker.expected += 1
        tried = _Try(call, target, now, crossing)
        if target is node:
            self._arrive(tried)
        else:
            self.later(self.fleet.way_s(), partial(self._arrive, tried))

    def probe(self, call: Call, probes: Probes, done: Callable[[Answers], None]) -> None:
        """Ask nodes for their load; then, or when time is up, go on."""
        answers: dict[NodeId, tuple[Seconds, Load]] = {}
        asked_at, is_over = self.world.now, False

        def end() -> None:
            nonlocal is_over
            if not is_over:
                is_over = True
                done(answers)

        def take(said: Peer) -> None:
            call.node.hear(said)
            if is_over or said.load is None:
                return
            answers[said.node] = (self.world.now - asked_at, said.load)
            now = Instant(self.world.now)
            call.node.outstanding.on_reply(said.node, said.load, now)
            if len(answers) == len(probes.nodes) or probes.is_settled(answers):
                end()

        for node in probes.nodes:
            self.tell(call, 2)
            self._ask(call.node, self.fleet.by_id[node], take)
        self.later(probes.wait_s, end)

    def _ask(self, node: Node, target: Node, take: Callable[[Peer], None]) -> None:
        """One datagram each way; each carries its sender's load, and either may be lost."""

        def arrive() -> None:
            target.hear(asking)
            if not self.fleet.is_lost():
                self.later(self.fleet.way_s(), partial(take, self.fleet.said_by(target)))

        asking = self.fleet.said_by(node)
        if not self.fleet.is_lost():
            self.later(self.fleet.way_s(), arrive)

    def wait(self, call: Call, offer_s: Seconds) -> None:
        """Nobody has room: as in the dispatcher, whoever waits longest here asks next."""
        low, high = WAIT_S
        wait_s = min(max(offer_s * call.node.random.uniform(0.25, 0.75), low), high)
        call.refused, call.offer_s = frozenset(), None
        now, waiting = self.world.now, call.node.waiting
        latest = Instant(now + DEADLINE_S)
        place = Place(CAPABILITY, PRIORITY_DEFAULT, True, due=Instant(now + wait_s), latest=latest)
        is_over = False

        def ask() -> None:
            nonlocal is_over
            if is_over:
                return
            if place.is_woken or waiting.takes_turn(place):
                is_over = True
                waiting.leave(place)
                self._way.choose(self, call)
            else:
                self.world.call_at(place.due, ask)

        place.wake = partial(self.later, 0.0, ask)
        assert waiting.enter(place), "a room of the simulator has room"
        self.world.call_at(place.due, ask)

    # What comes of it

    def _arrive(self, tried: _Try) -> None:
        worker = tried.target.worker
        worker.expected -= 1
        refusal = worker.submit(
            tried.call.task_s, lambda is_done: self._answer(tried, is_done, None)
        )
        if refusal is not None:
            self._answer(tried, False, refusal)

    def _answer(self, tried: _Try, is_done: bool, refusal: Refuse | None) -> None:
        load = tried.target.worker.load()
        reply = partial(self._replied, tried, is_done, refusal, load)
        if tried.target is tried.call.node:
            reply()
        else:
            self.later(self.fleet.way_s(), reply)

    def _replied(self, tried: _Try, is_done: bool, refusal: Refuse | None, load: Load) -> None:
        now, call, target = Instant(self.world.now), tried.call, tried.target.id
        node = call.node
        outcome = Outcome.OK if is_done else Outcome.NEUTRAL if refusal else Outcome.FAILED
        node.outstanding.on_reply(target, load, now)
        node.outstanding.end(target, outcome, now, took_s=now - tried.began)
        node.breakers.end(tried.crossing, outcome, now, node.view, is_repeat=bool(call.failed))
        if is_done:
            self._end(call, is_done=True)
        elif refusal is None:
            call.failed |= {target}
            if len(call.failed) >= self._tries_max:
                self._end(call, is_done=False)
            else:
                self._way.choose(self, call)
        else:
            self._refused(call, target, refusal)

    def _refused(self, call: Call, target: NodeId, refusal: Refuse) -> None:
        self._refusals += call.is_counted
        call.node.budget.spend(1)
        self.tell(call, 0 if target == call.node.id else 2)
        call.refused |= {target}
        offer_s = refusal.eta_s if call.offer_s is None else min(call.offer_s, refusal.eta_s)
        call.offer_s = offer_s
        if len(call.refused) >= TRIES_MAX:
            self.wait(call, offer_s)
        else:
            self._way.choose(self, call)

    def _end(self, call: Call, *, is_done: bool) -> None:
        if not call.is_counted:
            return
        if is_done:
            self._took.append(self.world.now - call.started)
        else:
            self._failures += 1
        self._left -= 1
        if not self._left:
            self.world.is_halted = True
