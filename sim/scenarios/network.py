"""Scenarios of the network: what is cut, lost, held up, narrow or out of order."""

from sim.faults import (
    At,
    Clog,
    Crash,
    Heal,
    LossyLink,
    LossyNode,
    OneWay,
    Partition,
    SetState,
)
from sim.network import Shape
from sim.plan import Plan
from sim.scenarios.base import halves, plan_of, rng_of, some


def split(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Two halves hear nothing of each other, from a tenth of the time to the half."""
    groups = halves(rng_of(seed, "split"), nodes)
    faults = [
        At(duration_s * 0.1, Partition("split", groups)),
        At(duration_s * 0.5, Heal("split")),
    ]
    return plan_of("split", (nodes, seed, duration_s, loss), faults)


def apart(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Cuts too short for doubt, in which nodes write state: the other half must compare to know."""
    rng = rng_of(seed, "apart")
    faults: list[At] = []
    for number in range(3):
        at_s = duration_s * (0.1 + 0.25 * number)
        name = f"apart{number}"
        faults.append(At(at_s, Partition(name, halves(rng, nodes))))
        faults += [
            At(at_s + 0.1, SetState(node, f"key{number}", b"%d" % node))
            for node in some(rng, nodes, 0.3)
        ]
        faults.append(At(at_s + 2.0, Heal(name)))
    return plan_of("apart", (nodes, seed, duration_s, loss), faults)


def one_way(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """One half does not hear the other, which hears it."""
    one, other = halves(rng_of(seed, "one_way"), nodes)
    faults = [
        At(duration_s * 0.1, OneWay("one_way", one, other)),
        At(duration_s * 0.5, Heal("one_way")),
    ]
    return plan_of("one_way", (nodes, seed, duration_s, loss), faults)


def isolate_one(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """One node is cut off from all others."""
    node = rng_of(seed, "isolate_one").randrange(nodes)
    groups = (frozenset({node}), frozenset(range(nodes)) - {node})
    faults = [
        At(duration_s * 0.1, Partition("isolate", groups)),
        At(duration_s * 0.6, Heal("isolate")),
    ]
    return plan_of("isolate_one", (nodes, seed, duration_s, loss), faults)


def flap(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """One node's link goes and comes every few seconds."""
    rng = rng_of(seed, "flap")
    node = rng.randrange(nodes)
    groups = (frozenset({node}), frozenset(range(nodes)) - {node})
    faults: list[At] = []
    at_s = 2.0
    while at_s < duration_s * 0.8:
        faults.append(At(at_s, Partition("flap", groups)))
        at_s += 1 + 7 * rng.random()
        faults.append(At(at_s, Heal("flap")))
        at_s += 1 + 5 * rng.random()
    return plan_of("flap", (nodes, seed, duration_s, loss), faults)


def lossy(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """A few nodes lose a third of their packets, some links all of them, in one direction."""
    rng = rng_of(seed, "lossy")
    for_s = duration_s * 0.7
    faults = [At(2.0, LossyNode(node, 0.3, for_s)) for node in some(rng, nodes, 0.05)]
    for _ in range(max(1, nodes // 4)):
        source, target = rng.sample(range(nodes), 2)
        faults.append(At(3.0, LossyLink(source, target, 1.0, for_s)))
    return plan_of("lossy", (nodes, seed, duration_s, loss), faults)


def total_partition_and_heal(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Nobody hears anybody, long enough for all to be held dead; then all is well again."""
    groups = tuple(frozenset({node}) for node in range(nodes))
    faults = [
        At(duration_s * 0.1, Partition("total", groups)),
        At(duration_s * 0.8, Heal("total")),
    ]
    return plan_of("total_partition_and_heal", (nodes, seed, duration_s, loss), faults)


def swizzle(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """A third of the nodes are clogged one by one, and unclogged in another order."""
    rng = rng_of(seed, "swizzle")
    faults: list[At] = []
    for _ in range(2):
        began_s = 2 + duration_s * 0.5 * rng.random()
        chosen = some(rng, nodes, 1 / 3)
        ends = [began_s + len(chosen) + 8 * rng.random() for _ in chosen]
        for number, node in enumerate(chosen):
            at_s = began_s + number * (0.5 + 0.5 * rng.random())
            faults.append(At(at_s, Clog(node, max(0.1, ends[number] - at_s))))
    return plan_of("swizzle", (nodes, seed, duration_s, loss), faults)


def narrow(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Links of 64 kbit/s that carry nothing above 1,200 bytes; two nodes crash."""
    rng = rng_of(seed, "narrow")
    faults = [At(duration_s * (0.1 + 0.3 * rng.random()), Crash(n)) for n in some(rng, nodes, 0.1)]
    shape = Shape(loss=loss, bytes_per_s=8_000.0, mtu_bytes=1_200)
    return plan_of("narrow", (nodes, seed, duration_s, loss), faults, shape=shape)


def tangled(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """One packet in three is overtaken by later ones, one in five comes twice; some nodes crash."""
    rng = rng_of(seed, "tangled")
    faults = [At(duration_s * (0.1 + 0.3 * rng.random()), Crash(n)) for n in some(rng, nodes, 0.1)]
    shape = Shape(loss=loss, duplicate=0.2, reorder=0.3, reorder_s=0.15)
    return plan_of("tangled", (nodes, seed, duration_s, loss), faults, shape=shape)
