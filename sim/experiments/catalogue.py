"""All experiments by name."""

from sim.experiments.coordinates import COORDINATES
from sim.experiments.dissemination import DISSEMINATION
from sim.experiments.first_suspicion import FIRST_SUSPICION
from sim.experiments.grid import GRID, GRID_LARGE
from sim.experiments.lifeguard import LIFEGUARD_BLOCKED, LIFEGUARD_TABLE
from sim.experiments.load import LOAD, LOAD_LARGE
from sim.experiments.model import Experiment

EXPERIMENTS: dict[str, Experiment] = {
    each.name: each
    for each in (
        COORDINATES,
        DISSEMINATION,
        FIRST_SUSPICION,
        LOAD,
        LOAD_LARGE,
        LIFEGUARD_TABLE,
        LIFEGUARD_BLOCKED,
        GRID,
        GRID_LARGE,
    )
}
