"""How many units a piece of work took, said by its handler while it runs."""

import math
import threading
from contextvars import ContextVar

from meshd.errors import UsageError

_ADDING = threading.Lock()
"""One for all runs: it is held for one addition, and each call would else make its own."""


class Charge:
    """The units of one run; None until its handler says any."""

    __slots__ = ("units",)

    def __init__(self) -> None:
        self.units: float | None = None

    def add(self, units: float) -> None:
        """So many more, from any thread."""
        with _ADDING:
            self.units = units + (self.units or 0.0)


CHARGE: ContextVar[Charge | None] = ContextVar("meshd_charge", default=None)
"""Set around each run of a handler."""


def charge(units: float) -> None:
    """Say that the work that runs now took so many units (more), for its price by unit.

    Anywhere in a handler, also in its threads, but not where `executor` moves it to another
    process; outside of handlers it does nothing.

    Raises:
        UsageError: it is no number of 0 or more.
    """
    if not math.isfinite(units) or units < 0:
        raise UsageError(f"units must be a number of 0 or more, not {units!r}")
    run = CHARGE.get()
    if run is not None:
        run.add(float(units))
