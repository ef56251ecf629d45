"""What becomes of a cluster some of whose nodes are starved: meshd, Serf and kinship in one run.

"Starved" is stopped for 0.5 to 2.5 s and running for 0.2 s in turn. Goals: no healthy node is
declared dead, and the starved ones no oftener than by kinship.
"""

import random
import signal
import time
from typing import Any

from mesh_processes import progress
from rivals.cluster import Cluster, Node
from rivals.goals import Goal, at_most
from rivals.kept import Result
from rivals.kinds import DEAD, Kinship, Meshd
from rivals.side_by_side import (
    begin,
    collected,
    figure,
    network,
    parser,
    rounds,
)

RECOVERY_TIMEOUT_S = 120.0
STOPPED_S = (0.5, 2.5)
RUNNING_S = 0.2
EPISODE_S = 5.0
"""One death is told by all within such a time, in which another of the same node is the same."""
MINUTE_S = 60.0


class Starving:
    """Nodes that are stopped and continued, each for itself, as a seed decides."""

    def __init__(self, nodes: list[Node], chance: random.Random, now: float) -> None:
        self._chance = chance
        self._next_at = {node: now + chance.uniform(0, STOPPED_S[1]) for node in nodes}
        self._is_stopped = dict.fromkeys(nodes, False)

    def step(self, now: float) -> None:
        """Do what is due."""
        for node in (node for node, at in self._next_at.items() if at <= now):
            node.signal(signal.SIGCONT if self._is_stopped[node] else signal.SIGSTOP)
            self._is_stopped[node] = not self._is_stopped[node]
            lasts_s = self._chance.uniform(*STOPPED_S) if self._is_stopped[node] else RUNNING_S
            self._next_at[node] = now + lasts_s

    def end(self) -> None:
        """Let all run."""
        for node in self._is_stopped:
            node.signal(signal.SIGCONT)


def starve(cluster: Cluster, number: int, seed: int, count: int, seconds: float) -> Result:
    """Starve some nodes; which nodes are declared dead meanwhile?"""
    chance = random.Random(f"{seed} {number}")
    starved = chance.sample(cluster.nodes, count)
    healthy = [node for node in cluster.nodes if node not in starved]
    began, minute = time.monotonic(), 1
    starving = Starving(starved, chance, began)
    try:
        while (now := time.monotonic()) < began + seconds:
            starving.step(now)
            time.sleep(0.005)
            if now > began + minute * MINUTE_S:
                told = (episodes(cluster, healthy, began), episodes(cluster, starved, began))
                progress(f"{cluster.kind.name}, minute {minute}: deaths of healthy, starved {told}")
                minute += 1
    finally:
        starving.end()
    ended = time.monotonic()
    result: Result = {"back_s": round(cluster.wait_all_alive(ended, RECOVERY_TIMEOUT_S), 3)}
    for what, nodes in (("healthy", healthy), ("starved", starved)):
        keys = [node.key for node in nodes]
        result[f"{what}_deaths"] = episodes(cluster, nodes, began)
        result[f"{what}_declared_dead"] = cluster.deaths(began, of=keys, by=cluster.nodes)
    return result


def episodes(cluster: Cluster, nodes: list[Node], since: float) -> int:
    """How often one of the nodes died in the eyes of anybody."""
    count = 0
    for node in nodes:
        last = -EPISODE_S
        for at, _ in cluster.said(DEAD, since, of=[node.key], by=cluster.nodes):
            count += at > last + EPISODE_S
            last = at
    return count


def goals(size: int, found: dict[str, Any]) -> list[Goal]:
    ours = {
        what: figure(found, Meshd.name, what)
        for what in ("healthy_deaths", "starved_deaths", "failed")
    }
    theirs = figure(found, Kinship.name, "starved_deaths")
    return [
        at_most(f"N={size}: deaths of healthy nodes", ours["healthy_deaths"], 0),
        at_most(f"N={size}: deaths of starved nodes, kinship", ours["starved_deaths"], theirs),
        at_most(f"N={size}: runs that did not come to rest", ours["failed"], 0),
    ]


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--sizes", type=int, nargs="+", default=[50])
    made.add_argument("--runs", type=int, default=1, help="With other nodes starved each time.")
    made.add_argument("--starved", type=int, default=3, help="Nodes.")
    made.add_argument("--seconds", type=float, default=240.0, help="Of each run.")
    bench = begin("versus_starved", made, sizes=[3], starved=1, seconds=2.0)
    options = bench.options
    figures: dict[str, Any] = {}
    rows: list[Result] = []
    judged: list[Goal] = []
    for size in options.sizes:

        def act(cluster: Cluster, number: int) -> Result:
            return starve(cluster, number, options.seed, options.starved, options.seconds)

        case = {"N": size, "starved": options.starved, "seconds": options.seconds}
        with network(size, is_lan_needed=False) as place:
            results = rounds(
                bench, place, act, case, size=size, count=options.runs, block=options.runs
            )
        counts = [f"{who}_{what}" for who in ("healthy", "starved")
                  for what in ("deaths", "declared_dead")]  # fmt: skip
        some, found = collected(results, counts)
        rows += [{"N": size, **row} for row in some]
        figures[f"n{size}"] = found
        judged += goals(size, found)
    bench.finish(rows, figures, judged, "sizes", "runs", "starved", "seconds")


if __name__ == "__main__":
    main()
