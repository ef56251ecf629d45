"""What is simulated: how many nodes, how busy, of which kind, how old their news."""

import random
from dataclasses import dataclass
from enum import StrEnum
from math import exp

from meshd.clock import Seconds

SERVICE_S: Seconds = 1.0
"""The mean time of a task on a node of speed 1: the unit of all results."""
RTT_S: Seconds = 0.01
"""A round trip: a hundredth of a task, as 1 ms is for tasks of 100 ms."""
SLOTS = 4
SPEED_RATIO = 10.0
LOGNORMAL_SIGMA = 1.5
"""A hundredth of such tasks takes eleven times the mean; their squared variation is 8.5."""
ANTAGONIST_SHARE = 0.1
ANTAGONIST_FACTOR = 4.0
ANTAGONIST_S: tuple[Seconds, Seconds] = (10.0, 20.0)
LOSS = 0.1


class Kind(StrEnum):
    """What the nodes, the tasks or the network are like."""

    HOMOGENEOUS = "homogeneous"
    HETEROGENEOUS = "heterogeneous"
    HEAVY_TAILED = "heavy_tailed"
    ANTAGONIST = "antagonist"
    LOSSY = "lossy"
    SINKHOLE = "sinkhole"


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of the table.

    Attributes:
        kind: what is special about it.
        nodes: how many; each hands out and does work, in `SLOTS` slots.
        load: the share of all slots' time that the work takes.
        period: how often each node tells its load to all, in mean service times (T/S).
    """

    kind: Kind
    nodes: int = 50
    load: float = 0.7
    period: float = 1.0

    def __str__(self) -> str:
        return f"{self.kind} N={self.nodes} load={self.load:g} T/S={self.period:g}"

    @property
    def loss(self) -> float:
        """The share of datagrams that is lost."""
        return LOSS if self.kind is Kind.LOSSY else 0.0

    @property
    def antagonists(self) -> int:
        """How many nodes are slow at a time, where some are."""
        return max(1, round(ANTAGONIST_SHARE * self.nodes))

    def speeds(self, rng: random.Random) -> list[float]:
        """How fast each node is; the same set for each seed, in another order."""
        if self.kind is not Kind.HETEROGENEOUS:
            return [1.0] * self.nodes
        last = self.nodes - 1
        found = [SPEED_RATIO ** (index / last - 0.5) for index in range(self.nodes)]
        rng.shuffle(found)
        return found

    def task(self, rng: random.Random) -> Seconds:
        """How long one task takes at speed 1."""
        if self.kind is Kind.HEAVY_TAILED:
            drawn = rng.lognormvariate(0.0, LOGNORMAL_SIGMA)
            return SERVICE_S * drawn / exp(LOGNORMAL_SIGMA**2 / 2.0)
        return rng.expovariate(1.0 / SERVICE_S)
