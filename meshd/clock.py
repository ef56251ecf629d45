"""Time as the code speaks of it: pure types. The system's clock lives in the daemon's platform."""

from typing import NewType, Protocol

Instant = NewType("Instant", float)
"""Seconds on a monotonic clock with an arbitrary start. Only differences mean anything."""

Seconds = float
"""A duration in seconds."""


class Clock(Protocol):
    """The two clocks of a machine."""

    def now(self) -> Instant:
        """Monotonic seconds; what every protocol decision is taken by."""
        ...

    def boot_s(self) -> float:
        """Seconds that also pass while the machine is suspended, in which `now` may stand still."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since 1970 UTC; for epochs, logs and certificates alone."""
        ...
