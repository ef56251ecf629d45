"""How to start each kind of node, and what its output means."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mesh_processes import MESHD, isolated_environment

from meshd.control import ControlClient
from rivals.install import Installed

READY, BOUND, UPDATED, AGES = "ready", "bound", "updated", "ages"
PLAIN, UPDATES, SOCKETS, LOADS, BLOCKS = "", "updates", "sockets", "loads", "blocks"
"""What is wanted of nodes besides their beliefs: that they tell of others' updates or of their own
sockets, change their load each second and tell the ages of others' loads, offer code that blocks.
"""
ALIVE, SUSPECT, DEAD, LEFT = "alive", "suspect", "dead", "left"
STATES = frozenset({ALIVE, SUSPECT, DEAD, LEFT})
HERE = Path(__file__).resolve().parent


class Heard(NamedTuple):
    """What a line of a node's output says: `what` happened to `subject`, as nodes call it."""

    what: str
    subject: str


@dataclass(frozen=True)
class Spec:
    """One node to be started."""

    name: str
    address: str
    port: int
    seeds: tuple[str, ...]
    inside: tuple[str, ...]
    """What its command line begins with, so that it runs where it shall."""
    extra: str = PLAIN
    """What is wanted of it besides its beliefs."""

    @property
    def bind(self) -> str:
        """Its address and port."""
        return f"{self.address}:{self.port}"


class Kind(Protocol):
    """One program."""

    name: str
    port: int
    """The one that it has wherever ports are free."""
    tells_suspicions: bool

    def command(self, spec: Spec) -> list[str]:
        """The command line of a node."""
        ...

    @property
    def environment(self) -> dict[str, str]:
        """That of all its nodes."""
        ...

    def parse(self, line: bytes) -> Heard | None:
        """What a line of output says, if anything."""
        ...

    def update(self, spec: Spec, send: Callable[[bytes], None], value: int) -> list[str]:
        """Have a node change what all others shall know of it.

        Returns:
            A command line that does it, or nothing where it is done.
        """
        ...

    def join(self, spec: Spec, send: Callable[[bytes], None], address: str) -> list[str]:
        """Have a running node join another, once; returns as `update` does."""
        ...

    def block(self, spec: Spec, send: Callable[[bytes], None], how: str, seconds: float) -> None:
        """Have user code block the node's event loop for so long; may return before or after."""
        ...


class Meshd:
    """Ours: the bench's own, or what another interpreter has installed (compiled wheels)."""

    name = "meshd"
    port = 7_001
    tells_suspicions = True

    def __init__(self, place: Path, profile: str, python: Path | None = None) -> None:
        self._place = place
        self._profile = profile
        self._python = str(python or sys.executable)
        self._mesh = f"bench-{os.getpid()}"
        self._states = {f"member_{state}": state for state in STATES} | {
            "started": READY, "bound": BOUND, "state_changed": UPDATED, "ages": AGES,
        }  # fmt: skip
        self.environment = isolated_environment(place)
        if python is not None:
            self.environment["PYTHONPATH"] = str(HERE.parent)

    def command(self, spec: Spec) -> list[str]:
        """`meshd start`, or the same with what is wanted besides."""
        is_watched = spec.extra in {UPDATES, SOCKETS, LOADS}
        program = [str(HERE / "watched_meshd.py"), spec.extra] if is_watched else [*MESHD]
        offers = {UPDATES: str(self._place / f"{spec.name}.toml"), BLOCKS: "blocked_loop:block"}
        if spec.extra == UPDATES:
            self._offers(spec, 0)
        return [
            self._python, *program, "start", "--name", spec.name, "--mesh", self._mesh,
            "--bind", spec.bind, "--profile", self._profile, "--log-format", "json", "--no-mdns",
            *(part for seed in spec.seeds for part in ("--join", seed)),
            *(("--capability", offers[spec.extra]) if spec.extra in offers else ()),
        ]  # fmt: skip

    def parse(self, line: bytes) -> Heard | None:
        """One JSON object a line."""
        if not line.startswith(b"{"):
            return None
        told: dict[str, Any] = json.loads(line)
        what = self._states.get(told["event"])
        return Heard(what, told["id"]) if what else None

    def update(self, spec: Spec, send: Callable[[bytes], None], value: int) -> list[str]:
        """Offer something new."""
        del send
        self._offers(spec, value)
        changed = self._client(spec).call("reload")["changed"]
        assert changed, "nothing changed"
        return []

    def join(self, spec: Spec, send: Callable[[bytes], None], address: str) -> list[str]:
        """Over the control socket."""
        del send
        self._client(spec).call("join", {"addresses": [address]})
        return []

    def block(self, spec: Spec, send: Callable[[bytes], None], how: str, seconds: float) -> None:
        """A handler does what it should not."""
        del send
        params = {"capability": "block", "input": {"how": how, "seconds": seconds}}
        self._client(spec).call("work", params, timeout_s=seconds + 20)

    def _client(self, spec: Spec) -> ControlClient:
        return ControlClient(str(self._place / "run" / "meshd" / self._mesh / f"{spec.name}.sock"))

    def _offers(self, spec: Spec, value: int) -> None:
        path = self._place / f"{spec.name}.toml"
        path.write_text(
            f'[[capability]]\nname = "echo"\ndescription = "Version {value}."\ncommand = ["cat"]\n',
            encoding="utf-8",
        )


