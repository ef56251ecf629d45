"""The mDNS source: on the loopback interface alone, and against hostile records."""

import asyncio
import errno
import os
import random
import socket
import time

import pytest
from zeroconf import IPVersion
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from meshd.discovery import mdns
from meshd.discovery.base import SourceState
from meshd.discovery.interfaces import Interface, read_interfaces
from meshd.discovery.mdns import MdnsSettings, MdnsSource
from meshd.discovery.mdns_records import (
    SERVICE_TYPE,
    Announcement,
    instance_name,
    mesh_hash,
    to_properties,
)
from meshd.model import Address, NodeId
from meshd.security.identity import mesh_id

ANY = "0.0.0.0"  # noqa: S104  # data of a test: nothing is bound
LOCAL = (Interface("lo", True, False, True, ("127.0.0.1/8",)),)


class SystemClock:
    def now(self):
        return time.monotonic()

    def wall_ms(self):
        return 0


def node(number):
    return NodeId(number.to_bytes(8, "big"))


class Made:
    """A source, and what it found."""

    def __init__(self, number, *, mesh="test", read=read_interfaces, bound=None, **more):
        settings = {"interfaces": ("lo",), **more}
        self.alive = set()
        self.hints = []
        self.came = asyncio.Event()
        self.source = MdnsSource(
            MdnsSettings(
                node=node(number),
                mesh=mesh_id(mesh),
                name=f"n{number}",
                bound=bound or Address("127.0.0.1", 7000 + number),
                **settings,
            ),
            clock=SystemClock(),
            is_alone=lambda: True,
            is_alive=lambda n: n in self.alive,
            rng=random.Random(number),
            read=read,
        )

    def found(self, hint):
        self.hints.append(hint)
        self.came.set()

    async def finds(self, number, port=None):
        wanted = Address("127.0.0.1", 7000 + number if port is None else port)
        async with asyncio.timeout(10):
            while not any((h.node, h.address) == (node(number), wanted) for h in self.hints):
                self.came.clear()
                await self.came.wait()


