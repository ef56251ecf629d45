"""Real daemons, each a process of its own on the loopback interface: what every bench here uses."""

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any, Self

import meshd
from meshd.control import ControlClient
from sim import build

ROOT = Path(__file__).resolve().parents[1]
MESHD = ("-P", "-m", "meshd")
"""Python's arguments. Without -P it would import a checkout in which the bench is started."""
POLL_S = 0.005
READY_TIMEOUT_S = 120.0
ALIVE, SUSPECT, DEAD = "alive", "suspect", "dead"
_STATES = {f"member_{state}": state for state in (ALIVE, SUSPECT, DEAD, "left")}

Change = tuple[float, str, str]
"""Wall-clock seconds, the member's id, its new state."""


@dataclass
class Daemon:
    """One process and what it wrote so far."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    ready: Path
    socket: str
    spawned_at: float
    ready_at: float = 0.0
    address: str = ""
    id: str = ""
    changes: list[Change] = field(default_factory=list)
    beliefs: dict[str, str] = field(default_factory=dict)
    _offset: int = 0

    @property
    def client(self) -> ControlClient:
        """Calls it over its control socket."""
        return ControlClient(self.socket)

    def read_log(self) -> None:
        """Take in what it logged since the last time: exact times that cost the mesh no call."""
        with self.log.open("rb") as log:
            log.seek(self._offset)
            data = log.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            if line.startswith(b"{"):
                self._on_event(json.loads(line))

    def _on_event(self, event: dict[str, Any]) -> None:
        if event["event"] == "started":
            self.id = event["id"]
        elif event["event"] in _STATES:
            state = _STATES[event["event"]]
            self.changes.append((_seconds(event["time"]), event["id"], state))
            self.beliefs[event["id"]] = state

    def first(self, node: str, states: Iterable[str], since: float) -> float | None:
        """When it first believed `node` to be in one of `states`, from `since` on."""
        wanted = set(states)
        times = (at for at, id_, state in self.changes if id_ == node and state in wanted)
        return next((at for at in times if at >= since), None)


class MeshProcesses:
    """Starts daemons of one mesh, with state of their own in a temporary directory.

    Used as a context: all of it ends with the block, whatever ended that. Daemons do not see the
    user's own ones, nor those the user's.
    """

    def __init__(self, *, profile: str = "lan") -> None:
        self.profile = profile
        self.mesh = f"bench-{os.getpid()}"
        # A control socket's path may have about 100 bytes: not under a long TMPDIR.
        self.place = Path(tempfile.mkdtemp(prefix="mb-", dir="/tmp"))
        self.daemons: dict[str, Daemon] = {}
        self.environment = isolated_environment(self.place)

    def __enter__(self) -> Self:
        # The end by SIGTERM, as a test's timeout sends it, must clean up too.
        signal.signal(signal.SIGTERM, _exit)
        return self

    def __exit__(self, *_: object) -> None:
        for daemon in self.daemons.values():
            kill(daemon.process)
        shutil.rmtree(self.place, ignore_errors=True)

    def spawn(
        self,
        name: str,
        *flags: str,
        join: Iterable[str] = (),
        bind: str = "127.0.0.1:0",
        mdns: bool = False,
        inside: Iterable[str] = (),
        **environment: str,
    ) -> Daemon:
        """Start a daemon, or start it again; nothing is waited for.

        Its command line begins with `inside`; `environment` is added to that of all.
        """
        log, ready = self.place / f"{name}.log", self.place / f"{name}.ready"
        ready.unlink(missing_ok=True)
        command = [
            *inside, sys.executable, *MESHD, "start", "--name", name, "--mesh", self.mesh,
            "--bind", bind, "--profile", self.profile, "--log-format", "json",
            "--ready-file", str(ready),
            *(["--iface", "lo"] if mdns else ["--no-mdns"]),
            *(part for seed in join for part in ("--join", seed)), *flags,
        ]  # fmt: skip
        with log.open("wb") as out:
            spawned_at = time.time()
            process = subprocess.Popen(
                command, env={**self.environment, **environment}, stdin=subprocess.DEVNULL,
                stdout=out, stderr=out,
            )  # fmt: skip
        socket = str(self.place / "run" / "meshd" / self.mesh / f"{name}.sock")
        daemon = Daemon(name, process, log, ready, socket, spawned_at)
        self.daemons[name] = daemon
        return daemon

    def start(self, count: int, *flags: str, prefix: str = "n") -> list[Daemon]:
        """Start one daemon, then all others at once, which know only that one."""
        first = self.spawn(f"{prefix}1", *flags)
        self.wait_ready([first])
        rest = [
            self.spawn(f"{prefix}{k}", *flags, join=[first.address]) for k in range(2, count + 1)
        ]
        self.wait_ready(rest)
        return [first, *rest]

    def restart(self, daemon: Daemon, seeds: Iterable[Daemon]) -> Daemon:
        """Start a daemon that ended under its old name and port; it knows `seeds`."""
        joins = [seed.address for seed in seeds]
        again = self.spawn(daemon.name, bind=daemon.address, join=joins)
        self.wait_ready([again])
        return again

    def wait_ready(self, daemons: Iterable[Daemon]) -> None:
        """Wait until all of them serve; sets `ready_at`, `address` and `id`."""
        for daemon in daemons:
            self.wait(daemon.ready.exists, f"{daemon.name} to be ready", READY_TIMEOUT_S)
            daemon.ready_at = daemon.ready.stat().st_mtime
            daemon.address = daemon.ready.read_text("utf-8").strip()
            self.wait(lambda d=daemon: self._has_id(d), f"{daemon.name}'s id")  # type: ignore[misc]

    def _has_id(self, daemon: Daemon) -> bool:
        daemon.read_log()
        return bool(daemon.id)

    def wait(self, wanted: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
        """Wait until `wanted()`.

        Raises:
            TimeoutError: it did not come true in time.
            RuntimeError: a daemon that nobody killed has ended.
        """
        give_up = time.monotonic() + timeout_s
        while not wanted():
            for daemon in self.daemons.values():
                if daemon.process.poll() not in {None, -signal.SIGKILL, 0}:
                    raise RuntimeError(f"{daemon.name} ended: {daemon.log.read_text('utf-8')}")
            if time.monotonic() > give_up:
                raise TimeoutError(f"waited {timeout_s:g} s for {what}")
            time.sleep(POLL_S)

    def wait_all_alive(self, daemons: list[Daemon], timeout_s: float = 120.0) -> float:
        """Wait until each believes all others alive; returns the wall-clock second of that."""
        ids = {daemon.id for daemon in daemons}

        def knows_all(daemon: Daemon) -> bool:
            daemon.read_log()
            return all(daemon.beliefs.get(i) == ALIVE for i in ids if i != daemon.id)

        waiting = list(daemons)

        def done() -> bool:
            waiting[:] = [daemon for daemon in waiting if not knows_all(daemon)]
            return not waiting

        self.wait(done, "all to see all alive", timeout_s)
        return max(
            (at for d in daemons for at, node, _ in d.changes if node in ids), default=time.time()
        )


def isolated_environment(place: Path) -> dict[str, str]:
    """An environment whose daemons keep everything under `place` and run the bench's own meshd.

    That is this checkout's, or what its interpreter has installed, such as a compiled wheel.
    """
    for name in ("state", "run", "config"):
        (place / name).mkdir(mode=0o700, exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MESHD_", "COVERAGE_"))}
    is_checkout = Path(meshd.__file__).resolve().is_relative_to(ROOT / "meshd")
    paths = [*([str(ROOT)] if is_checkout else []), str(ROOT / "bench")]
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(paths),
        "XDG_STATE_HOME": str(place / "state"),
        "XDG_RUNTIME_DIR": str(place / "run"),
        "XDG_CONFIG_HOME": str(place / "config"),
    }


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process at once, and wait for it."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.wait()


def arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line of a bench, with the options that all have."""
    parser.add_argument("--quick", action="store_true", help="Few runs: does it work at all?")
    return parser.parse_args()


