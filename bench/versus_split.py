"""How soon a LAN that was cut in two is one cluster again: meshd, Serf and kinship in one run.

All splits of one length run at the same time, each on a LAN of its own, cut and healed some seconds
after one another; but of large clusters the kinds run in turn: 150 processes that heal at the same
moment on a few cores measure the cores. Goals: all see all within 2 s of the link's return; nobody
is declared dead by its own side.
"""

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from mesh_processes import progress
from rivals.cluster import Cluster, Node
from rivals.goals import Figure, Goal, at_most
from rivals.kept import Result
from rivals.kinds import DEAD, Make, Meshd
from rivals.network import Lan
from rivals.side_by_side import (
    FAILED,
    Bench,
    Results,
    at_once,
    begin,
    flat_rows,
    kept_rounds,
    need_lan,
    network,
    parser,
    shown,
    start_all,
)

HEALED_MAX_S = 2.0
TOGETHER_MAX = 10
SEEDS = {"shared": [True], "none": [False], "both": [True, False]}
STARTING = threading.Lock()
"""Clusters start one after the other, whatever their LAN."""


class Halves:
    """A cluster's nodes on both sides of the cut."""

    def __init__(self, cluster: Cluster, far: range) -> None:
        self.near = [node for node in cluster.nodes if node.host not in far]
        self.far = [node for node in cluster.nodes if node.host in far]

    def own_deaths(self, cluster: Cluster, since: float) -> int:
        """How often somebody was declared dead by its own side."""
        return sum(
            cluster.deaths(since, of=[node.key for node in side], by=side)
            for side in (self.near, self.far)
        )

    def deaths_across(self) -> float:
        """The share of pairs across the cut in which one believes the other dead by now."""
        pairs = [(a, b) for a in self.near for b in self.far]
        pairs += [(b, a) for a, b in pairs]
        return sum(_holds_dead(a, b) for a, b in pairs) / len(pairs)


def _holds_dead(one: Node, other: Node) -> bool:
    return one.beliefs.get(other.key) == DEAD


