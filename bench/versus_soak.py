"""Who is declared dead while nothing happens, and while datagrams are lost: all kinds in one run.

Goals: no false death and no suspicion by meshd in 30 quiet minutes, no false death in 5 minutes of
30 % loss. Each minute's state goes to `--out` as well.
"""

import time
from typing import Any

from mesh_processes import progress
from rivals.cluster import Cluster
from rivals.goals import Goal, at_most
from rivals.kept import Result
from rivals.kinds import SUSPECT, Meshd
from rivals.network import Lan
from rivals.side_by_side import (
    Bench,
    begin,
    figure,
    flat_rows,
    need_lan,
    network,
    parser,
    rounds,
)

RECOVERY_TIMEOUT_S = 120.0
QUIET, LOSSY = "quiet", "lossy"
MINUTE_S = 60.0


class Soak:
    """Some minutes of looking on. Nobody dies, so each death is a false one."""

    def __init__(self, bench: Bench, lan: Lan, case: Result, percent: int) -> None:
        self._bench = bench
        self._lan = lan
        self._case = case
        self._percent = percent

    def run(self, cluster: Cluster, number: int) -> Result:
        """One phase, with so many of 100 datagrams of everybody lost."""
        time.sleep(self._bench.options.settle)
        self._lan.lose(self._percent)
        seconds = MINUTE_S * self._case["minutes"]
        began, sent, minute = time.monotonic(), self._lan.sent(cluster.kind.port), 1
        while (now := time.monotonic()) < began + seconds:
            time.sleep(min(1.0, began + seconds - now))
            if now > began + minute * MINUTE_S:
                told = said_of_all(cluster, began)
                minute_case = {**self._case, "minute": minute}
                self._bench.kept.put(minute_case, cluster.kind.name, number, told)
                progress(f"{self._case['phase']}, {cluster.kind.name}, minute {minute}: {told}")
                minute += 1
                cluster.look_for_ended()
        sent_then, ended = self._lan.sent(cluster.kind.port), time.monotonic()
        result = said_of_all(cluster, began)
        self._lan.lose(0)
        share = (ended - began) * len(cluster.nodes)
        for what in ("udp_packets", "udp_bytes", "tcp_bytes"):
            result[f"{what}_per_s"] = round((sent_then[what] - sent[what]) / share, 1)
        try:
            result["back_s"] = round(cluster.wait_all_alive(ended, RECOVERY_TIMEOUT_S), 3)
        except TimeoutError:
            result["back_s"] = f"not in {RECOVERY_TIMEOUT_S:g}"
        return result


def said_of_all(cluster: Cluster, since: float) -> Result:
    """How often anybody was declared dead, or suspected where that is told."""
    keys = [node.key for node in cluster.nodes]
    dead = cluster.said("dead", since, of=keys, by=cluster.nodes)
    told: Result = {"declared_dead": len(dead), "victims": len({key for _, key in dead})}
    if cluster.kind.tells_suspicions:
        told["suspected"] = len(cluster.said(SUSPECT, since, of=keys, by=cluster.nodes))
    return told


def goals(found: dict[str, dict[str, Result]], percent: int) -> list[Goal]:
    made = []
    if QUIET in found:
        made += [
            at_most("quiet: deaths", figure(found, QUIET, Meshd.name, "declared_dead"), 0),
            at_most("quiet: suspicions", figure(found, QUIET, Meshd.name, "suspected"), 0),
        ]
    if LOSSY in found:
        dead = figure(found, LOSSY, Meshd.name, "declared_dead")
        made.append(at_most(f"{percent} % lost: deaths", dead, 0))
    return made


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--sizes", type=int, nargs="+", default=[50])
    made.add_argument("--runs", type=int, default=1)
    made.add_argument("--phases", nargs="+", choices=[QUIET, LOSSY], default=[QUIET, LOSSY])
    made.add_argument("--quiet-minutes", type=float, default=30.0)
    made.add_argument("--lossy-minutes", type=float, default=5.0)
    made.add_argument("--percent", type=int, default=30, help="Of the datagrams are lost.")
    made.add_argument("--settle", type=float, default=15.0, help="Seconds before each phase.")
    bench = begin(
        "versus_soak", made, sizes=[3], quiet_minutes=0.03, lossy_minutes=0.05, settle=0.5
    )
    options = bench.options
    lengths = {QUIET: (options.quiet_minutes, 0), LOSSY: (options.lossy_minutes, options.percent)}
    figures: dict[str, Any] = {}
    rows: list[Result] = []
    judged: list[Goal] = []
    for size in options.sizes:
        with network(size, is_lan_needed=True) as place:
            for number in range(1, options.runs + 1):
                found: dict[str, dict[str, Result]] = {}
                for phase in options.phases:
                    minutes, percent = lengths[phase]
                    case = {"N": size, "phase": phase, "minutes": minutes, "percent": percent}
                    case |= {"repeat": number} if number > 1 else {}
                    soak = Soak(bench, need_lan(place), case, percent)
                    results = rounds(bench, place, soak.run, case, size=size)
                    found[phase] = {name: each[0] for name, each in results.items() if each}
                    rows += flat_rows(found[phase], N=size, phase=phase)
                figures[f"n{size}"] = found
                judged += goals(found, options.percent)
    keys = ("sizes", "runs", "phases", "quiet_minutes", "lossy_minutes", "percent")
    bench.finish(rows, figures, judged, *keys)


if __name__ == "__main__":
    main()
