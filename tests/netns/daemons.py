"""Whole daemons on the hosts of a test's LAN, and what their own command line says of the mesh."""

import asyncio
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from namespaces import Lan

from meshd.control import ControlClient

REPOSITORY = Path(__file__).parents[2]
HERE = Path(__file__).parent
DEADLINE_S = 20
STOP_S = 8
LOOK_S = 0.1


class Daemon:
    """One `meshd start` on one host, and a `meshd peers --watch` that tells what it sees."""

    def __init__(self, lan: Lan, number: int, directory: Path, mesh: str):
        self.lan = lan
        self.number = number
        self.name = f"h{number}"
        self.mesh = mesh
        self.rows = {}
        self._directory = directory
        self._log = directory / f"{self.name}.log"
        self._env = {
            **os.environ,
            "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{HERE}",
            "XDG_STATE_HOME": str(directory / "state"),
            "XDG_RUNTIME_DIR": str(directory / "run"),
            "XDG_CONFIG_HOME": str(directory / "config"),
        }
        socket = directory / "run" / "meshd" / mesh / f"{self.name}.sock"
        self._client = ControlClient(str(socket))
        self._daemon = None
        self._watch = None

    @property
    def log(self):
        return self._log.read_text()

    @property
    def pid(self):
        return self._daemon.pid

    async def start(self, *flags, profile="local"):
        """Run it until it serves."""
        with self._log.open("wb") as log:
            self._daemon = await asyncio.create_subprocess_exec(
                *self.lan.inside(self.number, sys.executable, "-m", "meshd", "start"),
                *("--name", self.name, "--mesh", self.mesh, "--profile", profile),
                *("--capability", "netns_agents:where", *flags),
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._env,
            )
        await self._within(self._is_up(), "it does not serve")

    async def _is_up(self):
        """Its start screen names the address once it answers."""
        while line := await self._daemon.stdout.readline():
            if b"gossip" in line:
                break
        assert line, f"{self.name} ended:\n{self.log}"
        self._watch = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "meshd", "--mesh", self.mesh, "--node", self.name),
            *("peers", f"--watch={LOOK_S}"),
            stdout=subprocess.PIPE,
            env=self._env,
            limit=2**20,
        )

    async def _look(self):
        """Wait for the next line of the watch; `rows` is what it says, by name."""
        line = await self._watch.stdout.readline()
        assert line, f"the watch of {self.name} ended"
        self.rows = {row["name"]: row for row in json.loads(line)["nodes"]}

    async def _within(self, work, fault):
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await work
        except TimeoutError:
            raise AssertionError(f"{self.name}: {fault}: {self.rows}\n{self.log}") from None

    async def sees(self, wanted):
        """Wait until `wanted(rows)` holds; returns how long that took, in seconds."""

        async def see():
            await self._look()
            while not wanted(self.rows):
                await self._look()

        began = asyncio.get_running_loop().time()
        await self._within(see(), "does not see what it should")
        return asyncio.get_running_loop().time() - began

    async def sees_alive(self, *others):
        """Wait until exactly these and itself are alive, and their names are known."""
        expected = {self.name, *(other.name for other in others)}
        return await self.sees(lambda rows: {n for n in rows if is_alive(rows, n)} == expected)

    async def always(self, wanted, seconds):
        """Whatever it sees for so long fits `wanted(rows)`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    await self._look()
                    assert wanted(self.rows), self.rows

    async def ask(self, method, **params):
        """Ask over its control socket."""
        call = functools.partial(self._client.call, method, params, timeout_s=DEADLINE_S)
        return await asyncio.to_thread(call)

    async def until_status(self, wanted):
        """Ask for its status until that is as it should be."""

        async def look():
            while not wanted(await self.ask("status")):
                await self._look()

        await self._within(look(), "its status is not what it should be")

    async def cli(self, *arguments):
        """Run a command of `meshd` against it; its standard output."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "meshd", "--mesh", self.mesh, "--node", self.name),
            *arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._env,
        )
        out, err = await self._within(process.communicate(), f"{arguments} does not end")
        assert process.returncode == 0, err.decode()
        return out.decode()

    def pause(self):
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self):
        os.kill(self.pid, signal.SIGCONT)

    async def stop(self):
        """End both processes, by their ids."""
        for process in (self._watch, self._daemon):
            if process is None or process.returncode is not None:
                continue
            with contextlib.suppress(ProcessLookupError):  # it ended by itself meanwhile
                process.send_signal(signal.SIGCONT)
                process.terminate()
            try:
                async with asyncio.timeout(STOP_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


async def start_all(*daemons, profile="local"):
    """Start them at once, without a seed, and wait until each sees all."""
    await asyncio.gather(*(one.start(profile=profile) for one in daemons))
    await all_see_all(*daemons)


async def all_see_all(*daemons):
    """Each sees exactly the others alive."""
    await asyncio.gather(
        *(one.sees_alive(*(o for o in daemons if o is not one)) for one in daemons)
    )


def is_alive(rows, name):
    """Whether that node is seen alive."""
    return name in rows and rows[name]["state"] == "alive"


def is_dead(rows, name):
    return name in rows and rows[name]["state"] == "dead"


def is_everybody_alive(rows):
    return all(row["state"] == "alive" for row in rows.values())


def is_nobody_dead(rows):
    return all(row["state"] in {"alive", "suspect"} for row in rows.values())
