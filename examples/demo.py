"""The main job, shown: daemons find each other, share real work, and lose none when one dies.

python examples/demo.py [--no-mdns] [--profile lan|wan|local]

`script/demo` sets everything up and runs this. It exits with 0 only if every request got its right
answer and the others noticed the death; with 130 where it is interrupted.
"""

import argparse
import asyncio
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import demo_data
import stats
from demo_mesh import (
    READY_WITHIN_S,
    Daemon,
    Daemons,
    DemoError,
    command,
    live_in,
    loopback,
    turn_signals_into_interrupts,
    wait_for,
)

from meshd import Mesh, MeshError

NAMES = ("ada", "bob", "cleo")
ROWS = 12_000
SEED = 7
AT_ONCE = 8
STREAM_S = 10.0
KILL_AFTER_S = 3.0
NOTICED_WITHIN_S = 30.0
DEADLINE_S = 20.0
MDNS_WITHIN_S = 8.0
SEEDS_WITHIN_S = 10.0
WATCH_S = 0.1
PAUSE_S = 0.2
STOP_WAIT_S = 5.0


@dataclass
class Answered:
    """One request: when it began and ended (seconds of the stream), and how it was answered."""

    began: float
    ended: float
    right: bool
    error: str = ""
    node: str = ""
    attempts: list[dict[str, Any]] = field(default_factory=list)

    def last_try_at(self, node: str) -> float | None:
        """When it was last handed to `node`; None if it never was."""
        at, found = self.began, None
        for attempt in self.attempts:
            if attempt["name"] == node:
                found = at
            at += attempt["latency_ms"] / 1_000
        return found

    def moved_on_from(self, node: str) -> bool:
        """Whether `node` had it, did not finish it, and another one did."""
        return any(a["name"] == node and a["outcome"] != "busy" for a in self.attempts[:-1])


@dataclass
class Stream:
    """What is seen while requests flow."""

    began: float = field(default_factory=time.monotonic)
    answered: list[Answered] = field(default_factory=list)
    killed_at: float = math.inf
    noticed: dict[str, dict[str, float]] = field(default_factory=dict)
    over: bool = False

    def now(self) -> float:
        """Seconds since the stream began."""
        return time.monotonic() - self.began


def title(number: int, text: str) -> None:
    """Open a step."""
    bold = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    text = f"{number}  {text}"
    print(f"\n\033[1m{text}\033[0m" if bold else f"\n{text}", flush=True)


def say(text: str) -> None:
    """One line of a step."""
    print(f"   {text}".rstrip(), flush=True)


def start(daemons: Daemons, folder: Path, options: argparse.Namespace) -> None:
    """Start the daemons."""
    title(1, "Start three daemons, each a process of its own on the loopback interface")
    began = time.monotonic()
    flags = ["--bind", "127.0.0.1:0", "--profile", options.profile, "--capability", "stats"]
    flags += ["--iface", loopback()] if options.mdns else ["--no-mdns"]
    for name in NAMES:
        daemons.start(name, folder, *flags)
    for daemon in daemons.all:
        address = daemon.wait_ready(began + READY_WITHIN_S)
        say(f"{daemon.name:6} pid {daemon.pid:<8} {address}")
    say(f"ready after {time.monotonic() - began:.1f} s; profile {options.profile}")


def meet(daemons: Daemons, options: argparse.Namespace, began: float) -> None:
    """Let them find each other: by mDNS, or by a seed where that does not work."""
    title(2, "They find each other")
    how = f"mDNS on {loopback()}: nobody was told an address"
    if not (options.mdns and wait_for(daemons.see_each_other, MDNS_WITHIN_S)):
        if options.mdns:
            say(f"not by mDNS within {MDNS_WITHIN_S:.0f} s (no multicast on {loopback()}?)")
        first, *others = daemons.all
        for daemon in others:
            address = first.ready.read_text("utf-8").strip()
            command(say, "--node", daemon.name, "join", address)
        how = f"seeds: the others were told the address of {first.name}"
        if not wait_for(daemons.see_each_other, SEEDS_WITHIN_S):
            raise DemoError("they do not find each other; try: meshd doctor")
    took_s = time.monotonic() - began
    say(f"all three see each other {took_s:.1f} s after the first start")
    say(f"by {how}")
    say("")
    command(say, "--node", NAMES[0], "peers")


