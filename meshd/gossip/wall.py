"""What the wall clock should show, by the epoch of one's own start and what has passed since."""

from meshd.clock import Instant, Seconds
from meshd.model import Epoch


class WallClock:
    """Milliseconds since 1970, as one node takes it: it asks no clock, and no peer."""

    def __init__(self, epoch: Epoch, now: Instant) -> None:
        """Start it.

        Args:
            epoch: that of the start of this run, in ms; one that is raised later says nothing.
            now: the present.
        """
        self._epoch = epoch
        self._started = now
        self._slept_ms = 0.0

    def at_ms(self, now: Instant) -> int:
        """The wall time."""
        return self._epoch + int((now - self._started) * 1_000 + self._slept_ms)

    def slept(self, slept_s: Seconds) -> None:
        """The machine was suspended for so long, in which `now` stood still."""
        self._slept_ms += slept_s * 1_000
