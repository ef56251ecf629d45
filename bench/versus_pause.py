"""What becomes of one node that does not run as it should: meshd, Serf and kinship in one run.

Four tests: stopped (SIGSTOP) for 3 s and for 8 s; its user code blocks its event loop for 10 s; it
shares one processor with two busy loops. Goals: but for the 8 s nobody declares the node dead, nor
does it anybody; after the 8 s it is back in every view within half a second of waking.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rivals.cluster import Cluster, Node
from rivals.goals import Goal, at_most
from rivals.kept import Result
from rivals.kinds import BLOCK_WAYS, BLOCKS, DEAD, SUSPECT, Meshd
from rivals.side_by_side import (
    Act,
    Bench,
    begin,
    collected,
    figure,
    network,
    parser,
    rounds,
)

RECOVERY_TIMEOUT_S = 120.0
BACK_MAX_S = 0.5
BUSY_LOOPS = 2
BUSY = [sys.executable, "-c", "while True: pass"]
CROWDING = threading.Lock()
COUNTS = ["suspected_by", "declared_dead_by", "others_declared_dead"]


class Watch:
    """What all say from now on, of one node and of the others."""

    def __init__(self, cluster: Cluster, chance: random.Random) -> None:
        self.cluster = cluster
        self.victim = chance.choice(cluster.nodes)
        self._others = [node for node in cluster.nodes if node is not self.victim]
        self.began = time.monotonic()

    def result(self) -> Result:
        """By how many the node was suspected and declared dead; how often another one was."""
        suspected = {"suspected_by": self._say(SUSPECT)}
        return {
            **(suspected if self.cluster.kind.tells_suspicions else {}),
            "declared_dead_by": self._say(DEAD),
            "others_declared_dead": self.cluster.deaths(
                self.began, of=[node.key for node in self._others], by=self.cluster.nodes
            ),
        }

    def _say(self, what: str) -> int:
        first = (node.first(self.victim.key, [what], self.began) for node in self._others)
        return sum(at is not None for at in first)


def chosen(bench: Bench, cluster: Cluster, number: int) -> Watch:
    """The victim of a round, at any point of a probe round; the same in all kinds."""
    chance = random.Random(f"{bench.options.seed} {number}")
    time.sleep(chance.random())
    return Watch(cluster, chance)


def stop(bench: Bench, seconds: float, cluster: Cluster, number: int) -> Result:
    """Stop a node and wake it again. When is it in every view again?"""
    watch = chosen(bench, cluster, number)
    watch.victim.signal(signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        watch.victim.signal(signal.SIGCONT)
    woken = time.monotonic()
    time.sleep(bench.options.after)
    back_s = cluster.wait_all_alive(woken, RECOVERY_TIMEOUT_S)
    return {"back_s": round(back_s, 3), **watch.result()}


def block(bench: Bench, how: str, seconds: float, cluster: Cluster, number: int) -> Result:
    """Have user code keep the event loop of a node busy."""
    watch = chosen(bench, cluster, number)
    cluster.block(watch.victim, how, seconds)
    time.sleep(max(0.0, watch.began + seconds - time.monotonic()) + bench.options.after)
    cluster.wait_all_alive(timeout_s=RECOVERY_TIMEOUT_S)
    return watch.result()


@contextlib.contextmanager
def crowded(node: Node) -> Iterator[None]:
    """Have a node share the last processor with two loops that never rest."""
    usual = os.sched_getaffinity(node.process.pid)
    one = {max(usual)}
    pin(node.process.pid, one)
    loops = [subprocess.Popen(BUSY) for _ in range(BUSY_LOOPS)]
    try:
        for loop in loops:
            os.sched_setaffinity(loop.pid, one)
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
        with contextlib.suppress(ProcessLookupError):
            pin(node.process.pid, usual)


def pin(process: int, processors: set[int]) -> None:
    """All threads of a process."""
    for thread in Path(f"/proc/{process}/task").iterdir():
        os.sched_setaffinity(int(thread.name), processors)


def starve(bench: Bench, seconds: float, cluster: Cluster, number: int) -> Result:
    """Leave a node a third of a processor; one kind's at a time, or it would be a ninth."""
    with CROWDING:
        watch = chosen(bench, cluster, number)
        with crowded(watch.victim):
            time.sleep(seconds)
    time.sleep(bench.options.after)
    cluster.wait_all_alive(timeout_s=RECOVERY_TIMEOUT_S)
    return watch.result()


