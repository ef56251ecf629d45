"""A running cluster of one kind: who believes what since when, and what it costs."""

import bisect
import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import psutil

from rivals.kinds import AGES, ALIVE, BOUND, DEAD, PLAIN, READY, STATES, Kind, Make, Spec
from rivals.network import Network

POLL_S = 0.05
"""How often a wait looks. No figure depends on it: what nodes say is timed as it comes."""
LOOK_AFTER_S = 1.0
STARTING_MAX = 8
"""Nodes that start at the same time, but for a crowd: what runs already shall not starve."""
EARS_NICE = -10
READY_TIMEOUT_S = 180.0
LINES_KEPT = 40


class EndedError(RuntimeError):
    """A node that nobody stopped has ended."""


@dataclass(eq=False)
class Node:
    """One process. What it says is heard, and timed, by `Ears`: all kinds alike."""

    spec: Spec
    host: int
    process: subprocess.Popen[bytes]
    kind: Kind
    key: str = ""
    """What others call it, once it is ready."""
    ready_at: float = 0.0
    bound_at: float = 0.0
    """When it had its sockets, where that is told apart from its readiness."""
    ages: list[tuple[float, list[int]]] = field(default_factory=list)
    """Monotonic seconds; of each other's load that it held then the age in hundredths of one."""
    changes: list[tuple[float, str, str]] = field(default_factory=list)
    """Monotonic seconds, the other's key, what was said of it."""
    beliefs: dict[str, str] = field(default_factory=dict)
    lines: deque[bytes] = field(default_factory=lambda: deque(maxlen=LINES_KEPT))
    is_meant_to_end: bool = False
    _rest: bytes = b""

    def take(self, data: bytes, at: float) -> None:
        """Take in some of its output."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            self.lines.append(line)
            heard = self.kind.parse(line)
            if heard is None:
                continue
            if heard.what == READY:
                self.key, self.ready_at = heard.subject, at
                continue
            if heard.what == BOUND:
                self.bound_at = at
                continue
            if heard.what == AGES:
                self.ages.append((at, [int(age) for age in heard.subject.split(",") if age]))
                continue
            self.changes.append((at, heard.subject, heard.what))
            if heard.what in STATES:
                self.beliefs[heard.subject] = heard.what

    def first(self, subject: str, whats: Iterable[str], since: float) -> float | None:
        """When it first said one of `whats` of `subject`, from `since` on."""
        wanted = set(whats)
        return next(
            (at for at, s, what in self.since(since) if s == subject and what in wanted), None
        )

    def since(self, since: float) -> list[tuple[float, str, str]]:
        """What it said from then on."""
        return self.changes[bisect.bisect_left(self.changes, (since,)) :]

    def sees(self, keys: Iterable[str]) -> bool:
        """Whether it believes all of these alive, but for itself."""
        return all(self.beliefs.get(key) == ALIVE for key in keys if key != self.key)

    def signal(self, number: signal.Signals) -> None:
        """Stop or continue it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)


