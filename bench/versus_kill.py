"""How long after kill -9 all others declare a node dead: meshd, Serf and kinship in one run."""

import random
import time

from mesh_processes import report
from rivals.cluster import Cluster
from rivals.kinds import ALIVE, DEAD
from rivals.side_by_side import Result, collected, kinds, network, parse, parser, ratios, rounds

DEAD_TIMEOUT_S = 180.0
BACK_TIMEOUT_S = 240.0
"""memberlist may lose a join and mend it only by its stretched push-pull."""


def kill_one(cluster: Cluster, number: int, seed: int) -> Result:
    """Kill a node, wait until it is dead everywhere, and bring it back."""
    chance = random.Random(f"{seed} {number}")
    time.sleep(chance.random())  # the victim dies at any point of a probe round
    victim = chance.choice(cluster.nodes)
    others = [node for node in cluster.nodes if node is not victim]
    killed_at = cluster.kill(victim)
    dead = cluster.wait_said(others, victim.key, [DEAD], killed_at, DEAD_TIMEOUT_S)
    again = cluster.restart(victim, others[:2])
    back = cluster.wait_said(others, again.key, [ALIVE], dead[-1], BACK_TIMEOUT_S)
    cluster.wait_all_alive(timeout_s=BACK_TIMEOUT_S)
    return {
        "first_dead_s": round(dead[0] - killed_at, 3),
        "dead_everywhere_s": round(dead[-1] - killed_at, 3),
        "back_s": round(back[-1] - again.ready_at, 3),
        "false_deaths": cluster.deaths(killed_at, of=[n.key for n in others], by=cluster.nodes),
    }


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--size", type=int, default=50)
    made.add_argument("--kills", type=int, default=30)
    made.add_argument(
        "--block", type=int, default=10, help="Kills in a row where kinds take turns."
    )
    options = parse(made)
    if options.quick:
        options.size, options.kills, options.profile = 3, 1, "local"
    makes = kinds(options)
    with network(options.size, is_lan_needed=False) as place:
        results = rounds(
            makes,
            place,
            lambda cluster, number: kill_one(cluster, number, options.seed),
            size=options.size,
            count=options.kills,
            block=options.block,
            is_in_turn=options.in_turn,
        )
    rows, figures = collected(results, ["false_deaths"])
    everywhere = {name: each.get("dead_everywhere_s", {}) for name, each in figures.items()}
    for what in ("p50", "max"):
        figures[f"ratio_{what}"] = ratios(everywhere, what)
    keys = ("size", "kills", "block", "profile", "seed")
    report("versus_kill", rows, parameters={k: getattr(options, k) for k in keys}, figures=figures)


if __name__ == "__main__":
    main()
