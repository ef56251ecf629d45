"""What can go wrong, as values: each is applied to a world at a time.

A fault that may make a live node look dead is a *disturbance* until it is over; the checkers ask
for accuracy only in calm.
"""

from sim.faults.base import At, Fault
from sim.faults.hostile import Forger, Replayer
from sim.faults.identity import Clone, Outsider, PowerLoss, Upgrade
from sim.faults.network import Clog, Heal, LossyLink, LossyNode, OneWay, Partition
from sim.faults.process import (
    Asks,
    Block,
    ClockJump,
    Crash,
    Leave,
    Loads,
    Pause,
    Rejoin,
    Restart,
    SetState,
    SlowNode,
    Start,
    Starve,
    Tells,
)

__all__ = [
    "Asks",
    "At",
    "Block",
    "ClockJump",
    "Clog",
    "Clone",
    "Crash",
    "Fault",
    "Forger",
    "Heal",
    "Leave",
    "Loads",
    "LossyLink",
    "LossyNode",
    "OneWay",
    "Outsider",
    "Partition",
    "Pause",
    "PowerLoss",
    "Rejoin",
    "Replayer",
    "Restart",
    "SetState",
    "SlowNode",
    "Start",
    "Starve",
    "Tells",
    "Upgrade",
]
