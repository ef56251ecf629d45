"""How near routing comes to the ideal, in the simulator; what one decision costs, in this process.

The production router's functions run in an event simulation of N nodes of four slots, each of which
hands out and does work: see `sim/routing`. Beside it stand the ideal (asking everyone before each
call) and what others do with gossip alone. Times are in mean service times.
"""

import argparse
import random
import time
from pathlib import Path
from typing import Any

from mesh_processes import arguments, progress, report, summary
from rivals.goals import at_most, outcome

from meshd.clock import Instant
from meshd.routing.breakers import Breakers
from meshd.routing.need import Need
from meshd.routing.router import plan
from meshd.routing.settings import RoutingSettings
from meshd.routing.signals import Outcome, Outstanding
from meshd.view import ClusterView
from meshd.work.admission import QUEUE_DEFAULT
from sim.experiments.runs import each
from sim.routing import table
from sim.routing.cells import Cell, Kind
from sim.routing.fleet import CAPABILITY, Fleet
from sim.routing.ways import WAYS
from sim.world import START_S

DECISION_US = {60: 100.0, 100: 100.0, 1_000: 1_000.0}
"""By peers; up to 64 every plan accounts for all of them."""
FAILURES = 3
"""In a row: a circuit opens."""
VIEWS = 20
"""Views of a mesh that decisions are made on, each new to the router: it has to be searched."""


def simulate(options: argparse.Namespace) -> None:
    """The table, its goals, and the JSON object."""
    done = table.tasks(
        kinds=[Kind(name) for name in options.scenarios],
        nodes=options.nodes,
        loads=options.loads,
        periods=options.periods,
        ways=options.policies,
        seeds=options.seeds,
        calls=options.calls,
    )

    def tell(count: int, total: int) -> None:
        if count == total or count % 20 == 0:
            progress(f"{count} of {total} runs")

    found = each(table.work, done, jobs=options.jobs, progress=tell, kept=options.out)
    rows = [row.told() for row in table.rows(done, found)]
    goals = [
        at_most(bound.text, bound.value, bound.at_most)
        for bound in table.bounds(table.rows(done, found))
    ]
    _report(options, [*rows, *(goal.row() for goal in goals)], {"rows": rows}, goals)


def decide(options: argparse.Namespace) -> None:
    """How long `plan` takes, without any input or output."""
    rows, figures, goals = [], {}, []
    for peers, most_us in DECISION_US.items():
        for is_open in (False, True):
            circuits = "one circuit open" if is_open else "all circuits closed"
            first, later = decisions(peers, options.decisions_made, is_open=is_open)
            for which, taken in (("any", later), ("first on a view", first)):
                told = summary(taken, 1)
                figures[f"{peers} peers, {circuits}, {which}"] = told
                rows.append({"peers": peers, "circuits": circuits, "which": which, **told})
                text = f"{peers} peers, {circuits}, {which}: median us"
                goals.append(at_most(text, told["p50"], most_us))
    _report(options, [*rows, *(goal.row() for goal in goals)], figures, goals)


def decisions(peers: int, count: int, *, is_open: bool) -> tuple[list[float], list[float]]:
    """Microseconds of each decision: the first ones on a view, and the others."""
    fleet = Fleet(Cell(Kind.HETEROGENEOUS, nodes=peers), 1, queue_max=QUEUE_DEFAULT)
    me, chance, now = fleet.nodes[0], random.Random(1), Instant(START_S)
    outstanding, settings, need = Outstanding(), RoutingSettings(), Need(CAPABILITY)
    breakers = Breakers()
    first, later = [], []
    for _ in range(VIEWS):
        view = ClusterView(version=1, me=me.id, by_node=dict(me.rows), stale_after_s=1e6)
        for _ in range(FAILURES if is_open else 0):
            crossing = breakers.begin(view.peers[-1], CAPABILITY, now, is_pinned=True)
            breakers.end(crossing, Outcome.FAILED, now, lambda: view)  # noqa: B023 - called at once
        for number in range(max(2, count // VIEWS)):
            began = time.perf_counter()
            made = plan(
                view, need, now, outstanding=outstanding, random=chance, settings=settings,
                breakers=breakers,
            )  # fmt: skip
            (later if number else first).append((time.perf_counter() - began) * 1e6)
            assert made.chosen is not None, "all can be asked"
            peer = made.chosen.peer
            outstanding.begin(peer, now)
            assert peer.load is not None, "all have told"
            outstanding.on_reply(peer.node, peer.load, now)
    return first, later


def _report(
    options: argparse.Namespace, rows: list[dict[str, Any]], figures: dict[str, Any], goals: Any
) -> None:
    parameters = {key: str(value) for key, value in vars(options).items() if key != "quick"}
    report("routing", rows, parameters=parameters, figures=figures, **outcome(goals))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--scenarios", nargs="+", default=[str(k) for k in Kind], choices=list(Kind)
    )
    parser.add_argument("--nodes", type=int, nargs="+", default=list(table.NODES))
    parser.add_argument("--loads", type=float, nargs="+", default=list(table.LOADS))
    parser.add_argument("--periods", type=float, nargs="+", default=list(table.PERIODS), help="T/S")
    parser.add_argument("--policies", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=table.CALLS, help="Counted, a run.")
    parser.add_argument("--jobs", type=int, default=1, help="Processes at a time.")
    parser.add_argument("--out", type=Path, help="Keeps each run: who has it goes on.")
    parser.add_argument("--decisions", action="store_true", help="Time plan() instead.")
    options = arguments(parser)
    options.decisions_made = 20_000
    if options.quick:
        options.scenarios, options.nodes, options.loads = ["homogeneous", "sinkhole"], [10], [0.7]
        options.policies, options.seeds = ["adaptive", "everyone", "gossip_least"], 1
        options.calls, options.decisions_made = table.CALLS_QUICK, 200
    if options.decisions:
        decide(options)
    else:
        simulate(options)


if __name__ == "__main__":
    main()
