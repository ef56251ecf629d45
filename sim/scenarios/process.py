"""Scenarios of processes: they come, go, are slow, and have work to do."""

from sim.faults import (
    Asks,
    At,
    Block,
    Crash,
    Fault,
    Heal,
    Leave,
    Loads,
    Partition,
    Rejoin,
    Restart,
    SetState,
    SlowNode,
    Start,
    Starve,
    Tells,
)
from sim.network import Shape
from sim.plan import Plan
from sim.scenarios.base import SEEDS_KNOWN, halves, plan_of, rng_of, seeds_of, some

STARVED_FRACTION = 0.05


def steady(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Nothing happens."""
    return plan_of("steady", (nodes, seed, duration_s, loss), [])


def crash(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """One node crashes after a sixth of the time."""
    node = rng_of(seed, "crash").randrange(nodes)
    faults = [At(duration_s / 6, Crash(node))]
    return plan_of("crash", (nodes, seed, duration_s, loss), faults)


def join_storm(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """All nodes start within two seconds; each knows the first one, and two more at random."""
    rng = rng_of(seed, "join_storm")
    faults = [At(0.0, Start(0, ()))]
    for node in range(1, nodes):
        known = seeds_of(rng, nodes, node)[: SEEDS_KNOWN - 1]
        faults.append(At(0.1 + 2 * rng.random(), Start(node, (0, *known))))
    return plan_of("join_storm", (nodes, seed, duration_s, loss), faults, converged=0)


def churn(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Nodes crash, restart, leave and write state, about one a second, until three quarters."""
    rng = rng_of(seed, "churn")
    faults: list[At] = []
    at_s = 2.0
    while at_s < duration_s * 0.75:
        node = rng.randrange(nodes)
        seeds = seeds_of(rng, nodes, node)
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
    return plan_of("churn", (nodes, seed, duration_s, loss), faults)


def mass_restart(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """All nodes are killed within a second, as by a failed rack, and start again soon after."""
    rng = rng_of(seed, "mass_restart")
    faults = [
        At(5 + rng.random(), Restart(node, 1 + 4 * rng.random(), seeds_of(rng, nodes, node)))
        for node in range(nodes)
    ]
    return plan_of("mass_restart", (nodes, seed, duration_s, loss), faults)


def documents(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """All nodes write documents of up to 64 KiB, some write anew, some restart; 30 % are lost."""
    rng = rng_of(seed, "documents")
    faults: list[At] = []
    for node in range(nodes):
        at_s = 1 + duration_s * 0.3 * rng.random()
        value, times = rng.randbytes(16), rng.choice((2, 40, 400, 4_000))
        faults.append(At(at_s, SetState(node, "doc/large", value, times)))
        faults.append(At(at_s, SetState(node, "doc/small", value + b"small", 20)))
    for node in some(rng, nodes, 0.2):
        at_s = duration_s * (0.3 + 0.2 * rng.random())
        faults.append(At(at_s, SetState(node, "doc/small", rng.randbytes(16), 50)))
    for node in some(rng, nodes, 0.1):
        at_s = duration_s * (0.4 + 0.2 * rng.random())
        faults.append(At(at_s, Restart(node, 1.0, seeds_of(rng, nodes, node))))
        faults.append(At(at_s + 2, SetState(node, "doc/small", rng.randbytes(16), 50)))
    shape = Shape(loss=max(loss, 0.3))
    return plan_of("documents", (nodes, seed, duration_s, loss), faults, shape=shape)


def slow_node(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """One node needs a third of a second for each packet; another one crashes meanwhile."""
    slow, crashed = rng_of(seed, "slow_node").sample(range(nodes), 2)
    faults = [
        At(2.0, SlowNode(slow, 0.3, duration_s * 0.8)),
        At(duration_s * 0.4, Crash(crashed)),
    ]
    return plan_of("slow_node", (nodes, seed, duration_s, loss), faults)


def starved(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """One node in twenty reads its packets 0.5 to 2.5 s late; a healthy one crashes half-way."""
    rng = rng_of(seed, "starved")
    hungry = some(rng, nodes, STARVED_FRACTION)
    healthy = [node for node in range(nodes) if node not in hungry]
    faults = [At(0.0, Starve(node, duration_s)) for node in hungry]
    faults.append(At(duration_s / 2, Crash(rng.choice(healthy))))
    return plan_of("starved", (nodes, seed, duration_s, loss), faults)


def told(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Users of all nodes tell events; some nodes restart, later the mesh splits for a while."""
    rng = rng_of(seed, "told")
    faults = [At(1.0, Tells(4.0, duration_s * 0.9))]
    for node in some(rng, nodes, 0.1):
        at_s = duration_s * (0.3 + 0.1 * rng.random())
        faults.append(At(at_s, Restart(node, 2.0, seeds_of(rng, nodes, node))))
    faults.append(At(duration_s * 0.75, Partition("told", halves(rng, nodes))))
    faults.append(At(duration_s * 0.9, Heal("told")))
    return plan_of("told", (nodes, seed, duration_s, loss), faults)


def two_meshes(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Two meshes share a network, and each node knocks at the doors of both."""
    rng = rng_of(seed, "two_meshes")
    faults = [At(0.0, Start(0, ())), At(0.0, Start(1, ()))]
    faults += [
        At(0.1 + 2 * rng.random(), Start(node, (0, 1, *seeds_of(rng, nodes, node))))
        for node in range(2, nodes)
    ]
    given = (nodes, seed, duration_s, loss)
    return plan_of("two_meshes", given, faults, converged=0, meshes=2)


def goodbyes(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """A third of the nodes leave one after another; some come back."""
    rng = rng_of(seed, "goodbyes")
    faults: list[At] = []
    for node in some(rng, nodes, 1 / 3):
        at_s = 2 + (duration_s * 0.5) * rng.random()
        faults.append(At(at_s, Leave(node)))
        if rng.random() < 0.3:
            faults.append(At(at_s + 0.5 + rng.random(), Rejoin(node)))
        elif rng.random() < 0.5:
            faults.append(At(at_s + 10 * rng.random() + 5, Start(node, seeds_of(rng, nodes, node))))
    return plan_of("goodbyes", (nodes, seed, duration_s, loss), faults)


def loads(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Each node's load changes every five seconds; one node crashes, one joins."""
    crashed, late = rng_of(seed, "loads").sample(range(nodes), 2)
    faults = [
        At(0.0, Loads(5.0, duration_s * 0.8)),
        At(duration_s * 0.3, Crash(crashed)),
        At(duration_s * 0.4, Restart(late, 1.0, ((late + 1) % nodes, (late + 2) % nodes))),
    ]
    return plan_of("loads", (nodes, seed, duration_s, loss), faults)


def asked(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Users ask how far members are, five times a second at each node; one node crashes."""
    node = rng_of(seed, "asked").randrange(nodes)
    faults = [At(0.0, Asks(0.2, duration_s * 0.8)), At(duration_s * 0.2, Crash(node))]
    return plan_of("asked", (nodes, seed, duration_s, loss), faults)


def blocked(nodes: int, seed: int, duration_s: float, loss: float) -> Plan:
    """Handlers hold their processes for up to three seconds: nobody may be held dead for it."""
    rng = rng_of(seed, "blocked")
    faults = [
        At(2 + duration_s * 0.6 * rng.random(), Block(node, 0.2 + 2.8 * rng.random()))
        for node in some(rng, nodes, 0.5)
    ]
    return plan_of("blocked", (nodes, seed, duration_s, loss), faults)
