"""Invariants under fire: what floods and forgeries cost, and how long they are believed."""

from collections import deque
from collections.abc import Callable

from meshd.gossip.doors import (
    FREE_DATAGRAMS_PER_S,
    JOINS_BURST,
    JOINS_PER_S,
    STRANGER_DATAGRAMS_PER_S,
)
from meshd.gossip.effects import SendDatagram
from meshd.gossip.hearsay import TELLERS_MAX, UPDATES_MAX
from meshd.gossip.members import is_live
from meshd.gossip.messages import Welcome
from meshd.gossip.suspicion import suspicion_bounds_s
from meshd.model import Member
from sim.invariants.bounds import detection_bound_s
from sim.invariants.checkers import NOBODY, Checker, Violation
from sim.versions import kind_of
from sim.world import Host, World

_WELCOME = int(Welcome.__struct_config__.tag or 0)
DENIED_WITHIN_S = 3.0
"""By when nearly all have heard from the one named as sponsor that it has no such guest."""


class FloodsAreBounded(Checker):
    """H1: no flood is answered, or grows what waits, beyond what the doors let in."""

    invariant = "H1"
    EVERY_STEPS = 53

    def __init__(self, world: World, found: Callable[[Violation], None]) -> None:
        super().__init__(world, found)
        self._steps = 0
        self._welcomes: dict[int, deque[float]] = {}
        self._outward: dict[int, deque[float]] = {}

    def on_send(self, host: Host, effect: SendDatagram) -> None:
        """Count what goes to addresses where nobody of the mesh is."""
        if self.world.host_at(effect.to) is not None:
            return
        self._count(host, self._outward, 2 * (FREE_DATAGRAMS_PER_S + STRANGER_DATAGRAMS_PER_S))
        if kind_of(effect.data) == _WELCOME:
            self._count(host, self._welcomes, JOINS_PER_S + JOINS_BURST)

    def _count(self, host: Host, counted: dict[int, deque[float]], bound: int) -> None:
        now = self.world.now
        times = counted.setdefault(host.index, deque())
        times.append(now)
        while times[0] < now - 1:
            times.popleft()
        if len(times) > bound:
            self.fail(host.index, NOBODY, f"over {bound} answers to outsiders in a second")

    def on_step(self, host: Host) -> None:
        """Look at what waits, and at the table."""
        self._steps += 1
        if self._steps % self.EVERY_STEPS or host.swim is None:
            return
        waits = host.swim.pending()
        known = len(self.world.hosts) + len(self.world.invented)
        if waits["hearsay"] > TELLERS_MAX * UPDATES_MAX:
            self.fail(host.index, NOBODY, f"{waits['hearsay']} pieces of hearsay wait")
        if len(host.swim.members) > known or waits["rumours"] > known:
            text = f"{len(host.swim.members)} members, {waits['rumours']} rumours of {known} nodes"
            self.fail(host.index, NOBODY, text)


class GuestsAreDenied(Checker):
    """H2: whom a sponsor never met nobody holds alive for long, be the denial missed or not.

    The denial is a rumour: one in a few thousand misses it, and finds out by its own probes.
    """

    invariant = "H2"
    SAMPLES_MIN = 100
    LATE_SHARE_MAX = 0.01

    def __init__(self, world: World, found: Callable[[Violation], None]) -> None:
        super().__init__(world, found)
        self._asked = 0
        self._late = 0

    def on_change(self, host: Host, before: Member | None, after: Member) -> None:
        """Look again when all must have heard the sponsor, and when probes must have found out."""
        if before is not None or after.node not in self.world.invented:
            return
        world, run = self.world, host.runs
        size = len(world.hosts)
        probed_s = detection_bound_s(world, size) + suspicion_bounds_s(world.config, size)[1]

        def look(*, is_last: bool) -> None:
            if host.runs != run or host.swim is None or world.network.shape.loss:
                return
            held = host.swim.members.get(after.node)
            is_held = held is not None and is_live(held.state)
            if not is_last:
                self._count(is_held=is_held)
            elif is_held:
                self.fail(host.index, NOBODY, f"holds an invented guest alive for {probed_s:.1f} s")

        world.call_at(world.now + DENIED_WITHIN_S, lambda: look(is_last=False))
        world.call_at(world.now + probed_s, lambda: look(is_last=True))

    def _count(self, *, is_held: bool) -> None:
        self._asked += 1
        self._late += is_held
        if self._asked >= self.SAMPLES_MIN and self._late > self.LATE_SHARE_MAX * self._asked:
            text = f"{self._late} of {self._asked} still held an invented guest alive"
            self.fail(NOBODY, NOBODY, text)


def under_fire(world: World, found: Callable[[Violation], None]) -> list[Checker]:
    """All invariants under fire."""
    return [FloodsAreBounded(world, found), GuestsAreDenied(world, found)]
