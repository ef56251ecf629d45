"""Twenty thousand calls while workers are killed, links are cut, and the network splits.

Three workers and the node that hands out, each on a host of its own. A third of the calls must not
take effect twice, a third may, a third have a key. Every run writes down its effect before it goes
on, so that the files tell what was done and the caller what was told. What must hold:

- every call ends once at its caller, and as many were begun as ended and are under way, always;
- work that is not idempotent takes effect at most once, keyed work at most once a worker's run;
- what ended well took effect, and what ended in a definite error did not.
"""

import argparse
import asyncio
import contextlib
import json
import random
import subprocess
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mesh_processes import Daemon, MeshProcesses, arguments, kill, progress, report, summary
from rivals.goals import at_most, outcome
from rivals.network import INTERFACE, Lan, why_no_lan

from meshd import Mesh, MeshError

WORKERS = 3
PORT = 7_001
KINDS = ("once", "again", "keyed")
DEADLINE_S = 20.0
HANG_S = 5.0
"""A call that takes so much longer than its deadline has been lost."""


@dataclass
class Account:
    """What became of the calls."""

    begun: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    ends_of: Counter[tuple[str, int]] = field(default_factory=Counter)
    outcome: dict[tuple[str, int], str] = field(default_factory=dict)
    taken_ms: list[float] = field(default_factory=list)
    under_way: int = 0
    imbalances: int = 0

    def look(self) -> None:
        """Whether the books balance at this instant."""
        self.imbalances += self.begun != sum(self.ended.values()) + self.under_way


async def one(mesh: Mesh, account: Account, kind: str, number: int) -> None:
    """Make one call and write down how it ended."""
    account.begun += 1
    account.under_way += 1
    account.look()
    key = f"chaos-{number}" if kind == "keyed" else ""
    began = time.perf_counter()
    try:
        async with asyncio.timeout(DEADLINE_S + HANG_S):
            result = await mesh.call(
                kind, {"number": number}, deadline_s=DEADLINE_S, idempotency_key=key, wait=True
            )
        outcome = "done" if result == number else "wrong"
    except MeshError as error:
        outcome = "definite" if error.definite else "indefinite"
    except TimeoutError:
        outcome = "hung"
    account.taken_ms.append((time.perf_counter() - began) * 1_000)
    account.under_way -= 1
    account.ended[outcome] += 1
    account.ends_of[kind, number] += 1
    account.outcome[kind, number] = outcome
    account.look()


async def call_all(mesh: Mesh, account: Account, count: int, callers: int) -> None:
    """All calls, so many at a time."""
    numbers = iter(range(count))

    async def caller() -> None:
        for number in numbers:
            await one(mesh, account, KINDS[number % len(KINDS)], number)
            if number % 1_000 == 0:
                progress(f"{number} calls: {dict(account.ended)}")

    await asyncio.gather(*(caller() for _ in range(callers)))


class Chaos:
    """What goes wrong, one thing after the other, from a seed."""

    def __init__(self, lan: Lan, mesh: MeshProcesses, workers: list[Daemon], seed: int) -> None:
        self.lan = lan
        self.mesh = mesh
        self.workers = workers
        self.done: Counter[str] = Counter()
        self._rng = random.Random(seed)

    async def run(self) -> None:
        """Until cancelled; then all is well again."""
        deeds = (self.kill_one, self.cut_links, self.split_off)
        try:
            while True:
                await asyncio.sleep(self._rng.uniform(0.5, 1.5))
                deed = self._rng.choice(deeds)
                await deed()
                self.done[deed.__name__] += 1
        finally:
            self.lan.heal()

    async def kill_one(self) -> None:
        """A worker is killed, and started again under its name."""
        index = self._rng.randrange(WORKERS)
        kill(self.workers[index].process)
        await asyncio.sleep(self._rng.uniform(0.2, 1.5))
        self.workers[index] = await asyncio.to_thread(start_worker, self.lan, self.mesh, index)

    async def cut_links(self) -> None:
        """All connections to a worker are reset; new ones are refused for a moment."""
        inside = self.lan.inside(self._rng.randrange(WORKERS) + 2)
        chains = (("out", "output", "oifname"), ("in", "input", "iifname"))
        table = "".join(
            f"chain {name} {{ type filter hook {hook} priority 0;"
            f" {way} {INTERFACE} meta l4proto tcp reject with tcp reset; }};"
            for name, hook, way in chains
        )
        await nft(inside, f"table inet cut {{ {table} }}")
        await asyncio.sleep(self._rng.uniform(0.05, 0.3))
        await nft(inside, "delete table inet cut")

    async def split_off(self) -> None:
        """One or two workers are cut off without a word, shorter or longer than a death takes."""
        first = self._rng.randrange(2, 2 + WORKERS)
        self.lan.split(range(first, min(first + self._rng.randint(1, 2), 2 + WORKERS)))
        await asyncio.sleep(self._rng.choice((0.3, 2.0, 8.0)))
        self.lan.heal()