def real_work(folder: Path) -> None:
    """Make the files, and have two of them worked on by the command line."""
    title(3, "Real work on real files, by whichever node is best")
    chance = random.Random(SEED)
    demo_data.write_orders(folder / "data" / "orders.csv", ROWS, chance)
    demo_data.write_letters(folder / "data" / "letters", chance)
    size = sum(file.stat().st_size for file in (folder / "data").rglob("*") if file.is_file())
    say(f"orders.csv has {ROWS:,} rows, letters/ {demo_data.LETTERS} texts; {size / 1e3:.0f} kB")
    say("")
    command(
        say,
        "--node",
        NAMES[0],
        "call",
        "csv_stats",
        "path=orders.csv",
        "column=amount",
        "--explain",
    )
    say("")
    command(say, "--node", NAMES[0], "call", "text_stats", "folder=letters", "top=3")


def requests() -> list[tuple[str, dict[str, Any], Any]]:
    """Capability, input and the right result, computed here, of every kind of request."""
    inputs: list[tuple[str, dict[str, Any]]]
    inputs = [("csv_stats", {"path": "orders.csv", "column": c}) for c in ("amount", "weight_kg")]
    inputs += [("text_stats", {"folder": "letters", "top": 5})] * 2
    work: dict[str, Any] = {"csv_stats": stats.csv_stats, "text_stats": stats.text_stats}
    return [(name, given, work[name](**given)) for name, given in inputs]


async def ask(mesh: Mesh, stream: Stream, kinds: list[tuple[str, dict[str, Any], Any]]) -> None:
    """Send one request after the other until the stream is over."""
    while not stream.over:
        name, given, wanted = kinds[len(stream.answered) % len(kinds)]
        began = stream.now()
        try:
            answer = await mesh.delegate(name, given, deadline_s=DEADLINE_S)
        except MeshError as error:
            one = Answered(began, stream.now(), right=False, error=str(error))
            one.attempts = error.data.get("attempts", [])
            await asyncio.sleep(PAUSE_S)
        else:
            result = answer["peer_result"]
            right = result["result"] == wanted
            one = Answered(began, stream.now(), right, "" if right else "wrong answer")
            one.node, one.attempts = result["node"], answer["attempts"]
        stream.answered.append(one)


async def kill_the_busiest(stream: Stream, daemons: Daemons) -> Daemon:
    """Kill the node that did most, but for the one that is asked, while it has work."""
    await asyncio.sleep(KILL_AFTER_S)
    done = Counter(one.node for one in stream.answered)
    victim = max(daemons.all[1:], key=lambda daemon: done[daemon.name])
    await asyncio.to_thread(wait_for, lambda: victim.in_flight() > 0, 2.0)
    stream.killed_at = stream.now()
    victim.kill()
    say(f"{stream.killed_at:5.1f} s  kill -9 {victim.pid}: {victim.name} is dead, unannounced")
    return victim


async def watch(stream: Stream, watcher: Daemon, victim: Daemon) -> None:
    """Note when `watcher` suspects the killed node, and when it declares it dead."""
    seen = stream.noticed.setdefault(watcher.name, {})
    while "dead" not in seen and stream.now() < stream.killed_at + NOTICED_WITHIN_S:
        state = (await asyncio.to_thread(watcher.peers)).get(victim.name, "")
        if state in {"suspect", "dead"} and state not in seen:
            seen[state] = stream.now() - stream.killed_at
            verb, state_word = ("suspects", "") if state == "suspect" else ("declares", " dead")
            say(f"{stream.now():5.1f} s  {watcher.name} {verb} {victim.name}{state_word}")
        await asyncio.sleep(WATCH_S)


async def tell(stream: Stream) -> None:
    """Print what was answered in each second, and by whom."""
    say("second   answered" + "".join(f"{name:>8}" for name in NAMES))
    told = second = 0
    while not stream.over:
        second += 1
        await asyncio.sleep(max(0.0, second - stream.now()))
        fresh, told = stream.answered[told:], len(stream.answered)
        done = Counter(one.node for one in fresh)
        say(f"{second:6}   {len(fresh):8}" + "".join(f"{done[name]:8}" for name in NAMES))


async def flow(daemons: Daemons) -> tuple[Stream, Daemon]:
    """Keep requests flowing, kill a node, and see what becomes of it all."""
    kinds = requests()
    path = daemons.all[0].control.path
    async with Mesh("demo", embed=False, control=path) as mesh:
        stream = Stream()
        asking = [asyncio.create_task(ask(mesh, stream, kinds)) for _ in range(AT_ONCE)]
        telling = asyncio.create_task(tell(stream))
        try:
            victim = await kill_the_busiest(stream, daemons)
            await asyncio.gather(*(watch(stream, each, victim) for each in daemons.running()))
            await asyncio.sleep(max(0.0, STREAM_S - stream.now()))
            stream.over = True
            await asyncio.gather(*asking, telling)
        finally:
            for task in (*asking, telling):
                task.cancel()
            await asyncio.gather(*asking, telling, return_exceptions=True)
    return stream, victim


