"""Plans that stand for a moment: what one look at the reports is worth to more than one call.

Work that is too short to ask about is spread by the room that peers have (see
`meshd.routing.draw`). That tells not only who comes next but how many fit in where, so that the
calls right after one with a plan need none of their own: they are drawn from what is left.
"""

from collections.abc import Mapping
from random import Random

from msgspec.structs import replace

from meshd.clock import Instant, Seconds
from meshd.model import Load, NodeId
from meshd.routing.draw import room
from meshd.routing.probes import TOO_SHORT
from meshd.routing.router import Plan
from meshd.routing.settings import RoutingSettings
from meshd.routing.signals import Estimate
from meshd.view import ClusterView

STANDS_S: Seconds = 0.005
"""For so long at most: what is too short to ask about takes up to 20 ms."""

CAPABILITIES_MAX = 256
"""Capabilities with a plan that stands; beyond it all are forgotten."""

Reports = Mapping[NodeId, tuple[Load, Instant]]


class _Standing:
    """A plan, where it holds, and the room that is left at each of its candidates."""

    __slots__ = ("made", "room", "settings", "until", "view")

    def __init__(
        self, made: Plan, view: ClusterView, settings: RoutingSettings, until: Instant
    ) -> None:
        self.made = made
        self.view = view
        self.settings = settings
        self.until = until
        self.room = room([c.made_of for c in made.attempts if isinstance(c.made_of, Estimate)])
        self.take(0)

    def take(self, index: int) -> None:
        """A call goes there."""
        self.room[index] = max(0.0, self.room[index] - 1.0)


class Standings:
    """The plans that stand, by capability. They are for calls that ask for nothing else."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._standing: dict[str, _Standing] = {}

    def keep(self, made: Plan, view: ClusterView, settings: RoutingSettings, now: Instant) -> None:
        """Let a plan stand, if it is one of short work that nothing is wrong with."""
        is_calm = not (made.trials or made.spared or made.circuit)
        if made.probes.why_not == TOO_SHORT and made.rule.is_eta and made.attempts and is_calm:
            if len(self._standing) >= CAPABILITIES_MAX:
                self._standing.clear()
            until = Instant(now + STANDS_S)
            self._standing[made.need.capability] = _Standing(made, view, settings, until)

    def drop(self, capability: str) -> None:
        """Something went wrong: the next call gets a plan of its own."""
        self._standing.pop(capability, None)

    def plan(
        self,
        capability: str,
        view: ClusterView,
        settings: RoutingSettings,
        now: Instant,
        reports: Reports,
    ) -> Plan | None:
        """The plan that stands, led by whoever has room; None where there is none, or no more."""
        standing = self._standing.get(capability)
        if standing is None:
            return None
        room_left = standing.room
        total = sum(room_left)
        holds = standing.view is view and standing.settings is settings and now < standing.until
        if not holds or total < 1.0:
            del self._standing[capability]
            return None
        drawn, index = self._random.random() * total, 0
        while drawn >= room_left[index] and index < len(room_left) - 1:
            drawn -= room_left[index]
            index += 1
        attempts = standing.made.attempts
        chosen = attempts[index]
        report = reports.get(chosen.peer.node)
        if report is not None and not _takes_work(report[0]):
            del self._standing[capability]
            return None
        standing.take(index)
        others = (*attempts[:index], *attempts[index + 1 :])
        return replace(standing.made, attempts=(chosen, *others))


def _takes_work(load: Load) -> bool:
    return load.ready and not load.full and not load.draining
