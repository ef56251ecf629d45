"""What is said and believed in mDNS records, and the choice of interfaces."""

import socket
from collections import namedtuple

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.discovery.interfaces import Interface, choose, networks_of, read_interfaces
from meshd.discovery.mdns_records import (
    SERVICE_TYPE,
    TXT_BYTES_MAX,
    Announcement,
    host_name,
    instance_name,
    mesh_hash,
    node_of,
    parse_properties,
    to_properties,
)
from meshd.model import NodeId
from meshd.security.identity import mesh_id

NODE = NodeId(bytes.fromhex("0123456789abcdef"))
SAID = Announcement(NODE, mesh_hash(mesh_id("default")), 1, 6374, "lab-a")


def wire(announcement=SAID, **changes):
    properties = {k.encode(): v.encode() for k, v in to_properties(announcement).items()}
    for key, value in changes.items():
        properties[key.encode()] = value
    return properties


def test_names_follow_from_the_node_id():
    assert instance_name(NODE) == "0123456789abcdef._meshd._udp.local."
    assert host_name(NODE) == "meshd-0123456789abcdef.local."
    assert node_of(instance_name(NODE)) == NODE
    assert SERVICE_TYPE == "_meshd._udp.local."


@pytest.mark.parametrize(
    "name",
    [
        "",
        SERVICE_TYPE,
        "lab-a." + SERVICE_TYPE,
        "0123456789ABCDEF." + SERVICE_TYPE,
        "0123456789abcdef-2." + SERVICE_TYPE,
        "0123456789abcdef",
        "0123456789abcdef._other._udp.local.",
    ],
)
def test_other_instance_names_are_nobodys(name):
    assert node_of(name) is None


def test_the_text_record_has_exactly_these_keys_in_this_order():
    text = " ".join(f"{k}={v}" for k, v in to_properties(SAID).items())
    mesh = mesh_id("default").hex()[:8]
    assert text == f"txtvers=1 id=0123456789abcdef m={mesh} v=1 rpc=6374 n=lab-a"


@given(
    st.binary(min_size=8, max_size=8),
    st.text(min_size=1, max_size=20),
    st.integers(1, 255),
    st.integers(1, 65535),
)
def test_what_is_said_is_what_is_read(node, mesh, protocol, port):
    said = Announcement(NodeId(node), mesh_hash(mesh_id(mesh)), protocol, port, "lab-a")
    assert parse_properties(wire(said), 100) == said


def test_unknown_keys_are_left_to_later_versions():
    assert parse_properties(wire(later=b"\xff", flag=None), 100) == SAID


@pytest.mark.parametrize(
    "changes",
    [
        {"txtvers": b"2"},
        {"txtvers": None},
        {"id": b"0123456789abcde"},
        {"id": b"0123456789ABCDEF"},
        {"id": b"\xff" * 16},
        {"m": b"0123"},
        {"m": b"zzzzzzzz"},
        {"v": b"0"},
        {"v": b"256"},
        {"v": b"-1"},
        {"v": b""},
        {"rpc": b"0"},
        {"rpc": b"65536"},
        {"rpc": b"9" * 5000},
        {"rpc": "٣".encode()},
        {"n": b""},
        {"n": b"a b"},
        {"n": b"\x1b[31m"},
        {"n": b"x" * 65},
        {"n": None},
    ],
)
def test_a_record_with_one_bad_value_is_not_believed_at_all(changes):
    assert parse_properties(wire(**changes), 100) is None


def test_a_record_that_is_too_long_is_not_read():
    assert parse_properties(wire(), TXT_BYTES_MAX) == SAID
    assert parse_properties(wire(), TXT_BYTES_MAX + 1) is None


@given(st.dictionaries(st.binary(max_size=9), st.none() | st.binary(max_size=50)))
def test_random_records_raise_nothing(properties):
    assert parse_properties(properties, 100) is None


def interface(name, *networks, up=True, multicast=True, loopback=False):
    return Interface(name, up, multicast, loopback, networks)


LO = interface("lo", "127.0.0.1/8", "::1/128", multicast=False, loopback=True)
ETH = interface("eth0", "192.0.2.2/24", "fd00::2/64", "fe80::1/64")
WIFI = interface("wlan0", "10.0.0.2/24")


