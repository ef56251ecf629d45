"""mDNS between machines: network namespaces on one bridge, and avahi as an independent witness."""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
CHILD = Path(__file__).with_name("mdns_node.py")
DEADLINE_S = 20

AVAHI = """
mount -t tmpfs tmpfs /run && mkdir -p /run/dbus /run/avahi-daemon
wait_for() { i=0; while [ ! -S "$1" ] && [ $i -lt 100 ]; do sleep 0.05; i=$((i+1)); done; }
dbus-daemon --system --nofork --nopidfile >&2 &
wait_for /run/dbus/system_bus_socket
avahi-daemon -f "$1" --no-drop-root --no-chroot --no-rlimits >&2 &
wait_for /run/avahi-daemon/socket
timeout 10 avahi-browse -rpt _meshd._udp
"""

AVAHI_CONFIG = """
[server]
use-ipv4=yes
use-ipv6=no
allow-interfaces=e0
[publish]
disable-publishing=yes
"""


def can_make_namespaces():
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"meshd-p{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return False
    subprocess.run(["ip", "netns", "del", name], check=False)
    return True


pytestmark = [pytest.mark.netns, pytest.mark.slow]


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Lan:
    """Three hosts on a switch, each a namespace with one interface, `e0`."""

    def __init__(self):
        self.switch = f"meshd-sw{os.getpid()}"
        self.hosts = [f"meshd-h{os.getpid()}-{number}" for number in range(3)]

    def build(self):
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        ip("-n", self.switch, "link", "set", "br0", "up")
        for number, host in enumerate(self.hosts):
            ip("netns", "add", host)
            peer = ["peer", "name", f"p{number}", "netns", self.switch]
            ip("link", "add", "e0", "netns", host, "type", "veth", *peer)
            ip("-n", self.switch, "link", "set", f"p{number}", "master", "br0", "up")
            ip("-n", host, "addr", "add", f"10.77.0.{number + 1}/24", "dev", "e0")
            ip("-n", host, "link", "set", "lo", "up")
            ip("-n", host, "link", "set", "e0", "up")

    def remove(self):
        for name in (*self.hosts, self.switch):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.fixture
def lan():
    if not can_make_namespaces():
        pytest.skip("needs root, iproute2 and the right to make network namespaces")
    lan = Lan()
    try:
        lan.build()
        yield lan
    finally:
        lan.remove()


class Node:
    """A process with one source in a namespace; `lines` is what it said."""

    def __init__(self, number, process):
        self.number = number
        self.process = process
        self.lines = []

    async def sees(self, **expected):
        """Wait for a line with these values."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                for line in self.lines:
                    if all(line.get(key) == value for key, value in expected.items()):
                        return line
                line = await self.process.stdout.readline()
                assert line, f"node {self.number} ended"
                self.lines.append(json.loads(line))

    async def finds(self, number, host):
        await self.sees(node=bytes([number]).hex() * 8, host=host, port=6374)

    async def stop(self):
        with contextlib.suppress(ProcessLookupError, BrokenPipeError, ConnectionResetError):
            self.process.stdin.close()
            async with asyncio.timeout(5):
                await self.process.stdout.read()
                await self.process.wait()
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


@pytest.fixture
async def node(lan):
    """Start node 1, 2 or 3 on its host; stop them all in the end."""
    nodes = []

    async def start(number):
        process = await asyncio.create_subprocess_exec(
            *("ip", "netns", "exec", lan.hosts[number - 1]),
            *(sys.executable, str(CHILD), str(number), "e0"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
        nodes.append(Node(number, process))
        return nodes[-1]

    yield start
    await asyncio.gather(*(one.stop() for one in nodes))


async def test_three_hosts_find_each_other_and_one_that_changes_its_address_is_found_again(
    lan, node
):
    one, two, three = await asyncio.gather(node(1), node(2), node(3))
    hosts = {1: one, 2: two, 3: three}
    for me, source in hosts.items():
        await source.sees(state="ok")
        for other in hosts:
            if other != me:
                await source.finds(other, f"10.77.0.{other}")
    ip("-n", lan.hosts[2], "addr", "del", "10.77.0.3/24", "dev", "e0")
    ip("-n", lan.hosts[2], "addr", "add", "10.77.0.99/24", "dev", "e0")
    await asyncio.gather(one.finds(3, "10.77.0.99"), two.finds(3, "10.77.0.99"))


async def test_a_host_without_multicast_starts_with_a_failed_source_and_recovers(lan, node):
    ip("-n", lan.hosts[0], "link", "set", "e0", "multicast", "off")
    one, two = await asyncio.gather(node(1), node(2))
    status = await one.sees(state="failed")
    assert "e0: it has no multicast" in status["detail"]
    assert "--join" in status["detail"]
    await two.sees(state="ok")
    ip("-n", lan.hosts[0], "link", "set", "e0", "multicast", "on")
    await asyncio.gather(one.finds(2, "10.77.0.2"), two.finds(1, "10.77.0.1"))


async def test_a_host_whose_firewall_drops_mdns_starts_and_finds_nobody(lan, node):
    if shutil.which("nft") is None:
        pytest.skip("needs nft")
    rules = """
    table inet t {
      chain i { type filter hook input priority 0; udp dport 5353 drop; }
      chain o { type filter hook output priority 0; udp dport 5353 drop; }
    }
    """
    command = ["ip", "netns", "exec", lan.hosts[0], "nft", "-f", "-"]
    subprocess.run(command, input=rules, text=True, check=True)
    one, two, three = await asyncio.gather(node(1), node(2), node(3))
    await one.sees(state="ok")
    await asyncio.gather(two.finds(3, "10.77.0.3"), three.finds(2, "10.77.0.2"))
    one.process.stdin.close()
    await one.sees(stopped=True)
    assert not any("node" in line for line in one.lines)


async def test_avahi_sees_the_service_as_documented(lan, node, tmp_path):
    for tool in ("avahi-daemon", "avahi-browse", "dbus-daemon", "unshare"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    one = await node(1)
    await one.sees(state="ok")
    config = tmp_path / "avahi.conf"
    config.write_text(AVAHI_CONFIG)
    # A private /run, and a pid namespace that takes both daemons with it when the shell ends.
    process = await asyncio.create_subprocess_exec(
        *("ip", "netns", "exec", lan.hosts[1]),
        *("unshare", "-m", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *("sh", "-c", AVAHI, "sh", str(config)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    resolved = [line for line in output.decode().splitlines() if line.startswith("=")]
    assert len(resolved) == 1, output
    fields = resolved[0].split(";")
    node_hex = "01" * 8
    assert fields[3:9] == [
        node_hex,
        "_meshd._udp",
        "local",
        f"meshd-{node_hex}.local",
        "10.77.0.1",
        "6374",
    ]
    # avahi-browse prints the strings last first.
    strings = [text.strip('"') for text in reversed(fields[9].split(" "))]
    assert [text.partition("=")[0] for text in strings] == ["txtvers", "id", "m", "v", "rpc", "n"]
    assert strings[0] == "txtvers=1"
