"""Real daemons as real processes, each site with directories of its own on the loopback interface.

A daemon's log (JSON, one event a line) is read by a thread as it comes. Whoever waits for something
is woken by each new line, and looks anew at least every 50 ms, until a deadline.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from meshd.control import ControlClient
from meshd.errors import MeshError

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
PATIENCE_S = 20.0
LOOK_S = 0.05
KIND_S = 2.0
MESHD = (sys.executable, "-m", "meshd")

Row = dict[str, Any]


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that others may be writing: all that end; none where it is not there."""
    if not path.exists():
        return []
    *lines, _unfinished = path.read_text("utf-8").split("\n")
    return lines


class News:
    """Something happened: whoever waits looks again."""

    def __init__(self) -> None:
        self._changed = threading.Condition()

    def tell(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def until(self, found: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
        """The first true value of `found()`; fails with `what` where none comes in time."""
        give_up = time.monotonic() + timeout_s
        while not (value := found()):
            assert time.monotonic() < give_up, f"not within {timeout_s:g} s: {what}"
            with self._changed:
                self._changed.wait(LOOK_S)
        return value

    def never(self, found: Callable[[], Any], for_s: float) -> None:
        """Fail as soon as `found()` is true within the next `for_s` seconds."""
        give_up = time.monotonic() + for_s
        while time.monotonic() < give_up:
            assert not (value := found()), value
            with self._changed:
                self._changed.wait(LOOK_S)


class Process:
    """A program of ours in a process group of its own, its standard error read line by line."""

    def __init__(self, command: Iterable[str], news: News, env: Mapping[str, str], cwd: Path):
        self.news = news
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            tuple(command), env=dict(env), cwd=cwd, start_new_session=True, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            for line in stream:
                self.lines.append(line.rstrip("\n"))
                self.news.tell()
        self.news.tell()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """The exit code."""
        code = self._process.wait(timeout_s)
        self._reader.join(timeout_s)
        return code

    def kill(self) -> None:
        """End it with its whole group, as a power cut would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()

    def until(self, found: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
        """As `News.until`, but a process that ended meanwhile ends the wait too."""

        def look() -> Any:
            value = found()
            assert value or self.is_running, f"it ended before: {what}\n" + "\n".join(self.lines)
            return value

        return self.news.until(look, what, timeout_s)

    def line(self, text: str, timeout_s: float = PATIENCE_S) -> str:
        """The first line that holds `text`, once it is there."""
        found: str = self.until(
            lambda: next((line for line in self.lines if text in line), ""), text, timeout_s
        )
        return found


class Daemon(Process):
    """`meshd start`, and the control client for it."""

    def __init__(
        self, site: "Site", name: str, mesh: str, flags: Iterable[str], prefix: Iterable[str]
    ) -> None:
        self.name = name
        self.mesh = mesh
        self.site = site
        self.control = ControlClient(str(site.run / "meshd" / mesh / f"{name}.sock"))
        own = ("--name", name, "--mesh", mesh, "--log-format", "json")
        command = (*prefix, *MESHD, "start", *own, *flags)
        super().__init__(command, site.news, site.env, site.path)

    def call(self, method: str, params: Any = None, timeout_s: float = 30.0) -> Any:
        return self.control.call(method, params or {}, timeout_s)

    # What it logs

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in list(self.lines) if line.startswith("{")]

    def logged(self, name: str, **fields: Any) -> list[dict[str, Any]]:
        return [
            e for e in self.events if e["event"] == name and fields.items() <= e.items()
        ]  # fmt: skip

    def event(self, name: str, timeout_s: float = PATIENCE_S, **fields: Any) -> dict[str, Any]:
        """The first such event, once it is there."""
        found: list[dict[str, Any]] = self.until(
            lambda: self.logged(name, **fields), f"{self.name}: {name} {fields}", timeout_s
        )
        return found[0]

    @property
    def started(self) -> dict[str, Any]:
        return self.event("started")

    @property
    def address(self) -> str:
        return str(self.started["address"])

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def id(self) -> str:
        return str(self.started["id"])

    # What it believes

    def peers(self) -> list[Row]:
        rows: list[Row] = self.call("peers")["nodes"]
        return rows

    def states(self) -> dict[str, str]:
        return {row["name"]: row["state"] for row in self.peers()}

    def row(self, name: str) -> Row:
        (row,) = [row for row in self.peers() if row["name"] == name]
        return row

    def sees(self, timeout_s: float = PATIENCE_S, /, **states: str) -> None:
        """Wait until exactly these nodes are in exactly these states."""
        seen: dict[str, str] = {}

        def look() -> bool:
            nonlocal seen
            with contextlib.suppress(MeshError):
                seen = self.states()
            return seen == states

        try:
            self.until(look, "", timeout_s)
        except AssertionError:
            told = "\n".join(self.lines[-20:])
            raise AssertionError(
                f"{self.name} sees {seen}, not {states}, after {timeout_s:g} s\n{told}"
            ) from None

    def offers(self, capability: str, count: int = 1, timeout_s: float = PATIENCE_S) -> None:
        """Wait until it knows exactly `count` nodes that offer this."""

        def holders() -> int:
            alive = [row for row in self.peers() if row["state"] == "alive"]
            return sum(capability in [c["name"] for c in row["capabilities"]] for row in alive)

        self.until(
            lambda: holders() == count, f"{self.name}: {count} offer {capability}", timeout_s
        )

    def stop(self) -> int:
        self.send(signal.SIGTERM)
        return self.wait()


class Site:
    """One machine's worth of daemons, programs and commands; `close` ends all of them."""

    def __init__(self) -> None:
        # Short: a control socket's path may have 103 bytes.
        self.path = Path(tempfile.mkdtemp(prefix="m"))
        self.run = self.path / "r"
        self.state = self.path / "s"
        self.news = News()
        self.processes: list[Process] = []
        for made in (self.run, self.state):
            made.mkdir(mode=0o700)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MESHD_", "XDG_"))}
        self.env = kept | {
            "XDG_RUNTIME_DIR": str(self.run),
            "XDG_STATE_HOME": str(self.state),
            "XDG_CONFIG_HOME": str(self.path / "c"),
            "HOME": str(self.path),
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(HERE), str(self.path))),
            "PYTHONUNBUFFERED": "1",
            "NO_COLOR": "1",
        }

    def spawn(
        self,
        name: str,
        *flags: str,
        mesh: str = "default",
        join: Iterable["Daemon"] = (),
        bind: str = "127.0.0.1:0",
        profile: str = "local",
        is_mdns: bool = False,
        prefix: Iterable[str] = (),
    ) -> Daemon:
        """A daemon that may still be starting; `prefix` is a program that becomes it."""
        seeds = [flag for seed in join for flag in ("--join", seed.address)]
        finding = ("--iface", "lo") if is_mdns else ("--no-mdns",)
        given = ("--bind", bind, "--profile", profile, *finding, *seeds, *flags)
        daemon = Daemon(self, name, mesh, given, prefix)
        self.processes.append(daemon)
        return daemon

    def start(self, name: str, *flags: str, **choices: Any) -> Daemon:
        """A daemon that serves."""
        daemon = self.spawn(name, *flags, **choices)
        assert daemon.started
        return daemon

    def start_mesh(self, *names: str, flags: Iterable[str] = (), **choices: Any) -> list[Daemon]:
        """Daemons that see each other, all joined through the first."""
        first = self.start(names[0], *flags, **choices)
        daemons = [first]
        daemons += [self.spawn(name, *flags, join=[first], **choices) for name in names[1:]]
        for daemon in daemons:
            daemon.sees(**dict.fromkeys(names, "alive"))
        return daemons

    def program(self, *arguments: str) -> Process:
        """A Python program of the tests."""
        process = Process((sys.executable, *arguments), self.news, self.env, self.path)
        self.processes.append(process)
        return process

    def cli(
        self,
        *arguments: str,
        prefix: Iterable[str] = (),
        timeout_s: float = 30.0,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """One `meshd` command, to its end."""
        return subprocess.run(
            (*prefix, *MESHD, *arguments), env={**self.env, **(env or {})}, cwd=self.path,
            text=True, capture_output=True, timeout=timeout_s, stdin=subprocess.DEVNULL,
            check=False,
        )  # fmt: skip

    def write(self, name: str, text: str) -> Path:
        path = self.path / name
        path.write_text(text)
        return path

    def close(self) -> None:
        """End all; kindly first, so that what they ran is counted as covered."""
        daemons = [p for p in self.processes if isinstance(p, Daemon) and p.is_running]
        for process in daemons:
            process.send(signal.SIGTERM)
        with contextlib.suppress(AssertionError):
            self.news.until(lambda: not any(p.is_running for p in daemons), "the end", KIND_S)
        for process in reversed(self.processes):
            process.kill()
        shutil.rmtree(self.path, ignore_errors=True)
