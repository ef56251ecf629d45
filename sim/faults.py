"""What can go wrong, as values: each is applied to a world at a time.

A fault that may make a live node look dead is a *disturbance* until it is over; the checkers ask
for accuracy only in calm.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from meshd.gossip.inputs import StateSet
from sim.network import Shape

if TYPE_CHECKING:
    from sim.world import Host, World

STARVE_LOW_S = 0.5
STARVE_HIGH_S = 2.5


class Fault(Protocol):
    """Something that happens to the world."""

    def apply(self, world: "World") -> None:
        """Let it happen now."""
        ...


@dataclass(frozen=True, slots=True)
class At:
    """A fault and when it happens, in seconds from the start of the run."""

    at_s: float
    fault: Fault


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
        world.disturb(what)
        world.sleep(host)

        def resume() -> None:
            if host.runs == run:
                world.wake(host)
            world.settle(what)

        world.call_at(world.now + self.for_s, resume, f"{self.node} goes on")


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
        what = f"starve {self.node}"
        world.disturb(what)
        host.late_s = (self.low_s, self.high_s)

        def end() -> None:
            world.recover(host)
            world.settle(what)

        world.call_at(world.now + self.for_s, end, f"{self.node} is fed")


@dataclass(frozen=True, slots=True)
class SlowNode:
    """Each packet costs a process `cost_s`; packets and timers wait for one another."""

    node: int
    cost_s: float
    for_s: float

    def apply(self, world: "World") -> None:
        """Begin; end later."""
        host = world.hosts[self.node]
        what = f"slow {self.node}"
        world.disturb(what)
        host.cost_s = self.cost_s

        def end() -> None:
            world.recover(host)
            world.settle(what)

        world.call_at(world.now + self.for_s, end, f"{self.node} is fast again")


@dataclass(frozen=True, slots=True)
class Partition:
    """No packet passes between the groups until healed. Who is in none of them hears everybody."""

    name: str
    groups: tuple[frozenset[int], ...]

    def apply(self, world: "World") -> None:
        """Cut both ways."""
        world.disturb("cut " + self.name)
        world.network.partition(self.name, self.groups)


@dataclass(frozen=True, slots=True)
class OneWay:
    """No packet passes from `sources` to `targets` until healed; the other way is open."""

    name: str
    sources: frozenset[int]
    targets: frozenset[int]

    def apply(self, world: "World") -> None:
        """Cut one way."""
        world.disturb("cut " + self.name)
        world.network.cut(self.name, self.sources, self.targets)


@dataclass(frozen=True, slots=True)
class Heal:
    """The cuts of this name are over."""

    name: str

    def apply(self, world: "World") -> None:
        """Remove them."""
        world.network.heal(self.name)
        world.settle("cut " + self.name)


@dataclass(frozen=True, slots=True)
class Clog:
    """Packets to and from a node wait for `for_s` seconds, then all arrive at once."""

    node: int
    for_s: float

    def apply(self, world: "World") -> None:
        """Hold its packets; let them go later."""
        what = f"clog {self.node}"
        world.disturb(what)
        world.network.clog(self.node, world.now + self.for_s)

        def end() -> None:
            world.network.unclog(self.node)
            world.settle(what)

        world.call_at(world.now + self.for_s, end, f"{self.node} is unclogged")


@dataclass(frozen=True, slots=True)
class LossyNode:
    """All links of a node lose this share of their packets for `for_s` seconds."""

    node: int
    loss: float
    for_s: float

    def apply(self, world: "World") -> None:
        """Begin; end later."""
        what = f"lossy {self.node}"
        world.disturb(what)
        world.network.override_node(self.node, self.loss)

        def end() -> None:
            world.network.override_node(self.node, None)
            world.settle(what)

        world.call_at(world.now + self.for_s, end, f"{self.node} loses no more")


@dataclass(frozen=True, slots=True)
class LossyLink:
    """One direction of one link loses this share of its packets for `for_s` seconds."""

    source: int
    target: int
    loss: float
    for_s: float

    def apply(self, world: "World") -> None:
        """Begin; end later."""
        what = f"lossy {self.source}>{self.target}"
        world.disturb(what)
        latency = world.network.shape.latency
        shape = Shape(latency=latency, loss=self.loss)
        world.network.override_link(self.source, self.target, shape)

        def end() -> None:
            world.network.override_link(self.source, self.target, None)
            world.settle(what)

        world.call_at(world.now + self.for_s, end, f"{self.source}>{self.target} loses no more")


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
    """A node writes a key of its own state."""

    node: int
    key: str
    value: bytes

    def apply(self, world: "World") -> None:
        """Write it if the node runs."""
        world.changed_at = world.now
        world.step(world.hosts[self.node], StateSet({self.key: self.value}))


def _wake_up(world: "World", host: "Host") -> None:
    """A stopped process that is killed is no longer stopped."""
    if host.asleep:
        host.asleep = False
        world.settle(f"pause {host.index}")
