"""The swarm: any size, any network, any faults, drawn from the seed."""

import random

from sim.faults import (
    Asks,
    At,
    Block,
    ClockJump,
    Clog,
    Clone,
    Crash,
    Heal,
    Leave,
    Loads,
    LossyLink,
    LossyNode,
    OneWay,
    Outsider,
    Partition,
    Pause,
    PowerLoss,
    Rejoin,
    Restart,
    SetState,
    SlowNode,
    Start,
    Starve,
    Upgrade,
)
from sim.network import Constant, Exponential, Latency, Shape, Uniform
from sim.plan import Plan
from sim.scenarios.base import halves, rng_of, seeds_of

LOADS_SHARE = 0.2
"""Of the drawn plans, in which loads change."""
ASKS_SHARE = 0.1
"""Of the drawn plans, in which users ask how far members are."""
CLONED_MAX_S = 10.0


def swarm(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Anything, drawn from the seed: size (if `nodes` is 0), network, and faults of all kinds."""
    rng = rng_of(seed, "swarm")
    drawn = rng.randint(3, 24)
    size = nodes or drawn  # drawn in any case: given the drawn size, all else comes out the same
    faults: list[At] = []
    for number in range(rng.randint(2, 10)):
        at_s = 1 + duration_s * 0.7 * rng.random()
        faults += _anything(rng, size, at_s, duration_s - at_s, f"cut{number}")
    if rng.random() < LOADS_SHARE:
        faults.append(At(1.0, Loads(5.0, duration_s / 2)))
    if rng.random() < ASKS_SHARE:
        faults.append(At(1.0, Asks(1.0, duration_s / 2)))
    joins = rng.random() < 0.3
    if joins:
        faults.append(At(0.0, Start(0, ())))
        faults += [
            At(0.1 + rng.random(), Start(node, (0, *seeds_of(rng, size, node))))
            for node in range(1, size)
        ]
    return Plan(
        scenario="swarm",
        nodes=size,
        seed=seed,
        duration_s=duration_s,
        loss=loss,
        shape=_any_shape(rng, loss),
        converged=0 if joins else size,
        faults=tuple(faults),
    )


def _any_shape(rng: random.Random, loss: float) -> Shape:
    latency: Latency = rng.choice(
        (
            Constant(0.001),
            Uniform(0.000_1, 0.02),
            Exponential(0.001, 0.01, 0.1),
            Exponential(0.0, 0.03, 0.2),
        )
    )
    return Shape(
        latency=latency,
        loss=loss or rng.choice((0.0, 0.0, 0.01, 0.03, 0.1, 0.25)),
        duplicate=rng.choice((0.0, 0.0, 0.02, 0.2)),
        reorder=rng.choice((0.0, 0.0, 0.1)),
        mtu_bytes=rng.choice((1_472, 1_200)),
        bytes_per_s=rng.choice((None, None, None, 250_000.0)),
    )


def _anything(
    rng: random.Random, nodes: int, at_s: float, left_s: float, name: str
) -> tuple[At, ...]:
    node, other = rng.sample(range(nodes), 2)
    for_s = min(left_s, 0.2 + rng.expovariate(1 / 10))
    seeds = seeds_of(rng, nodes, node)
    end = At(at_s + for_s, Heal(name))
    one, rest = halves(rng, nodes)
    alone = (frozenset({node}), frozenset(range(nodes)) - {node})
    some = tuple(rng.sample(range(nodes), rng.randint(1, (nodes + 1) // 2)))
    newer = Upgrade(node, newer=True, after_s=2 * rng.random(), seeds=seeds)
    older = Upgrade(node, newer=False, after_s=2 * rng.random(), seeds=seeds)
    choices: tuple[tuple[At, ...], ...] = (
        (At(at_s, Crash(node)),),
        (At(at_s, Restart(node, 0.05 + 15 * rng.random(), seeds)),),
        (At(at_s, Leave(node)),),
        (At(at_s, Leave(node)), At(at_s + 1 + rng.random(), Rejoin(node))),
        (At(at_s, Leave(node)), At(at_s + 3.5 + for_s, Start(node, seeds))),
        (At(at_s, Pause(node, for_s)),),
        (At(at_s, Starve(node, for_s)),),
        (At(at_s, SlowNode(node, 0.05 + 0.4 * rng.random(), for_s)),),
        (At(at_s, Partition(name, (one, rest))), end),
        (At(at_s, Partition(name, alone)), end),
        (At(at_s, OneWay(name, alone[0], alone[1])), end),
        (At(at_s, OneWay(name, one, rest)), end),
        (At(at_s, Clog(node, min(for_s, 5.0))),),
        (At(at_s, LossyNode(node, rng.random(), for_s)),),
        (At(at_s, LossyLink(node, other, 1.0, for_s)),),
        (At(at_s, ClockJump(node, rng.choice((-86_400.0, -5.0, 3.0, 30.0, 3_600.0)))),),
        (At(at_s, Block(node, min(for_s, 8.0))),),
        (At(at_s, Block(node, 0.1 + 2 * rng.random())),),
        (At(at_s, PowerLoss(some, 10 * rng.random(), rng.choice((0.0, 3_600.0)), seeds)),),
        (At(at_s, Clone(node, min(for_s, CLONED_MAX_S), seeds)),),
        (At(at_s, Outsider(node, min(for_s, 5.0), 10.0)),),
        (At(at_s, newer), At(at_s + for_s, older)) if rng.random() < 0.5 else (At(at_s, newer),),
        tuple(
            At(at_s + rng.random(), Clog(each, min(left_s, 1 + 5 * rng.random()))) for each in some
        ),
        (At(at_s, SetState(node, f"key{rng.randrange(5)}", rng.randbytes(rng.randrange(400)))),),
    )
    return rng.choice(choices)
