"""What an operator may set about routing, with its bounds."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from meshd.clock import Seconds
from meshd.errors import UsageError

RETRIES_MAX = 3
"""Further candidates after the first: what a call may cost when peers refuse."""

HOPS_MAX = 16
"""Nodes that one piece of work may come through; it also bounds the list on the wire."""

WEIGHT_NAMES = ("cpu", "latency", "mem")


@dataclass(frozen=True, slots=True)
class RoutingSettings:
    """Settings of one node's routing.

    Attributes:
        policy: the policy of calls that name none.
        sample: how many eligible peers a sampling policy draws, 2..4. More finds fast nodes
            sooner; fewer herds less on an old view.
        weights: what the policy `weighted` weighs; each 0 or more, one above 0.
        hops_max: how often one piece of work may be passed on before it is taken for a cycle.
        queue_max: calls that may wait at once, for a busy peer to have room or for any at all.
        deadline_s: the deadline of calls that name none, seconds.
        reserve_fraction: share of the remaining time that a hop keeps for the way back, 0..0.5.
        reserve_s_max: upper bound of that reserve, seconds.
        is_hedging: whether idempotent work that takes long is sent to a second peer.

    Raises:
        UsageError: a value is outside its range; the message names every such value.
    """

    policy: str = "adaptive"
    sample: int = 4
    weights: Mapping[str, float] = field(default_factory=lambda: {"cpu": 0.7, "latency": 0.3})
    hops_max: int = 8
    queue_max: int = 256
    deadline_s: Seconds = 30.0
    reserve_fraction: float = 0.1
    reserve_s_max: Seconds = 0.05
    is_hedging: bool = True

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        faults = [
            text
            for bad, text in (
                (not 2 <= self.sample <= 1 + RETRIES_MAX, f"sample must be 2..{1 + RETRIES_MAX}"),
                (not 1 <= self.hops_max <= HOPS_MAX, f"hops_max must be 1..{HOPS_MAX}"),
                (not 0 <= self.queue_max <= 65_536, "queue_max must be 0..65536"),
                (
                    not 0.0 < self.deadline_s <= 86_400.0,
                    "deadline_s must be above 0, at most a day",
                ),
                (not 0.0 <= self.reserve_fraction <= 0.5, "reserve_fraction must be 0..0.5"),
                (not 0.0 <= self.reserve_s_max <= 10.0, "reserve_s_max must be 0..10"),
            )
            if bad
        ]
        faults += weight_faults(self.weights)
        if faults:
            raise UsageError("routing: " + "; ".join(faults), hint="correct these settings")

    def reserve_s(self, remaining_s: Seconds) -> Seconds:
        """What this hop keeps of the time that remains, so that its answer still arrives."""
        return min(self.reserve_fraction * remaining_s, self.reserve_s_max)


def weight_faults(weights: Mapping[str, float]) -> list[str]:
    """What is wrong with these weights, in sentences; empty if nothing is."""
    unknown = sorted(set(weights) - set(WEIGHT_NAMES))
    if unknown:
        return [f"unknown weight {', '.join(unknown)} (known: {', '.join(WEIGHT_NAMES)})"]
    if any(not 0.0 <= value <= 1e6 for value in weights.values()):
        return ["a weight must be 0 to 1000000"]
    if not any(weights.values()):
        return ["at least one weight must be above 0"]
    return []
