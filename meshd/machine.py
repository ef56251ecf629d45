"""The one shape of every protocol here: inputs go in, effects come out, time is an argument."""

from typing import Protocol, TypeVar

from meshd.clock import Instant

InputT_contra = TypeVar("InputT_contra", contravariant=True)
EffectT = TypeVar("EffectT")


class Machine(Protocol[InputT_contra, EffectT]):
    """A protocol without IO, clock, logger or hidden randomness."""

    def step(self, event: InputT_contra, now: Instant) -> list[EffectT]:
        """Take one input; return what has to be done about it, in order."""
        ...

    def next_deadline(self) -> Instant | None:
        """When the machine wants to be woken with its deadline input; None for never."""
        ...
