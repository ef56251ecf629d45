"""How many messages a quiet node sends, beside SWIM's flat load (DSN 2002, figure 2)."""

from dataclasses import dataclass

from meshd.gossip.codec import decode
from meshd.gossip.effects import SendDatagram
from meshd.gossip.messages import Ack, Ping
from sim.experiments.model import Experiment, Options, Outcome, Progress, Table, judged
from sim.experiments.runs import each
from sim.experiments.statistics import mean
from sim.world import IP_UDP_BYTES, MESH, START_S, Host, World

SIZES = (8, 16, 32, 64, 128, 256)
SIZES_QUICK = (8, 32, 128)
SEEDS, SEEDS_QUICK = 5, 1
PERIODS = 40
SWIM_LOAD, SWIM_OFF = 2.0, 0.05
FEW = 5
LARGE = ((100, 40), (1_000, 20), (10_000, 10))
"""Sizes of large quiet meshes, and for how many periods each is looked at."""
LARGE_QUICK = ((100, 10), (400, 5))
GROWTH_MAX = 1.1
"""By how much a hundredfold mesh may cost a quiet node more; its logarithm doubles."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What one run's nodes sent, for each node and period: pings and acks; and all in all."""

    nodes: int
    probes: tuple[int, ...]
    packets: int
    sent_bytes: int


def run(task: tuple[int, int]) -> Sent:
    """A mesh without failures and without loss, for forty periods."""
    return quiet(*task, PERIODS)


def run_large(task: tuple[int, int]) -> Sent:
    """The same for a mesh and a number of periods."""
    nodes, periods = task
    return quiet(nodes, 1, periods)


def quiet(nodes: int, seed: int, periods: int) -> Sent:
    """A mesh without failures and without loss."""
    world = World(nodes, seed)
    period_s = world.config.probe_interval_s
    begin = START_S + 2.0 * period_s
    counts = [0] * (nodes * periods)
    packets = sent_bytes = 0
    world.start_converged()

    def on_send(host: Host, effect: SendDatagram) -> None:
        nonlocal packets, sent_bytes
        period = int((world.now - begin) // period_s)
        if not 0 <= period < periods:
            return
        packets += 1
        sent_bytes += len(effect.data) + IP_UDP_BYTES
        if isinstance(decode(effect.data, MESH).message, Ping | Ack):
            counts[host.index * periods + period] += 1

    world.on_send.append(on_send)
    world.run(begin + periods * period_s)
    return Sent(nodes, tuple(counts), packets, sent_bytes)


def experiment(options: Options, progress: Progress) -> Outcome:
    """Each size."""
    sizes = SIZES_QUICK if options.quick else SIZES
    seeds = options.seeds_or(SEEDS, SEEDS_QUICK)
    tasks = [(nodes, seed) for nodes in sizes for seed in range(seeds)]
    runs = each(run, tasks, jobs=options.jobs, progress=progress, kept=options.kept)
    rows = []
    for nodes in sizes:
        ours = [one for one in runs if one.nodes == nodes]
        probes = [float(count) for one in ours for count in one.probes]
        rows.append(
            {
                "nodes": nodes,
                "node_periods": len(probes),
                "mean": round(mean(probes), 3),
                "max": int(max(probes)),
                "below_five": round(mean([float(count < FEW) for count in probes]), 4),
                "all_packets": round(sum(one.packets for one in ours) / len(probes), 3),
            }
        )
    checks = [
        judged(
            f"N = {row['nodes']}, pings and acks",
            f"{SWIM_LOAD:.1f} within {SWIM_OFF}",
            f"{row['mean']:.2f}",
            met=abs(row["mean"] - SWIM_LOAD) <= SWIM_OFF,
        )
        for row in rows
    ]
    cells = tuple(
        (str(row["nodes"]), str(row["node_periods"]), f"{row['mean']:.3f}", str(row["max"]),
         f"{row['below_five']:.3f}", f"{row['all_packets']:.3f}")
        for row in rows
    )  # fmt: skip
    columns = ("N", "node periods", "pings + acks", "most", "P(< 5)", "all packets")
    table = Table("Messages that a node sends in a probe period", columns, cells)
    return Outcome("load", tuple(rows), tuple(checks), (table,))


def experiment_large(options: Options, progress: Progress) -> Outcome:
    """What a quiet node of a large mesh sends."""
    tasks = LARGE_QUICK if options.quick else LARGE
    rows = []
    runs = each(run_large, tasks, jobs=options.jobs, progress=progress, kept=options.kept)
    for (nodes, periods), one in zip(tasks, runs, strict=True):
        shares = nodes * periods
        rows.append(
            {
                "nodes": nodes,
                "periods": periods,
                "packets": round(one.packets / shares, 3),
                "bytes": round(one.sent_bytes / shares, 1),
            }
        )
    growth = rows[-1]["bytes"] / rows[0]["bytes"]
    check = judged(
        f"bytes at N = {rows[-1]['nodes']} beside N = {rows[0]['nodes']}",
        f"at most {GROWTH_MAX:g} times",
        f"{growth:.2f} times",
        met=growth <= GROWTH_MAX,
    )
    cells = tuple(tuple(str(value) for value in row.values()) for row in rows)
    columns = ("N", "periods", "packets", "IP bytes")
    table = Table("What a quiet node sends in a probe period", columns, cells)
    return Outcome("load_large", tuple(rows), (check,), (table,))


LOAD_LARGE = Experiment("load_large", "bytes of a quiet node up to N = 10,000", experiment_large)
LOAD = Experiment("load", "messages of a quiet node, beside SWIM's flat load", experiment)
