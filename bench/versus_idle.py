"""What an idle node sends and uses: meshd, memberlist, Serf and kinship in one run."""

import time

from mesh_processes import report
from rivals.cluster import Cluster
from rivals.kinds import ALL_NAMES
from rivals.network import Lan
from rivals.side_by_side import (
    Result,
    flat_rows,
    kinds,
    need_lan,
    network,
    parse,
    parser,
    ratios,
    rounds,
)


def look_on(cluster: Cluster, lan: Lan, settle_s: float, window_s: float) -> Result:
    """Means over the nodes; bytes with IP, UDP and TCP headers."""
    time.sleep(settle_s)
    began, sent, used = time.monotonic(), lan.sent(cluster.kind.port), cluster.usage()
    time.sleep(window_s)
    ended, sent_then, used_then = time.monotonic(), lan.sent(cluster.kind.port), cluster.usage()
    share = (ended - began) * len(cluster.nodes)
    rates = {what: (sent_then[what] - sent[what]) / share for what in sent}
    return {
        "udp_packets_per_s": round(rates["udp_packets"], 2),
        "udp_ip_bytes_per_s": round(rates["udp_bytes"], 1),
        "tcp_ip_bytes_per_s": round(rates["tcp_bytes"], 1),
        "ip_bytes_per_s": round(rates["udp_bytes"] + rates["tcp_bytes"], 1),
        "cpu_ms_per_s": round((used_then["cpu_s"] - used["cpu_s"]) * 1_000 / (ended - began), 2),
        "rss_mb": round(used_then["rss_bytes"] / 1e6, 1),
    }


def main() -> None:
    made = parser(__doc__)
    made.set_defaults(kinds=list(ALL_NAMES))
    made.add_argument("--sizes", type=int, nargs="+", default=[50, 100])
    made.add_argument("--settle", type=float, default=60.0, help="Seconds before the window.")
    made.add_argument("--window", type=float, default=120.0, help="Seconds that are measured.")
    options = parse(made)
    if options.quick:
        options.sizes, options.settle, options.window = [3], 0.5, 2.0
    makes = kinds(options)
    figures, rows = {}, []
    for size in options.sizes:
        with network(size, is_lan_needed=True) as place:
            lan = need_lan(place)
            results = rounds(
                makes,
                place,
                lambda cluster, _, lan=lan: look_on(  # type: ignore[misc]
                    cluster, lan, options.settle, options.window
                ),
                size=size,
                count=1,
                block=1,
                is_in_turn=options.in_turn,
            )
        found = {name: each[0] for name, each in results.items()}
        rows += flat_rows(found, N=size)
        whats = ("ip_bytes_per_s", "cpu_ms_per_s", "rss_mb")
        figures[f"n{size}"] = {**found, "ratios": {what: ratios(found, what) for what in whats}}
    keys = ("sizes", "settle", "window", "profile")
    report("versus_idle", rows, parameters={k: getattr(options, k) for k in keys}, figures=figures)


if __name__ == "__main__":
    main()
