"""Daemons on a faulty LAN: no multicast, split, lossy, paused, IPv6 alone, or there too late."""

import asyncio

import pytest
from daemons import all_see_all, is_alive, is_dead, is_everybody_alive, is_nobody_dead, start_all
from namespaces import address, address6, need

pytestmark = [pytest.mark.netns, pytest.mark.slow]

HEALED_S = 6
LOSS_S = 10
PAUSE_S = 3
BLOCKED_S = 12
SETTLED_S = 8


async def test_a_host_without_multicast_starts_alone_says_so_and_is_in_by_a_seed(build, daemon):
    lan = build(3)
    lan.set_link(3, "multicast", "off")
    one, two, deaf = (daemon(lan, number) for number in (1, 2, 3))
    await asyncio.gather(*(each.start() for each in (one, two, deaf)))
    await asyncio.gather(one.sees_alive(two), two.sees_alive(one), deaf.sees_alive())
    status = await deaf.ask("status")
    (mdns,) = (s for s in status["discovery"] if s["source"] == "mdns")
    assert mdns["state"] == "limited"
    assert "no network interface is up with multicast" in mdns["detail"]
    assert "--join" in mdns["detail"]
    checks = {check["name"]: check for check in (await deaf.ask("doctor"))["checks"]}
    assert checks["mdns"]["status"] == "warning"
    assert "--join" in checks["mdns"]["fix"]
    assert checks["members"]["detail"] == "no other node is known"
    await deaf.cli("join", address(1))
    await all_see_all(one, two, deaf)


async def test_a_host_whose_firewall_drops_mdns_is_in_by_a_seed(build, daemon):
    need("nft")
    lan = build(2)
    lan.filter(2, "udp dport 5353 drop")
    one, two = daemon(lan, 1), daemon(lan, 2)
    await asyncio.gather(one.start(), two.start("--join", address(1)))
    await all_see_all(one, two)


@pytest.mark.parametrize("cut", ["set_port", "set_cable"])
async def test_a_split_lan_heals_by_itself(build, daemon, cut):
    lan = build(3)
    link = getattr(lan, cut)
    hosts = [daemon(lan, number) for number in (1, 2, 3)]
    await start_all(*hosts)
    one, two, three = hosts
    link(3, "down")
    await one.sees(lambda rows: is_dead(rows, "h3"))
    await two.sees(lambda rows: is_dead(rows, "h3"))
    await three.sees(lambda rows: is_dead(rows, "h1") and is_dead(rows, "h2"))
    assert is_alive(one.rows, "h2")
    link(3, "up")
    began = asyncio.get_running_loop().time()
    await all_see_all(*hosts)
    assert asyncio.get_running_loop().time() - began < HEALED_S


async def packets(hosts):
    """How many datagrams all of them sent, and received."""
    counters = [(await one.ask("status"))["gossip"] for one in hosts]
    return sum(c["packets_sent"] for c in counters), sum(c["packets_received"] for c in counters)


async def test_nobody_is_held_dead_on_a_lan_that_loses_three_datagrams_of_ten(build, daemon):
    need("nft")
    lan = build(3)
    hosts = [daemon(lan, number) for number in (1, 2, 3)]
    await start_all(*hosts, profile="lan")
    sent, received = await packets(hosts)
    for number in (1, 2, 3):
        # On the way out and on the way in: 30 % of all.
        lan.filter(number, "udp dport 6374 numgen random mod 1000 < 163 drop")
    await asyncio.gather(*(one.always(is_nobody_dead, LOSS_S) for one in hosts))
    lossy_sent, lossy_received = await packets(hosts)
    assert lossy_received - received < 0.9 * (lossy_sent - sent)
    for number in (1, 2, 3):
        lan.unfilter(number)
    await all_see_all(*hosts)
    assert not any("member_dead" in one.log for one in hosts)


async def test_a_daemon_that_is_stopped_for_three_seconds_kills_nobody(build, daemon):
    lan = build(3)
    hosts = [daemon(lan, number) for number in (1, 2, 3)]
    await start_all(*hosts, profile="lan")
    one, two, three = hosts
    two.pause()
    await asyncio.gather(*(other.always(is_nobody_dead, PAUSE_S) for other in (one, three)))
    two.resume()
    await all_see_all(*hosts)
    assert not any("member_dead" in each.log for each in hosts)


async def test_two_hosts_with_ipv6_alone_find_each_other_by_a_seed(build, daemon):
    lan = build(2, ipv4=False, ipv6=True)
    one, two = daemon(lan, 1), daemon(lan, 2)
    await one.start("--bind", "[::]:6374")
    await two.start("--bind", "[::]:6374", "--join", f"[{address6(1)}]")
    await all_see_all(one, two)
    assert two.rows["h1"]["address"] == address6(1)
    assert one.rows["h2"]["address"] == address6(2)
    for caller, other in ((one, "h2"), (two, "h1")):
        assert "[" in await caller.cli("call", "where", "--to", other)


