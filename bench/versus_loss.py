"""Who is declared dead while datagrams are lost, or while nothing is: a soak of all in one run."""

import time
from typing import Any

from mesh_processes import progress, report
from rivals.cluster import Cluster
from rivals.network import Lan
from rivals.side_by_side import Result, flat_rows, kinds, need_lan, network, parse, parser, rounds

RECOVERY_TIMEOUT_S = 120.0


def soak(cluster: Cluster, lan: Lan, percent: int, seconds: float) -> Result:
    """Lose datagrams of everybody for some time. Nobody dies, so each death is a false one."""
    lan.lose(percent)
    began, sent = time.monotonic(), lan.sent(cluster.kind.port)
    told_at = began
    keys = [node.key for node in cluster.nodes]
    while (now := time.monotonic()) < began + seconds:
        time.sleep(min(1.0, began + seconds - now))
        if now > told_at + 60:
            told_at = now
            dead = cluster.deaths(began, of=keys, by=cluster.nodes)
            progress(f"{cluster.kind.name}: {now - began:.0f} s, {dead} declared dead")
    sent_then, ended = lan.sent(cluster.kind.port), time.monotonic()
    lan.lose(0)
    share = (ended - began) * len(cluster.nodes)
    result: Result = {
        "declared_dead": cluster.deaths(began, of=keys, by=cluster.nodes),
        "udp_packets_per_s": _rate(sent, sent_then, "udp_packets", share),
        "udp_ip_bytes_per_s": _rate(sent, sent_then, "udp_bytes", share),
        "tcp_ip_bytes_per_s": _rate(sent, sent_then, "tcp_bytes", share),
    }
    try:
        result["back_s"] = round(cluster.wait_all_alive(ended, RECOVERY_TIMEOUT_S), 3)
    except TimeoutError:
        result["back_s"] = f"not in {RECOVERY_TIMEOUT_S:g}"
    return result


def _rate(before: dict[str, int], after: dict[str, int], what: str, share: float) -> float:
    return round((after[what] - before[what]) / share, 1)


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--size", type=int, default=50)
    made.add_argument("--percent", type=int, default=30, help="Of datagrams lost; 0: a quiet soak.")
    made.add_argument("--minutes", type=float, default=5.0)
    options = parse(made)
    if options.quick:
        options.size, options.minutes = 3, 0.05
    makes = kinds(options)
    with network(options.size, is_lan_needed=True) as place:
        lan = need_lan(place)

        def act(cluster: Cluster, number: int) -> Result:
            del number
            return soak(cluster, lan, options.percent, 60 * options.minutes)

        results = rounds(
            makes, place, act, size=options.size, count=1, block=1, is_in_turn=options.in_turn
        )
    figures: dict[str, Any] = {name: each[0] for name, each in results.items()}
    keys = ("size", "percent", "minutes", "profile")
    report(
        "versus_loss",
        flat_rows(figures),
        parameters={k: getattr(options, k) for k in keys},
        figures=figures,
    )


if __name__ == "__main__":
    main()
