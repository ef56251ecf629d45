"""Many calls and large ones: 10,000 under way at once, results of 1 MiB, 100 MiB in parts.

The caller is a node itself, the worker a daemon beside it, with one link between them. Memory is
the most that each process held, above what it held before.
"""

import argparse
import asyncio
import os
import threading
import time
from collections import Counter
from typing import Any, Self

import psutil
import uvloop
from large_work import MIB
from mesh_processes import Daemon, MeshProcesses, arguments, progress, report, summary
from rivals.goals import at_most, outcome

from meshd import Mesh, MeshError

DEADLINE_S = 120.0
LOOK_S = 0.02
STREAM_MEMORY_MIB = 32.0
CALLS_MEMORY_KIB = 64.0


class Memory:
    """The most that two processes held above what they held at the start of the block."""

    def __init__(self, worker: Daemon) -> None:
        pids = {"caller": os.getpid(), "worker": worker.process.pid}
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self.most: dict[str, int] = {}
        self._is_over = threading.Event()

    def __enter__(self) -> Self:
        self._before = self._now()
        self.most = dict(self._before)
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _now(self) -> dict[str, int]:
        return {name: process.memory_info().rss for name, process in self._processes.items()}

    def _watch(self) -> None:
        while not self._is_over.wait(LOOK_S):
            self.most = {name: max(self.most[name], rss) for name, rss in self._now().items()}

    def told(self) -> dict[str, float]:
        """MiB, by process."""
        return {
            f"{name}_more_mib": round((most - self._before[name]) / MIB, 1)
            for name, most in self.most.items()
        }


async def many(mesh: Mesh, worker: Daemon, count: int) -> dict[str, Any]:
    """So many calls under way at once."""
    taken: list[float] = []
    ends: Counter[str] = Counter()

    async def one() -> None:
        began = time.perf_counter()
        try:
            await mesh.call("hold", {"seconds": 1.0}, deadline_s=DEADLINE_S)
        except MeshError as error:
            ends[f"{type(error).__name__}: {error.message}"[:80]] += 1
        else:
            ends["done"] += 1
        taken.append(time.perf_counter() - began)

    with Memory(worker) as memory:
        began = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(count)))
        seconds = time.perf_counter() - began
    return {
        "calls": count, "seconds": round(seconds, 2), "ends": dict(ends), "took_s": summary(taken),
        **memory.told(),
    }  # fmt: skip


async def results(mesh: Mesh, worker: Daemon, count: int) -> dict[str, Any]:
    """So many results of 1 MiB, one after the other."""
    taken = []
    with Memory(worker) as memory:
        for _ in range(count):
            began = time.perf_counter()
            assert len(await mesh.call("blob", {"size": MIB})) == MIB
            taken.append((time.perf_counter() - began) * 1_000)
    return {"results": count, "took_ms": summary(taken), **memory.told()}


async def stream(mesh: Mesh, worker: Daemon, mib: int, part: int) -> dict[str, Any]:
    """So much, in parts."""
    received = 0
    with Memory(worker) as memory:
        began = time.perf_counter()
        given = {"size": mib * MIB, "part": part}
        async for each in mesh.stream("flow", given, deadline_s=DEADLINE_S):
            received += len(each)
        seconds = time.perf_counter() - began
    assert received == mib * MIB, received
    return {
        "mib": mib, "part_bytes": part, "seconds": round(seconds, 2),
        "mib_per_s": round(mib / seconds, 1), **memory.told(),
    }  # fmt: skip


async def wait_offered(mesh: Mesh) -> None:
    """Until the worker is known here."""
    async with asyncio.timeout(30):
        await mesh.call("hold", {"seconds": 0.0}, deadline_s=30, wait=True)


async def run(mesh: MeshProcesses, options: argparse.Namespace) -> dict[str, Any]:
    """All three; the figures."""
    flags = ("--capability", "large_work", "--slots", "1024")
    worker = mesh.spawn("worker", *flags, MESHD_QUEUE="20000")
    mesh.wait_ready([worker])
    os.environ |= mesh.environment
    caller = Mesh(
        "caller", embed=True, mesh=mesh.mesh, bind="127.0.0.1:0", mdns=False, join=[worker.address]
    )
    async with caller:
        await wait_offered(caller)
        found = {"results": await results(caller, worker, options.results)}
        progress(f"results: {found['results']}")
        found["stream"] = await stream(caller, worker, options.mib, options.part)
        progress(f"stream: {found['stream']}")
        found["many"] = await many(caller, worker, options.calls)
        progress(f"many: {found['many']}")
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000, help="Under way at once.")
    parser.add_argument("--results", type=int, default=200, help="Of 1 MiB.")
    parser.add_argument("--mib", type=int, default=100, help="Streamed.")
    parser.add_argument("--part", type=int, default=65_536, help="Bytes of a part.")
    options = arguments(parser)
    if options.quick:
        options.calls, options.results, options.mib = 200, 3, 4
    with MeshProcesses() as mesh, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        figures = runner.run(run(mesh, options))
    many_, stream_ = figures["many"], figures["stream"]
    lost = many_["calls"] - many_["ends"].get("done", 0)
    goals = [at_most("calls lost", lost, 0)]
    for name in ("caller", "worker"):
        key = f"{name}_more_mib"
        per_call = round(many_[key] * 1_024 / many_["calls"], 1)
        goals.append(at_most(f"{name}: KiB a call under way", per_call, CALLS_MEMORY_KIB))
        goals.append(at_most(f"{name}: MiB more for the stream", stream_[key], STREAM_MEMORY_MIB))
    rows = [goal.row() for goal in goals]
    parameters = {k: v for k, v in vars(options).items() if k != "quick"}
    report("large", rows, parameters=parameters, figures=figures, **outcome(goals))


if __name__ == "__main__":
    main()
