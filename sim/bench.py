"""How fast the simulator is, in CPU seconds, and how much memory it takes, each row in a process.

A row is what SIMULATOR promises: a plan, and at most how many seconds and bytes it may take on one
core with all invariants checked. A process of its own makes the figures of memory clean.
"""

import multiprocessing
import random
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshd.model import Load
from sim.build import name as build_name
from sim.faults import At, Heal, Partition
from sim.network import Shape
from sim.plan import Plan
from sim.runner import run
from sim.scenarios import SCENARIOS
from sim.whole.faults import Want

if TYPE_CHECKING:
    from sim.world import World

SEED = 1
SPLIT_AT_S = 3.0
SPLIT_FOR_S = 60.0
LOAD_EVERY_S = 5.0
SWARM_SEEDS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement, and what it must not exceed (None: nothing is promised).

    Attributes:
        name: for the command line.
        text: for people.
        nodes: how many hosts.
        seconds: virtual time during which things happen.
        loss: share of packets lost.
        cpu_s: CPU seconds that it may take.
        rss_mb: resident memory, in MB, that its process may reach.
        kb_per_node: memory that one simulated node may take, in KB.
        seeds_per_s: runs that one core must do in a second.
        large: whether it takes more than a few seconds.
    """

    name: str
    text: str
    nodes: int
    seconds: float = 60.0
    loss: float = 0.0
    cpu_s: float | None = None
    rss_mb: float | None = None
    kb_per_node: float | None = None
    seeds_per_s: float | None = None
    large: bool = False


ROWS = (
    Row(name="swarm", text="swarm, many seeds", nodes=0, seeds_per_s=15.0),
    Row(name="crash_100", text="100 nodes, 1 % loss, one crash", nodes=100, loss=0.01),
    Row(name="starved_50", text="50 nodes, starved", nodes=50, seconds=120.0, loss=0.01),
    Row(
        name="crash_1000", text="1,000 nodes, 1 % loss, one crash", nodes=1_000, loss=0.01,
        cpu_s=6.0,
    ),
    Row(name="split_200", text="200 nodes, split and healed", nodes=200),
    Row(
        name="whole_100", text="100 whole daemons, a call a second each", nodes=100, cpu_s=20.0,
        large=True,
    ),
    Row(
        name="quiet_10000", text="10,000 nodes, quiet", nodes=10_000, kb_per_node=50.0, large=True,
    ),
    Row(
        name="crash_10000", text="10,000 nodes, 1 % loss, one crash", nodes=10_000, loss=0.01,
        cpu_s=90.0, large=True,
    ),
    Row(
        name="load_1000", text="1,000 nodes, new load every 5 s", nodes=1_000, cpu_s=60.0,
        large=True,
    ),
    Row(
        name="split_1000", text="1,000 nodes, split and healed", nodes=1_000, cpu_s=150.0,
        rss_mb=1_500.0, large=True,
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Measured:
    """What one row took.

    Attributes:
        row: what was measured.
        runs: how many plans were run.
        cpu_s: CPU seconds of them all, without the process's start.
        rss_mb: the most memory that the process held.
        kb_per_node: what was added from the start of the run to its peak, for each node.
        events: how many the traces counted.
        virtual_s: simulated seconds.
        failed: whether an invariant was broken.
        build: "pure" or "compiled".
    """

    row: Row
    runs: int
    cpu_s: float
    rss_mb: float
    kb_per_node: float
    events: int
    virtual_s: float
    failed: bool
    build: str

    @property
    def within(self) -> bool:
        """Whether all that is promised of the row holds."""
        row = self.row
        return not self.failed and all(
            most is None or held <= most
            for held, most in (
                (self.cpu_s, row.cpu_s),
                (self.rss_mb, row.rss_mb),
                (self.kb_per_node, row.kb_per_node),
                (row.seeds_per_s or 0.0, None if row.seeds_per_s is None else self.runs_per_s),
            )
        )

    @property
    def runs_per_s(self) -> float:
        """Runs a CPU second."""
        return self.runs / self.cpu_s

    def as_json(self) -> dict[str, Any]:
        """One row for machines."""
        return {
            "name": self.row.name,
            "what": self.row.text,
            "build": self.build,
            "runs": self.runs,
            "cpu_s": round(self.cpu_s, 2),
            "runs_per_s": round(self.runs_per_s, 2),
            "rss_mb": round(self.rss_mb, 1),
            "kb_per_node": round(self.kb_per_node, 2),
            "events": self.events,
            "us_per_event": round(self.cpu_s / self.events * 1e6, 2),
            "virtual_s": self.virtual_s,
            "failed": self.failed,
            "within": self.within,
        }

    def as_text(self) -> str:
        """One line for people."""
        speed = f"{self.cpu_s:8.2f} s" if self.runs == 1 else f"{self.runs_per_s:6.1f} runs/s"
        state = "FAILED" if self.failed else "ok" if self.within else "MISSED"
        return (
            f"{self.row.text:<36} {speed:>13} {self.cpu_s / self.events * 1e6:6.1f} us/event "
            f"{self.rss_mb:7.0f} MB {self.kb_per_node:7.1f} KB/node  {self.build:<8} {state}"
        )


@dataclass(frozen=True, slots=True)
class LoadChanges:
    """Every node's load changes each few seconds by so much that it is news."""

    seconds: float

    def apply(self, world: "World") -> None:
        """Begin: each node at a time of its own."""
        rng = random.Random(f"{world.seed}/bench/load")
        for index in range(len(world.hosts)):
            at = world.now + LOAD_EVERY_S * rng.random()
            while at < world.now + self.seconds:
                world.call_at(at, partial(_new_load, world, index, rng))
                at += LOAD_EVERY_S