def cases(bench: Bench) -> Iterator[tuple[str, int, dict[str, Any], Act]]:
    """Name, runs, how to start clusters, and what to do, of each test."""
    options = bench.options
    for seconds in options.stops:
        name = f"stopped_{seconds:g}s"
        yield name, options.runs, {}, partial(stop, bench, seconds)
    for how in options.blocks:
        name = f"blocked_{options.block_seconds:g}s_by_{how}"
        act = partial(block, bench, how, options.block_seconds)
        yield name, options.long_runs, {"extra": BLOCKS}, act
    if options.busy_seconds:
        name = f"busy_{options.busy_seconds:g}s"
        yield name, options.long_runs, {}, partial(starve, bench, options.busy_seconds)


def able(bench: Bench, name: str) -> Bench:
    """The same with the kinds alone to which a test applies."""
    if not name.startswith("blocked"):
        return bench
    way = name.rpartition("_")[2]
    makes = {kind: make for kind, make in bench.makes.items() if way in BLOCK_WAYS.get(kind, ())}
    return replace(bench, makes=makes)


def goals(name: str, found: dict[str, Any]) -> list[Goal]:
    ours = {what: figure(found, Meshd.name, what) for what in (*COUNTS, "failed")}
    made = [
        at_most(f"{name}: others declared dead", ours["others_declared_dead"], 0),
        at_most(f"{name}: rounds without an end", ours["failed"], 0),
    ]
    if name == "stopped_8s":
        back = figure(found, Meshd.name, "back_s", "max")
        return [at_most(f"{name}: slowest back in every view, s", back, BACK_MAX_S), *made]
    return [at_most(f"{name}: declared dead by", ours["declared_dead_by"], 0), *made]


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--sizes", type=int, nargs="+", default=[50])
    made.add_argument("--runs", type=int, default=10, help="Of each stop.")
    made.add_argument("--long-runs", type=int, default=3, help="Of each block and busy node.")
    made.add_argument("--stops", type=float, nargs="*", default=[3.0, 8.0], help="Seconds each.")
    both = ["sleep", "python"]
    made.add_argument("--blocks", nargs="*", choices=both, default=both, help="How it blocks.")
    made.add_argument("--block-seconds", type=float, default=10.0)
    made.add_argument("--busy-seconds", type=float, default=40.0, help="0: none.")
    made.add_argument("--after", type=float, default=10.0, help="How long is still looked on.")
    quick = {"sizes": [3], "runs": 1, "long_runs": 1, "stops": [0.5], "after": 0.2}
    quick |= {"blocks": ["sleep"], "block_seconds": 1.0, "busy_seconds": 1.0}
    bench = begin("versus_pause", made, **quick)
    figures: dict[str, Any] = {}
    rows: list[Result] = []
    judged: list[Goal] = []
    for size in bench.options.sizes:
        with network(size, is_lan_needed=False) as place:
            for name, count, how, act in cases(bench):
                case = {"N": size, "test": name}
                results = rounds(
                    able(bench, name), place, act, case, size=size, count=count, block=count, **how
                )
                some, found = collected(results, COUNTS)
                rows += [{**case, **row} for row in some]
                figures[name] = found
                judged += goals(name, found)
    keys = ("sizes", "runs", "long_runs", "stops", "blocks", "block_seconds", "busy_seconds")
    bench.finish(rows, figures, judged, *keys)


if __name__ == "__main__":
    main()
