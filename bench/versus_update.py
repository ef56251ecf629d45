"""How soon all nodes know what one of them changed: meshd, Serf and kinship in one run.

With meshd it is a capability's description, with Serf a tag, with kinship its metadata; all of them
travel within gossip itself. Goal: our median until the last node has it is at most kinship's.
"""

import random
import time
from typing import Any

from rivals.cluster import Cluster
from rivals.goals import Goal, at_most
from rivals.kept import Result
from rivals.kinds import UPDATED, UPDATES, Kinship, Meshd
from rivals.side_by_side import (
    begin,
    collected,
    figure,
    network,
    parser,
    ratios,
    rounds,
)

TIMEOUT_S = 60.0


def update_one(cluster: Cluster, number: int, seed: int, pause_s: float) -> Result:
    """Change something at one node; when do the others have it?"""
    chance = random.Random(f"{seed} {number}")
    time.sleep(pause_s + chance.random())
    author = chance.choice(cluster.nodes)
    others = [node for node in cluster.nodes if node is not author]
    asked_at = time.monotonic()
    cluster.update(author, number)
    said = cluster.wait_said(others, author.key, [UPDATED], asked_at, TIMEOUT_S)
    # Serf's own command takes its time; the node's log says when it has the change itself.
    own = author.first(author.key, [UPDATED], asked_at)
    began = asked_at if own is None else min(own, said[0])
    return {
        "half_s": round(said[len(said) // 2] - began, 3),
        "everywhere_s": round(said[-1] - began, 3),
    }


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--sizes", type=int, nargs="+", default=[10, 50])
    made.add_argument("--runs", type=int, default=30, help="Updates of each kind.")
    made.add_argument("--pause", type=float, default=3.0, help="Seconds of rest between two.")
    made.add_argument("--block", type=int, default=10, help="In a row where kinds take turns.")
    bench = begin("versus_update", made, sizes=[3], runs=2, pause=0.0)
    options = bench.options
    figures: dict[str, Any] = {}
    rows: list[Result] = []
    judged: list[Goal] = []
    for size in options.sizes:
        with network(size, is_lan_needed=False) as place:
            results = rounds(
                bench, place,
                lambda cluster, number: update_one(cluster, number, options.seed, options.pause),
                {"N": size}, size=size, count=options.runs, block=options.block, extra=UPDATES,
            )  # fmt: skip
        some, found = collected(results, [])
        rows += [{"N": size, **row} for row in some]
        everywhere = {name: each.get("everywhere_s", {}) for name, each in found.items()}
        figures[f"n{size}"] = {**found, "ratio_p50": ratios(everywhere, "p50")}
        p50 = {name: figure(everywhere, name, "p50") for name in (Meshd.name, Kinship.name)}
        judged += [
            at_most(f"N={size}: p50 to all, kinship", p50[Meshd.name], p50[Kinship.name]),
            at_most(f"N={size}: updates lost", figure(found, Meshd.name, "failed"), 0),
        ]
    bench.finish(rows, figures, judged, "sizes", "runs", "pause", "block")


if __name__ == "__main__":
    main()