class Ears:
    """One thread that reads what all nodes of all clusters say, as it comes."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._thread: threading.Thread | None = None

    def listen(self, node: Node) -> None:
        """Begin with a new node; it ends with its output."""
        assert node.process.stdout is not None
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        self._selector.register(node.process.stdout, selectors.EVENT_READ, node)

    def _run(self) -> None:
        # While a hundred nodes start, words that wait to be read would look like late ones.
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), EARS_NICE)
        while True:
            for key, _ in self._selector.select(0.2):
                data = os.read(key.fd, 262_144)
                if data:
                    key.data.take(data, time.monotonic())
                else:
                    self._selector.unregister(key.fileobj)


EARS = Ears()


class Cluster:
    """Nodes of one kind on a network. Used as a context: all of it ends with the block."""

    def __init__(
        self,
        make: Make,
        network: Network,
        *,
        is_one_address: bool = False,
        extra: str = PLAIN,
    ) -> None:
        # A control socket's path may have about 100 bytes: not under a long TMPDIR.
        self.place = Path(tempfile.mkdtemp(prefix="mb-", dir="/tmp"))
        self.kind = make(self.place)
        self.network = network
        self.nodes: list[Node] = []
        self._is_one_address = is_one_address
        self._extra = extra
        self.is_broken = False
        """Whether a node that nobody stopped has ended: no round can succeed any more."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.is_meant_to_end = True
            with contextlib.suppress(ProcessLookupError):
                node.process.kill()
        for node in self.nodes:
            node.process.wait()
        shutil.rmtree(self.place, ignore_errors=True)

    # Starting

    def _spec(self, number: int, seeds: Iterable[Node]) -> tuple[Spec, int]:
        host = 1 if self._is_one_address else number
        wished = self.kind.port + (10 * number if self._is_one_address else 0)
        return Spec(
            name=f"n{number}",
            address=self.network.address(host),
            port=self.network.port(wished),
            seeds=tuple(node.spec.bind for node in seeds),
            inside=tuple(self.network.inside(host)),
            extra=self._extra,
        ), host

    def _spawn(self, spec: Spec, host: int) -> Node:
        process = subprocess.Popen(
            [*spec.inside, *self.kind.command(spec)], env=self.kind.environment, bufsize=0,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        node = Node(spec, host, process, self.kind)
        EARS.listen(node)
        return node

    def start(self, count: int, *, is_seeded: bool = True, is_crowd: bool = False) -> None:
        """Start the first, then all others, which know only that one: a few at a time, or at once.

        Where they are not seeded, they get to know it once they run, by a command: no node then
        has an address that it was told to try for good.
        """
        self.nodes.append(self._spawn(*self._spec(1, [])))
        self.wait_ready()
        known = self.nodes[:1]
        for number in range(2, count + 1):
            if not is_crowd:
                self._wait_for_room()
            self.nodes.append(self._spawn(*self._spec(number, known if is_seeded else [])))
        self.wait_ready()
        if not is_seeded:
            for node in self.nodes[1:]:
                self.join(node, known[0])

    def _wait_for_room(self) -> None:
        def has_room() -> bool:
            return sum(not node.key for node in self.nodes) < STARTING_MAX

        self.wait(has_room, "nodes to be ready", READY_TIMEOUT_S)

    def restart(self, node: Node, seeds: Iterable[Node]) -> Node:
        """Start a node that ended under its old name, address and port."""
        spec = replace(node.spec, seeds=tuple(seed.spec.bind for seed in seeds))
        again = self._spawn(spec, node.host)
        self.nodes[self.nodes.index(node)] = again
        self.wait_ready()
        return again

    def kill(self, node: Node) -> float:
        """End a node at once; returns the monotonic second of that."""
        node.is_meant_to_end = True
        at = time.monotonic()
        node.process.kill()
        node.process.wait()
        return at

    # Waiting

    def wait(self, wanted: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Wait until `wanted()`.

        Raises:
            TimeoutError: it did not come true in time.
            EndedError: a node that nobody stopped has ended.
        """
        began = looked_at = time.monotonic()
        while not wanted():
            now = time.monotonic()
            if now > looked_at + LOOK_AFTER_S:
                looked_at = now
                self.look_for_ended()
            if now > began + timeout_s:
                raise TimeoutError(f"{self.kind.name}: waited {timeout_s:g} s for {what}")
            time.sleep(POLL_S)

    def look_for_ended(self) -> None:
        """Notice what nobody asked for.

        Raises:
            EndedError: a node that nobody stopped has ended.
        """
        for node in self.nodes:
            if not node.is_meant_to_end and node.process.poll() is not None:
                self.is_broken = True
                said = b"\n".join(node.lines).decode(errors="replace")
                raise EndedError(f"{self.kind.name} {node.spec.name} ended:\n{said}")

    def wait_ready(self) -> None:
        """Wait until all serve."""
        self.wait(lambda: all(node.key for node in self.nodes), "all to be ready", READY_TIMEOUT_S)

    def wait_all_alive(self, since: float = 0.0, timeout_s: float = 240.0) -> float:
        """Wait until all believe all alive.

        Returns:
            How many seconds after `since` the last was last said to be; 0 where nobody was not.
        """
        keys = {node.key for node in self.nodes}
        # Alive may turn into suspect again while others are waited for: that does not matter here.
        waiting = list(self.nodes)

        def done() -> bool:
            waiting[:] = [node for node in waiting if not node.sees(keys)]
            return not waiting

        self.wait(done, "all to see all alive", timeout_s)
        said = (
            at
            for node in self.nodes
            for at, key, what in node.since(since)
            if what == ALIVE and key in keys
        )
        return max(said, default=since) - since

    def wait_said(
        self, observers: list[Node], key: str, whats: Iterable[str], since: float, timeout_s: float
    ) -> list[float]:
        """When each of the observers first said one of `whats` of `key`, sorted."""
        waiting = list(observers)

        def done() -> bool:
            waiting[:] = [node for node in waiting if node.first(key, whats, since) is None]
            return not waiting

        self.wait(done, f"all to say {'/'.join(whats)} of one node", timeout_s)
        return sorted(node.first(key, whats, since) or 0.0 for node in observers)

    # Counting

    def deaths(self, since: float, *, of: Iterable[str], by: Iterable[Node]) -> int:
        """How often one of the nodes `of` (keys) was declared dead by one of the nodes `by`."""
        return len(self.said(DEAD, since, of=of, by=by))

    def said(
        self, what: str, since: float, *, of: Iterable[str], by: Iterable[Node]
    ) -> list[tuple[float, str]]:
        """When `what` was said of which of the nodes `of` (keys) by the nodes `by`, sorted."""
        wanted = set(of)
        return sorted(
            (at, key)
            for node in by
            for at, key, told in node.since(since)
            if told == what and key in wanted
        )

    def usage(self) -> dict[str, float]:
        """Processor seconds and resident bytes so far, means over the nodes.

        Raises:
            EndedError: as `look_for_ended` does.
        """
        self.look_for_ended()
        processes = [psutil.Process(node.process.pid) for node in self.nodes]
        times = [process.cpu_times() for process in processes]
        memory = [process.memory_info().rss for process in processes]
        count = len(processes)
        return {
            "cpu_s": sum(t.user + t.system for t in times) / count,
            "rss_bytes": sum(memory) / count,
        }

    # Orders

    def update(self, node: Node, value: int) -> None:
        """Have a node tell all others something new."""
        self._do(node, self.kind.update(node.spec, _sender(node), value))

    def join(self, node: Node, to: Node) -> None:
        """Have a running node join another, once."""
        self._do(node, self.kind.join(node.spec, _sender(node), to.spec.bind))

    def block(self, node: Node, how: str, seconds: float) -> None:
        """Have a node's user code block its event loop; returns at once or when it has."""
        self.kind.block(node.spec, _sender(node), how, seconds)

    def _do(self, node: Node, command: list[str]) -> None:
        if command:
            subprocess.run([*node.spec.inside, *command], check=True, capture_output=True)


def _sender(node: Node) -> Callable[[bytes], None]:
    assert node.process.stdin is not None
    write = node.process.stdin.write

    def send(data: bytes) -> None:
        write(data)

    return send