def summary(stream: Stream, victim: Daemon) -> bool:
    """Say what came of the stream; returns whether nothing was lost."""
    everything, name = stream.answered, victim.name
    lost = [one for one in everything if not one.right]
    say("")
    say(
        f"{len(everything)} requests, {len(everything) - len(lost)} right answers, {len(lost)} lost"
    )
    for fault, count in Counter(one.error for one in lost).most_common(3):
        say(f"  {count} x {fault}")
    say(f"done by       {_counts(everything)}")
    took_ms = [(one.ended - one.began) * 1_000 for one in everything]
    say(
        f"each took     {statistics.median(took_ms):.0f} ms (median), at most {max(took_ms):.0f} ms"
    )
    moved = [one for one in everything if one.moved_on_from(name)]
    if moved:
        slowest_ms = max(one.ended - one.began for one in moved) * 1_000
        say(f"moved on      {len(moved)} that {name} had under way, to {_counts(moved)}")
        say(f"              (the slowest took {slowest_ms:.0f} ms in all)")
    else:
        say(f"moved on      none: {name} had nothing under way just then")
    tries = [at for one in everything if (at := one.last_try_at(name)) is not None]
    late_ms = max(0.0, max(tries, default=0.0) - stream.killed_at) * 1_000
    when = f"{late_ms:.0f} ms after the kill" if late_ms >= 1 else "before the kill"
    say(f"routing       gave {name} its last request {when}, and none since")
    for watcher, seen in stream.noticed.items():
        words = {"suspect": "suspected it after", "dead": "declared it dead after"}
        when = ", ".join(f"{words[state]} {seconds:.1f} s" for state, seconds in seen.items())
        say(f"membership    {watcher} {when or 'noticed nothing'}")
    return not lost


def _counts(answered: list[Answered]) -> str:
    done = Counter(one.node for one in answered if one.node)
    return ", ".join(f"{name} {done[name]}" for name in NAMES if done[name]) or "nobody"


def lose_one(daemons: Daemons) -> None:
    """Kill a node in the middle of a stream of requests.

    Raises:
        DemoError: a request was lost, or nobody noticed the death.
    """
    title(4, "A stream of requests, and one node is killed in the middle of it")
    say(f"{AT_ONCE} at a time, asked of {NAMES[0]}; each answer is compared with the right one")
    say("")
    stream, victim = asyncio.run(flow(daemons))
    kept = summary(stream, victim)
    say("")
    command(say, "--node", NAMES[0], "peers")
    if not kept:
        raise DemoError("requests were lost")
    if not all("dead" in seen for seen in stream.noticed.values()):
        raise DemoError(f"not everybody noticed within {NOTICED_WITHIN_S:.0f} s")


def stop(daemons: Daemons) -> None:
    """Stop the others in good order.

    Raises:
        DemoError: one of them still runs.
    """
    title(5, "Stop the others")
    for daemon in daemons.running():
        command(say, "--node", daemon.name, "stop")
    if not wait_for(lambda: not daemons.running(), STOP_WAIT_S):
        raise DemoError("a daemon still runs after its stop")


def show(options: argparse.Namespace) -> None:
    """All steps, in a folder that is gone afterwards."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="meshd-demo-") as place, Daemons() as daemons:
        folder = Path(place).resolve()
        (folder / "data").mkdir()
        live_in(folder, f"demo-{os.getpid()}")
        start(daemons, folder, options)
        meet(daemons, options, began)
        real_work(folder)
        lose_one(daemons)
        stop(daemons)
    print(
        f"\nNothing was lost, and nothing is left running. {time.monotonic() - began:.0f} s in all."
    )


def main() -> int:
    """Run the demo; returns its exit code."""
    parser = argparse.ArgumentParser(description="Three daemons share work, and one is killed.")
    parser.add_argument("--no-mdns", dest="mdns", action="store_false", help="join by seeds")
    parser.add_argument("--profile", choices=("lan", "wan", "local"), default="lan")
    options = parser.parse_args()
    turn_signals_into_interrupts()
    try:
        show(options)
    except (DemoError, MeshError) as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # nobody reads on: what Python flushes at its end goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; nothing is left running.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
