"""By when things must have happened: the formulas behind the bounded invariants.

Source of the numbers: SWIM (section 3.1 for the wait for a probe), Lifeguard (section IV-B for the
length of a doubt), Serf's convergence simulator (for the spreading of a rumour).
"""

import math

from meshd.gossip.broadcast import transmit_limit
from meshd.gossip.codec import LOAD_ENTRY_BYTES
from meshd.gossip.config import GossipConfig
from meshd.gossip.suspicion import suspicion_bounds_s
from sim.network import Constant, Shape, Uniform
from sim.world import World

PROBE_PERIODS = 21
"""No prober comes by within so many periods: e^-21, once in a thousand million times."""
MARGIN_S = 1.5
"""For spreading the verdict, and for the packets themselves."""
SPREAD_FACTOR = 1.3
SPREAD_SHARE = 0.99
_TAIL = 4.6  # times the mean: what one in a hundred exponential delays exceeds


def calm_needed_s(world: World) -> float:
    """How long after a disturbance its last suspicions and bad health are gone."""
    longest_s = suspicion_bounds_s(world.config, len(world.hosts))[1]
    return longest_s + 10 * world.config.probe_interval_s


def detection_bound_s(world: World, survivors: int) -> float:
    """By when each of `survivors` holds a crashed node dead: 21 T + T + T_min + 1.5 s.

    Some prober comes by within 21 periods, and so do those who confirm it; the last round takes
    one more. Where packets are lost, helpers' nacks are too, and health doubles the periods.
    """
    config = world.config
    shortest_s, _ = suspicion_bounds_s(config, survivors + 1)
    stretch = 2 if world.network.shape.loss else 1
    return (stretch * PROBE_PERIODS + 1) * config.probe_interval_s + shortest_s + MARGIN_S


def latency_high_s(shape: Shape) -> float:
    """What at most one packet in a hundred exceeds, one way."""
    latency = shape.latency
    if isinstance(latency, Constant):
        high_s = latency.delay_s
    elif isinstance(latency, Uniform):
        high_s = latency.high_s
    else:
        high_s = min(latency.high_s, latency.low_s + _TAIL * latency.mean_s)
    return high_s + (shape.reorder_s if shape.reorder else 0.0)


def serf_spread_s(config: GossipConfig, members: int, loss: float, failed: float = 0.0) -> float:
    """When 99 % of `members` have heard a rumour, by Serf's convergence formula.

    infected(x) / n = 1 / (1 + (n + 1) e^(-fanout (1 - loss) (1 - failed) x)), x rounds of gossip.
    """
    odds = SPREAD_SHARE / (1 - SPREAD_SHARE)
    contact = config.gossip_fanout * (1 - loss) * (1 - failed)
    rounds = math.log((members + 1) * odds) / contact
    return rounds * config.gossip_interval_s


def spread_bound_s(world: World) -> float:
    """When 99 % must have heard: 1.3 times Serf's formula, and the hops' own time.

    Whoever is not up counts as failed: some may still be sent to.
    """
    members = len(world.hosts)
    failed = 1 - max(1, len(world.members())) / members
    hops = 2 + math.ceil(math.log(members + 1, 1 + world.config.gossip_fanout))
    shape = world.network.shape
    hops_s = hops * latency_high_s(shape)
    return SPREAD_FACTOR * serf_spread_s(world.config, members, shape.loss, failed) + hops_s


def load_period_s(config: GossipConfig, members: int) -> float:
    """Shortest time between two load rumours of one node: the byte budget stretches it.

    If the loads of all change at once, each node passes on an entry for each of them, some times.
    """
    spent = members * config.load_transmit_limit * LOAD_ENTRY_BYTES
    return max(config.load_interval_s, spent / config.load_bytes_per_s)


def everybody_bound_s(world: World) -> float:
    """When the last one must have heard: the rumour is out, and one sync comes by.

    The sync waits for the end of a probe period, and for its packets.
    """
    config = world.config
    limit = transmit_limit(config.transmit_mult, len(world.hosts))
    return (
        limit * config.gossip_interval_s
        + config.sync_interval_s
        + 2 * config.probe_interval_s
        + 4 * latency_high_s(world.network.shape)
    )
