"""mDNS between machines: sources alone, each in a namespace, and avahi as a witness."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from namespaces import AVAHI_TOOLS, INTERFACE, Lan, address, address6, browse, need, need_namespaces

REPOSITORY = Path(__file__).parents[2]
CHILD = Path(__file__).with_name("mdns_node.py")
DEADLINE_S = 20

pytestmark = [pytest.mark.netns, pytest.mark.slow]


@pytest.fixture
def lan():
    need_namespaces()
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

    async def start(number, bound="0.0.0.0"):  # noqa: S104  # announced, not bound
        process = await asyncio.create_subprocess_exec(
            *lan.inside(number, sys.executable, str(CHILD), str(number), INTERFACE, bound),
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
                await source.finds(other, address(other))
    lan.delete_address(3, f"{address(3)}/24")
    lan.add_address(3, f"{address(99)}/24")
    await asyncio.gather(one.finds(3, address(99)), two.finds(3, address(99)))


async def test_hosts_without_ipv4_find_each_other_and_one_that_has_both(lan, node):
    for number in (1, 2, 3):
        lan.add_address(number, f"{address6(number)}/64")
    for number in (1, 2):
        lan.delete_address(number, f"{address(number)}/24")
    one, two, three = await asyncio.gather(*(node(number, "::") for number in (1, 2, 3)))
    await asyncio.gather(*(each.finds(1, address6(1)) for each in (two, three)))
    await asyncio.gather(*(each.finds(2, address6(2)) for each in (one, three)))
    await asyncio.gather(*(each.finds(3, address6(3)) for each in (one, two)))
    # An address of the other version comes, and goes.
    lan.add_address(1, f"{address(1)}/24")
    await three.finds(1, address(1))
    lan.delete_address(1, f"{address(1)}/24")
    lan.add_address(2, f"{address6(98)}/64")
    lan.delete_address(2, f"{address6(2)}/64")
    await asyncio.gather(one.finds(2, address6(98)), three.finds(2, address6(98)))


async def test_a_host_without_multicast_starts_with_a_failed_source_and_recovers(lan, node):
    lan.set_link(1, "multicast", "off")
    one, two = await asyncio.gather(node(1), node(2))
    status = await one.sees(state="failed")
    assert "e0: it has no multicast" in status["detail"]
    assert "--join" in status["detail"]
    await two.sees(state="ok")
    lan.set_link(1, "multicast", "on")
    await asyncio.gather(one.finds(2, address(2)), two.finds(1, address(1)))


async def test_a_host_whose_firewall_drops_mdns_starts_and_finds_nobody(lan, node):
    need("nft")
    lan.filter(1, "udp dport 5353 drop")
    one, two, three = await asyncio.gather(node(1), node(2), node(3))
    await one.sees(state="ok")
    await asyncio.gather(two.finds(3, address(3)), three.finds(2, address(2)))
    one.process.stdin.close()
    await one.sees(stopped=True)
    assert not any("node" in line for line in one.lines)


async def test_avahi_sees_the_service_as_documented(lan, node, tmp_path):
    need(*AVAHI_TOOLS)
    one = await node(1)
    await one.sees(state="ok")
    (service,) = await browse(lan, 2, tmp_path, services=1)
    node_hex = "01" * 8
    host = f"meshd-{node_hex}.local"
    assert service[:6] == (node_hex, "_meshd._udp", "local", host, address(1), "6374")
    keys = [text.partition("=")[0] for text in service.text]
    assert keys == ["txtvers", "id", "m", "v", "rpc", "n"]
    assert service.text[0] == "txtvers=1"
