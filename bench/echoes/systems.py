"""Each system with its workers, started as a user would; all of it ends with the `with` block."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from mesh_processes import MeshProcesses, kill

from echoes.install import Tools

HERE = Path(__file__).resolve().parent
READY_S = 90.0
CALLER_SLOTS = "256"


class Processes:
    """Children of the bench, by the context that they end with."""

    def __init__(self) -> None:
        self._all: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._all):
            process.terminate()
        for process in reversed(self._all):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                kill(process)

    def start(self, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start one; what it says on stderr is dropped."""
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, **environment}, cwd=HERE,
        )  # fmt: skip
        self._all.append(process)
        return process

    def server(self, *command: str, **environment: str) -> str:
        """Start one that tells, as its first line, where it serves."""
        return _line(self.start(*command, **environment), command)


def _line(process: subprocess.Popen[bytes], command: Sequence[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().decode().strip()
    if not line:
        raise RuntimeError(f"it ended at once: {' '.join(command)}")
    return line


class Caller:
    """A process that calls on order."""

    def __init__(self, process: subprocess.Popen[bytes], command: Sequence[str]) -> None:
        self._process = process
        self._command = command

    def wait_ready(self) -> None:
        """Until its first call was answered."""
        assert json.loads(_line(self._process, self._command)) == "ready"

    def order(self, **order: Any) -> dict[str, float]:
        """Have it call, and take its figures."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        figures: dict[str, float] = json.loads(_line(self._process, self._command))
        return figures


Started = Iterator[Caller]
System = Callable[[int, Tools], contextlib.AbstractContextManager[Caller]]


def _caller(processes: Processes, *command: str, **environment: str) -> Caller:
    return Caller(processes.start(*command, **environment), command)


def _script(name: str, *arguments: str, python: Path | None = None) -> tuple[str, ...]:
    return str(python or sys.executable), str(HERE / f"{name}.py"), *arguments


@contextlib.contextmanager
def _mesh(workers: int, *, is_embedded: bool) -> Started:
    with MeshProcesses() as mesh, Processes() as processes:
        first = mesh.spawn("w1", "--capability", "echo:echo", "--slots", CALLER_SLOTS)
        mesh.wait_ready([first])
        flags = ("--capability", "echo:echo", "--slots", CALLER_SLOTS)
        rest = [mesh.spawn(f"w{n}", *flags, join=[first.address]) for n in range(2, workers + 1)]
        front = mesh.spawn("front", join=[first.address])
        mesh.wait_ready([*rest, front])
        mesh.wait_all_alive([first, *rest, front])
        role = ("embedded", mesh.mesh, first.address) if is_embedded else ("attached", front.socket)
        yield _caller(processes, *_script("mesh", *role), **mesh.environment)


def attached(workers: int, _tools: Tools) -> contextlib.AbstractContextManager[Caller]:
    """meshd: the caller is attached to a daemon beside the workers' daemons."""
    return _mesh(workers, is_embedded=False)


def embedded(workers: int, _tools: Tools) -> contextlib.AbstractContextManager[Caller]:
    """meshd: the caller is itself a node."""
    return _mesh(workers, is_embedded=True)


@contextlib.contextmanager
def raw(workers: int, _tools: Tools) -> Started:
    """Asyncio and msgpack: a relay between caller and workers."""
    with Processes() as processes:
        addresses = [processes.server(*_script("raw", "worker")) for _ in range(workers)]
        relay = processes.server(*_script("raw", "relay", *addresses))
        yield _caller(processes, *_script("raw", "caller", relay))


@contextlib.contextmanager
def _post(workers: int, role: str) -> Started:
    with Processes() as processes:
        urls = [processes.server(*_script("post", "worker")) for _ in range(workers)]
        relay = processes.server(*_script("post", role, *urls))
        yield _caller(processes, *_script("post", "caller", relay))


def post(workers: int, _tools: Tools) -> contextlib.AbstractContextManager[Caller]:
    """aiohttp: a relay between caller and workers, by POST."""
    return _post(workers, "relay")


def poll(workers: int, _tools: Tools) -> contextlib.AbstractContextManager[Caller]:
    """aiohttp: a relay that asks every worker how busy it is, for each call."""
    return _post(workers, "poll")


@contextlib.contextmanager
def nats(workers: int, tools: Tools) -> Started:
    """NATS: broker, queue group, request and reply."""
    python, port = tools.python("nats"), _free_port()
    with Processes() as processes:
        processes.start(str(tools.nats_server), "-a", "127.0.0.1", "-p", str(port))
        _wait_for(port)
        url = f"nats://127.0.0.1:{port}"
        for _ in range(workers):
            processes.server(*_script("nats_echo", "worker", url, python=python))
        yield _caller(processes, *_script("nats_echo", "caller", url, python=python))


@contextlib.contextmanager
def ray(workers: int, tools: Tools) -> Started:
    """Ray: actors, asked in turn."""
    script = _script("ray_echo", "caller", str(workers), python=tools.python("ray"))
    with Processes() as processes:
        yield _caller(processes, *script, RAY_USAGE_STATS_ENABLED="0")


@contextlib.contextmanager
def celery(workers: int, tools: Tools) -> Started:
    """Celery: tasks through Redis, results in Redis."""
    python, port = tools.python("celery"), _free_port()
    environment = {"ECHO_REDIS": f"redis://127.0.0.1:{port}/0", "C_FORCE_ROOT": "1"}
    server = (str(tools.redis_server), "--port", str(port), "--bind", "127.0.0.1", "--save", "")
    with Processes() as processes:
        processes.start(*server, "--appendonly", "no", LD_LIBRARY_PATH=tools.libraries)
        _wait_for(port)
        for number in range(workers):
            processes.start(
                str(python), "-m", "celery", "-A", "celery_echo", "worker", "--pool", "solo",
                "-n", f"w{number}@localhost", "--without-gossip", "--without-mingle",
                "--without-heartbeat", "-l", "ERROR", **environment,
            )  # fmt: skip
        yield _caller(processes, *_script("celery_echo", "caller", python=python), **environment)


SYSTEMS: dict[str, System] = {
    "attached": attached, "embedded": embedded, "raw": raw, "post": post, "poll": poll,
    "nats": nats, "ray": ray, "celery": celery,
}  # fmt: skip


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(port: int) -> None:
    """Until something listens there."""
    for _ in range(int(READY_S / 0.05)):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.05):
            return
        time.sleep(0.05)
    raise RuntimeError(f"nothing listens at port {port}")
