"""How soon all nodes know what one of them changed: meshd, Serf and kinship in one run.

With meshd it is a capability's description, with Serf a tag, with kinship its metadata; all of them
travel within gossip itself.
"""

import random
import time

from mesh_processes import report
from rivals.cluster import Cluster
from rivals.kinds import UPDATED
from rivals.side_by_side import Result, collected, kinds, network, parse, parser, ratios, rounds

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
    made.add_argument("--updates", type=int, default=30)
    made.add_argument("--pause", type=float, default=3.0, help="Seconds of rest between two.")
    made.add_argument("--block", type=int, default=10, help="In a row where kinds take turns.")
    options = parse(made)
    if options.quick:
        options.sizes, options.updates, options.pause = [3], 2, 0.0
    makes = kinds(options)
    figures, rows = {}, []
    for size in options.sizes:
        with network(size, is_lan_needed=False) as place:
            results = rounds(
                makes,
                place,
                lambda cluster, number: update_one(cluster, number, options.seed, options.pause),
                size=size,
                count=options.updates,
                block=options.block,
                is_in_turn=options.in_turn,
                is_watched=True,
            )
        some, found = collected(results, [])
        rows += [{"N": size, **row} for row in some]
        everywhere = {name: each.get("everywhere_s", {}) for name, each in found.items()}
        figures[f"n{size}"] = {**found, "ratio_p50": ratios(everywhere, "p50")}
    keys = ("sizes", "updates", "pause", "profile", "seed")
    report(
        "versus_update", rows, parameters={k: getattr(options, k) for k in keys}, figures=figures
    )


if __name__ == "__main__":
    main()
