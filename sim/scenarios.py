"""Named plans: what usually goes wrong in a network, drawn from a seed."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from sim.faults import (
    At,
    ClockJump,
    Clog,
    Crash,
    Fault,
    Heal,
    Leave,
    LossyLink,
    LossyNode,
    OneWay,
    Partition,
    Pause,
    Rejoin,
    Restart,
    SetState,
    SlowNode,
    Start,
    Starve,
)
from sim.network import Constant, Exponential, Latency, Shape, Uniform
from sim.plan import Plan

SEEDS_KNOWN = 3
STARVED_FRACTION = 0.05

Make = Callable[[int, int, float, float], Plan]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A way to make plans. `nodes` and `duration_s` are what it is usually run with."""

    name: str
    text: str
    make: Make
    nodes: int
    duration_s: float


def _rng(seed: int, what: str) -> random.Random:
    return random.Random(f"{seed}/plan/{what}")


def _plan(
    scenario: str,
    given: tuple[int, int, float, float],
    faults: list[At],
    *,
    converged: int | None = None,
    meshes: int = 1,
) -> Plan:
    nodes, seed, duration_s, loss = given
    return Plan(
        scenario=scenario,
        nodes=nodes,
        seed=seed,
        duration_s=duration_s,
        loss=loss,
        shape=Shape(loss=loss),
        converged=nodes if converged is None else converged,
        meshes=meshes,
        faults=tuple(faults),
    )


def _seeds(rng: random.Random, nodes: int, node: int) -> tuple[int, ...]:
    """Whom a node knows from before: a few others."""
    others = [index for index in range(nodes) if index != node]
    return tuple(rng.sample(others, min(SEEDS_KNOWN, len(others))))


def _some(rng: random.Random, nodes: int, fraction: float) -> list[int]:
    return rng.sample(range(nodes), max(1, int(nodes * fraction)))


