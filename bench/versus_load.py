"""How old everybody's load is at everybody while each changes once a second, and what that costs.

meshd has a plane for it; kinship and memberlist tell it in their metadata. Serf is left out, whose
tags are set by a command. Goals: the 99th percentile of the age at most 3 s, every node's load
known to every node, and at most 0.4 of kinship's bytes, IP headers counted.
"""

from typing import Any

from rivals.cluster import Cluster
from rivals.goals import Goal, at_most
from rivals.kept import Result
from rivals.kinds import LOADS, Kinship, Memberlist, Meshd
from rivals.network import Lan
from rivals.side_by_side import (
    begin,
    figure,
    flat_rows,
    medians,
    need_lan,
    network,
    parser,
    ratios,
    rounds,
)
from rivals.window import window

AGE_P99_MAX_S = 3.0
KINSHIP_SHARE = 0.4
BYTES = "ip_bytes_per_s"
HUNDREDTHS = 100


def look_on(cluster: Cluster, lan: Lan, settle_s: float, window_s: float) -> Result:
    """Ages over all pairs and moments; bytes and processor time a node."""
    seen = window(cluster, lan, settle_s, window_s)
    return {
        **ages(cluster, seen.began, seen.ended),
        "udp_packets_per_s": seen.udp_packets_per_s,
        BYTES: seen.bytes_per_s,
        "cpu_ms_per_s": seen.cpu_ms_per_s,
        "deaths": cluster.deaths(seen.began, of=[n.key for n in cluster.nodes], by=cluster.nodes),
    }


def ages(cluster: Cluster, began: float, ended: float) -> Result:
    """The spread of ages, and which share of loads was known, at worst in one sample."""
    others = len(cluster.nodes) - 1
    samples = [
        told for node in cluster.nodes for at, told in list(node.ages) if began <= at <= ended
    ]
    flat = sorted(age for told in samples for age in told)
    if not flat:
        return {"samples": 0, "age_p50_s": "nothing told", "age_p99_s": "nothing told"}
    return {
        "samples": len(samples),
        "age_p50_s": flat[len(flat) // 2] / HUNDREDTHS,
        "age_p99_s": flat[int(len(flat) * 0.99)] / HUNDREDTHS,
        "age_max_s": flat[-1] / HUNDREDTHS,
        "unknown_at_worst": others - min(len(told) for told in samples),
        "covered_mean": round(len(flat) / len(samples) / others, 4),
    }


def goals(size: int, found: dict[str, Result]) -> list[Goal]:
    ours = {what: figure(found, Meshd.name, what)
            for what in ("age_p99_s", "unknown_at_worst", BYTES, "deaths", "failed")}  # fmt: skip
    theirs = figure(found, Kinship.name, BYTES)
    share = f"N={size}: IP bytes/s, {KINSHIP_SHARE} x kinship"
    return [
        at_most(f"N={size}: runs that failed", ours["failed"], 0),
        at_most(f"N={size}: p99 age, s", ours["age_p99_s"], AGE_P99_MAX_S),
        at_most(f"N={size}: loads unknown in any sample", ours["unknown_at_worst"], 0),
        at_most(share, ours[BYTES], theirs, KINSHIP_SHARE),
        at_most(f"N={size}: deaths", ours["deaths"], 0),
    ]


def main() -> None:
    made = parser(__doc__)
    with_loads = [Meshd.name, Kinship.name, Memberlist.name]
    made.set_defaults(kinds=with_loads, together_max=0)
    made.add_argument("--sizes", type=int, nargs="+", default=[50, 100])
    made.add_argument("--settle", type=float, default=20.0, help="Seconds before the window.")
    made.add_argument("--window", type=float, default=60.0, help="Seconds that are measured.")
    made.add_argument("--runs", type=int, default=1, help="Windows, with fresh clusters each.")
    bench = begin("versus_load", made, sizes=[3], settle=2.0, window=5.0)
    options = bench.options
    figures: dict[str, Any] = {}
    rows: list[Result] = []
    judged: list[Goal] = []
    for size in options.sizes:
        with network(size, is_lan_needed=True) as place:
            lan = need_lan(place)

            def act(cluster: Cluster, number: int, lan: Lan = lan) -> Result:
                del number
                return look_on(cluster, lan, options.settle, options.window)

            case = {"N": size, "window_s": options.window}
            results = rounds(bench, place, act, case, size=size, count=options.runs, extra=LOADS)
        found = medians(results)
        rows += flat_rows(found, N=size)
        judged += goals(size, found)
        figures[f"n{size}"] = {**found, "ratios": {BYTES: ratios(found, BYTES)}}
    bench.finish(rows, figures, judged, "sizes", "settle", "window", "runs")


if __name__ == "__main__":
    main()
