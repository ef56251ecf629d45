"""What an idle node sends and uses: meshd, memberlist, Serf and kinship in one run.

Goals: IP bytes of UDP and TCP together, headers counted, at most memberlist's and half of
kinship's; at most 3 ms of processor time a second; at most 60 MB of resident memory.
"""

from typing import Any

from rivals.cluster import Cluster
from rivals.goals import Goal, at_most
from rivals.kept import Result
from rivals.kinds import ALL_NAMES, Kinship, Memberlist, Meshd
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

BYTES = "ip_bytes_per_s"
CPU_MAX_MS_PER_S = 3.0
RSS_MAX_MB = 60.0
KINSHIP_SHARE = 0.5


def look_on(cluster: Cluster, lan: Lan, settle_s: float, window_s: float) -> Result:
    """Means over the nodes; bytes with IP, UDP and TCP headers."""
    seen = window(cluster, lan, settle_s, window_s)
    return {
        "udp_packets_per_s": seen.udp_packets_per_s,
        "udp_ip_bytes_per_s": seen.udp_bytes_per_s,
        "tcp_ip_bytes_per_s": seen.tcp_bytes_per_s,
        BYTES: seen.bytes_per_s,
        "cpu_ms_per_s": seen.cpu_ms_per_s,
        "rss_mb": seen.rss_mb,
    }


def goals(size: int, found: dict[str, Result]) -> list[Goal]:
    ours = {what: figure(found, Meshd.name, what) for what in (BYTES, "cpu_ms_per_s", "rss_mb")}
    theirs = {name: figure(found, name, BYTES) for name in (Memberlist.name, Kinship.name)}
    half = f"N={size}: IP bytes/s, {KINSHIP_SHARE} x kinship"
    return [
        at_most(f"N={size}: runs that failed", figure(found, Meshd.name, "failed"), 0),
        at_most(f"N={size}: IP bytes/s, memberlist", ours[BYTES], theirs[Memberlist.name]),
        at_most(half, ours[BYTES], theirs[Kinship.name], KINSHIP_SHARE),
        at_most(f"N={size}: CPU ms/s", ours["cpu_ms_per_s"], CPU_MAX_MS_PER_S),
        at_most(f"N={size}: RSS, MB", ours["rss_mb"], RSS_MAX_MB),
    ]


def main() -> None:
    made = parser(__doc__)
    made.set_defaults(kinds=list(ALL_NAMES))
    made.add_argument("--sizes", type=int, nargs="+", default=[50, 100])
    made.add_argument(
        "--settle",
        type=float,
        default=200.0,
        help="Seconds before the window: coordinates are told first.",
    )
    made.add_argument("--window", type=float, default=90.0, help="Seconds that are measured.")
    made.add_argument("--runs", type=int, default=1, help="Windows, with fresh clusters each.")
    bench = begin("versus_idle", made, sizes=[3], settle=0.5, window=2.0)
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

            case = {"N": size, "settle_s": options.settle, "window_s": options.window}
            results = rounds(bench, place, act, case, size=size, count=options.runs)
        found = medians(results)
        rows += flat_rows(found, N=size)
        judged += goals(size, found)
        whats = (BYTES, "cpu_ms_per_s", "rss_mb")
        figures[f"n{size}"] = {**found, "ratios": {what: ratios(found, what) for what in whats}}
    bench.finish(rows, figures, judged, "sizes", "settle", "window", "runs")


if __name__ == "__main__":
    main()
