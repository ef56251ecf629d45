"""Whether a program that blocks its own event loop still answers the mesh, and is not given up.

A program embeds a node and runs a handler that blocks the loop. Two daemons look on: they measure
the round trip of UDP probes to it, and log what they believe. Once gossip runs on its own thread,
as it does for all users; once, to compare, in the program's own loop.
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from mesh_processes import (
    ALIVE,
    DEAD,
    SUSPECT,
    Daemon,
    MeshProcesses,
    arguments,
    kill,
    progress,
    report,
    summary,
)

from meshd import capability
from meshd.capability.definition import collect
from meshd.config import load_config
from meshd.control import ControlClient
from meshd.daemon.node import Node
from meshd.daemon.platform import SystemPlatform
from meshd.errors import MeshError

BLOCKS = ("nothing", "sleep", "python")
PLACES = ("thread", "main loop")
PROBE_INTERVAL_S = 0.05
AFTER_S = 3.0
"""How long after the block is still looked on: a suspicion needs time to show."""


class CallerLoopRunner:
    """Gossip in the loop of whoever started it. Satisfies `meshd.platform.ProtocolRunner`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Run `function` soon."""
        self._loop.call_soon_threadsafe(function, *arguments)

    async def stop(self) -> None:
        """End nothing: the loop belongs to the program."""


class CallerLoopPlatform(SystemPlatform):
    """This machine, but with gossip in the program's own loop."""

    async def run_protocol(
        self, start: Callable[[], Coroutine[Any, Any, None]]
    ) -> CallerLoopRunner:
        """Run `start()` here."""
        await start()
        return CallerLoopRunner()


@capability
async def block(how: str, seconds: float) -> str:
    """Do what no async handler should: keep the loop busy."""
    until = time.monotonic() + seconds
    if how == "sleep":
        time.sleep(seconds)
    elif how == "nothing":
        await asyncio.sleep(seconds)
    else:
        while time.monotonic() < until:
            sum(number * number for number in range(1_000))
    return how


async def program(place: str, seed: str, mesh: str, ready: Path) -> None:
    """The program that embeds a node."""
    flags = {
        "name": "program", "mesh": mesh, "bind": "127.0.0.1:0", "mdns": False, "join": [seed],
        "profile": "lan", "slots": 8,
    }  # fmt: skip
    platform = SystemPlatform() if place == PLACES[0] else CallerLoopPlatform()
    node = Node(load_config(flags).config, collect(block), platform, control_path="")
    await node.start()
    ready.write_text(node.node_id.hex(), "utf-8")
    await asyncio.get_running_loop().create_future()


class Probing(threading.Thread):
    """Probes the program through one daemon until told to stop."""

    def __init__(self, observer: Daemon) -> None:
        super().__init__(daemon=True)
        self._client: ControlClient = observer.client
        self._enough = threading.Event()
        self.rtts_ms: list[float] = []
        self.unanswered = 0

    def run(self) -> None:
        """One probe after the other."""
        params = {"node": "program", "count": 1, "via": "udp"}
        while not self._enough.wait(PROBE_INTERVAL_S):
            (reply,) = self._client.call("probe", params)["replies"]
            if reply["rtt_ms"] is None:
                self.unanswered += 1
            else:
                self.rtts_ms.append(reply["rtt_ms"])

    def finish(self) -> None:
        """Stop, and wait for the probe that is under way."""
        self._enough.set()
        self.join()


def run(place: str, how: str, seconds: float) -> dict[str, Any]:
    with MeshProcesses() as mesh:
        observers = mesh.start(2, prefix="observer")
        ready = mesh.place / "program.ready"
        with (mesh.place / "program.log").open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, __file__, "--program", place, "--seed", observers[0].address,
                 "--mesh", mesh.mesh, "--ready", str(ready)],
                env=mesh.environment, stdout=out, stderr=out,
            )  # fmt: skip
        try:
            mesh.wait(lambda: ready.exists() and ready.stat().st_size > 0, "the program", 30)
            return look_on(mesh, observers, ready.read_text("utf-8"), how, seconds)
        finally:
            kill(process)


def look_on(
    mesh: MeshProcesses, observers: list[Daemon], node: str, how: str, seconds: float
) -> dict[str, Any]:
    """Let the program block itself; what do the observers see?"""
    client = observers[0].client
    mesh.wait(lambda: all(offers(observer, "block") for observer in observers), "the offer")
    probes = [Probing(observer) for observer in observers]
    time.sleep(1.0)  # a first round of ordinary probes
    began = time.time()
    blocking = threading.Thread(target=ask_to_block, args=(client, how, seconds), daemon=True)
    blocking.start()
    time.sleep(0.1)
    for probe in probes:
        probe.start()
    time.sleep(seconds - 0.2)
    for probe in probes:
        probe.finish()
    blocking.join()
    time.sleep(AFTER_S)
    for observer in observers:
        observer.read_log()
    rtts_ms = [rtt for probe in probes for rtt in probe.rtts_ms]
    return {
        "probes": len(rtts_ms) + sum(probe.unanswered for probe in probes),
        "unanswered": sum(probe.unanswered for probe in probes),
        "rtt_p50_ms": round(statistics.median(rtts_ms), 2) if rtts_ms else None,
        "rtt_p99_ms": summary(rtts_ms)["p99"] if rtts_ms else None,
        "suspected_by": sum(1 for o in observers if o.first(node, [SUSPECT], began)),
        "declared_dead_by": sum(1 for o in observers if o.first(node, [DEAD], began)),
        "alive_after": sum(1 for o in observers if o.beliefs.get(node) == ALIVE),
    }


def offers(observer: Daemon, name: str) -> bool:
    """Whether `name` is known to be offered."""
    found = observer.client.call("capabilities")["capabilities"]
    return name in {each["name"] for each in found}


def ask_to_block(client: ControlClient, how: str, seconds: float) -> None:
    """Have the program's handler block its loop."""
    params = {"capability": "block", "input": {"how": how, "seconds": seconds}}
    try:
        client.call("delegate", params, timeout_s=seconds + 20)
    except MeshError as error:
        # Where the program is given up, so is its work: that is one of the results.
        progress(f"  the call ended with: {error.message}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="How long the loop is blocked.")
    parser.add_argument("--program", choices=PLACES, help=argparse.SUPPRESS)
    parser.add_argument("--seed", help=argparse.SUPPRESS)
    parser.add_argument("--mesh", help=argparse.SUPPRESS)
    parser.add_argument("--ready", type=Path, help=argparse.SUPPRESS)
    options = arguments(parser)
    if options.program:
        asyncio.run(program(options.program, options.seed, options.mesh, options.ready))
        return
    seconds = 1.0 if options.quick else options.seconds
    rows = []
    for place in PLACES:
        for how in BLOCKS[1:2] if options.quick else BLOCKS:
            rows.append({"gossip on": place, "blocked by": how, **run(place, how, seconds)})
            progress(f"{rows[-1]}")
    parameters = {"seconds": seconds, "profile": "lan", "observers": 2}
    report("blocked_loop", rows, parameters=parameters, figures={"rows": rows})


if __name__ == "__main__":
    main()
