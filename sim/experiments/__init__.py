"""Published results of others that the simulator must reproduce, each by one command."""

from sim.experiments.catalogue import EXPERIMENTS
from sim.experiments.model import Check, Experiment, Options, Outcome, Progress, Table, Verdict

__all__ = [
    "EXPERIMENTS",
    "Check",
    "Experiment",
    "Options",
    "Outcome",
    "Progress",
    "Table",
    "Verdict",
]
