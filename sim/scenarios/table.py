"""All scenarios by name, with the size and duration that each is usually run with."""

from sim.scenarios import hostile, identity, network, process, whole
from sim.scenarios.base import Scenario
from sim.scenarios.swarm import swarm

_ALL = (
    (process.steady, 50, 60.0),
    (process.crash, 100, 60.0),
    (process.join_storm, 100, 30.0),
    (network.split, 20, 120.0),
    (network.apart, 20, 120.0),
    (network.one_way, 20, 120.0),
    (network.isolate_one, 20, 90.0),
    (network.flap, 20, 90.0),
    (process.churn, 30, 90.0),
    (process.mass_restart, 20, 60.0),
    (process.documents, 10, 60.0),
    (process.slow_node, 20, 60.0),
    (process.starved, 50, 120.0),
    (process.blocked, 20, 60.0),
    (process.loads, 20, 60.0),
    (process.asked, 12, 60.0),
    (process.told, 20, 60.0),
    (network.lossy, 20, 90.0),
    (network.swizzle, 20, 60.0),
    (network.narrow, 20, 60.0),
    (network.tangled, 20, 60.0),
    (network.total_partition_and_heal, 10, 120.0),
    (identity.rolling_upgrade, 20, 90.0),
    (identity.third_version, 18, 90.0),
    (identity.power_loss, 20, 60.0),
    (identity.clones, 20, 100.0),
    (identity.outsiders, 12, 60.0),
    (hostile.join_flood, 12, 30.0),
    (hostile.forged_newcomers, 12, 60.0),
    (hostile.false_guests, 12, 60.0),
    (hostile.forged_records, 12, 60.0),
    (hostile.replays, 12, 60.0),
    (process.two_meshes, 20, 30.0),
    (process.goodbyes, 20, 60.0),
    (swarm, 0, 60.0),
    *whole.ALL,
)
SCENARIOS = {
    make.__name__: Scenario(
        make.__name__, (make.__doc__ or "").split("\n")[0], make, nodes, duration_s
    )
    for make, nodes, duration_s in _ALL
}