class Serf:
    """Serf, and with it memberlist. It does not say when a suspicion has ended: none is heard."""

    name = "serf"
    port = 7_002
    tells_suspicions = False
    _said = (
        (b"serf: EventMemberJoin: ", ALIVE),
        (b"serf: EventMemberFailed: ", DEAD),
        (b"serf: EventMemberLeave: ", LEFT),
        (b"serf: EventMemberUpdate: ", UPDATED),
    )

    def __init__(self, program: Path, profile: str) -> None:
        self._program = str(program)
        self._profile = profile
        self.environment = dict(os.environ)

    def command(self, spec: Spec) -> list[str]:
        """`serf agent`."""
        return [
            self._program, "agent", "-node", spec.name, "-bind", spec.bind,
            "-rpc-addr", f"127.0.0.1:{self._rpc_port(spec)}", "-profile", self._profile,
            *(part for seed in spec.seeds for part in ("-retry-join", seed)),
        ]  # fmt: skip

    def _rpc_port(self, spec: Spec) -> int:
        # Apart from all gossip ports, which are free ones of the system's own range or near 7000.
        return 10_000 + spec.port % 20_000

    def parse(self, line: bytes) -> Heard | None:
        """Lines for people."""
        if b"Node name: '" in line:
            return Heard(READY, line.split(b"'")[1].decode())
        for said, what in self._said:
            if said in line:
                return Heard(what, line.partition(said)[2].split()[0].decode())
        return None

    def update(self, spec: Spec, send: Callable[[bytes], None], value: int) -> list[str]:
        """Set a tag. The node logs its own update: that is when it began."""
        del send
        rpc = f"127.0.0.1:{self._rpc_port(spec)}"
        return [self._program, "tags", "-rpc-addr", rpc, "-set", f"version={value}"]

    def join(self, spec: Spec, send: Callable[[bytes], None], address: str) -> list[str]:
        """`serf join`."""
        del send
        return [self._program, "join", "-rpc-addr", f"127.0.0.1:{self._rpc_port(spec)}", address]

    def block(self, spec: Spec, send: Callable[[bytes], None], how: str, seconds: float) -> None:
        """It runs no user code."""
        raise NotImplementedError


class Told:
    """A small program of ours around a library: says two words a line, and obeys its input."""

    name: str
    port: int
    tells_suspicions: bool

    def __init__(self, program: list[str], profile: str) -> None:
        self._program = program
        self._profile = profile
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}

    def command(self, spec: Spec) -> list[str]:
        """The same for all of these programs."""
        return [*self._program, self._profile, spec.name, spec.bind, spec.extra, *spec.seeds]

    def parse(self, line: bytes) -> Heard | None:
        """A state and a name; the library's own log is something else."""
        what, _, subject = line.decode(errors="replace").partition(" ")
        is_ours = what in STATES or what in {READY, UPDATED, AGES}
        return Heard(what, subject.strip()) if is_ours else None

    def update(self, spec: Spec, send: Callable[[bytes], None], value: int) -> list[str]:
        """Change the metadata."""
        del spec
        send(b"update %d\n" % value)
        return []

    def join(self, spec: Spec, send: Callable[[bytes], None], address: str) -> list[str]:
        """By the library's call."""
        del spec
        send(b"join %s\n" % address.encode())
        return []

    def block(self, spec: Spec, send: Callable[[bytes], None], how: str, seconds: float) -> None:
        """By an order that the program's own loop carries out."""
        del spec, how
        send(b"block %g\n" % seconds)


class Kinship(Told):
    """kinship: a Python library on a Rust core. Unsealed, as all others here are."""

    name = "kinship"
    port = 7_003
    tells_suspicions = True

    def __init__(self, python: Path, profile: str) -> None:
        super().__init__([str(python), str(HERE / "kinship_node.py")], profile)


class Memberlist(Told):
    """memberlist by itself, without what Serf adds: it says no suspicions either."""

    name = "memberlist"
    port = 7_004
    tells_suspicions = False

    def __init__(self, program: Path, profile: str) -> None:
        super().__init__([str(program)], profile)


Make = Callable[[Path], Kind]
"""Makes a kind whose nodes keep their files in this directory."""
NAMES = (Meshd.name, Serf.name, Kinship.name)
BLOCK_WAYS = {Meshd.name: ("sleep", "python"), Kinship.name: ("sleep",)}
"""How user code can block a node's event loop; the others have none."""
ALL_NAMES = (*NAMES, Memberlist.name)
PORTS = [kind.port for kind in (Meshd, Serf, Kinship, Memberlist)]


def available(
    installed: Installed, profile: str, own: Path | None = None
) -> tuple[dict[str, Make], dict[str, str]]:
    """The kinds that can be run here, and why the others cannot; `own` has another meshd."""
    found: dict[str, Make] = {Meshd.name: lambda place: Meshd(place, profile, own)}
    if serf := installed.serf:
        found[Serf.name] = lambda _: Serf(serf, profile)
    if python := installed.kinship_python:
        found[Kinship.name] = lambda _: Kinship(python, profile)
    if program := installed.memberlist:
        found[Memberlist.name] = lambda _: Memberlist(program, profile)
    return found, installed.missing
