"""Machines for tests: network namespaces on one bridge, and avahi as an independent witness."""

import asyncio
import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

INTERFACE = "e0"
AVAHI_TOOLS = ("avahi-daemon", "avahi-browse", "dbus-daemon", "unshare")
AVAHI_TIMEOUT_S = 20

# A private /run, and a pid namespace that takes both daemons with it when the shell ends.
AVAHI = """
mount -t tmpfs tmpfs /run && mkdir -p /run/dbus /run/avahi-daemon
wait_for() { i=0; while [ ! -S "$1" ] && [ $i -lt 100 ]; do sleep 0.05; i=$((i+1)); done; }
dbus-daemon --system --nofork --nopidfile >&2 &
wait_for /run/dbus/system_bus_socket
avahi-daemon -f "$1" --no-drop-root --no-chroot --no-rlimits >&2 &
wait_for /run/avahi-daemon/socket
exec avahi-browse -rp _meshd._udp
"""

AVAHI_CONFIG = f"""
[server]
use-ipv4=yes
use-ipv6=no
allow-interfaces={INTERFACE}
[publish]
disable-publishing=yes
"""


def can_make_namespaces():
    """Whether this machine lets us."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"meshd-p{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return False
    subprocess.run(["ip", "netns", "del", name], check=False)
    return True


def need_namespaces():
    """Skip where this machine cannot make them."""
    if not can_make_namespaces():
        pytest.skip("needs root, iproute2 and the right to make network namespaces")


def need(*tools):
    """Skip where a program is missing."""
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def address(number):
    """The IPv4 address that host `number` (from 1) begins with; its IPv6 one is alike."""
    return f"10.77.0.{number}"


def address6(number):
    return f"fd77::{number}"


class Lan:
    """Hosts on a switch, each a namespace with one interface, `e0`. Hosts count from 1."""

    def __init__(self, hosts=3):
        self.switch = f"meshd-sw{os.getpid()}"
        self.hosts = [f"meshd-h{os.getpid()}-{number}" for number in range(1, hosts + 1)]

    def build(self, *, ipv4=True, ipv6=False):
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        ip("-n", self.switch, "link", "set", "br0", "up")
        for number, host in enumerate(self.hosts, start=1):
            ip("netns", "add", host)
            ip("-n", host, "link", "set", "lo", "up")
            peer = ["peer", "name", f"p{number}", "netns", self.switch]
            ip("link", "add", INTERFACE, "netns", host, "type", "veth", *peer)
            ip("-n", self.switch, "link", "set", f"p{number}", "master", "br0", "up")
            if ipv4:
                self.add_address(number, f"{address(number)}/24")
            if ipv6:
                self.add_address(number, f"{address6(number)}/64")
            ip("-n", host, "link", "set", INTERFACE, "up")

    def remove(self):
        for name in (*self.hosts, self.switch):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    def name(self, number):
        """The namespace of a host."""
        return self.hosts[number - 1]

    def inside(self, number, *command):
        """A command line that runs `command` on a host; its process id is the command's own."""
        return ("ip", "netns", "exec", self.name(number), *command)

    def add_address(self, number, network):
        # Without the wait for duplicates that IPv6 has, nobody else has these addresses.
        options = ["nodad"] if ":" in network else []
        ip("-n", self.name(number), "addr", "add", network, "dev", INTERFACE, *options)

    def delete_address(self, number, network):
        ip("-n", self.name(number), "addr", "del", network, "dev", INTERFACE)

    def set_link(self, number, *what):
        """Change a host's interface, e.g. `"up"` or `"multicast", "off"`."""
        ip("-n", self.name(number), "link", "set", INTERFACE, *what)

    def set_loopback(self, number, state):
        ip("-n", self.name(number), "link", "set", "lo", state)

    def set_cable(self, number, state):
        """Pull a host's cable out of the switch (`"down"`), or put it back (`"up"`)."""
        ip("-n", self.switch, "link", "set", f"p{number}", state)

    def set_port(self, number, state):
        """Let the switch carry nothing for a host (`"down"`), whose link stays up."""
        master = {"down": ["nomaster"], "up": ["master", "br0"]}[state]
        ip("-n", self.switch, "link", "set", f"p{number}", *master)

    def filter(self, number, rule):
        """Give a host's firewall one rule for what comes in and what goes out; nft's language."""
        rules = f"""
        table inet meshd {{
          chain i {{ type filter hook input priority 0; {rule}; }}
          chain o {{ type filter hook output priority 0; {rule}; }}
        }}
        """
        command = self.inside(number, "nft", "-f", "-")
        subprocess.run(command, input=rules, text=True, check=True, capture_output=True)

    def unfilter(self, number):
        command = self.inside(number, "nft", "delete", "table", "inet", "meshd")
        subprocess.run(command, check=True, capture_output=True)


class Service(NamedTuple):
    """One service as avahi resolved it; `text` are its TXT strings in their order."""

    instance: str
    type: str
    domain: str
    host: str
    address: str
    port: str
    text: tuple[str, ...]


async def browse(lan: Lan, number: int, directory: Path, *, services: int) -> list[Service]:
    """What avahi finds of meshd on a host, as soon as that are so many services."""
    config = directory / "avahi.conf"
    config.write_text(AVAHI_CONFIG)
    process = await asyncio.create_subprocess_exec(
        *lan.inside(number, "unshare", "-m", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *("sh", "-c", AVAHI, "sh", str(config)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    found: dict[str, Service] = {}
    try:
        async with asyncio.timeout(AVAHI_TIMEOUT_S):
            while len(found) < services and (line := await process.stdout.readline()):
                fields = line.decode().strip().split(";")
                if fields[0] == "=":
                    # avahi-browse prints the strings last first.
                    text = tuple(part.strip('"') for part in reversed(fields[9].split(" ")))
                    found[fields[3]] = Service(*fields[3:9], text)
    finally:
        process.kill()
        await process.communicate()
    return list(found.values())
