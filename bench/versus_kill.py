"""How long after kill -9 all others declare a node dead: meshd, Serf and kinship in one run.

Goals: with each size our median at most 0.65 of each rival's, our slowest no slower than theirs,
and nobody declared dead who runs. At N = 100 with all kinds at the same time, 30 kills take about
eight minutes and 10 GB of memory; with `--together-max 50` they run in turn, which takes thrice as
long.
"""

import random
import time
from typing import Any

from rivals.cluster import Cluster
from rivals.goals import Goal, at_most
from rivals.kept import Result
from rivals.kinds import ALIVE, DEAD, Meshd
from rivals.side_by_side import (
    Bench,
    begin,
    collected,
    figure,
    network,
    parser,
    ratios,
    rounds,
)

DEAD_TIMEOUT_S = 180.0
BACK_TIMEOUT_S = 240.0
"""memberlist may lose a join and mend it only by its stretched push-pull."""
RATIO_P50_MAX = 0.65


def kill_one(cluster: Cluster, number: int, seed: int) -> Result:
    """Kill a node, wait until it is dead everywhere, and bring it back."""
    chance = random.Random(f"{seed} {number}")
    time.sleep(chance.random())  # the victim dies at any point of a probe round
    victim = chance.choice(cluster.nodes)
    others = [node for node in cluster.nodes if node is not victim]
    killed_at = cluster.kill(victim)
    try:
        dead = cluster.wait_said(others, victim.key, [DEAD], killed_at, DEAD_TIMEOUT_S)
    finally:
        again = cluster.restart(victim, others[:2])
    back = cluster.wait_said(others, again.key, [ALIVE], dead[-1], BACK_TIMEOUT_S)
    cluster.wait_all_alive(timeout_s=BACK_TIMEOUT_S)
    return {
        "first_dead_s": round(dead[0] - killed_at, 3),
        "dead_everywhere_s": round(dead[-1] - killed_at, 3),
        "back_s": round(back[-1] - again.ready_at, 3),
        "false_deaths": cluster.deaths(killed_at, of=[n.key for n in others], by=cluster.nodes),
    }


def goals(size: int, found: dict[str, Any]) -> list[Goal]:
    ours = {what: figure(found, Meshd.name, "dead_everywhere_s", what) for what in ("p50", "max")}
    failures = [figure(found, Meshd.name, what) for what in ("false_deaths", "failed")]
    made = [
        at_most(f"N={size}: false deaths", failures[0], 0),
        at_most(f"N={size}: rounds without an end", failures[1], 0),
    ]
    for name in (name for name in found if name != Meshd.name):
        theirs = {what: figure(found, name, "dead_everywhere_s", what) for what in ours}
        share = f"N={size}: p50 until dead everywhere, {RATIO_P50_MAX} x {name}"
        made += [
            at_most(share, ours["p50"], theirs["p50"], RATIO_P50_MAX),
            at_most(f"N={size}: slowest, {name}", ours["max"], theirs["max"]),
        ]
    return made


def measure(bench: Bench, size: int) -> tuple[list[Result], dict[str, Any]]:
    options = bench.options
    with network(size, is_lan_needed=False) as place:
        results = rounds(
            bench, place, lambda cluster, number: kill_one(cluster, number, options.seed),
            {"N": size}, size=size, count=options.runs, block=options.block,
        )  # fmt: skip
    return collected(results, ["false_deaths"])


def main() -> None:
    made = parser(__doc__)
    made.set_defaults(together_max=100)
    made.add_argument("--sizes", type=int, nargs="+", default=[50, 100])
    made.add_argument("--runs", type=int, default=30, help="Kills of each kind.")
    made.add_argument(
        "--block", type=int, default=10, help="Kills in a row where kinds take turns."
    )
    bench = begin("versus_kill", made, sizes=[3], runs=1, profile="local")
    figures: dict[str, Any] = {}
    rows: list[Result] = []
    judged: list[Goal] = []
    for size in bench.options.sizes:
        some, found = measure(bench, size)
        rows += [{"N": size, **row} for row in some]
        judged += goals(size, found)
        everywhere = {name: each.get("dead_everywhere_s", {}) for name, each in found.items()}
        shares = {f"ratio_{what}": ratios(everywhere, what) for what in ("p50", "max")}
        figures[f"n{size}"] = {**found, **shares}
    bench.finish(rows, figures, judged, "sizes", "runs", "block")


if __name__ == "__main__":
    main()