def _halves(rng: random.Random, nodes: int) -> tuple[frozenset[int], frozenset[int]]:
    one = frozenset(rng.sample(range(nodes), nodes // 2))
    return one, frozenset(range(nodes)) - one


def steady(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Nothing happens."""
    return _plan("steady", (nodes, seed, duration_s, loss), [])


def crash(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """One node crashes after a sixth of the time."""
    node = _rng(seed, "crash").randrange(nodes)
    faults = [At(duration_s / 6, Crash(node))]
    return _plan("crash", (nodes, seed, duration_s, loss), faults)


def join_storm(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """All nodes start within two seconds; each knows the first one, and two more at random."""
    rng = _rng(seed, "join_storm")
    faults = [At(0.0, Start(0, ()))]
    for node in range(1, nodes):
        known = _seeds(rng, nodes, node)[: SEEDS_KNOWN - 1]
        faults.append(At(0.1 + 2 * rng.random(), Start(node, (0, *known))))
    return _plan("join_storm", (nodes, seed, duration_s, loss), faults, converged=0)


def split(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Two halves hear nothing of each other, from a tenth of the time to the half."""
    groups = _halves(_rng(seed, "split"), nodes)
    faults = [
        At(duration_s * 0.1, Partition("split", groups)),
        At(duration_s * 0.5, Heal("split")),
    ]
    return _plan("split", (nodes, seed, duration_s, loss), faults)


def one_way(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """One half does not hear the other, which hears it."""
    one, other = _halves(_rng(seed, "one_way"), nodes)
    faults = [
        At(duration_s * 0.1, OneWay("one_way", one, other)),
        At(duration_s * 0.5, Heal("one_way")),
    ]
    return _plan("one_way", (nodes, seed, duration_s, loss), faults)


def isolate_one(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """One node is cut off from all others."""
    node = _rng(seed, "isolate_one").randrange(nodes)
    groups = (frozenset({node}), frozenset(range(nodes)) - {node})
    faults = [
        At(duration_s * 0.1, Partition("isolate", groups)),
        At(duration_s * 0.6, Heal("isolate")),
    ]
    return _plan("isolate_one", (nodes, seed, duration_s, loss), faults)


def flap(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """One node's link goes and comes every few seconds."""
    rng = _rng(seed, "flap")
    node = rng.randrange(nodes)
    groups = (frozenset({node}), frozenset(range(nodes)) - {node})
    faults: list[At] = []
    at_s = 2.0
    while at_s < duration_s * 0.8:
        faults.append(At(at_s, Partition("flap", groups)))
        at_s += 1 + 7 * rng.random()
        faults.append(At(at_s, Heal("flap")))
        at_s += 1 + 5 * rng.random()
    return _plan("flap", (nodes, seed, duration_s, loss), faults)


def churn(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Nodes crash, restart, leave and write state, about one a second, until three quarters."""
    rng = _rng(seed, "churn")
    faults: list[At] = []
    at_s = 2.0
    while at_s < duration_s * 0.75:
        node = rng.randrange(nodes)
        seeds = _seeds(rng, nodes, node)
        what: Fault = rng.choice(
            (
                Restart(node, 0.1 + 8 * rng.random(), seeds),
                Crash(node),
                Leave(node),
                Start(node, seeds),
                SetState(node, "key", b"%d" % rng.randrange(1_000)),
            )
        )
        faults.append(At(at_s, what))
        at_s += rng.expovariate(1.0)
    return _plan("churn", (nodes, seed, duration_s, loss), faults)


def mass_restart(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """All nodes are killed within a second, as by a failed rack, and start again soon after."""
    rng = _rng(seed, "mass_restart")
    faults = [
        At(5 + rng.random(), Restart(node, 1 + 4 * rng.random(), _seeds(rng, nodes, node)))
        for node in range(nodes)
    ]
    return _plan("mass_restart", (nodes, seed, duration_s, loss), faults)


def slow_node(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """One node needs a third of a second for each packet; another one crashes meanwhile."""
    slow, crashed = _rng(seed, "slow_node").sample(range(nodes), 2)
    faults = [
        At(2.0, SlowNode(slow, 0.3, duration_s * 0.8)),
        At(duration_s * 0.4, Crash(crashed)),
    ]
    return _plan("slow_node", (nodes, seed, duration_s, loss), faults)


def starved(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """One node in twenty reads its packets 0.5 to 2.5 s late; a healthy one crashes half-way."""
    rng = _rng(seed, "starved")
    some = _some(rng, nodes, STARVED_FRACTION)
    healthy = [node for node in range(nodes) if node not in some]
    faults = [At(0.0, Starve(node, duration_s)) for node in some]
    faults.append(At(duration_s / 2, Crash(rng.choice(healthy))))
    return _plan("starved", (nodes, seed, duration_s, loss), faults)


def lossy(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """A few nodes lose a third of their packets, some links all of them, in one direction."""
    rng = _rng(seed, "lossy")
    for_s = duration_s * 0.7
    faults = [At(2.0, LossyNode(node, 0.3, for_s)) for node in _some(rng, nodes, 0.05)]
    for _ in range(max(1, nodes // 4)):
        source, target = rng.sample(range(nodes), 2)
        faults.append(At(3.0, LossyLink(source, target, 1.0, for_s)))
    return _plan("lossy", (nodes, seed, duration_s, loss), faults)


def total_partition_and_heal(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Nobody hears anybody, long enough for all to be held dead; then all is well again."""
    groups = tuple(frozenset({node}) for node in range(nodes))
    faults = [
        At(duration_s * 0.1, Partition("total", groups)),
        At(duration_s * 0.8, Heal("total")),
    ]
    return _plan("total_partition_and_heal", (nodes, seed, duration_s, loss), faults)


def two_meshes(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Two meshes share a network, and each node knocks at the doors of both."""
    rng = _rng(seed, "two_meshes")
    faults = [At(0.0, Start(0, ())), At(0.0, Start(1, ()))]
    faults += [
        At(0.1 + 2 * rng.random(), Start(node, (0, 1, *_seeds(rng, nodes, node))))
        for node in range(2, nodes)
    ]
    given = (nodes, seed, duration_s, loss)
    return _plan("two_meshes", given, faults, converged=0, meshes=2)


def goodbyes(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """A third of the nodes leave one after another; some come back."""
    rng = _rng(seed, "goodbyes")
    faults: list[At] = []
    for node in _some(rng, nodes, 1 / 3):
        at_s = 2 + (duration_s * 0.5) * rng.random()
        faults.append(At(at_s, Leave(node)))
        if rng.random() < 0.3:
            faults.append(At(at_s + 0.5 + rng.random(), Rejoin(node)))
        elif rng.random() < 0.5:
            faults.append(At(at_s + 10 * rng.random() + 5, Start(node, _seeds(rng, nodes, node))))
    return _plan("goodbyes", (nodes, seed, duration_s, loss), faults)


def swarm(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Anything, drawn from the seed: size (if `nodes` is 0), network, and faults of all kinds."""
    rng = _rng(seed, "swarm")
    drawn = rng.randint(3, 24)
    size = nodes or drawn  # drawn in any case: given the drawn size, all else comes out the same
    faults: list[At] = []
    for number in range(rng.randint(2, 10)):
        at_s = 1 + duration_s * 0.7 * rng.random()
        faults += _anything(rng, size, at_s, duration_s - at_s, f"cut{number}")
    joins = rng.random() < 0.3
    if joins:
        faults.append(At(0.0, Start(0, ())))
        faults += [
            At(0.1 + rng.random(), Start(node, (0, *_seeds(rng, size, node))))
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
        bytes_per_s=rng.choice((None, None, None, 250_000.0)),
    )


def _anything(
    rng: random.Random, nodes: int, at_s: float, left_s: float, name: str
) -> tuple[At, ...]:
    node, other = rng.sample(range(nodes), 2)
    for_s = min(left_s, 0.2 + rng.expovariate(1 / 10))
    seeds = _seeds(rng, nodes, node)
    end = At(at_s + for_s, Heal(name))
    one, rest = _halves(rng, nodes)
    alone = (frozenset({node}), frozenset(range(nodes)) - {node})
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
        (At(at_s, SetState(node, f"key{rng.randrange(5)}", rng.randbytes(rng.randrange(400)))),),
    )
    return rng.choice(choices)


_ALL = (
    (steady, 50, 60.0),
    (crash, 100, 60.0),
    (join_storm, 100, 30.0),
    (split, 20, 120.0),
    (one_way, 20, 120.0),
    (isolate_one, 20, 90.0),
    (flap, 20, 90.0),
    (churn, 30, 90.0),
    (mass_restart, 20, 60.0),
    (slow_node, 20, 60.0),
    (starved, 50, 120.0),
    (lossy, 20, 90.0),
    (total_partition_and_heal, 10, 120.0),
    (two_meshes, 20, 30.0),
    (goodbyes, 20, 60.0),
    (swarm, 0, 60.0),
)
SCENARIOS = {
    make.__name__: Scenario(
        make.__name__, (make.__doc__ or "").split("\n")[0], make, nodes, duration_s
    )
    for make, nodes, duration_s in _ALL
}
