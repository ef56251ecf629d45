"""A platform for tests of work: real threads, a clock that stands still until it is moved."""

import random
from concurrent.futures import Executor, ThreadPoolExecutor

from meshd.capability.definition import CapabilityDefinition, collect
from meshd.clock import Instant


class StillClock:
    """Monotonic time moved by hand."""

    def __init__(self) -> None:
        self.at = 100.0

    def now(self) -> Instant:
        return Instant(self.at)

    def wall_ms(self) -> int:
        return 0


class WorkPlatform:
    """The parts of a platform that work uses."""

    def __init__(self) -> None:
        self.clock = StillClock()
        self.threads: list[ThreadPoolExecutor] = []

    def random(self, purpose: str) -> random.Random:
        return random.Random(purpose)

    def executor(self, workers: int) -> Executor:
        self.threads.append(ThreadPoolExecutor(workers))
        return self.threads[-1]


def one(function) -> CapabilityDefinition:
    """The definition of one function."""
    (found,) = collect(function)
    return found
