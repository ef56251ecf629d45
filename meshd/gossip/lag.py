"""How late this node reads its mail: what its own verdicts, and others' about it, must allow for.

A starved or stopped process finds old mail at its socket; the kernel knows since when. Lifeguard's
local health infers such lateness from missing nacks; here it is measured, and told to others with
the node's own record. Probers wait that much longer for it.
"""

from meshd.clock import Instant, Seconds

LAG_MAX_S = 5.0
"""More is not believed: a clock that was set makes mail look old."""
HALF_LIFE_S = 10.0
"""In which the measured lateness fades to half, if no more comes."""
LAG_MIN_S = 0.02
"""What is less is the ordinary business of a scheduler."""
_UNIT_S = 0.02
CODE_MAX = round(LAG_MAX_S / _UNIT_S)
"""The largest lag on the wire, where a step is 20 ms: 250."""


class MailLag:
    """The largest lateness of late, fading with time."""

    __slots__ = ("_at", "_peak_s")

    def __init__(self) -> None:
        self._peak_s = 0.0
        self._at = Instant(0.0)

    def read(self, waited_s: Seconds, now: Instant) -> None:
        """A datagram was read that had waited at the socket for `waited_s`."""
        if waited_s >= LAG_MIN_S and waited_s >= self.at(now):
            self._peak_s, self._at = min(waited_s, LAG_MAX_S), now

    def at(self, now: Instant) -> Seconds:
        """How late mail has to be expected to be read: 0 .. LAG_MAX_S seconds."""
        if not self._peak_s:
            return 0.0
        lag_s: float = self._peak_s * 0.5 ** ((now - self._at) / HALF_LIFE_S)
        if lag_s < LAG_MIN_S:
            self._peak_s = lag_s = 0.0
        return lag_s


def lag_code(lag_s: Seconds) -> int:
    """Seconds in steps of 20 ms, for the wire."""
    return min(CODE_MAX, round(lag_s / _UNIT_S))


def lag_s(code: int) -> Seconds:
    """Read what `lag_code` wrote; higher codes mean the maximum."""
    return min(CODE_MAX, code) * _UNIT_S