def _new_load(world: "World", index: int, rng: random.Random) -> None:
    load = Load(in_flight=rng.randrange(64), slots=16, service_s=10 ** rng.uniform(-3, 1))
    world.sample(world.hosts[index], load)


def _plan(row: Row, seed: int) -> Plan:
    """What a row runs."""
    kind = row.name.partition("_")[0]
    if kind == "split":
        halves = frozenset(range(0, row.nodes, 2)), frozenset(range(1, row.nodes, 2))
        faults = (
            At(SPLIT_AT_S, Partition("split", halves)),
            At(SPLIT_AT_S + SPLIT_FOR_S, Heal("split")),
        )
        return _own_plan(row, seed, SPLIT_AT_S + SPLIT_FOR_S + row.seconds, faults)
    if kind == "whole":
        calls = (At(0.0, Want("work_again")),)
        return replace(_own_plan(row, seed, row.seconds, calls), whole=True, calls_per_s=1.0)
    if kind == "load":
        return _own_plan(row, seed, row.seconds, (At(0.0, LoadChanges(row.seconds)),))
    name = {"quiet": "steady"}.get(kind, kind)
    return SCENARIOS[name].make(row.nodes, seed, row.seconds, row.loss)


def _own_plan(row: Row, seed: int, duration_s: float, faults: tuple[At, ...]) -> Plan:
    return Plan(
        scenario=row.name,
        nodes=row.nodes,
        seed=seed,
        duration_s=duration_s,
        loss=row.loss,
        shape=Shape(loss=row.loss),
        converged=row.nodes,
        faults=faults,
    )


def measure(row: Row) -> Measured:
    """Run a row in this process. For a clean figure of memory it must have run nothing before."""
    seeds = range(SWARM_SEEDS) if row.seeds_per_s is not None else (SEED,)
    before_mb = peak_rss_mb()
    began = time.process_time()
    results = [run(_plan(row, seed)) for seed in seeds]
    cpu_s = time.process_time() - began
    nodes = sum(result.plan.nodes for result in results)
    return Measured(
        row=row,
        runs=len(results),
        cpu_s=cpu_s,
        rss_mb=peak_rss_mb(),
        kb_per_node=(peak_rss_mb() - before_mb) * 1_024 / nodes,
        events=sum(result.metrics["events"] for result in results),
        virtual_s=sum(result.metrics["virtual_s"] for result in results),
        failed=any(result.failed for result in results),
        build=build_name(),
    )


def measured(rows: Sequence[Row] = ROWS, *, large: bool = False) -> Iterator[Measured]:
    """Run each row in a process of its own, one after another; the large ones only if asked for."""
    context = multiprocessing.get_context("spawn")
    for row in rows:
        if row.large and not large:
            continue
        with ProcessPoolExecutor(max_workers=1, mp_context=context) as alone:
            yield alone.submit(measure, row).result()


def peak_rss_mb() -> float:
    """The most memory that this process held so far, in MB.

    Linux's own figure where there is one: getrusage counts what the parent held before the exec.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1_024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1_024 * 1_024 if sys.platform == "darwin" else 1_024)


def main(arguments: Sequence[str]) -> int:
    """Measure the named rows, or the small ones (`--large`: all); 1 if one misses its promise."""
    names = [name for name in arguments if name != "--large"]
    rows = tuple(row for row in ROWS if not names or row.name in names)
    kept = True
    for result in measured(rows, large=bool(names) or "--large" in arguments):
        sys.stdout.write(result.as_text() + "\n")
        sys.stdout.flush()
        kept = kept and result.within
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
