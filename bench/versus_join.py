"""How long a crowd that starts at once behind one address takes until all see all, by one seed.

"Start" is a bound socket. Goal: in each run all see all within 1.5 s of the last start. Rivals may
take a minute each time, so that they get fewer runs.
"""

from typing import Any

from mesh_processes import progress
from rivals.cluster import Cluster, EndedError
from rivals.goals import Goal, at_most
from rivals.kept import Result
from rivals.kinds import SOCKETS, Make, Meshd
from rivals.network import Network
from rivals.side_by_side import (
    FAILED,
    Bench,
    begin,
    collected,
    figure,
    kept_rounds,
    network,
    parser,
    ratios,
    shown,
)

SEEN_MAX_S = 1.5


def join(make: Make, place: Network, size: int, timeout_s: float) -> Result:
    """Start a cluster anew."""
    with Cluster(make, place, is_one_address=True, extra=SOCKETS) as cluster:
        try:
            cluster.start(size, is_crowd=True)
            starts = [node.bound_at or node.ready_at for node in cluster.nodes[1:]]
            seen_s = cluster.wait_all_alive(max(starts), timeout_s)
        except (TimeoutError, EndedError) as error:
            return {FAILED: str(error)}
        return {
            "starts_took_s": round(max(starts) - min(starts), 3),
            "all_see_all_s": round(seen_s, 3),
        }


def measure(bench: Bench, place: Network, size: int) -> None:
    """All runs of one size, kind by kind in turn."""
    options = bench.options
    case = {"N": size}
    for number in range(1, options.runs + 1):
        for name, make in bench.makes.items():
            is_due = name == Meshd.name or number <= options.rival_runs
            if not is_due or bench.kept.get(case, name, number) is not None:
                continue
            result = join(make, place, size, options.timeout)
            bench.kept.put(case, name, number, result)
            progress(f"N={size}, {number} of {options.runs}, {name}: {shown(result)}")


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--sizes", type=int, nargs="+", default=[50, 100])
    made.add_argument("--runs", type=int, default=30)
    made.add_argument("--rival-runs", type=int, default=5, help="Of each rival.")
    made.add_argument("--timeout", type=float, default=90.0, help="Seconds until a run failed.")
    bench = begin("versus_join", made, sizes=[5], runs=1)
    options = bench.options
    figures: dict[str, Any] = {}
    rows: list[Result] = []
    judged: list[Goal] = []
    with network(1, is_lan_needed=False) as place:
        for size in options.sizes:
            measure(bench, place, size)
            some, found = collected(kept_rounds(bench, {"N": size}, options.runs), [])
            rows += [{"N": size, **row} for row in some]
            seen = {name: each.get("all_see_all_s", {}) for name, each in found.items()}
            figures[f"n{size}"] = {**found, "ratio_p50": ratios(seen, "p50")}
            slowest = figure(seen, Meshd.name, "max")
            judged += [
                at_most(f"N={size}: slowest run, s", slowest, SEEN_MAX_S),
                at_most(f"N={size}: runs that failed", figure(found, Meshd.name, "failed"), 0),
            ]
    bench.finish(rows, figures, judged, "sizes", "runs", "rival_runs", "timeout")


if __name__ == "__main__":
    main()
