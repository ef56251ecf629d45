"""The last decisions of one node: whom each call was sent to, why, and how it ended."""

from collections import deque
from collections.abc import Iterable
from typing import Any

from meshd.clock import Seconds
from meshd.routing.call import Tried
from meshd.routing.router import Plan, explain
from meshd.structs import Token

DECISIONS_KEPT = 64
"""A plan names every peer of its view: of a mesh of a thousand it may take a hundred kilobytes."""


class Decision(Token, frozen=True, eq=False):
    """One call of which this node decided where it goes; written out only for who asks.

    Attributes:
        number: counts all decisions of this run, from 1.
        wall_ms: when the call ended, milliseconds since 1970.
        made: the plan of its last try; None where it ended before there was any.
        tried: whom it was sent to, and how each try ended.
        took_s: from its beginning to its end.
        error: what it ended with; empty if well.
    """

    number: int
    wall_ms: int
    capability: str
    made: Plan | None
    tried: tuple[Tried, ...]
    took_s: Seconds
    error: str

    def told(self) -> dict[str, Any]:
        """As JSON: `explain` is what a call with `explain` is given."""
        return {
            "number": self.number,
            "wall_ms": self.wall_ms,
            "capability": self.capability,
            "took_ms": round(self.took_s * 1_000, 3),
            "ok": not self.error,
            **({"error": self.error} if self.error else {}),
            "attempts": [each.told() for each in self.tried],
            "explain": None if self.made is None else explain(self.made),
        }


class Decisions:
    """A ring of the newest ones."""

    def __init__(self) -> None:
        self._kept: deque[Decision] = deque(maxlen=DECISIONS_KEPT)
        self.count = 0
        """How many there were in all."""

    def add(
        self,
        capability: str,
        made: Plan | None,
        tried: Iterable[Tried],
        *,
        took_s: Seconds,
        wall_ms: int,
        error: str = "",
    ) -> None:
        """A call has ended."""
        self.count += 1
        if made is not None:
            made.scene.known.clear()  # of every peer that was looked at; no explanation needs it
        decision = Decision(self.count, wall_ms, capability, made, tuple(tried), took_s, error)
        self._kept.append(decision)

    def last(self, count: int, capability: str = "") -> tuple[Decision, ...]:
        """The newest `count` (of one capability, if named), the oldest of them first."""
        wanted = [d for d in self._kept if capability in {"", d.capability}]
        return tuple(wanted[max(0, len(wanted) - count) :])
