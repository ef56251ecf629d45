"""Daemons on one LAN: they find each other by mDNS, follow a new address, and keep meshes apart."""

import asyncio
import subprocess
import sys

import pytest
from daemons import REPOSITORY, is_alive, is_nobody_dead, start_all
from namespaces import AVAHI_TOOLS, address, browse, need

from meshd.daemon.node import LEAVE_TIMEOUT_S
from meshd.security.identity import mesh_id

pytestmark = [pytest.mark.netns, pytest.mark.slow]


@pytest.fixture
def three(build, daemon):
    """A LAN of three hosts and its daemons, by number."""
    lan = build(3)
    return lan, {number: daemon(lan, number) for number in (1, 2, 3)}


async def test_three_hosts_find_each_other_without_a_seed_and_avahi_sees_all_of_them(
    three, tmp_path
):
    need(*AVAHI_TOOLS)
    lan, hosts = three
    await start_all(*hosts.values())
    for number, one in hosts.items():
        assert one.rows[one.name]["address"] == address(number)
    services = await browse(lan, 1, tmp_path, services=3)
    ids = {one.rows[one.name]["id"]: number for number, one in hosts.items()}
    assert {service.instance for service in services} == set(ids)
    for service in services:
        number = ids[service.instance]
        assert service[1:6] == (
            *("_meshd._udp", "local", f"meshd-{service.instance}.local"),
            *(address(number), "6374"),
        )
        text = dict(part.split("=", 1) for part in service.text)
        assert text["id"] == service.instance
        assert text["m"] == mesh_id("default").hex()[:8]
        assert (text["v"], text["rpc"], text["n"]) == ("1", "6374", f"h{number}")


async def test_a_call_runs_on_the_host_that_is_named(three):
    _, hosts = three
    await start_all(*hosts.values())
    assert address(2) in await hosts[1].cli("call", "where", "--to", "h2")
    assert address(3) in await hosts[1].cli("call", "where", "--to", "h3")


async def test_a_host_that_changes_its_address_is_called_there_and_never_held_dead(three):
    lan, hosts = three
    await start_all(*hosts.values(), profile="lan")
    lan.delete_address(2, f"{address(2)}/24")
    lan.add_address(2, f"{address(99)}/24")
    for number in (1, 2, 3):
        await hosts[number].sees(
            lambda rows: rows["h2"]["address"] == address(99) and is_alive(rows, "h2")
        )
    assert not any("member_dead" in one.log for one in hosts.values())
    assert "address_changed" in hosts[2].log
    assert address(99) in await hosts[1].cli("call", "where", "--to", "h2")
    assert address(1) in await hosts[2].cli("call", "where", "--to", "h1")


def test_of_two_addresses_in_one_network_the_one_that_packets_leave_from_is_told(build):
    lan = build(1)
    # By its text it would come first.
    lan.add_address(1, f"{address(10)}/24")
    look = "from meshd.daemon.place import own_hosts; print(*own_hosts('0.0.0.0', ()))"
    command = lan.inside(1, sys.executable, "-c", look)
    told = subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPOSITORY)
    assert told.stdout.strip() == address(1)


async def test_a_host_that_is_without_an_address_for_a_while_tells_no_loopback_address(three):
    lan, hosts = three
    await start_all(*hosts.values())
    lan.delete_address(2, f"{address(2)}/24")
    await hosts[1].sees(lambda rows: rows["h2"]["state"] == "dead")
    lan.add_address(2, f"{address(98)}/24")
    for one in hosts.values():
        await one.sees(lambda rows: rows["h2"]["address"] == address(98) and is_alive(rows, "h2"))
    assert not any("127.0.0.1" in one.log for one in hosts.values())


async def test_daemons_that_stop_at_once_do_not_wait_for_each_other(three):
    _, hosts = three
    await start_all(*hosts.values())
    began = asyncio.get_running_loop().time()
    await asyncio.gather(*(one.stop() for one in hosts.values()))
    assert asyncio.get_running_loop().time() - began < LEAVE_TIMEOUT_S


async def test_two_meshes_on_one_lan_never_merge(build, daemon):
    lan = build(3)
    red, other, blue = daemon(lan, 1, "red"), daemon(lan, 2, "red"), daemon(lan, 3, "blue")
    await asyncio.gather(red.start(), other.start())
    await red.sees_alive(other)
    # Even an operator's mistake does not join them.
    await blue.start("--join", address(1))
    refused = "rejected_other_mesh"
    await asyncio.gather(
        red.always(lambda rows: set(rows) == {"h1", "h2"}, 2),
        blue.always(lambda rows: set(rows) == {"h3"}, 2),
    )
    assert (await red.ask("status"))["gossip"][refused] > 0
    assert is_nobody_dead(red.rows)
