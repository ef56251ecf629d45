"""Invariants of users' events: heard once, in rising times, and by nearly all."""

from collections.abc import Callable

from meshd.gossip.effects import Effect, EventHeard
from sim.invariants.bounds import spread_bound_s
from sim.invariants.checkers import NOBODY, Checker, Violation
from sim.network import LOSS_CALM
from sim.world import Host, World

SETTLED_S = 5.0
"""Who started later than this before an event need not hear it by the same time."""
REPAIRS = 4
"""Pauses between comparisons that an event may take to whom the rumour missed."""
Told = tuple[int, bytes, str]


class HeardOnce(Checker):
    """S11: nobody hears a user's event twice, in all its runs; a node's own events rise in time.

    A node that lost its memory, and an id that two processes use, cannot know what was heard.
    """

    invariant = "S11"

    def __init__(self, world: World, found: Callable[[Violation], None]) -> None:
        super().__init__(world, found)
        self._heard: set[tuple[int, Told]] = set()
        self._own: dict[int, int] = {}

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Look at each event that is delivered."""
        if type(effect) is not EventHeard or host.id in self.world.unruly:
            return
        told = effect.time, effect.origin, effect.name
        if (host.index, told) in self._heard:
            self.fail(host.index, self.index_of(effect.origin), f"heard {effect.name} twice")
        self._heard.add((host.index, told))
        if effect.origin == host.id and not effect.coalesce:
            if effect.time <= self._own.get(host.index, 0):
                self.fail(host.index, host.index, f"told {effect.name} in its past")
            self._own[host.index] = effect.time


class EventsArrive(Checker):
    """L10: in calm, all but one in 200 hear an event by the spreading bound and four comparisons.

    Those that may be coalesced are left out: of them only the newest need arrive.
    """

    invariant = "L10"
    SAMPLES_MIN = 200
    MISSED_SHARE_MAX = 0.005

    def __init__(self, world: World, found: Callable[[Violation], None]) -> None:
        super().__init__(world, found)
        self.asked = 0
        self.missed = 0
        self._heard: dict[Told, set[int]] = {}

    def on_effect(self, host: Host, effect: Effect) -> None:
        """Follow an event from its origin on."""
        if type(effect) is not EventHeard or effect.coalesce:
            return
        told = effect.time, effect.origin, effect.name
        known = told in self._heard
        self._heard.setdefault(told, set()).add(host.index)
        if known or effect.origin != host.id or self.world.network.shape.loss > LOSS_CALM:
            return
        after_s = spread_bound_s(self.world) + REPAIRS * self.world.config.quiet_s
        since = self.world.now
        self.world.call_at(since + after_s, lambda: self._look(host, told, since))

    def _look(self, origin: Host, told: Told, since: float) -> None:
        world = self.world
        if world.calm_since > since - 1:
            return
        audience = [
            host
            for host in world.members()
            if host.mesh == origin.mesh and host.started_at < since - SETTLED_S
        ]
        self.asked += len(audience)
        self.missed += sum(host.index not in self._heard[told] for host in audience)
        if self.asked >= self.SAMPLES_MIN and self.missed > self.MISSED_SHARE_MAX * self.asked:
            text = f"{self.missed} of {self.asked} missed events"
            self.fail(NOBODY, NOBODY, text)


def telling(world: World, found: Callable[[Violation], None]) -> list[Checker]:
    """All invariants of users' events."""
    return [HeardOnce(world, found), EventsArrive(world, found)]
