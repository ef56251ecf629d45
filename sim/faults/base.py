"""What every fault is: a value that is applied to a world at a time."""

from collections.abc import Callable
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


def disturb_for(
    world: "World", what: str, for_s: float, end: Callable[[], None], label: str
) -> None:
    """Let a disturbance that was just made last `for_s` seconds; then `end()` and settle it.

    Args:
        world: where it happens.
        what: the disturbance's name, see `Calm.disturb`.
        for_s: how long.
        end: undoes it.
        label: the line of the trace that tells of its end.
    """

    def over() -> None:
        end()
        world.settle(what)

    world.disturb(what)
    world.call_at(world.now + for_s, over, label)