def progress(text: str) -> None:
    """Say what goes on."""
    print(text, flush=True)


def report(
    name: str,
    rows: list[dict[str, Any]],
    *,
    parameters: dict[str, Any],
    figures: dict[str, Any],
    python: Path | None = None,
    **more: Any,
) -> None:
    """Print a table, and the bench's JSON object as the last line; `more` goes there, too.

    `python` is the interpreter whose meshd was measured, if it is not the bench's own.
    """
    print()
    print_table(rows)
    print()
    machine = {
        "cpus": os.cpu_count(), "python": platform.python_version(),
        "build": build.name() if python is None else _build_of(python),
    }  # fmt: skip
    result = {
        "bench": name, "machine": machine, "parameters": parameters, "figures": figures, **more
    }  # fmt: skip
    print(json.dumps(result), flush=True)


def _build_of(python: Path) -> str:
    words = (str(python), "-P", "-c", "from sim import build; print(build.name())")
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def summary(values: list[float], digits: int = 3) -> dict[str, float]:
    """Count, minimum, median, 99th percentile and maximum of some values."""
    ordered = sorted(values)
    return {
        "count": len(ordered),
        "min": round(ordered[0], digits),
        "p50": round(median(ordered), digits),
        "p99": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], digits),
        "max": round(ordered[-1], digits),
    }


def print_table(rows: Iterable[dict[str, Any]]) -> None:
    """Print rows under the names of all their columns."""
    rows = [{key: str(value) for key, value in row.items()} for row in rows]
    names = list(dict.fromkeys(name for row in rows for name in row))
    rows = [{name: row.get(name, "-") for name in names} for row in rows]
    widths = [max(len(name), *(len(row[name]) for row in rows)) for name in names]
    for cells in _lines(names, widths, rows):
        print("  ".join(cells).rstrip())


def _lines(names: list[str], widths: list[int], rows: list[dict[str, str]]) -> Iterator[list[str]]:
    yield [name.ljust(width) for name, width in zip(names, widths, strict=True)]
    yield ["-" * width for width in widths]
    for row in rows:
        yield [row[name].ljust(width) for name, width in zip(names, widths, strict=True)]


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _exit(number: int, frame: object) -> None:
    del frame
    sys.exit(128 + number)
