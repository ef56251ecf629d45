"""Where nodes run: plain loopback, or a LAN of namespaces that can split, lose and count."""

import itertools
import json
import os
import shutil
import socket
import subprocess
import threading
from typing import Protocol, Self

INTERFACE = "e0"


class Network(Protocol):
    """Hosts count from 1."""

    def inside(self, host: int) -> list[str]:
        """What to put before a command line so that it runs on a host; the process id stays."""
        ...

    def address(self, host: int) -> str:
        """The IPv4 address of a host."""
        ...

    def port(self, wished: int) -> int:
        """A port that is free on a host; `wished` where all of them are."""
        ...


class Loopback:
    """All hosts are this machine's loopback. Needs no rights; can neither split nor count."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def inside(self, host: int) -> list[str]:
        """Nothing: it runs here."""
        del host
        return []

    def address(self, host: int) -> str:
        """One for all."""
        del host
        return "127.0.0.1"

    def port(self, wished: int) -> int:
        """One that is free for TCP and UDP at this moment."""
        del wished
        while True:
            with (
                socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream,
                socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
            ):
                stream.bind(("127.0.0.1", 0))
                number: int = stream.getsockname()[1]
                try:
                    datagrams.bind(("127.0.0.1", number))
                except OSError:
                    continue
                return number


class Lan:
    """Hosts on one switch, each a network namespace of its own. Needs root, iproute2 and nft.

    The switch counts what each program sends (IP headers counted, Ethernet's not), splits the LAN
    in two, and loses datagrams. All of it ends with the block.

    Args:
        hosts: how many.
        ports: the ports whose traffic is counted, each on its own.
    """

    def __init__(self, hosts: int, ports: list[int]) -> None:
        self._hosts = hosts
        self._ports = ports
        self._name = f"mb{os.getpid()}{next(_LETTERS)}"
        self._switch = f"{self._name}s"
        self._split: range = range(0)
        self._loss_percent = 0
        self._lock = threading.Lock()  # clusters share a LAN, each with a thread of its own

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in (*(self._host(k) for k in range(1, self._hosts + 1)), self._switch):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    def _host(self, number: int) -> str:
        return f"{self._name}h{number}"

    def _build(self) -> None:
        numbers = range(1, self._hosts + 1)
        switch = self._switch
        _ip(f"netns add {switch}", *(f"netns add {self._host(k)}" for k in numbers))
        _run(["nsenter", f"--net=/run/netns/{switch}", "ip", "-batch", "-"], BRIDGE)
        _ip(
            *(
                f"link add {INTERFACE} address {_mac(k)} gso_max_segs 1 netns {self._host(k)} "
                f"type veth peer name p{k} netns {switch}"
                for k in numbers
            )
        )
        on_switch = "\n".join(f"link set p{k} master br0 up" for k in numbers)
        _run(["nsenter", f"--net=/run/netns/{switch}", "ip", "-batch", "-"], on_switch)
        for k in numbers:
            # The kernel keeps about 1,000 addresses that ARP learnt, for all namespaces together:
            # from 32 hosts on, some would not reach each other. Permanent ones do not count.
            others = [
                f"neigh add {self.address(other)} lladdr {_mac(other)} nud permanent "
                f"dev {INTERFACE}"
                for other in numbers
                if other != k
            ]
            own = f"link set lo up\naddr add {self.address(k)}/16 dev {INTERFACE}\n"
            up = f"link set {INTERFACE} up\n"
            _run([*self.inside(k), "ip", "-batch", "-"], "\n".join([own + up, *others, ""]))
        self._count()

    def inside(self, host: int) -> list[str]:
        """A host's namespace."""
        return ["nsenter", f"--net=/run/netns/{self._host(host)}"]

    def address(self, host: int) -> str:
        """10.77.0.1 and up."""
        return f"10.77.{host // 250}.{host % 250 + 1}"

    def port(self, wished: int) -> int:
        """Nobody else is there."""
        return wished

    def split(self, far: range) -> None:
        """Cut the hosts in `far` off the others, in both directions."""
        self._change(far, self._loss_percent)

    def heal(self) -> None:
        """Undo the split."""
        self._change(range(0), self._loss_percent)

    def lose(self, percent: int) -> None:
        """Drop so many of 100 datagrams, by chance; streams stay whole."""
        self._change(self._split, percent)

    def _change(self, far: range, loss_percent: int) -> None:
        """Load the rules that drop, in one transaction: no packet sees half of them."""
        with self._lock:
            if (far, loss_percent) == (self._split, self._loss_percent):
                return
            self._split, self._loss_percent = far, loss_percent
            rules = []
            if loss_percent:
                rules.append(f"meta l4proto udp numgen random mod 100 < {loss_percent} drop")
            if far:
                cut = ", ".join(f'"p{k}"' for k in far)
                rules.append(f"iifname {{ {cut} }} oifname != {{ {cut} }} ether type ip drop")
                rules.append(f"iifname != {{ {cut} }} oifname {{ {cut} }} ether type ip drop")
            # After all that counts: what is dropped was sent.
            self._load("cut", 10, [], rules)

    def _count(self) -> None:
        counters = [f"counter {kind}_{port} {{ }}" for port in self._ports for kind in _PROTOCOLS]
        rules = [
            f"{kind} {end} {port} counter name {kind}_{port}"
            for port in self._ports
            for kind, end in (("udp", "sport"), ("tcp", "sport"), ("tcp", "dport"))
        ]
        self._load("count", 0, counters, rules)

    def _load(self, table: str, priority: int, objects: list[str], rules: list[str]) -> None:
        lines = [
            f"table bridge {table}", f"delete table bridge {table}", f"table bridge {table} {{",
            *objects, "chain forward {", f"type filter hook forward priority {priority};",
            *rules, "}", "}", "",
        ]  # fmt: skip
        _run(self._nft("-f", "-"), "\n".join(lines))

    def _nft(self, *arguments: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self._switch}", "nft", *arguments]

    def sent(self, port: int) -> dict[str, int]:
        """What the programs of a port sent so far."""
        listed = json.loads(_run(self._nft("-j", "list", "counters"), ""))["nftables"]
        found = {c["name"]: c for c in (entry.get("counter") for entry in listed) if c}
        return {
            f"{kind}_{what}": found[f"{kind}_{port}"][what]
            for kind in _PROTOCOLS
            for what in ("packets", "bytes")
        }


_PROTOCOLS = ("udp", "tcp")
_LETTERS = itertools.cycle("abcdefghijklmnopqrtuvwxyz")
"""Several LANs of one bench run side by side. Without an s, which stands for the switch."""
BRIDGE = """link add br0 type bridge mcast_snooping 0
link set br0 up
link set lo up
"""


def why_no_lan() -> str:
    """Why this machine cannot have a `Lan`; empty where it can."""
    missing = [tool for tool in ("ip", "nft", "nsenter") if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)}"
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    name = f"mb{os.getpid()}t"
    tried = subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True)
    subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
    return "" if tried.returncode == 0 else "this machine allows no network namespaces"


def _mac(host: int) -> str:
    return f"02:00:00:00:{host // 256:02x}:{host % 256:02x}"


def _ip(*commands: str) -> None:
    _run(["ip", "-batch", "-"], "\n".join(commands))


def _run(command: list[str], text: str) -> str:
    done = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}\n{text}")
    return done.stdout
