"""What a bench must show, and whether it did."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

Figure = float | str | None
"""A measured value; words where there is none ("not in 120"); None where nothing was measured."""


@dataclass(frozen=True)
class Goal:
    """One bound. `is_met` is None where either side of it was not measured."""

    text: str
    value: Figure
    bound: float | None
    is_met: bool | None

    def row(self) -> dict[str, Any]:
        """For a table."""
        verdict = {True: "met", False: "MISSED", None: "not measured"}[self.is_met]
        return {
            "goal": self.text,
            "value": "-" if self.value is None else self.value,
            "at most": "-" if self.bound is None else self.bound,
            "verdict": verdict,
        }

    def told(self) -> dict[str, Any]:
        """For a program."""
        return asdict(self)


def at_most(text: str, value: Figure, bound: Figure, factor: float = 1.0) -> Goal:
    """`value` shall not be above `factor` times `bound`. Words for a value miss any bound."""
    if value is None or bound is None or isinstance(bound, str):
        is_met = None
        limit = None if bound is None or isinstance(bound, str) else round(bound * factor, 3)
        if isinstance(bound, str) and isinstance(value, float | int):
            is_met = True  # the rival did not even get there
    else:
        limit = round(bound * factor, 3)
        is_met = not isinstance(value, str) and value <= bound * factor
    return Goal(text, value, limit, is_met)


def verdict(goals: Iterable[Goal]) -> bool | None:
    """Whether all were met; None where one was not measured and none missed."""
    met = [goal.is_met for goal in goals]
    if False in met:
        return False
    return None if None in met or not met else True


def outcome(goals: Iterable[Goal]) -> dict[str, Any]:
    """What a bench's JSON object says of its goals: each, and whether all were met."""
    known = list(goals)
    return {"goals": [goal.told() for goal in known], "passed": verdict(known)}