async def nft(inside: list[str], rules: str) -> None:
    """Load rules on a host."""
    command = [*inside, "nft", "-f", "-"]
    await asyncio.to_thread(subprocess.run, command, input=rules.encode(), check=True)


def start_worker(lan: Lan, mesh: MeshProcesses, index: int) -> Daemon:
    """A worker on its host; returns once it serves."""
    host, name = index + 2, f"w{index}"
    daemon = mesh.spawn(
        name, "--capability", "chaos_work", "--slots", "64",
        bind=f"{lan.address(host)}:{PORT}", join=[f"{lan.address(1)}:{PORT}"],
        inside=lan.inside(host),
        CHAOS_LOG=str(mesh.place / "effects"), CHAOS_NODE=f"{name}.{time.time_ns()}",
    )  # fmt: skip
    mesh.wait_ready([daemon])
    return daemon


def faults(account: Account, effects: list[tuple[str, int, str]], count: int) -> dict[str, int]:
    """What does not hold, counted."""
    runs: dict[tuple[str, int], list[str]] = defaultdict(list)
    for kind, number, node in effects:
        runs[kind, number].append(node)
    calls = {(KINDS[number % len(KINDS)], number) for number in range(count)}
    return {
        "calls that did not end once": sum(account.ends_of[call] != 1 for call in calls),
        "calls that hung or got a wrong result": account.ended["hung"] + account.ended["wrong"],
        "instants at which begun != ended + under way": account.imbalances,
        "effects twice that must not be": sum(
            len(nodes) > 1 for (kind, _), nodes in runs.items() if kind == "once"
        ),
        "keyed effects twice in one worker's run": sum(
            len(nodes) > len(set(nodes)) for (kind, _), nodes in runs.items() if kind == "keyed"
        ),
        "results without an effect": sum(
            account.outcome.get(call) == "done" and not runs[call] for call in calls
        ),
        "definite errors that had an effect": sum(
            account.outcome.get(call) == "definite" and bool(runs[call]) for call in calls
        ),
    }


def effects_in(file: Path) -> list[tuple[str, int, str]]:
    """What was done: kind, number, and the run of the worker that did it."""
    lines = (line.split() for line in file.read_text().splitlines())
    return [(kind, int(number), node) for kind, number, node in lines]


async def run(lan: Lan, mesh: MeshProcesses, options: argparse.Namespace) -> dict[str, Any]:
    """All of it; the figures."""
    front = mesh.spawn("front", bind=f"{lan.address(1)}:{PORT}", inside=lan.inside(1))
    mesh.wait_ready([front])
    workers = [start_worker(lan, mesh, index) for index in range(WORKERS)]
    mesh.wait_all_alive([front, *workers])
    account, chaos = Account(), Chaos(lan, mesh, workers, options.seed)
    began = time.perf_counter()
    async with Mesh("chaos", control=front.socket) as caller:
        raging = asyncio.create_task(chaos.run())
        await call_all(caller, account, options.calls, options.callers)
        raging.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await raging
    found = faults(account, effects_in(mesh.place / "effects"), options.calls)
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "deeds": dict(chaos.done),
        "outcomes": dict(account.ended),
        "took_ms": summary(account.taken_ms, 1),
        "faults": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--callers", type=int, default=64, help="Calls under way at a time.")
    parser.add_argument("--seed", type=int, default=1)
    options = arguments(parser)
    if options.quick:
        options.calls = 300
    why = why_no_lan()
    if why:
        progress(f"not run: {why}")
        print(json.dumps({"bench": "chaos", "why_not": why}), flush=True)
        return
    with Lan(1 + WORKERS, []) as lan, MeshProcesses() as mesh:
        (mesh.place / "effects").touch()
        figures = asyncio.run(run(lan, mesh, options))
    goals = [at_most(text, value, 0) for text, value in figures["faults"].items()]
    rows = [{"what": text, "count": value} for text, value in figures["faults"].items()]
    rows += [{"what": f"ended {how}", "count": n} for how, n in figures["outcomes"].items()]
    parameters = {"calls": options.calls, "callers": options.callers, "seed": options.seed}
    report("chaos", rows, parameters=parameters, figures=figures, **outcome(goals))


if __name__ == "__main__":
    main()
