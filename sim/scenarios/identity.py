"""Scenarios of identity: mixed versions, lost memory, doubles, and people outside."""

from sim.faults import At, Clone, Crash, Leave, Outsider, PowerLoss, Restart, Upgrade
from sim.network import Shape
from sim.plan import Plan
from sim.scenarios.base import plan_of, rng_of, seeds_of, some


def rolling_upgrade(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Node by node restarts into the next protocol version; now and then one is taken back."""
    rng = rng_of(seed, "rolling_upgrade")
    faults: list[At] = []
    for number, node in enumerate(rng.sample(range(nodes), nodes)):
        at_s = 2 + duration_s * 0.8 * number / nodes
        down_s = 0.2 + 2 * rng.random()
        if rng.random() < 0.5:
            faults.append(At(at_s, Leave(node)))
            at_s += 3.2
        seeds = seeds_of(rng, nodes, node)
        faults.append(At(at_s, Upgrade(node, newer=True, after_s=down_s, seeds=seeds)))
        if rng.random() < 0.2:
            back = Upgrade(node, newer=False, after_s=down_s, seeds=seeds)
            faults.append(At(at_s + down_s + 3 + 5 * rng.random(), back))
    return plan_of("rolling_upgrade", (nodes, seed, duration_s, loss), faults)


def third_version(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """A third speaks the old version, a third both, a third only the new one; one node crashes."""
    rng = rng_of(seed, "third_version")
    order = rng.sample(range(nodes), nodes)
    third = max(1, nodes // 3)
    both, new = order[:third], order[third : 2 * third]
    faults = []
    for number, node in enumerate([*both, *new]):
        only = number >= third
        seeds = tuple(rng.sample(both, min(3, third))) if only else seeds_of(rng, nodes, node)
        at_s = 2 + duration_s * 0.5 * number / (2 * third)
        faults.append(At(at_s, Upgrade(node, only=only, after_s=0.5, seeds=seeds)))
    faults.append(At(duration_s * 0.6, Crash(order[-1])))
    return plan_of("third_version", (nodes, seed, duration_s, loss), faults)


def power_loss(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """A third of the machines lose power and memory at once; half of those come up an hour back."""
    rng = rng_of(seed, "power_loss")
    gone = some(rng, nodes, 1 / 3)
    half = (len(gone) + 1) // 2
    faults = []
    for group, back_s in ((gone[:half], 3_600.0), (gone[half:], 0.0)):
        if group:
            after_s = 1 + (10 * rng.random() if rng.random() < 0.5 else 30.0)
            seeds = tuple(rng.sample(sorted(set(range(nodes)) - set(gone)), min(3, nodes // 2)))
            faults.append(At(5.0, PowerLoss(tuple(group), after_s, back_s, seeds)))
    return plan_of("power_loss", (nodes, seed, duration_s, loss), faults)


def clones(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Two nodes each have a double for a while, as from a copied disk image.

    One node at least has none. Else all may hold each other at the doubles' addresses, and when
    those are gone nobody knows where anybody is: that is for discovery to mend, not for gossip.
    """
    rng = rng_of(seed, "clones")
    faults = [
        At(2 + 5 * rng.random(), Clone(node, 5 + 10 * rng.random(), seeds_of(rng, nodes, node)))
        for node in rng.sample(range(nodes), min(2, nodes - 1))
    ]
    return plan_of("clones", (nodes, seed, duration_s, loss), faults)


def outsiders(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Nodes restart, and get datagrams of all kinds from addresses of others; 3 % are lost."""
    rng = rng_of(seed, "outsiders")
    targets = some(rng, nodes, 0.5)
    faults = [At(1 + 3 * rng.random(), Restart(n, 0.5, seeds_of(rng, nodes, n))) for n in targets]
    faults += [At(2 + 3 * rng.random(), Outsider(node, duration_s * 0.6)) for node in targets]
    faults.append(At(duration_s * 0.3, Crash(rng.randrange(nodes))))
    shape = Shape(loss=max(loss, 0.03))
    return plan_of("outsiders", (nodes, seed, duration_s, loss), faults, shape=shape)
