"""Scenarios of people outside who know all there is to know, and forge what they can."""

from sim.faults import At, Crash, Forger, Leave, Replayer, Restart
from sim.plan import Plan
from sim.scenarios.base import plan_of, rng_of, seeds_of, some


def join_flood(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Invented names knock at two doors by the thousand, and strangers ping; a node crashes."""
    rng = rng_of(seed, "join_flood")
    chosen = some(rng, nodes, 0.2)
    faults = [At(3 + rng.random(), Forger(node, "joins", 2.0, 1_500.0)) for node in chosen]
    faults += [At(8 + rng.random(), Forger(node, "pings", 1.0, 6_000.0)) for node in chosen]
    faults.append(At(duration_s * 0.4, Crash(rng.randrange(nodes))))
    return plan_of("join_flood", (nodes, seed, duration_s, loss), faults)


def forged_newcomers(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Nodes that do not exist are said to be at a victim's address, by nobody with a right to."""
    rng = rng_of(seed, "forged_newcomers")
    faults = [
        At(2 + rng.random(), Forger(node, "newcomers", duration_s * 0.5, 20.0))
        for node in some(rng, nodes, 0.5)
    ]
    return plan_of("forged_newcomers", (nodes, seed, duration_s, loss), faults)


def false_guests(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Nodes that do not exist are said to be guests of members who never met them."""
    rng = rng_of(seed, "false_guests")
    faults = [
        At(2 + rng.random(), Forger(node, "guests", duration_s * 0.3, 1.0))
        for node in some(rng, nodes, 0.3)
    ]
    return plan_of("false_guests", (nodes, seed, duration_s, loss), faults)


def forged_records(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Members are said to be dead, elsewhere, or at incarnation 2^32 - 1, while some restart."""
    rng = rng_of(seed, "forged_records")
    faults = [
        At(2 + rng.random(), Forger(node, "records", duration_s * 0.6, 20.0))
        for node in some(rng, nodes, 0.5)
    ]
    faults += [
        At(5 + 10 * rng.random(), Restart(node, 0.5, seeds_of(rng, nodes, node)))
        for node in some(rng, nodes, 0.2)
    ]
    return plan_of("forged_records", (nodes, seed, duration_s, loss), faults)


def replays(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """What nodes were sent comes again much later, after others left, crashed and restarted."""
    rng = rng_of(seed, "replays")
    faults = [
        At(1.0, Replayer(node, duration_s * 0.3, duration_s * 0.4))
        for node in some(rng, nodes, 0.5)
    ]
    chosen = rng.sample(range(nodes), min(3, nodes - 1))
    for number, node in enumerate(chosen):
        restart = Restart(node, 1.0, seeds_of(rng, nodes, node))
        happens = (Leave(node), Crash(node), restart)[number]
        faults.append(At(3 + 5 * rng.random(), happens))
    return plan_of("replays", (nodes, seed, duration_s, loss), faults)
