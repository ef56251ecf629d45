"""What a scenario is, and what all of them draw with."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from sim.faults import At
from sim.network import Shape
from sim.plan import Plan

SEEDS_KNOWN = 3

Make = Callable[[int, int, float, float], Plan]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A way to make plans. `nodes` and `duration_s` are what it is usually run with."""

    name: str
    text: str
    make: Make
    nodes: int
    duration_s: float


def rng_of(seed: int, what: str) -> random.Random:
    """The source of chance from which a plan is drawn."""
    return random.Random(f"{seed}/plan/{what}")


def plan_of(
    scenario: str,
    given: tuple[int, int, float, float],
    faults: list[At],
    *,
    converged: int | None = None,
    meshes: int = 1,
    shape: Shape | None = None,
) -> Plan:
    """A plan of so many nodes, seed, duration and loss; all nodes are up unless told otherwise."""
    nodes, seed, duration_s, loss = given
    return Plan(
        scenario=scenario,
        nodes=nodes,
        seed=seed,
        duration_s=duration_s,
        loss=loss,
        shape=Shape(loss=loss) if shape is None else shape,
        converged=nodes if converged is None else converged,
        meshes=meshes,
        faults=tuple(faults),
    )


def seeds_of(rng: random.Random, nodes: int, node: int) -> tuple[int, ...]:
    """Whom a node knows from before: a few others."""
    others = [index for index in range(nodes) if index != node]
    return tuple(rng.sample(others, min(SEEDS_KNOWN, len(others))))


def some(rng: random.Random, nodes: int, fraction: float) -> list[int]:
    """A share of all nodes, at least one."""
    return rng.sample(range(nodes), max(1, int(nodes * fraction)))


def halves(rng: random.Random, nodes: int) -> tuple[frozenset[int], frozenset[int]]:
    """All nodes in two halves."""
    one = frozenset(rng.sample(range(nodes), nodes // 2))
    return one, frozenset(range(nodes)) - one