async def test_hosts_with_both_families_find_each_other_by_mdns_and_by_an_ipv4_seed(build, daemon):
    lan = build(3, ipv6=True)
    one, two, three = (daemon(lan, number) for number in (1, 2, 3))
    await asyncio.gather(*(each.start("--bind", "[::]:6374") for each in (one, two)))
    await three.start("--bind", "[::]:6374", "--no-mdns", "--join", address(1))
    await all_see_all(one, two, three)
    assert address(1) in await three.cli("call", "where", "--to", "h1")


async def test_a_host_with_both_families_meets_those_that_have_one(build, daemon):
    lan = build(3, ipv6=True)
    old, both, new = (daemon(lan, number) for number in (1, 2, 3))
    lan.delete_address(3, f"{address(3)}/24")
    await both.start("--bind", "[::]:6374")
    await asyncio.gather(
        old.start("--join", address(2)),
        new.start("--bind", f"[{address6(3)}]:6374", "--join", f"[{address6(2)}]"),
    )
    # Those that share no family know each other by the one that has both, and judge nobody.
    await all_see_all(old, both, new)
    await asyncio.gather(*(one.always(is_everybody_alive, SETTLED_S) for one in (old, both, new)))
    assert (old.rows["h2"]["address"], new.rows["h2"]["address"]) == (address(2), address6(2))
    assert not any("member_suspect" in one.log for one in (old, both, new))
    assert address(2) in await old.cli("call", "where", "--to", "h2")
    await new.cli("call", "where", "--to", "h2")
    assert old.rows["h3"]["reachable"] is False
    checks = {check["name"]: check for check in (await old.ask("doctor"))["checks"]}
    assert checks["address"]["status"] == "error"
    assert f"cannot reach h3 at [{address6(3)}]:6374" in checks["address"]["detail"]
    assert "--bind [::]:6374" in checks["address"]["fix"]
    checks = {check["name"]: check for check in (await both.ask("doctor"))["checks"]}
    assert checks["address"]["status"] == "ok"


async def test_a_host_with_both_families_that_loses_one_and_moves_in_the_other_is_followed(
    build, daemon
):
    lan = build(3, ipv6=True)
    hosts = [daemon(lan, number) for number in (1, 2, 3)]
    await asyncio.gather(*(one.start("--bind", "[::]:6374", profile="lan") for one in hosts))
    await all_see_all(*hosts)
    lan.delete_address(2, f"{address(2)}/24")
    for one in hosts:
        await one.sees(lambda rows: rows["h2"]["address"] == address6(2) and is_alive(rows, "h2"))
    lan.add_address(2, f"{address6(97)}/64")
    lan.delete_address(2, f"{address6(2)}/64")
    for one in hosts:
        await one.sees(lambda rows: rows["h2"]["address"] == address6(97) and is_alive(rows, "h2"))
    await all_see_all(*hosts)
    assert not any("member_dead" in one.log for one in hosts)


async def test_an_ipv6_address_that_is_advertised_is_the_one_that_others_use(build, daemon):
    lan = build(2, ipv6=True)
    lan.add_address(2, f"{address6(42)}/64")
    one, two = daemon(lan, 1), daemon(lan, 2)
    await asyncio.gather(
        one.start("--bind", "[::]:6374"),
        two.start("--bind", "[::]:6374", "--advertise", f"[{address6(42)}]"),
    )
    await all_see_all(one, two)
    assert one.rows["h2"]["address"] == address6(42)
    await one.cli("call", "where", "--to", "h2")


@pytest.mark.parametrize("loopback", ["up", "down"])
async def test_a_host_that_starts_before_its_network_finds_the_others_when_it_comes(
    build, daemon, loopback
):
    lan = build(2)
    lan.set_link(2, "down")
    lan.delete_address(2, f"{address(2)}/24")
    lan.set_loopback(2, loopback)
    one, late = daemon(lan, 1), daemon(lan, 2)
    await asyncio.gather(one.start(), late.start())
    await late.sees_alive()
    lan.set_link(2, "up")
    lan.add_address(2, f"{address(2)}/24")
    await all_see_all(one, late)
    await one.sees(lambda rows: rows["h2"]["address"] == address(2))
    assert address(2) in await one.cli("call", "where", "--to", "h2")
    assert address(1) in await late.cli("call", "where", "--to", "h1")


async def test_daemons_whose_firewall_drops_all_udp_hold_each_other_alive_by_their_calls(
    build, daemon
):
    need("nft")
    lan = build(2)
    one, two = daemon(lan, 1), daemon(lan, 2)
    await start_all(one, two)
    lan.filter(2, "udp dport 6374 drop")
    await asyncio.gather(*(each.always(is_everybody_alive, BLOCKED_S) for each in (one, two)))
    for each, other in ((one, "h2"), (two, "h1")):
        status = await each.ask("status")
        assert status["gossip"]["stream_pings_ok"] > 3
        assert any(f"blocked UDP: {other}" in problem for problem in status["problems"])
        checks = {check["name"]: check for check in (await each.ask("doctor"))["checks"]}
        assert checks["udp"]["status"] == "warning"
        assert "in both directions" in checks["udp"]["fix"]
        assert "member_suspect" not in each.log
    lan.unfilter(2)
    await one.until_status(lambda status: not status["problems"])
