"""What every fault is: a value that is applied to a world at a time."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sim.world import World


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
