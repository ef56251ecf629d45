"""Asks peers how busy they are just now, before one of them is given work; within a budget."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from meshd.bucket import TokenBucket
from meshd.clock import Clock, Seconds
from meshd.deadline import Deadline
from meshd.model import Load, NodeId
from meshd.routing.probes import (
    LOOKS_MAX,
    OVER_BUDGET,
    Answers,
    MessageBudget,
    Probes,
)
from meshd.routing.router import Plan, reranked, second_look
from meshd.routing.signals import Outstanding
from meshd.view import ClusterView

PROBES_PER_S = 500.0
PROBES_SAVED = 100.0
"""What one node asks a second, and at once: half of what a member takes from another."""

DEADLINE_FRACTION = 0.05
"""The most of a call's remaining time that its probes may take."""


class Prober(Protocol):
    """Asks peers for their load by one datagram each way; gossip fits."""

    def load_here(self) -> Load:
        """This node's own load."""
        ...

    async def probe(
        self, nodes: Sequence[NodeId], wait_s: Seconds, is_enough: Callable[[Answers], bool]
    ) -> Answers:
        """Who answers within `wait_s`, or until `is_enough` is true; it is asked at each answer."""
        ...


class Probing:
    """The probes of one node's calls, within what a second and what a call may cost.

    `counters` has `probes`, how many were sent, `answered`, how many of them were in time, and
    `over_budget`, how many looks were left out as there had been too many.
    """

    def __init__(self, clock: Clock, prober: Prober | None, outstanding: Outstanding) -> None:
        self.counters: Counter[str] = Counter(probes=0, answered=0, over_budget=0)
        self._clock = clock
        self._prober = prober
        self._outstanding = outstanding
        self._a_second = TokenBucket(PROBES_PER_S, PROBES_SAVED)
        self.messages = MessageBudget()

    def look_here(self, view: ClusterView, capability: str) -> None:
        """Note how busy this node itself is, where it could do the work: that costs nothing."""
        me = view.get(view.me)
        if self._prober is not None and me is not None and me.offers(capability) is not None:
            self._outstanding.on_reply(view.me, self._prober.load_here(), self._clock.now())

    async def look(self, made: Plan, deadline: Deadline, view: Callable[[], ClusterView]) -> Plan:
        """The plan in the order that answers give it: the best two's, and if need be others'.

        `deadline` is that of the call; `view` is asked again after each wait. Who may not be asked
        any more is left out, which may be all of them.
        """
        if self._prober is None:
            return made
        probes = made.probes
        for _ in range(LOOKS_MAX):
            left_s = DEADLINE_FRACTION * deadline.remaining(self._clock.now())
            probes = probes.within(left_s)
            why_not = probes.why_not or self._why_not(len(probes.nodes))
            if why_not:
                return made if made.asked else made.unprobed(why_not)
            answers = await self._answers(self._prober, probes)
            seen = view()
            self.look_here(seen, made.need.capability)
            made = reranked(made, probes.nodes, answers, seen, self._clock.now())
            probes = second_look(made)
            if not probes.nodes:
                break
        return made

    async def _answers(self, prober: Prober, probes: Probes) -> Answers:
        """What those answer in time who are to be asked; the signals know each as it comes."""
        known: set[NodeId] = set()

        def take(answers: Answers) -> bool:
            now = self._clock.now()
            for node in answers.keys() - known:
                known.add(node)
                self._outstanding.on_reply(node, answers[node][1], now)
            return probes.is_settled(answers)

        answers = await prober.probe(probes.nodes, probes.wait_s, take)
        take(answers)
        self.counters["probes"] += len(probes.nodes)
        self.counters["answered"] += len(answers)
        return answers

    def _why_not(self, count: int) -> str:
        """Why so many probes are not within both budgets; else they are spent, and it is empty."""
        now = self._clock.now()
        if not self.messages.has(count) or self._a_second.tokens(now) < count:
            self.counters["over_budget"] += 1
            return OVER_BUDGET
        self.messages.spend(count)
        for _ in range(count):
            self._a_second.take(now)
        return ""
