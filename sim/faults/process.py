"""What can happen to a process, and to the machine that it runs on."""

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from meshd.errors import BusyError
from meshd.gossip.inputs import EventFired, PingRequested, StateSet
from meshd.gossip.suspicion import suspicion_bounds_s
from meshd.model import Load
from sim.faults.base import disturb_for

if TYPE_CHECKING:
    from sim.world import Host, World

STARVE_LOW_S = 0.5
STARVE_HIGH_S = 2.5
PAUSES_APART_S = 20.0
"""A short pause may kill nobody if the last one of the same node was so long ago."""
SLOTS = 8


@dataclass(frozen=True, slots=True)
class Start:
    """A host that was down from the beginning starts, and looks for the mesh at `seeds`."""

    node: int
    seeds: tuple[int, ...] = (0,)

    def apply(self, world: "World") -> None:
        """Start it if it is down."""
        host = world.hosts[self.node]
        if not host.is_up:
            world.start(host, self.seeds)
            world.changed_at = world.now


@dataclass(frozen=True, slots=True)
class Crash:
    """A process ends without a word."""

    node: int

    def apply(self, world: "World") -> None:
        """Kill it if it runs."""
        host = world.hosts[self.node]
        _wake_up(world, host)
        world.crash(host)


@dataclass(frozen=True, slots=True)
class Restart:
    """A process ends and starts anew `after_s` later, under the same id in a newer run."""

    node: int
    after_s: float = 0.0
    seeds: tuple[int, ...] = (0,)

    def apply(self, world: "World") -> None:
        """Kill it if it runs; start it then."""
        Crash(self.node).apply(world)
        again = Start(self.node, self.seeds)
        world.call_at(world.now + self.after_s, lambda: again.apply(world), f"starts: {again}")


@dataclass(frozen=True, slots=True)
class Leave:
    """A node says goodbye; its process ends after the linger time."""

    node: int

    def apply(self, world: "World") -> None:
        """Say goodbye if it runs."""
        world.leave(world.hosts[self.node])


@dataclass(frozen=True, slots=True)
class Rejoin:
    """A node that said goodbye comes back before its process ended."""

    node: int

    def apply(self, world: "World") -> None:
        """Come back if there still is a process."""
        world.rejoin(world.hosts[self.node])


@dataclass(frozen=True, slots=True)
class Pause:
    """A process is stopped for `for_s` seconds, as by SIGSTOP or a sleeping laptop."""

    node: int
    for_s: float

    def apply(self, world: "World") -> None:
        """Stop it; let it go on later."""
        host = world.hosts[self.node]
        what = f"pause {self.node}"
        run = host.runs
        if not host.is_up or host.asleep:
            return
        world.disturb(what, mild=_is_short(world, host, self.for_s))
        world.sleep(host)

        def resume() -> None:
            if host.runs == run:
                world.wake(host)
            world.settle(what)

        world.call_at(world.now + self.for_s, resume, f"{self.node} goes on")


@dataclass(frozen=True, slots=True)
class Block:
    """A handler computes for `for_s` seconds without giving way.

    At level 1 a node is one thread, so its mail and its timers are both late; the whole daemon of
    level 2 has a thread for the protocol, and loses but its main loop.
    """

    node: int
    for_s: float

    def apply(self, world: "World") -> None:
        """Block it; let it go on later."""
        host = world.hosts[self.node]
        what = f"block {self.node}"
        if not host.is_up or host.asleep:
            return
        world.disturb(what, mild=_is_short(world, host, self.for_s))
        world.block(host, self.for_s)
        world.call_at(world.now + self.for_s, lambda: world.settle(what))


@dataclass(frozen=True, slots=True)
class Starve:
    """A process reads each packet late, in order, while its timers are on time (kinship's cell)."""

    node: int
    for_s: float
    low_s: float = STARVE_LOW_S
    high_s: float = STARVE_HIGH_S

    def apply(self, world: "World") -> None:
        """Begin; end later."""
        host = world.hosts[self.node]
        host.late_s = (self.low_s, self.high_s)
        disturb_for(
            world,
            f"starve {self.node}",
            self.for_s,
            lambda: world.recover(host),
            f"{self.node} is fed",
        )


