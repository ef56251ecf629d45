"""A deadline: absolute inside a node, carried between nodes as the time that remains."""

import msgspec

from meshd.clock import Instant, Seconds


class Deadline(msgspec.Struct, frozen=True, gc=False):
    """The instant after which an answer is worthless."""

    at: Instant

    @classmethod
    def after(cls, seconds: Seconds, now: Instant) -> "Deadline":
        """The deadline `seconds` from `now`."""
        return cls(Instant(now + seconds))

    def remaining(self, now: Instant) -> Seconds:
        """Seconds left; 0.0 once it has passed."""
        return max(0.0, self.at - now)
