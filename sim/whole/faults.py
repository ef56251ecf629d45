"""What can go wrong with work itself: handlers that fail, capabilities that come and go."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Failing:
    """This share of all runs on these nodes raises an error, for `for_s` seconds."""

    nodes: tuple[int, ...]
    for_s: float
    share: float = 1.0

    def apply(self, world: Any) -> None:
        """Begin; end later."""
        for node in self.nodes:
            world.failing[node] = self.share

        def end() -> None:
            for node in self.nodes:
                world.failing.pop(node, None)

        world.call_at(world.now + self.for_s, end, f"handlers of {self.nodes} are well again")


@dataclass(frozen=True, slots=True)
class Withdraw:
    """A node offers a capability no more; what it has accepted still runs."""

    node: int
    capability: str

    def apply(self, world: Any) -> None:
        """Take it back, for this run of the process and the next."""
        box = world.boxes[self.node]
        world.withdrawn.setdefault((self.node, self.capability), world.now)
        node = box.node
        if node is not None:
            world.in_lane(box, lambda: node.worker.remove([self.capability]))


@dataclass(frozen=True, slots=True)
class Offer:
    """A node offers a capability again that it withdrew."""

    node: int
    capability: str

    def apply(self, world: Any) -> None:
        """Offer it from now on."""
        box = world.boxes[self.node]
        if world.withdrawn.pop((self.node, self.capability), None) is None:
            return
        node = box.node
        if node is not None:
            again = world.definition(self.node, self.capability)
            world.in_lane(box, lambda: node.worker.add([again]))


@dataclass(frozen=True, slots=True)
class Want:
    """No fault: from now on this share of clients' calls is for one capability; if 1, all are."""

    capability: str
    share: float = 1.0

    def apply(self, world: Any) -> None:
        """Tell the clients. What they called before keeps its proportions."""
        others = {name: each for name, each in world.wanted.items() if name != self.capability}
        scale = (1 - self.share) / (sum(others.values()) or 1.0)
        kept = {name: each * scale for name, each in others.items()} if scale else {}
        world.wanted = {**kept, self.capability: self.share}