async def until(condition):
    """Let the loop turn until it is so."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


@pytest.fixture
async def made():
    """Make and start sources; stop them in the end."""
    all_made = []

    async def make(number, **settings):
        one = Made(number, **settings)
        all_made.append(one)
        await one.source.start(one.found)
        await one.source.start(one.found)
        return one

    yield make
    for one in all_made:
        await one.source.stop()
        await one.source.stop()


@pytest.mark.net
async def test_two_nodes_of_one_mesh_find_each_other_and_a_third_of_another_does_not(made):
    stranger = await made(3, mesh="other")
    a, b = await made(1), await made(2)
    await asyncio.gather(a.finds(2), b.finds(1))
    assert {h.node for h in a.hints} == {node(2)}
    assert stranger.hints == []
    await until(lambda: a.source.counters.foreign_mesh >= 1)
    assert {h.node for h in a.hints} == {node(2)}
    assert {h.source for h in a.hints} == {"mdns"}
    assert a.source.status().state is SourceState.OK
    assert a.source.status().detail == "on lo; 1 announced"


@pytest.mark.net
async def test_an_announced_node_that_is_not_alive_is_hinted_again(made):
    a = await made(1)
    await made(2)
    await a.finds(2)
    a.hints.clear()
    await a.finds(2)


@pytest.fixture
async def hostile():
    """Register any record on the loopback interface."""
    zeroconf = AsyncZeroconf(interfaces=["127.0.0.1"], ip_version=IPVersion.V4Only)

    async def register(number, *, addresses=("127.0.0.1",), port=9000, name=None, **changes):
        said = Announcement(node(number), mesh_hash(mesh_id("test")), 1, 9000, "evil")
        properties = {**to_properties(said), **changes}
        info = AsyncServiceInfo(
            SERVICE_TYPE,
            name or instance_name(node(number)),
            port=port,
            properties={k: v for k, v in properties.items() if v is not None},
            server=f"evil{number}.local.",
            parsed_addresses=list(addresses),
        )
        await zeroconf.async_register_service(info, cooperating_responders=True)

    yield register
    await zeroconf.async_close()


@pytest.mark.net
async def test_hostile_records_give_no_hint_and_do_no_harm(made, hostile):
    await hostile(11, id="f" * 16)
    await hostile(12, txtvers="9")
    await hostile(13, n="a b")
    await hostile(14, x1="y" * 250, x2="y" * 250)
    await hostile(15, m=None)
    await hostile(16, addresses=[ANY, "224.0.0.251", "169.254.169.254", "8.8.8.8"])
    await hostile(17, port=0)
    await hostile(18, name="evil." + SERVICE_TYPE)
    await hostile(1)  # our own id
    await hostile(19, addresses=["127.0.0.1"], port=7001)  # our own address
    await hostile(20, **{f"k{i}": "z" * 200 for i in range(30)})
    a = await made(1)
    await made(2)
    await a.finds(2)
    counters = a.source.counters
    await until(lambda: counters.no_address >= 3 and counters.malformed >= 7)
    assert {h.node for h in a.hints} == {node(2)}


@pytest.mark.net
async def test_a_record_whose_address_is_missing_is_asked_for_and_given_up(made, hostile):
    a = await made(1)
    await hostile(21, addresses=[])
    await hostile(22)
    await a.finds(22, port=9000)
    assert {h.node for h in a.hints} == {node(22)}


@pytest.mark.net
async def test_an_address_whose_text_has_not_come_is_of_any_mesh_and_gives_no_hint(made):
    class Link:
        def cached(self, name):
            return AsyncServiceInfo(SERVICE_TYPE, name, port=9, parsed_addresses=["127.0.0.1"])

        async def ask(self, name):
            return None

    a = await made(1)
    a.source._on_record(Link(), instance_name(node(23)))
    await until(lambda: a.source.counters.unanswered == 1)
    assert a.hints == []


@pytest.mark.net
async def test_when_port_5353_is_taken_the_source_fails_and_recovers(made, monkeypatch, caplog):
    def taken(_):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

    with monkeypatch.context() as patch:
        patch.setattr(mdns, "multicast_addresses", taken)
        a = await made(1, poll_s=0.05, settle_s=0.01)
        status = a.source.status()
        assert status.state is SourceState.FAILED
        assert "another program uses UDP port 5353" in status.detail
        assert "--join" in status.detail
    await made(2)
    await a.finds(2)
    assert a.source.status().state is SourceState.OK
    assert caplog.text.count("mdns_failed") == 1


@pytest.mark.net
def test_a_port_that_is_held_exclusively_is_noticed(monkeypatch):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind(("", 0))
        monkeypatch.setattr(mdns, "MDNS_PORT", holder.getsockname()[1])
        with pytest.raises(OSError, match="in use"):
            mdns.multicast_addresses(["127.0.0.1"])


@pytest.mark.net
def test_an_address_that_is_gone_has_no_multicast():
    assert mdns.multicast_addresses(["127.0.0.1", "203.0.113.99"]) == ["127.0.0.1"]


async def test_no_usable_interface_is_a_failed_source_with_a_reason(made):
    a = await made(1, read=lambda: ())
    assert a.source.status().state is SourceState.FAILED
    assert "lo: there is no such interface" in a.source.status().detail


@pytest.mark.net
async def test_where_no_interface_is_fit_the_source_is_limited_to_this_machine_and_says_so(made):
    lo_only = tuple(i for i in LOCAL if i.loopback)
    everywhere = Address("0.0.0.0", 7001)  # noqa: S104  # announced, not bound
    a = await made(1, interfaces=(), bound=everywhere, read=lambda: lo_only)
    await made(2)
    await a.finds(2)
    assert a.source.status().state is SourceState.LIMITED
    assert "no network interface is up" in a.source.status().detail
    assert "--join" in a.source.status().detail


async def test_a_system_that_does_not_list_interfaces_is_survived(made):
    def refuse():
        raise PermissionError(errno.EACCES, "denied")

    a = await made(1, read=refuse)
    assert "cannot list the network interfaces" in a.source.status().detail


async def test_an_unexpected_error_of_zeroconf_is_survived(made, monkeypatch):
    async def fail(*_):
        raise RuntimeError("odd")

    monkeypatch.setattr(mdns, "multicast_addresses", list)
    monkeypatch.setattr(mdns._Link, "open", fail)
    a = await made(1, read=lambda: LOCAL)
    assert "RuntimeError: odd" in a.source.status().detail


@pytest.mark.net
async def test_an_interface_that_goes_and_comes_back_is_followed(made):
    present = [LOCAL]
    a = await made(1, read=lambda: present[0], poll_s=0.02, settle_s=0.01)
    assert a.source.status().state is SourceState.OK
    present[0] = ()
    await until(lambda: a.source.status().state is SourceState.FAILED)
    present[0] = LOCAL
    await made(2)
    await a.finds(2)


@pytest.mark.net
async def test_a_changed_address_is_announced_without_a_restart(made):
    present = [LOCAL]
    everywhere = Address(ANY, 7001)
    a = await made(1, read=lambda: present[0], bound=everywhere, poll_s=0.02, settle_s=0.01)
    b = await made(2)
    await b.finds(1)
    link = a.source._link
    present[0] = (Interface("lo", True, False, True, ("127.0.0.2/8",)),)
    moved = Address("127.0.0.2", 7001)
    await until(lambda: moved in {h.address for h in b.hints})
    assert a.source._link is link


async def test_interfaces_that_flap_are_left_until_they_settle(monkeypatch):
    reads = iter([LOCAL, (), LOCAL])
    one = Made(1, read=lambda: next(reads), settle_s=0.0)
    one.source._all = LOCAL
    await one.source._look(settle=True)
    assert one.source._all == LOCAL
    assert one.source.status().detail.startswith("not started")


class FakeLink:
    """Records without a network."""

    def __init__(self, **changes):
        self.changes = changes
        self.asked = 0
        self.hold = asyncio.Event()

    def cached(self, instance):
        return self._info(instance, **self.changes)

    async def ask(self, instance):
        self.asked += 1
        await self.hold.wait()
        return self._info(instance)

    def _info(self, instance, *, mesh="test", host="10.0.0.9", port=9000, text=True):
        number = int(instance[:16], 16)
        said = Announcement(node(number), mesh_hash(mesh_id(mesh)), 1, 9000, "n")
        return AsyncServiceInfo(
            SERVICE_TYPE,
            instance,
            port=port,
            properties=to_properties(said) if text else b"",
            parsed_addresses=[host] if host else [],
        )


class FakeClock:
    def __init__(self):
        self.time = 0.0

    def now(self):
        return self.time

    def wall_ms(self):
        return 0


def offline(number=1):
    """A source that was not started: records are handed to it."""
    one = Made(number)
    one.source._found = one.found
    one.source._clock = FakeClock()
    return one


async def test_a_flood_of_announcements_is_slowed_and_bounded_and_nobody_is_lost():
    one, link = offline(), FakeLink()
    for number in range(2, 702):
        one.source._on_record(link, instance_name(node(number)))
    assert len({h.node for h in one.hints}) == mdns.RECORDS_BURST
    assert one.source.counters.flooded == 700 - mdns.RECORDS_BURST
    one.source._link = link
    for _ in range(10):
        one.source._clock.time += 1
        one.source._catch_up()
    assert len({h.node for h in one.hints}) == 700


async def test_candidates_are_bounded_the_oldest_leave(monkeypatch):
    monkeypatch.setattr(mdns, "CANDIDATES_MAX", 3)
    one, link = offline(), FakeLink()
    for number in range(2, 8):
        one.source._on_record(link, instance_name(node(number)))
    assert list(one.source._candidates) == [node(5), node(6), node(7)]
    assert one.source.counters.evicted == 3
    assert len(one.source._schedule) == 3


async def test_a_storm_of_one_unchanged_record_gives_one_hint():
    one, link = offline(), FakeLink()
    for _ in range(300):
        one.source._on_record(link, instance_name(node(2)))
    assert len(one.hints) == 1


async def test_all_who_hear_a_newcomer_need_not_all_call_at_once():
    one, link = offline(), FakeLink()
    one.source._share = lambda: 0.1
    for number in range(2, 302):
        one.source._on_record(link, instance_name(node(number)))
    assert 10 < len(one.hints) < 60


async def test_on_another_network_all_who_are_announced_are_tried_again():
    one, link = offline(), FakeLink()
    one.source._on_record(link, instance_name(node(2)))
    one.hints.clear()
    one.source.retry()
    due = one.source._schedule.due(
        one.source._clock.now(), alone=False, is_alive=lambda _: False, limit=9
    )
    assert due == [node(2)]


async def test_living_nodes_are_not_hinted():
    one, link = offline(), FakeLink()
    one.alive = {node(2)}
    one.source._on_record(link, instance_name(node(2)))
    assert one.hints == []


async def test_records_of_another_mesh_cause_no_request():
    one, link = offline(), FakeLink(mesh="other", host="")
    one.source._on_record(link, instance_name(node(2)))
    assert one.source._requests == {}
    assert one.source.counters.foreign_mesh == 1


async def test_requests_are_bounded_and_end_with_the_source():
    one, link = offline(), FakeLink(text=False, host="", port=None)
    for number in range(2, 102):
        one.source._on_record(link, instance_name(node(number)))
        one.source._on_record(link, instance_name(node(2)))
    await asyncio.sleep(0)
    assert link.asked == mdns.REQUESTS_MAX
    assert one.source.counters.flooded == 100 - mdns.REQUESTS_MAX
    await one.source.stop()
    assert one.source._requests == {}


async def test_an_answered_request_gives_a_hint():
    one, link = offline(), FakeLink(host="")
    one.source._on_record(link, instance_name(node(2)))
    link.hold.set()
    await asyncio.gather(*one.source._requests.values())
    assert [h.address for h in one.hints] == [Address("10.0.0.9", 9000)]


async def test_a_request_that_raises_is_survived(caplog):
    one, link = offline(), FakeLink(host="")

    async def fail(_):
        raise ValueError("odd")

    link.ask = fail
    one.source._on_record(link, instance_name(node(2)))
    await asyncio.gather(*one.source._requests.values())
    assert "mdns_record_failed" in caplog.text
    assert one.hints == []


async def test_an_advertised_address_replaces_the_interfaces_own():
    one = Made(1, bound=Address(ANY, 7001), advertise=(Address("203.0.113.7", 9),))
    assert one.source._own_addresses() == ["203.0.113.7"]
    info = one.source._info(["203.0.113.7"])
    assert info.port == 9
    assert Address("203.0.113.7", 9) in one.source._own()


async def test_a_node_on_all_addresses_announces_those_of_its_interfaces():
    network = (Interface("lo", True, True, False, ("10.0.0.1/24", "fd00::1/64")),)
    for host, addresses in ((ANY, ["10.0.0.1"]), ("::", ["10.0.0.1", "fd00::1"])):
        one = Made(1, bound=Address(host, 7001), read=lambda: network)
        one.source._all, one.source._choice = await one.source._read_choice()
        assert one.source._own_addresses() == addresses
        assert Address("fd00::1", 7001) in one.source._own()