def chosen(interfaces, *wanted, loopback_only=False):
    return choose(interfaces, wanted, loopback_only=loopback_only)


def test_all_fit_interfaces_are_chosen_and_virtual_ones_are_not():
    virtual = [
        interface(n, "172.17.0.1/16")
        for n in ("docker0", "veth1a2b", "br-12ab", "virbr0", "tailscale0")
    ]
    unfit = [
        interface("down0", "10.1.0.1/24", up=False),
        interface("tun0", "10.2.0.1/24", multicast=False),
        interface("six0", "fd00::3/64"),
    ]
    choice = chosen([WIFI, LO, ETH, *virtual, *unfit])
    assert choice.names == "eth0,wlan0"
    assert choice.problems == ()
    assert not choice.loopback


def test_without_a_network_the_loopback_interface_serves_this_machine():
    choice = chosen([LO, interface("eth0", up=False)])
    assert choice.names == "lo"
    assert choice.loopback
    assert choice.makeshift
    assert "no network interface is up" in choice.problems[0]


def test_a_node_on_loopback_uses_nothing_else():
    assert chosen([LO, ETH], loopback_only=True).names == "lo"
    assert not chosen([LO, ETH], loopback_only=True).makeshift
    assert chosen([ETH], loopback_only=True).problems == ("the loopback interface is not up",)


def test_named_interfaces_are_taken_even_if_virtual_or_loopback():
    assert chosen([LO, ETH], "lo").names == "lo"
    docker = interface("docker0", "172.17.0.1/16")
    assert chosen([LO, ETH, docker], "docker0", "eth0").names == "docker0,eth0"


def test_a_named_interface_that_cannot_serve_is_explained():
    interfaces = [
        interface("a", up=False),
        interface("b", "fd00::1/64"),
        interface("c", "10.0.0.1/8", multicast=False),
    ]
    choice = chosen(interfaces, "a", "b", "c", "d")
    assert choice.interfaces == ()
    assert choice.problems == (
        "a: it is down",
        "b: it has no IPv4 address",
        "c: it has no multicast",
        "d: there is no such interface",
    )
    assert not choice.loopback


def test_a_node_that_speaks_both_versions_takes_an_interface_that_has_one():
    six = interface("b", "fd00::1/64", "fd00::2/64", "fe80::1/64")
    local = interface("c", "fe80::2/64")
    both = (4, 6)
    assert choose([LO, six, local], (), loopback_only=False, versions=both).names == "b"
    assert choose([LO, six, local], ["c"], loopback_only=False, versions=both).problems == (
        "c: it has no IPv4 or IPv6 address",
    )
    assert six.multicasters(both) == ("fd00::1",)
    assert six.multicasters((4,)) == ()
    assert ETH.multicasters(both) == ("192.0.2.2", "fd00::2")
    assert LO.multicasters(both) == ("127.0.0.1",)


def test_addresses_leave_out_link_local_ipv6():
    assert ETH.addresses(4) == ("192.0.2.2",)
    assert ETH.addresses(6) == ("fd00::2",)
    assert [str(n) for n in networks_of([WIFI])] == ["10.0.0.0/24"]


def test_the_machine_has_a_loopback_interface():
    loopback = [i for i in read_interfaces() if i.loopback]
    assert loopback[0].addresses(4) == ("127.0.0.1",)


Stat = namedtuple("Stat", "isup flags")  # noqa: PYI024  # as psutil's
Addr = namedtuple("Addr", "family address netmask")  # noqa: PYI024  # as psutil's


def test_odd_interfaces_of_a_machine_are_read_as_far_as_possible(monkeypatch):
    monkeypatch.setattr(psutil, "net_if_stats", lambda: {"a": Stat(True, "up,multicast")})
    entries = [
        Addr(socket.AF_INET, "10.0.0.1", "255.255.255.0"),
        Addr(socket.AF_INET, "10.0.0.2", None),
        Addr(socket.AF_INET6, "fe80::1%a", "ffff:ffff:ffff:ffff::"),
        Addr(socket.AF_INET, "nonsense", None),
        Addr(socket.AF_UNIX, "00:00", None),
    ]
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {"a": entries, "gone": entries})
    (read,) = read_interfaces()
    assert read == Interface("a", True, True, False, ("10.0.0.1/24", "10.0.0.2/32", "fe80::1/64"))
