"""What becomes of nodes that are stopped or starved: meshd, Serf and kinship in one run.

"Starved" is stopped for 0.5 to 2.5 s and running for 0.2 s in turn.
"""

import random
import signal
import time
from typing import Any

from mesh_processes import report
from rivals.cluster import Cluster, Node
from rivals.kinds import DEAD, SUSPECT
from rivals.side_by_side import (
    BLANK,
    Result,
    collected,
    kinds,
    network,
    parse,
    parser,
    rounds,
)

RECOVERY_TIMEOUT_S = 120.0
STOPPED_S = (0.5, 2.5)
RUNNING_S = 0.2


def stop_one(cluster: Cluster, number: int, seed: int, seconds: float, after_s: float) -> Result:
    """Stop a node and wake it again. Who is believed dead, and when is it in every view again?"""
    chance = random.Random(f"{seed} {number}")
    time.sleep(chance.random())
    victim = chance.choice(cluster.nodes)
    others = [node for node in cluster.nodes if node is not victim]
    began = time.monotonic()
    victim.signal(signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        victim.signal(signal.SIGCONT)
    woken = time.monotonic()
    time.sleep(after_s)
    back_s = cluster.wait_all_alive(woken, RECOVERY_TIMEOUT_S)
    suspected = {"suspected_by": _say(others, victim, SUSPECT, began)}
    return {
        "back_s": round(back_s, 3),
        **(suspected if cluster.kind.tells_suspicions else {}),
        "declared_dead_by": _say(others, victim, DEAD, began),
        "others_declared_dead": cluster.deaths(
            began, of=[node.key for node in others], by=cluster.nodes
        ),
    }


def _say(observers: list[Node], node: Node, what: str, since: float) -> int:
    return sum(observer.first(node.key, [what], since) is not None for observer in observers)


def starve(cluster: Cluster, seed: int, count: int, seconds: float) -> Result:
    """Starve some nodes, each for itself; which nodes are declared dead meanwhile?"""
    chance = random.Random(seed)
    starved = chance.sample(cluster.nodes, count)
    began = time.monotonic()
    next_at = {node: began + chance.uniform(0, STOPPED_S[1]) for node in starved}
    is_stopped = dict.fromkeys(starved, False)
    try:
        while (now := time.monotonic()) < began + seconds:
            for node in (node for node in starved if next_at[node] <= now):
                node.signal(signal.SIGCONT if is_stopped[node] else signal.SIGSTOP)
                is_stopped[node] = not is_stopped[node]
                lasts_s = chance.uniform(*STOPPED_S) if is_stopped[node] else RUNNING_S
                next_at[node] = now + lasts_s
            time.sleep(0.005)
    finally:
        for node in starved:
            node.signal(signal.SIGCONT)
    ended = time.monotonic()
    result: Result = {}
    try:
        result["back_s"] = round(cluster.wait_all_alive(ended, RECOVERY_TIMEOUT_S), 3)
    except TimeoutError:
        result["back_s"] = f"not in {RECOVERY_TIMEOUT_S:g}"
    healthy = [node for node in cluster.nodes if node not in next_at]
    result["healthy_declared_dead"] = _victims(cluster, healthy, began)
    result["starved_declared_dead"] = _victims(cluster, starved, began)
    return result


def _victims(cluster: Cluster, nodes: list[Node], since: float) -> int:
    """How many of the nodes were declared dead by anybody."""
    return sum(bool(cluster.deaths(since, of=[node.key], by=cluster.nodes)) for node in nodes)


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--size", type=int, default=20)
    made.add_argument("--stops", type=float, nargs="*", default=[3.0, 8.0], help="Seconds each.")
    made.add_argument("--times", type=int, default=10, help="Of each stop.")
    made.add_argument("--starved", type=int, default=3, help="Nodes; 0: none.")
    made.add_argument("--starve-seconds", type=float, default=120.0)
    made.add_argument("--after", type=float, default=10.0, help="How long is still looked on.")
    options = parse(made)
    if options.quick:
        options.size, options.stops, options.times, options.after = 3, [0.5], 1, 0.2
        options.starved, options.starve_seconds = 1, 2.0
    makes = kinds(options)
    figures: dict[str, Any] = {}
    rows: list[Result] = []
    counts = ["suspected_by", "declared_dead_by", "others_declared_dead"]
    how = {"size": options.size, "block": options.times, "is_in_turn": options.in_turn}
    with network(options.size, is_lan_needed=False) as place:
        for seconds in options.stops:

            def stop(cluster: Cluster, number: int, seconds: float = seconds) -> Result:
                return stop_one(cluster, number, options.seed, seconds, options.after)

            some, found = collected(rounds(makes, place, stop, count=options.times, **how), counts)
            rows += [{"test": f"stopped {seconds:g} s", **row} for row in some]
            figures[f"stopped_{seconds:g}s"] = found
        if options.starved:

            def act(cluster: Cluster, number: int) -> Result:
                return starve(cluster, number, options.starved, options.starve_seconds)

            results = rounds(makes, place, act, count=1, **how)
            figures["starved"] = {name: each[0] for name, each in results.items()}
            for name, (result,) in results.items():
                rows += [
                    {"test": "starved", **BLANK, "kind": name} | {"what": what, "count": value}
                    for what, value in result.items()
                ]
    keys = ("size", "stops", "times", "starved", "starve_seconds", "profile", "seed")
    parameters = {k: getattr(options, k) for k in keys}
    report("versus_pause", rows, parameters=parameters, figures=figures)


if __name__ == "__main__":
    main()