@dataclass(frozen=True, slots=True)
class SlowNode:
    """Each packet costs a process `cost_s`; packets and timers wait for one another."""

    node: int
    cost_s: float
    for_s: float

    def apply(self, world: "World") -> None:
        """Begin; end later."""
        host = world.hosts[self.node]
        host.cost_s = self.cost_s
        disturb_for(
            world,
            f"slow {self.node}",
            self.for_s,
            lambda: world.recover(host),
            f"{self.node} is fast again",
        )


@dataclass(frozen=True, slots=True)
class ClockJump:
    """A node's clocks leap by `by_s`: the wall clock either way, the monotonic one only forward."""

    node: int
    by_s: float

    def apply(self, world: "World") -> None:
        """Leap; timers that are overdue by now fire at once."""
        host = world.hosts[self.node]
        host.wall_s += self.by_s
        if self.by_s > 0:
            what = f"jump {self.node}"
            world.disturb(what)
            host.offset_s += self.by_s
            world.rearm(host)
            world.call_at(world.now, lambda: world.settle(what), "")


@dataclass(frozen=True, slots=True)
class SetState:
    """A node writes a key of its own state: `value`, so many `times` in a row."""

    node: int
    key: str
    value: bytes
    times: int = 1

    def apply(self, world: "World") -> None:
        """Write it if the node runs."""
        world.changed_at = world.now
        world.step(world.hosts[self.node], StateSet({self.key: self.value * self.times}))


@dataclass(frozen=True, slots=True)
class Loads:
    """Each node samples its load every `every_s` seconds, and finds it idle and busy in turn."""

    every_s: float
    for_s: float

    def apply(self, world: "World") -> None:
        """Begin, each node at a time of its own; end later."""
        rng = world.random("loads")
        until = world.now + self.for_s

        def sample(host: "Host", *, busy: bool) -> None:
            if world.now > until:
                return
            load = Load(
                cpu_fraction=rng.random(), in_flight=SLOTS if busy else 0, slots=SLOTS, full=busy
            )
            world.sample(host, load)
            world.call_at(world.now + self.every_s, lambda: sample(host, busy=not busy))

        for host in world.hosts:
            first = world.now + self.every_s * rng.random()
            world.call_at(first, partial(sample, host, busy=True))


@dataclass(frozen=True, slots=True)
class Asks:
    """Users ask each node every `every_s` seconds how far some member is."""

    every_s: float
    for_s: float

    def apply(self, world: "World") -> None:
        """Begin, each node at a time of its own; end later."""
        rng = world.random("asks")
        until = world.now + self.for_s
        world.is_visited = True

        def ask(host: "Host") -> None:
            if world.now > until:
                return
            if not host.asleep:
                world.step(host, PingRequested(rng.choice(world.hosts).id))
            world.call_at(world.now + self.every_s, partial(ask, host))

        for host in world.hosts:
            world.call_at(world.now + self.every_s * rng.random(), partial(ask, host))


@dataclass(frozen=True, slots=True)
class Tells:
    """Users of each node tell all others something, about every `every_s` seconds."""

    every_s: float
    for_s: float

    def apply(self, world: "World") -> None:
        """Begin, each node at a time of its own; end later."""
        rng = world.random("tells")
        until = world.now + self.for_s
        world.is_visited = True

        def tell(host: "Host", number: int) -> None:
            if world.now > until:
                return
            if not host.asleep and not host.leaving:
                with suppress(BusyError):
                    world.step(host, EventFired(f"e{number % 7}", b"%d" % number, number % 5 == 0))
            pause_s = self.every_s * (0.5 + rng.random())
            world.call_at(world.now + pause_s, partial(tell, host, number + 1))

        for host in world.hosts:
            world.call_at(world.now + self.every_s * rng.random(), partial(tell, host, 1))


def _is_short(world: "World", host: "Host", for_s: float) -> bool:
    """Whether a pause is too short to be taken for death: below T_min, and not one of many."""
    rested = world.now - host.paused_at >= PAUSES_APART_S
    host.paused_at = world.now + for_s
    return rested and for_s < suspicion_bounds_s(world.config, 1)[0]


def _wake_up(world: "World", host: "Host") -> None:
    """A stopped process that is killed is no longer stopped."""
    if host.asleep:
        host.asleep = False
        world.settle(f"pause {host.index}")
        world.settle(f"block {host.index}")
