"""A deadline: absolute inside a node, carried between nodes as the time that remains."""

from dataclasses import dataclass

from meshd.clock import Instant, Seconds


@dataclass(frozen=True, slots=True)
class Deadline:
    """The instant after which an answer is worthless."""

    at: Instant

    @classmethod
    def after(cls, seconds: Seconds, now: Instant) -> "Deadline":
        """The deadline `seconds` from `now`."""
        return cls(Instant(now + seconds))

    def remaining(self, now: Instant) -> Seconds:
        """Seconds left; 0.0 once it has passed."""
        return max(0.0, self.at - now)

    def expired(self, now: Instant) -> bool:
        """Whether nothing is left."""
        return now >= self.at

    def child(self, reserve_s: Seconds) -> "Deadline":
        """The deadline to give to the next hop: earlier by the time that the way back needs."""
        return Deadline(Instant(self.at - reserve_s))
