"""The demo's daemons: real processes, started and asked as a user would, and gone at the end."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from meshd.control import ControlClient, socket_path
from meshd.errors import MeshError

HERE = Path(__file__).resolve().parent
MESHD = (sys.executable, "-m", "meshd")
READY_WITHIN_S = 20.0
STOP_WITHIN_S = 10.0
ASK_TIMEOUT_S = 2.0
LOOK_S = 0.05
LOG_LINES_SHOWN = 12

Row = dict[str, Any]


class DemoError(Exception):
    """The demo cannot go on; the text says why."""


def loopback() -> str:
    """The name of the loopback interface."""
    return "lo0" if sys.platform == "darwin" else "lo"


def live_in(folder: Path, mesh: str) -> None:
    """Have this process and all that it starts keep to `folder`, whatever the user has set."""
    for name in [name for name in os.environ if name.startswith("MESHD_")]:
        del os.environ[name]
    for variable, name in (("XDG_STATE_HOME", "s"), ("XDG_RUNTIME_DIR", "r")):
        (folder / name).mkdir(mode=0o700)
        os.environ[variable] = str(folder / name)
    settings = folder / "meshd.toml"
    settings.touch()
    os.environ |= {
        "MESHD_CONFIG": str(settings),
        "MESHD_MESH": mesh,
        "STATS_ROOT": str(folder / "data"),
        "PYTHONPATH": os.pathsep.join((str(HERE.parent), str(HERE))),
    }


class Daemon:
    """One `meshd start`."""

    def __init__(self, name: str, folder: Path, options: Sequence[str]) -> None:
        self.name = name
        self.ready = folder / f"{name}.ready"
        self.log = folder / f"{name}.log"
        self.control = ControlClient(socket_path(os.environ["MESHD_MESH"], name))
        with self.log.open("wb") as log:
            # It stays in our process group: Ctrl-C reaches it, too.
            self.process = subprocess.Popen(  # noqa: S603 - our own command, no shell
                (*MESHD, "start", "--name", name, "--ready-file", str(self.ready), *options),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=HERE,
            )

    @property
    def pid(self) -> int:
        """Its process."""
        return self.process.pid

    @property
    def is_running(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def wait_ready(self, deadline: float) -> str:
        """Wait until it serves; returns its address.

        Raises:
            DemoError: it ended, or took too long.
        """
        while not self.ready.exists():
            if not self.is_running or time.monotonic() > deadline:
                lines = self.log.read_text("utf-8", "replace").splitlines()[-LOG_LINES_SHOWN:]
                why = "did not start:" if self.is_running else "ended at once:"
                raise DemoError("\n   ".join((f"{self.name} {why}", *lines)))
            time.sleep(LOOK_S)
        return self.ready.read_text("utf-8").strip()

    def peers(self) -> dict[str, str]:
        """Name to state, as this daemon sees the mesh; empty where it does not answer."""
        try:
            rows: list[Row] = self.control.call("peers", {}, ASK_TIMEOUT_S)["nodes"]
        except MeshError:
            return {}
        return {row["name"]: row["state"] for row in rows}

    def in_flight(self) -> int:
        """How many tasks run there now; 0 where it does not answer."""
        try:
            tasks: Row = self.control.call("status", {}, ASK_TIMEOUT_S)["tasks"]
        except MeshError:
            return 0
        return int(tasks["in_flight"])

    def kill(self) -> None:
        """SIGKILL: it has no time for a goodbye."""
        self.process.kill()
        self.process.wait()


class Daemons:
    """All of them; none outlives the `with` block."""

    def __init__(self) -> None:
        self.all: list[Daemon] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        # A second Ctrl-C shall not leave half of them behind.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            for daemon in self.running():
                daemon.process.terminate()
            for daemon in self.all:
                try:
                    daemon.process.wait(STOP_WITHIN_S)
                except subprocess.TimeoutExpired:
                    daemon.kill()
        finally:
            signal.signal(signal.SIGINT, before)

    def start(self, name: str, folder: Path, *options: str) -> Daemon:
        """Start one more."""
        daemon = Daemon(name, folder, options)
        self.all.append(daemon)
        return daemon

    def running(self) -> list[Daemon]:
        """Those that run."""
        return [daemon for daemon in self.all if daemon.is_running]

    def see_each_other(self) -> bool:
        """Whether each one that runs believes exactly the others of these to be alive."""
        names = {daemon.name for daemon in self.running()}
        seen = (daemon.peers() for daemon in self.running())
        return all(names == {n for n, state in rows.items() if state == "alive"} for rows in seen)


def wait_for(happened: Callable[[], bool], within_s: float) -> bool:
    """Whether it happens in that time."""
    deadline = time.monotonic() + within_s
    while not happened():
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_S)
    return True


def command(say: Callable[[str], None], *words: str) -> None:
    """Run `meshd` with these words as a user would, and show what it prints.

    Raises:
        DemoError: it failed.
    """
    say(f"$ meshd {shlex.join(words)}")
    done = subprocess.run(  # noqa: S603 - our own command, no shell
        (*MESHD, *words), capture_output=True, text=True, timeout=60, check=False, cwd=HERE
    )
    for line in (done.stdout + done.stderr).splitlines():
        say(line)
    if done.returncode != 0:
        raise DemoError(f"meshd {words[0]} ended with code {done.returncode}")


def turn_signals_into_interrupts() -> None:
    """Let SIGTERM and SIGHUP end the demo as Ctrl-C does: tidily, even in the background."""

    def interrupt(number: int, frame: object) -> None:
        del number, frame
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
