"""Three workers transform a table's partitions; one is killed in the middle, and no row is missed.

    python etl.py

`transform` is idempotent: what the dead worker had begun is done by another. The workers are
programs of their own, as they would be on three machines.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator

from meshd import Mesh, capability

WORKERS = ("ada", "bob", "cleo")
PARTITIONS = 60
ROWS = 200
READY_S = 30.0


@capability(idempotent=True, tags=("etl",))
def transform(partition: int, rows: list[float]) -> dict[str, float]:
    """Clean and sum up one partition."""
    time.sleep(0.05)  # plays the work
    kept = [row for row in rows if row >= 0]
    return {"partition": partition, "rows": len(kept), "total": round(sum(kept), 3)}


def rows_of(partition: int) -> list[float]:
    """What is extracted: every tenth row is broken."""
    return [-1.0 if n % 10 == 0 else partition + n / ROWS for n in range(ROWS)]


def node(name: str, *seeds: str) -> Mesh:
    """A program that is a node itself, on this machine."""
    settings = {"bind": "127.0.0.1:0", "mdns": False, "join": list(seeds), "profile": "local"}
    return Mesh(name, embed=True, **settings)


@contextlib.contextmanager
def workers(seed: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Three of them, gone at the end."""
    command = [sys.executable, __file__]
    started = [subprocess.Popen([*command, name, seed]) for name in WORKERS]  # noqa: S603 - our own
    try:
        yield started
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait()


async def load(mesh: Mesh, started: list[subprocess.Popen[bytes]]) -> None:
    """Have all partitions transformed, and say who did what."""
    done_by: Counter[str] = Counter()
    moved = 0
    loaded: dict[int, int] = {}
    at_once = asyncio.Semaphore(8)

    async def one(partition: int) -> None:
        nonlocal moved
        given = {"partition": partition, "rows": rows_of(partition)}
        async with at_once:
            answer = await mesh.delegate("transform", given, deadline_s=READY_S, wait=True)
        result = answer["peer_result"]["result"]
        loaded[result["partition"]] = result["rows"]
        done_by[answer["peer_result"]["node"]] += 1
        moved += any(attempt["outcome"] in {"lost", "error"} for attempt in answer["attempts"])
        if len(loaded) == PARTITIONS // 3:
            started[0].kill()

    await asyncio.gather(*(one(partition) for partition in range(PARTITIONS)))
    expected = sum(row >= 0 for p in range(PARTITIONS) for row in rows_of(p))
    print(f"{len(loaded)} of {PARTITIONS} partitions, {sum(loaded.values())} of {expected} rows")
    print(f"killed {WORKERS[0]} in the middle; {moved} partitions moved on to another worker")
    print("done by", ", ".join(f"{name}: {count}" for name, count in sorted(done_by.items())))


async def main() -> None:
    """Be the node that hands out, with three workers."""
    async with node("loader") as mesh:
        (me,) = await mesh.peers()
        with workers(f"{me['address']}:{me['port']}") as started:
            await load(mesh, started)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        worker = node(sys.argv[1], sys.argv[2])
        worker.offer(transform)
        worker.run()
    else:
        os.environ.setdefault("MESHD_MESH", f"etl-{os.getpid()}")
        asyncio.run(main())
