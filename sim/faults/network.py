"""What can happen to the network between processes."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sim.faults.base import disturb_for

if TYPE_CHECKING:
    from sim.world import World


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
        world.network.clog(self.node, world.now + self.for_s)
        disturb_for(
            world,
            f"clog {self.node}",
            self.for_s,
            lambda: world.network.unclog(self.node),
            f"{self.node} is unclogged",
        )


@dataclass(frozen=True, slots=True)
class LossyNode:
    """All links of a node lose this share of their packets for `for_s` seconds."""

    node: int
    loss: float
    for_s: float

    def apply(self, world: "World") -> None:
        """Begin; end later."""
        world.network.override_node(self.node, self.loss)
        disturb_for(
            world,
            f"lossy {self.node}",
            self.for_s,
            lambda: world.network.override_node(self.node, None),
            f"{self.node} loses no more",
        )


@dataclass(frozen=True, slots=True)
class LossyLink:
    """One direction of one link loses this share of its packets for `for_s` seconds."""

    source: int
    target: int
    loss: float
    for_s: float

    def apply(self, world: "World") -> None:
        """Begin; end later."""
        shape = replace(world.network.shape, loss=self.loss)
        world.network.override_link(self.source, self.target, shape)
        disturb_for(
            world,
            f"lossy {self.source}>{self.target}",
            self.for_s,
            lambda: world.network.override_link(self.source, self.target, None),
            f"{self.source}>{self.target} loses no more",
        )