class Split:
    """One split of fresh clusters: of a cluster that lived through one before, nobody knows all.

    Args:
        bench: its options.
        size: nodes of each cluster.
        seconds: how long the link is away.
        is_seeded: whether all have an address that they were told to try for good.
        number: of this repetition.
    """

    def __init__(
        self, bench: Bench, size: int, seconds: float, number: int, *, is_seeded: bool
    ) -> None:
        self._bench = bench
        self.size = size
        self._seconds = seconds
        self.is_seeded = is_seeded
        self._number = number
        self.case = {"N": size, "split_s": seconds, "seed": "shared" if is_seeded else "none"}

    def run(self, gate: threading.Barrier, offset_s: float) -> None:
        """Start, cut, heal, look on.

        Args:
            gate: all splits of one length wait here until all clusters run.
            offset_s: how much later than the first of them this one begins.
        """
        try:
            self._run(gate, offset_s)
        finally:
            gate.abort()  # whoever waits still, because this one failed, need not

    @property
    def todo(self) -> dict[str, Make]:
        """The kinds without a result."""
        kept = self._bench.kept
        return {
            name: make
            for name, make in self._bench.makes.items()
            if kept.get(self.case, name, self._number) is None
        }

    def _run(self, gate: threading.Barrier, offset_s: float) -> None:
        with contextlib.ExitStack() as stack:
            with STARTING:
                lan = need_lan(stack.enter_context(network(self.size, is_lan_needed=True)))
                clusters = start_all(self.todo, stack, lan, self.size, is_seeded=self.is_seeded)
            with contextlib.suppress(threading.BrokenBarrierError):
                gate.wait()
            time.sleep(offset_s)
            for name, result in self._cut(lan, clusters).items():
                self._bench.kept.put(self.case, name, self._number, result)
                progress(f"{shown(self.case)}: {self._number}, {name}: {shown(result)}")

    def _cut(self, lan: Lan, clusters: dict[str, Cluster]) -> dict[str, Result]:
        far = range(self.size - self.size // 2 + 1, self.size + 1)
        halves = {name: Halves(cluster, far) for name, cluster in clusters.items()}
        progress(f"{shown(self.case)}: cut")
        began = time.monotonic()
        lan.split(far)
        try:
            time.sleep(self._seconds)
        finally:
            lan.heal()
        healed = time.monotonic()
        return at_once(
            clusters,
            lambda cluster, _: heal(
                cluster, halves[cluster.kind.name], began, healed, self._bench.options
            ),
            self._number,
        )


def heal(cluster: Cluster, halves: Halves, began: float, healed: float, options: Any) -> Result:
    """What came of it, once the link is back."""
    result: Result = {"dead_across": round(halves.deaths_across(), 2)}
    try:
        seen_s = cluster.wait_all_alive(healed, options.timeout)
        result["all_see_all_s"] = round(seen_s, 3)
    except TimeoutError:
        result["all_see_all_s"] = f"not in {options.timeout:g}"
    at = time.monotonic()
    time.sleep(options.after)
    keys = [node.key for node in cluster.nodes]
    result["own_side_deaths"] = halves.own_deaths(cluster, began)
    result["deaths_after"] = cluster.deaths(at, of=keys, by=cluster.nodes)
    return result


def split_all(bench: Bench, seconds: float, run: int) -> list[Result]:
    """All splits of one length at the same time; returns their cases."""
    options = bench.options
    ways = [(size, is_seeded) for size in options.sizes for is_seeded in SEEDS[options.seeds]]
    splits = [Split(bench, size, seconds, run, is_seeded=is_seeded) for size, is_seeded in ways]
    large = options.together_max
    _at_once([split for split in splits if split.size <= large], options.offset)
    for split in splits:
        if split.size > large:
            for name, make in bench.makes.items():
                one = replace(bench, makes={name: make})
                alone = Split(one, split.size, seconds, run, is_seeded=split.is_seeded)
                _at_once([alone], options.offset)
    return [split.case for split in splits]


def _at_once(splits: list[Split], offset_s: float) -> None:
    due = [split for split in splits if split.todo]
    if not due:
        return
    gate = threading.Barrier(len(due))
    with ThreadPoolExecutor(len(due)) as pool:
        begun = [pool.submit(split.run, gate, place * offset_s) for place, split in enumerate(due)]
        for each in begun:
            each.result()


def goals(case: Result, results: Results) -> list[Goal]:
    text = f"N={case['N']}, {case['split_s']:g} s, seed {case['seed']}"
    ours = results.get(Meshd.name, [])
    times: list[Any] = [each.get("all_see_all_s", each.get(FAILED)) for each in ours]
    words = [time_s for time_s in times if isinstance(time_s, str)]
    slowest: Figure = words[0] if words else max(times, default=None)
    dead = [each.get("own_side_deaths", 0) for each in ours]
    return [
        at_most(f"{text}: slowest to heal, s", slowest, HEALED_MAX_S),
        at_most(f"{text}: deaths on one's own side", sum(dead) if dead else None, 0),
    ]


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--sizes", type=int, nargs="+", default=[3, 10, 50])
    made.add_argument("--runs", type=int, default=1)
    made.add_argument(
        "--seconds", type=float, nargs="+", default=[25.0, 70.0, 600.0], help="Of splits."
    )
    made.add_argument("--seeds", choices=list(SEEDS), default="both")
    made.add_argument("--timeout", type=float, default=120.0, help="Until it did not heal.")
    made.add_argument("--after", type=float, default=10.0, help="How long is still looked on.")
    made.set_defaults(together_max=TOGETHER_MAX)
    made.add_argument("--offset", type=float, default=8.0, help="Seconds from one to the next.")
    bench = begin(
        "versus_split", made,
        sizes=[3], seconds=[9.0], seeds="shared", profile="local", after=0.5, offset=0.5,
    )  # fmt: skip
    options = bench.options
    figures: dict[str, Any] = {}
    rows: list[Result] = []
    judged: list[Goal] = []
    for seconds in options.seconds:
        cases = []
        for run in range(1, options.runs + 1):
            cases = split_all(bench, seconds, run)
        for case in cases:
            results = kept_rounds(bench, case, options.runs)
            for number in range(options.runs):
                found = {name: each[number] for name, each in results.items() if number < len(each)}
                rows += flat_rows(found, **case)
            figures[f"n{case['N']}_{seconds:g}s_seed_{case['seed']}"] = results
            judged += goals(case, results)
    bench.finish(rows, figures, judged, "sizes", "runs", "seconds", "seeds", "timeout")


if __name__ == "__main__":
    main()
