"""All routing policies in turn on one mesh of twenty daemons with tasks of 100 ms.

The nodes have 1, 2, 4 or 8 slots. One is ten times slower, one fails every task at once; which are
which the callers are not told. Calls come at random (Poisson) to every healthy node (`--fronts` of
them), which are workers as well, at 0.7 of what the others but those two can do; what is said of a
call's time counts from the instant at which it was due, whatever was under way then. In a round
every policy has a turn, in an order of its own, with the very same arrivals; before each turn the
failing node is started anew, so that no policy profits from what another one found out about it.

A call goes on elsewhere if it is refused, but not if it failed (`--idempotent`: then, too). The
load of a node is its busy time for each slot and second; the goal compares that of the busiest,
which may be the slow one, with the mean of all healthy slots. Messages are those between nodes: the
work and its answer, refusals, and load probes, each both ways. Those that `waited` began more than
20 ms late, and `waited_in_vain` if a healthy slot was free when they were due.
"""

import argparse
import asyncio
import contextlib
import os
import random
import time
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

import uvloop
from mesh_processes import Daemon, MeshProcesses, arguments, kill, print_table, progress, report
from rivals.goals import Goal, at_most, outcome
from routing_figures import Ended, Turn, Worker, figures_of

from meshd import Mesh, MeshError
from meshd.routing.policies import POLICIES

SLOWDOWN = 10.0
PRICES_USD = (0.001, 0.002, 0.004)
PROFICIENCIES = (0.5, 0.7, 0.9)
KEYS = 64
"""For `sticky`: each call has one of so many."""

DIFFICULTY = 0.5
"""For `skill`: the price counts half, and every worker is competent."""

PROBES_METRIC = 'meshd_routing_events_total{event="probes"}'
WARM_UP_POLICY = "round_robin"
LOAD_BALANCE_MAX = 1.3


