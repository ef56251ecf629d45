"""Named plans for whole daemons: clients on all nodes call through the mesh while things go wrong.

This file imports no daemon: plans are values, and `meshd sim list` has to be quick.
"""

import random
from dataclasses import replace

from sim.faults import (
    At,
    Block,
    Clog,
    Crash,
    Heal,
    Leave,
    LossyLink,
    LossyNode,
    OneWay,
    Partition,
    Pause,
    Restart,
    Start,
    Starve,
)
from sim.network import Constant, Exponential, Shape, Uniform
from sim.plan import Plan
from sim.scenarios.base import halves, plan_of, rng_of, seeds_of, some
from sim.whole.faults import Failing, Offer, Want, Withdraw

CALLS_PER_S = 1.0
DRAINED_S = 10.0
"""After so long a node that was asked to leave has ended."""
Given = tuple[int, int, float, float]


def _whole(scenario: str, given: Given, faults: list[At], shape: Shape | None = None) -> Plan:
    plan = plan_of(scenario, given, faults, shape=shape)
    return replace(plan, whole=True, calls_per_s=CALLS_PER_S)


def delegate_steady(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Whole daemons: clients call all kinds of work through the mesh, and nothing goes wrong."""
    return _whole("delegate_steady", (nodes, seed, duration_s, loss), [])


def delegate_even(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Whole daemons: one kind of work, offered by every second node, spreads evenly over them."""
    faults = [At(0.0, Want("even"))]
    plan = _whole("delegate_even", (nodes, seed, duration_s, loss), faults)
    return replace(plan, calls_per_s=3 * CALLS_PER_S)


def delegate_brief(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Whole daemons: many calls of work done at once; who does it is cut off, killed, and fails."""
    rng = rng_of(seed, "delegate_brief")
    workers = range(0, nodes, 3)
    one = rng.choice(workers)
    other = rng.choice([each for each in workers if each != one] or workers)
    rest = frozenset(range(nodes)) - {one}
    faults = [
        At(0.0, Want("brief")),
        At(duration_s * 0.15, Partition("cut", (frozenset({one}), rest))),
        At(duration_s * 0.3, Heal("cut")),
        At(duration_s * 0.5, Restart(other, 2.0, seeds_of(rng, nodes, other))),
        At(duration_s * 0.75, Failing((one,), duration_s * 0.05)),
    ]
    plan = _whole("delegate_brief", (nodes, seed, duration_s, loss), faults)
    return replace(plan, calls_per_s=10 * CALLS_PER_S)


def delegate_split(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Whole daemons: the network splits while calls are under way, and heals."""
    rng = rng_of(seed, "delegate_split")
    faults = [
        At(duration_s * 0.2, Partition("split", halves(rng, nodes))),
        At(duration_s * 0.7, Heal("split")),
    ]
    return _whole("delegate_split", (nodes, seed, duration_s, loss), faults)


def delegate_one_way(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Whole daemons: packets pass one way between two halves, or from one node, for a while."""
    rng = rng_of(seed, "delegate_one_way")
    one, rest = halves(rng, nodes)
    alone = frozenset({rng.randrange(nodes)})
    ways = ((one, rest), (alone, frozenset(range(nodes)) - alone))
    faults = [
        At(duration_s * 0.2, OneWay("way", *rng.choice(ways))),
        At(duration_s * (0.4 + 0.3 * rng.random()), Heal("way")),
    ]
    return _whole("delegate_one_way", (nodes, seed, duration_s, loss), faults)


def delegate_churn(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Whole daemons: processes are killed, start anew and leave while work is under way."""
    rng = rng_of(seed, "delegate_churn")
    faults: list[At] = []
    for node in rng.sample(range(nodes), max(2, nodes // 2)):
        at_s = duration_s * 0.7 * rng.random()
        seeds = seeds_of(rng, nodes, node)
        if rng.random() < 0.3:
            back_s = at_s + DRAINED_S + 5 * rng.random()
            faults += [At(at_s, Leave(node)), At(back_s, Start(node, seeds))]
        elif rng.random() < 0.7:
            faults.append(At(at_s, Restart(node, 5 * rng.random(), seeds)))
        else:
            faults.append(At(at_s, Crash(node)))
    return _whole("delegate_churn", (nodes, seed, duration_s, loss), faults)


def delegate_blocked(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Whole daemons: handlers block their node's main loop; gossip goes on, nobody dies of it."""
    rng = rng_of(seed, "delegate_blocked")
    faults = [
        At(duration_s * rng.random() * 0.8, Block(node, 0.2 + 8 * rng.random()))
        for node in rng.choices(range(nodes), k=max(2, nodes // 2))
    ]
    return _whole("delegate_blocked", (nodes, seed, duration_s, loss), faults)


def delegate_lossy(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Whole daemons: every tenth packet is lost (or as many as asked for), some come twice."""
    shape = Shape(loss=loss or 0.1, duplicate=0.02, reorder=0.1)
    return _whole("delegate_lossy", (nodes, seed, duration_s, loss), [], shape)


def delegate_failing(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Whole daemons: all handlers of one node fail for a while, then those of all nodes."""
    rng = rng_of(seed, "delegate_failing")
    faults = [
        At(duration_s * 0.05, Failing((rng.randrange(nodes),), duration_s * 0.5)),
        At(duration_s * 0.7, Failing(tuple(range(nodes)), duration_s * 0.2)),
    ]
    return _whole("delegate_failing", (nodes, seed, duration_s, loss), faults)


def delegate_ejected(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Whole daemons: a node that does slow work fails for a while, rests, and is tried again."""
    faults = [At(0.0, Want("slow")), At(1.0, Failing((1,), 15.0))]
    plan = _whole("delegate_ejected", (nodes, seed, duration_s, loss), faults)
    return replace(plan, calls_per_s=1.5 * CALLS_PER_S)


def delegate_seasons(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Whole daemons: capabilities are withdrawn, and offered again."""
    rng = rng_of(seed, "delegate_seasons")
    faults: list[At] = []
    for node in some(rng, nodes, 0.5):
        at_s = duration_s * 0.5 * rng.random()
        capability = rng.choice(("seasonal", "work_once", "work_again"))
        faults.append(At(at_s, Withdraw(node, capability)))
        if rng.random() < 0.7:
            faults.append(At(at_s + 5 + 10 * rng.random(), Offer(node, capability)))
    return _whole("delegate_seasons", (nodes, seed, duration_s, loss), faults)


def rolling_restart(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Whole daemons: one after another leaves, finishes what it has, ends, and starts anew."""
    rng = rng_of(seed, "rolling_restart")
    order = rng.sample(range(nodes), nodes)
    step_s = max(duration_s / (nodes + 1), DRAINED_S + 1)
    faults = [At(0.0, Want("slow", 0.5))]  # so that whoever leaves has something to finish
    for number, node in enumerate(order):
        at_s = 2.0 + number * step_s
        again = Start(node, seeds_of(rng, nodes, node))
        faults += [At(at_s, Leave(node)), At(at_s + DRAINED_S, again)]
    return _whole("rolling_restart", (nodes, seed, duration_s, loss), faults)


def delegate_swarm(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Whole daemons: anything, drawn from the seed: size (if `nodes` is 0), network, all faults."""
    rng = rng_of(seed, "delegate_swarm")
    drawn = rng.randint(3, 10)
    size = nodes or drawn  # drawn in any case: given the drawn size, all else comes out the same
    faults: list[At] = []
    for number in range(rng.randint(1, 6)):
        at_s = 1 + duration_s * 0.7 * rng.random()
        faults += _anything(rng, size, at_s, duration_s - at_s, f"cut{number}")
    shape = Shape(
        latency=rng.choice(
            (Constant(0.001), Uniform(0.000_1, 0.02), Exponential(0.001, 0.01, 0.1))
        ),
        loss=loss or rng.choice((0.0, 0.0, 0.01, 0.03, 0.1)),
        duplicate=rng.choice((0.0, 0.0, 0.02)),
        reorder=rng.choice((0.0, 0.0, 0.1)),
    )
    plan = _whole("delegate_swarm", (size, seed, duration_s, loss), faults, shape)
    return replace(plan, calls_per_s=rng.choice((0.5, 1.0, 2.0)))


def _anything(
    rng: random.Random, nodes: int, at_s: float, left_s: float, name: str
) -> tuple[At, ...]:
    node, other = rng.sample(range(nodes), 2)
    for_s = min(left_s, 0.2 + rng.expovariate(1 / 8))
    seeds = seeds_of(rng, nodes, node)
    end = At(at_s + for_s, Heal(name))
    one, rest = halves(rng, nodes)
    alone = (frozenset({node}), frozenset(range(nodes)) - {node})
    capability = rng.choice(("seasonal", "work_once", "work_again"))
    choices: tuple[tuple[At, ...], ...] = (
        (At(at_s, Crash(node)),),
        (At(at_s, Restart(node, 0.05 + 8 * rng.random(), seeds)),),
        (At(at_s, Leave(node)), At(at_s + DRAINED_S + for_s, Start(node, seeds))),
        (At(at_s, Leave(node)),),
        (At(at_s, Pause(node, for_s)),),
        (At(at_s, Starve(node, for_s)),),
        (At(at_s, Partition(name, (one, rest))), end),
        (At(at_s, Partition(name, alone)), end),
        (At(at_s, OneWay(name, *alone)), end),
        (At(at_s, OneWay(name, one, rest)), end),
        (At(at_s, Clog(node, min(for_s, 5.0))),),
        (At(at_s, LossyNode(node, rng.random(), for_s)),),
        (At(at_s, LossyLink(node, other, 1.0, for_s)),),
        (At(at_s, Block(node, min(for_s, 8.0))),),
        (At(at_s, Failing((node, other), for_s)),),
        (At(at_s, Withdraw(node, capability)), At(at_s + for_s, Offer(node, capability))),
    )
    return rng.choice(choices)


ALL = (
    (delegate_steady, 6, 20.0),
    (delegate_even, 8, 20.0),
    (delegate_brief, 7, 20.0),
    (delegate_split, 6, 30.0),
    (delegate_one_way, 6, 25.0),
    (delegate_churn, 6, 25.0),
    (delegate_blocked, 6, 20.0),
    (delegate_lossy, 6, 20.0),
    (delegate_failing, 8, 40.0),
    (delegate_ejected, 5, 90.0),
    (delegate_seasons, 6, 25.0),
    (rolling_restart, 5, 55.0),
    (delegate_swarm, 0, 30.0),
)
"""Each with the size and duration that it is usually run with."""
