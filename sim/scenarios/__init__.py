"""Named plans: what usually goes wrong in a network, drawn from a seed."""

from sim.scenarios.base import Make, Scenario
from sim.scenarios.table import SCENARIOS

__all__ = ["SCENARIOS", "Make", "Scenario"]
