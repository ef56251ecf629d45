"""The ways to choose workers that are compared: the production router's policies, and baselines."""

from collections.abc import Callable
from functools import partial

from meshd.clock import Instant
from meshd.model import Load
from meshd.routing.need import Need
from meshd.routing.probes import LOOKS_MAX, Answers, Probes
from meshd.routing.router import Plan, plan, reranked, second_look
from meshd.routing.settings import RoutingSettings
from meshd.routing.signals import DEFAULT_SERVICE_S
from meshd.view import Peer
from meshd.work.admission import QUEUE_DEFAULT
from sim.routing.calls import Call, Run, Way
from sim.routing.cells import RTT_S, SERVICE_S, SLOTS
from sim.routing.fleet import CAPABILITY, Node

UNBOUNDED = 100_000
"""Places in a worker's queue where it refuses nothing, as those have it who only look at load."""
SETTINGS = RoutingSettings()


class Production:
    """What the node does: the pipeline, with one of its policies."""

    queue_max = QUEUE_DEFAULT

    def __init__(self, policy: str = "adaptive") -> None:
        self._policy = policy

    def choose(self, run: Run, call: Call) -> None:
        """As the dispatcher does it; its bound of probes a second is not reached here."""
        node, now = call.node, Instant(run.world.now)
        node.outstanding.on_reply(node.id, node.worker.load(), now)
        made = plan(
            node.view(), Need(CAPABILITY, tried=call.refused | call.failed), now,
            outstanding=node.outstanding, random=node.random, settings=SETTINGS,
            breakers=node.breakers, policy=self._policy, last=node.last,
        )  # fmt: skip
        if made.chosen is None:
            run.wait(call, call.offer_s or DEFAULT_SERVICE_S)
        elif made.probes.nodes and not call.has_probed:
            call.has_probed = True
            self._look(run, call, made, made.probes, LOOKS_MAX)
        else:
            self._send(run, call, made)

    def _look(self, run: Run, call: Call, made: Plan, probes: Probes, looks: int) -> None:
        """Ask these, unless so many looks were had, or there were too many questions lately."""
        budget, count = call.node.budget, len(probes.nodes)
        if count and looks and budget.has(count):
            budget.spend(count)
            run.probe(call, probes, partial(self._go_on, run, call, made, probes, looks - 1))
        else:
            self._send(run, call, made)

    def _go_on(
        self, run: Run, call: Call, made: Plan, probes: Probes, looks: int, answers: Answers
    ) -> None:
        node, now = call.node, Instant(run.world.now)
        node.outstanding.on_reply(node.id, node.worker.load(), now)
        made = reranked(made, probes.nodes, answers, node.view(), now)
        self._look(run, call, made, second_look(made), looks)

    def _send(self, run: Run, call: Call, made: Plan) -> None:
        best, node, now = made.chosen, call.node, Instant(run.world.now)
        if best is None:
            self.choose(run, call)
            return
        peer = best.peer
        if peer.node not in made.spared and node.breakers.is_barred_at(peer, CAPABILITY, now):
            self.choose(run, call)
            return
        node.last = peer.node
        run.send(call, peer)


class Lowest:
    """Whoever looks best in the last gossip, of all or of a few at random; workers never refuse."""

    queue_max = UNBOUNDED

    def __init__(self, cost: Callable[[Peer, Load], float], sample: int = 0) -> None:
        self._cost = cost
        self._sample = sample

    def choose(self, run: Run, call: Call) -> None:
        """Look at the view alone: neither own calls nor replies are counted."""
        random = call.node.random
        peers = [p for p in call.node.view().by_node.values() if p.node not in call.failed]
        random.shuffle(peers)
        if self._sample:
            peers = peers[: self._sample]
        run.send(call, min(peers, key=self._key))

    def _key(self, peer: Peer) -> float:
        assert peer.load is not None, "all have told"
        return self._cost(peer, peer.load)


class Everyone:
    """Asks all nodes before each call, and takes the soonest done.

    It is given what it could hardly learn: true speeds, as averages of what tasks took are noise
    that all would herd on, and at once who does not answer. What it cannot know is what others send
    in the same round trip; the clairvoyant does. Workers refuse nothing.
    """

    queue_max = UNBOUNDED

    def __init__(self, *, is_clairvoyant: bool = False) -> None:
        self._is_clairvoyant = is_clairvoyant

    def choose(self, run: Run, call: Call) -> None:
        """Asked and answered: a round trip. The answers are as old as their way back."""
        run.tell(call, 2 * (len(run.fleet.nodes) - 1))
        if self._is_clairvoyant:
            run.later(RTT_S, lambda: self._send(run, call, self._best(run, call)))
        else:
            run.later(RTT_S / 2.0, partial(self._look, run, call))

    def _look(self, run: Run, call: Call) -> None:
        best = self._best(run, call)
        run.later(RTT_S / 2.0, lambda: self._send(run, call, best))

    def _send(self, run: Run, call: Call, best: Node) -> None:
        run.send(call, run.fleet.said_by(best))

    def _best(self, run: Run, call: Call) -> Node:
        fleet, me = run.fleet, call.node
        heard = [
            node
            for node in fleet.nodes
            if node.id not in call.failed
            and (node is me or not (fleet.is_lost() or fleet.is_lost()))
        ]
        me.random.shuffle(heard)
        return min(heard, key=lambda node: self._order(node, me))

    def _order(self, node: Node, me: Node) -> tuple[bool, float]:
        """Who is free, by speed, then the shortest queue, by the time that it takes."""
        requests, service_s = node.worker.requests, SERVICE_S / node.worker.speed
        if self._is_clairvoyant:
            requests += node.worker.expected
        time_s = service_s * (requests + 1) / SLOTS + (0.0 if node is me else RTT_S)
        return requests >= SLOTS, time_s


def _cpu_and_latency(peer: Peer, load: Load) -> float:
    del peer  # all are equally far
    return 0.7 * load.cpu_fraction


WAYS: dict[str, Callable[[], Way]] = {
    "adaptive": Production,
    "least_loaded": partial(Production, "least_loaded"),
    "weighted": partial(Production, "weighted"),
    "round_robin": partial(Production, "round_robin"),
    "random": partial(Production, "random"),
    "everyone": Everyone,
    "clairvoyant": partial(Everyone, is_clairvoyant=True),
    "gossip_least": partial(Lowest, lambda _, load: (load.in_flight + load.queue) / load.slots),
    "gossip_cpu": partial(Lowest, _cpu_and_latency),
    "gossip_two": partial(Lowest, lambda _, load: (load.in_flight + load.queue) / load.slots, 2),
    "blind": partial(Lowest, lambda _, __: 0.0),
}
"""By name: the production policies, then the ideal, then what others do with gossip alone."""
