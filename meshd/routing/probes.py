"""Which of a plan's candidates are worth asking how busy they are just now, and for how long."""

import math
from collections.abc import Mapping, Sequence

import msgspec

from meshd.clock import Seconds
from meshd.model import Load, NodeId
from meshd.routing.signals import Estimate

PROBED_MAX = 2
"""Source: the routing simulation in the design notes, and Mitzenmacher 2001: of two choices the
better one is most of what asking all would bring."""

LOOKS_MAX = 2
"""How often one call asks candidates for their load: the best two, then two more."""

PROBE_S_MAX: Seconds = 0.05
PROBE_FRACTION = 0.05
"""The longest wait for an answer, absolute and as a share of the service time."""

PROBE_S_MIN: Seconds = 0.001
"""For a shorter wait no question is worth its way through two threads."""

YOUNG_FRACTION = 0.1
"""A report that shows a free slot holds for this share of the service time, for each free slot."""

ALIKE = 1.25
"""Service times within this ratio are as good as equal: averages are no more exact than that."""

MESSAGES_PER_CALL = 5.8
MESSAGES_SAVED = 60.0
"""Nobody is asked while calls cost more than this on average in probes and refusals, of which they
may have left over so much. A probe is two messages, and so is a refusal.
Source: the routing simulation in the design notes.
"""

NO_CHOICE = "there is no choice"
NO_LOAD = "the policy does not look at load"
TOO_SHORT = "the work is short against the round trip"
YOUNG = "the best one's report is young and shows room"
NO_EQUAL = "no other is as good by what comes first"
NOT_FIRST = "it is not the first try"
BIDS = "bids were asked for"
OVER_BUDGET = "there were too many questions and refusals lately"
TOO_LATE = "too little time is left"
ONLY_PLANNED = "nothing was sent"

Answers = Mapping[NodeId, tuple[Seconds, Load]]
"""The round trip and the load of each that has answered."""


class Probes(msgspec.Struct, frozen=True):
    """Whom to ask how busy they are before one gets the work, and how long at most.

    `service_s` is what the work is expected to take at each, `rtt_s` how far each is; nobody is
    asked if they are empty, and `why_not` says why. Not `is_by_time`, all answers count, not only
    the first good one.
    """

    service_s: Mapping[NodeId, Seconds] = {}
    wait_s: Seconds = 0.0
    why_not: str = ""
    is_by_time: bool = True
    rtt_s: Mapping[NodeId, Seconds] = {}

    @property
    def nodes(self) -> tuple[NodeId, ...]:
        """Who is asked, the best first."""
        return tuple(self.service_s)

    def within(self, wait_s: Seconds) -> "Probes":
        """Those of them that can answer in so short a wait."""
        wait_s = min(wait_s, self.wait_s)
        near = {n: each_s for n, each_s in self.service_s.items() if self.rtt_s[n] <= wait_s}
        if not near or wait_s < PROBE_S_MIN:
            return Probes(why_not=TOO_LATE)
        return msgspec.structs.replace(self, service_s=near, wait_s=wait_s)

    def is_settled(self, answers: Answers) -> bool:
        """Whether one has answered that has room, and that the silent ones can hardly beat."""
        if not self.is_by_time:
            return False
        silent_s = [each_s for node, each_s in self.service_s.items() if node not in answers]
        enough_s = ALIKE * min(silent_s, default=math.inf)
        return any(
            has_room(load) and self.service_s[node] <= enough_s
            for node, (_, load) in answers.items()
        )


class MessageBudget:
    """What one node's calls have left for probes once their refusals are paid."""

    def __init__(self) -> None:
        self._left = MESSAGES_SAVED

    def began(self) -> None:
        """A call came, and brings its share."""
        self._left = min(self._left + MESSAGES_PER_CALL, MESSAGES_SAVED)

    def spend(self, exchanges: int) -> None:
        """So many probes, or refusals, cost a message each way."""
        self._left = max(self._left - 2 * exchanges, -MESSAGES_SAVED)

    def has(self, exchanges: int) -> bool:
        """Whether there is enough left for so many."""
        return self._left >= 2 * exchanges


def is_short(estimates: Sequence[Estimate]) -> bool:
    """Whether the work is too short to ask about, or all are too far, at whomever of these."""
    longest_s, nearest_s = 0.0, math.inf
    for each in estimates:
        longest_s = max(longest_s, each.service_s)
        nearest_s = min(nearest_s, each.rtt_s)
    wait_s = min(PROBE_S_MAX, PROBE_FRACTION * longest_s)
    return wait_s < PROBE_S_MIN or nearest_s > wait_s


def probes_of(
    estimates: Mapping[NodeId, Estimate], me: NodeId, *, is_by_time: bool = True
) -> Probes:
    """The probes for a plan's candidates, given the best first with what is thought of them.

    This node itself is not asked: its own load is known.
    """
    if len(estimates) < 2:
        return Probes(why_not=NO_CHOICE)
    best = list(estimates.items())[:PROBED_MAX]
    first = best[0][1]
    wait_s = min(PROBE_S_MAX, PROBE_FRACTION * first.service_s)
    asked = {node: each for node, each in best if node != me and each.rtt_s <= wait_s}
    if wait_s < PROBE_S_MIN or not asked:
        return Probes(why_not=TOO_SHORT)
    free = first.slots - first.rif
    if free >= 1 and first.age_s <= YOUNG_FRACTION * first.service_s * free:
        return Probes(why_not=YOUNG)
    return _asking(asked, wait_s, is_by_time=is_by_time)


def others_of(estimates: Mapping[NodeId, Estimate], first: Probes, me: NodeId) -> Probes:
    """The probes for further candidates, after the `first` ones found nobody with room."""
    near = [
        (node, each)
        for node, each in estimates.items()
        if node != me and each.rtt_s <= first.wait_s
    ]
    return _asking(dict(near[:PROBED_MAX]), first.wait_s)


def _asking(
    asked: Mapping[NodeId, Estimate], wait_s: Seconds, *, is_by_time: bool = True
) -> Probes:
    return Probes(
        {node: each.service_s for node, each in asked.items()},
        wait_s,
        is_by_time=is_by_time,
        rtt_s={node: each.rtt_s for node, each in asked.items()},
    )


def has_room(load: Load) -> bool:
    """Whether it would begin at once with a further task."""
    is_free = load.in_flight + load.queue < load.slots
    return is_free and load.ready and not load.full and not load.draining