def workers_of(options: argparse.Namespace) -> list[Worker]:
    """All nodes: healthy ones whose slots take turns, then the slow and the failing one."""
    slots, healthy = options.slots, options.nodes - 2
    middle = sorted(slots)[len(slots) // 2]
    return [
        *(Worker(f"n{k + 1}", slots[k % len(slots)], options.task_s) for k in range(healthy)),
        Worker("slow", middle, SLOWDOWN * options.task_s, is_slow=True),
        Worker("failing", middle, options.task_s, is_failing=True),
    ]


class Fleet:
    """The daemons, and one client at each of those that calls come to."""

    def __init__(self, mesh: MeshProcesses, options: argparse.Namespace) -> None:
        self.mesh = mesh
        self.options = options
        self.workers = workers_of(options)
        self.daemons: dict[str, Daemon] = {}
        self.fronts: dict[str, Mesh] = {}
        healthy = [w for w in self.workers if not (w.is_slow or w.is_failing)]
        self._front_names = [w.name for w in healthy[: options.fronts]]
        self.calls_per_s = options.load * sum(w.slots / w.task_s for w in healthy)

    def _spawn(self, number: int, worker: Worker, *, bind: str = "127.0.0.1:0") -> Daemon:
        seeds = [d.address for name, d in self.daemons.items() if name != worker.name][:2]
        return self.mesh.spawn(
            worker.name, "--capability", "routing_work", "--slots", str(worker.slots),
            bind=bind, join=seeds,
            ROUTING_TASK_S=str(worker.task_s),
            ROUTING_FAILS="yes" if worker.is_failing else "no",
            ROUTING_IDEMPOTENT="yes" if self.options.idempotent else "no",
            ROUTING_PRICE_USD=str(PRICES_USD[number % len(PRICES_USD)]),
            ROUTING_PROFICIENCY=str(PROFICIENCIES[number % len(PROFICIENCIES)]),
        )  # fmt: skip

    def start(self) -> None:
        """Start all of them; returns once each serves."""
        first, *rest = self.workers
        self.daemons[first.name] = self._spawn(0, first)
        self.mesh.wait_ready(self.daemons.values())
        started = {w.name: self._spawn(k, w) for k, w in enumerate(rest, 1)}
        self.daemons |= started
        self.mesh.wait_ready(started.values())

    def restart_failing(self) -> None:
        """Start the failing node anew: whatever was found out about it counts no more."""
        number = len(self.workers) - 1
        worker = self.workers[number]
        old = self.daemons[worker.name]
        kill(old.process)
        self.daemons[worker.name] = self._spawn(number, worker, bind=old.address)
        self.mesh.wait_ready([self.daemons[worker.name]])

    @contextlib.asynccontextmanager
    async def clients(self) -> AsyncIterator[None]:
        """A client at each front, as `fronts`."""
        async with contextlib.AsyncExitStack() as stack:
            for name in self._front_names:
                client = Mesh(f"at-{name}", control=self.daemons[name].socket)
                self.fronts[name] = await stack.enter_async_context(client)
            yield

    async def until_known(self, since_ms: float = 0.0) -> None:
        """Wait until each front may give work to every node, the failing one's newest run too."""
        for front in self.fronts.values():
            async with asyncio.timeout(60):
                while not await self._knows_all(front, since_ms):
                    await asyncio.sleep(0.05)

    async def _knows_all(self, front: Mesh, since_ms: float) -> bool:
        ready = {
            row["name"]: row["epoch"]
            for row in await front.peers()
            if row["state"] == "alive" and row["capabilities"] and row["load"] is not None
        }
        return len(ready) == len(self.workers) and ready["failing"] > since_ms

    async def epoch_of_failing(self) -> float:
        """Which run of the failing node the first front knows of."""
        rows = await next(iter(self.fronts.values())).peers()
        return max((row["epoch"] for row in rows if row["name"] == "failing"), default=0.0)

    def probes(self) -> int:
        """Load probes that the fronts have sent so far, where they count them."""
        return sum(_metric(self.daemons[name], PROBES_METRIC) for name in self._front_names)

    async def turn(self, policy: str, seed: str, seconds: float) -> Turn:
        """Calls for so long, to the end of the last."""
        chance = random.Random(seed)
        before = await asyncio.to_thread(self.probes)
        due, calls = time.monotonic(), []
        ends = due + seconds
        while (due := due + chance.expovariate(self.calls_per_s)) < ends:
            name, params = chance.choice(self._front_names), preferences(policy, chance)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            calls.append(asyncio.create_task(self._call(name, policy, due, params)))
        ended = await asyncio.gather(*calls)
        return Turn(ended, seconds, await asyncio.to_thread(self.probes) - before)

    async def _call(self, front: str, policy: str, due: float, params: dict[str, Any]) -> Ended:
        try:
            envelope = await self.fronts[front].delegate(
                "work", {}, policy=policy, deadline_s=self.options.deadline_s, **params
            )
        except MeshError as error:
            tries = _tries(error.data.get("attempts", ()))
            return Ended(front, due, time.monotonic() - due, tries)
        took_s = time.monotonic() - due
        began, ended = envelope["peer_result"]["result"]
        node, tries = envelope["delegated_to"]["node"], _tries(envelope["attempts"])
        return Ended(front, due, took_s, tries, node, began - due, ended - due)


def preferences(policy: str, chance: random.Random) -> dict[str, Any]:
    """What a policy wants to know of a call. As much is drawn for each, for equal arrivals."""
    key = chance.randrange(KEYS)
    match policy:
        case "sticky":
            return {"affinity": f"key-{key}"}
        case "skill":
            return {"difficulty": DIFFICULTY}
        case _:
            return {}


def _tries(attempts: Any) -> tuple[tuple[str, str], ...]:
    return tuple((each["name"], each["outcome"]) for each in attempts)


def _metric(daemon: Daemon, name: str) -> int:
    with urllib.request.urlopen(f"http://{daemon.address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    values = (line.split()[-1] for line in text.splitlines() if line.startswith(name))
    return int(sum(float(value) for value in values))


async def run(fleet: Fleet, options: argparse.Namespace) -> dict[str, list[Turn]]:
    """Every policy's turn in every round."""
    found: dict[str, list[Turn]] = {policy: [] for policy in options.policies}
    async with fleet.clients():
        await fleet.until_known()
        progress(f"{len(fleet.workers)} nodes, {fleet.calls_per_s:.0f} calls/s")
        await fleet.turn(WARM_UP_POLICY, "warm-up", options.warm_up_s)
        for number in range(1, options.rounds + 1):
            order = list(found)
            random.Random(f"{options.seed} {number}").shuffle(order)
            for policy in order:
                epoch = await fleet.epoch_of_failing()
                await asyncio.to_thread(fleet.restart_failing)
                await fleet.until_known(epoch)
                turn = await fleet.turn(policy, f"{options.seed}.{number}", options.seconds)
                found[policy].append(turn)
                told = figures_of([turn], fleet.workers)
                shown = ("p50_ms", "p99_ms", "failed_percent", "max_over_mean", "slowest")
                progress(f"round {number}, {policy}: { {name: told[name] for name in shown} }")
    return found


def judged(figures: dict[str, dict[str, Any]]) -> list[Goal]:
    """What must hold of `adaptive`, as far as it was measured."""
    ours = figures.get("adaptive", {})
    others = {name: each["p99_ms"] for name, each in figures.items() if name != "adaptive"}
    best = min(others, key=others.__getitem__, default="nobody")
    return [
        at_most(f"p99, ms: the lowest other, {best}", ours.get("p99_ms"), others.get(best)),
        at_most("max/mean load", ours.get("max_over_mean"), LOAD_BALANCE_MAX),
    ]


def rows_of(figures: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The table, the lowest p99 first."""
    shown = (
        "calls", "p50_ms", "p99_ms", "mean_ms", "failed_percent", "max_over_mean", "messages",
        "at_slow", "waited", "waited_in_vain",
    )  # fmt: skip
    ordered = sorted(figures.items(), key=lambda item: item[1]["p99_ms"])
    return [
        {
            "policy": name,
            **{key: each[key] for key in shown},
            "slowest 1 %": ", ".join(f"{n} {why}" for why, n in each["slowest"].items()),
        }
        for name, each in ordered
    ]


def parsed() -> argparse.Namespace:
    known = [name for name in POLICIES if name != "pinned"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=20, help="Two of them are ill.")
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 2, 4, 8], help="In turn.")
    parser.add_argument("--fronts", type=int, default=18, help="Nodes that calls come to.")
    parser.add_argument("--policies", nargs="+", choices=known, default=known, metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="Of each turn.")
    parser.add_argument("--warm-up-s", type=float, default=4.0)
    parser.add_argument("--load", type=float, default=0.7, help="Of what the healthy can do.")
    parser.add_argument("--task-s", type=float, default=0.1)
    parser.add_argument("--deadline-s", type=float, default=10.0)
    parser.add_argument("--idempotent", action="store_true", help="Failed work is tried again.")
    parser.add_argument("--seed", type=int, default=1)
    options = arguments(parser)
    if options.quick:
        options.nodes, options.slots, options.fronts = 4, [1, 2], 2
        options.policies = [name for name in options.policies if name in {"adaptive", "random"}]
        options.rounds, options.seconds, options.warm_up_s, options.task_s = 1, 0.5, 0.2, 0.02
    return options


def main() -> None:
    options = parsed()
    with MeshProcesses() as mesh, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        os.environ |= mesh.environment
        fleet = Fleet(mesh, options)
        fleet.start()
        found = runner.run(run(fleet, options))
    figures = {name: figures_of(turns, fleet.workers) for name, turns in found.items()}
    goals = judged(figures)
    print_table(rows_of(figures))
    parameters = {k: v for k, v in vars(options).items() if k != "quick"}
    rows = [goal.row() for goal in goals]
    report("routing_daemons", rows, parameters=parameters, figures=figures, **outcome(goals))


if __name__ == "__main__":
    main()
