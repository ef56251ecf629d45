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
from meshd.model import Member
from sim.invariants.checkers import NOBODY, Checker, Violation
from sim.versions import kind_of
from sim.world import Host, World

_WELCOME = int(Welcome.__struct_config__.tag or 0)
DENIED_WITHIN_S = 3.0
"""By when all have heard from the one named as sponsor that it has no such guest."""


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
    """H2: whom a sponsor never met nobody holds alive for long."""

    invariant = "H2"

    def on_change(self, host: Host, before: Member | None, after: Member) -> None:
        """Look again, when everybody must have heard the sponsor."""
        if before is not None or after.node not in self.world.invented:
            return
        world, swim = self.world, host.swim

        def look() -> None:
            held = None if swim is None or swim is not host.swim else swim.members.get(after.node)
            if held is not None and is_live(held.state) and not world.network.shape.loss:
                self.fail(host.index, NOBODY, f"an invented guest is {held.state.name}")

        world.call_at(world.now + DENIED_WITHIN_S, look)


def under_fire(world: World, found: Callable[[Violation], None]) -> list[Checker]:
    """All invariants under fire."""
    return [FloodsAreBounded(world, found), GuestsAreDenied(world, found)]
