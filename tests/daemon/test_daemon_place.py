"""Which address a node tells others: by interfaces, route and what it told so far."""

import socket

import pytest

from meshd.daemon.place import bind_tcp, choose_host, choose_hosts, own_hosts
from meshd.discovery.interfaces import Interface


def interface(name, *networks, up=True, loopback=False):
    return Interface(name, up, True, loopback, networks)


LO = interface("lo", "127.0.0.1/8", "::1/128", loopback=True)
ETH = interface("eth0", "192.0.2.2/24", "fd00::2/64")
WIFI = interface("wlan0", "10.0.0.2/24")
DOCKER = interface("docker0", "172.17.0.1/16")


def both(*interfaces, routed4=None, routed6=None, now=()):
    return choose_hosts(interfaces, (), routed={4: routed4, 6: routed6}, now=now)


def chosen(*interfaces, wanted=(), version=4, routed=None, now=None):
    return choose_host(interfaces, wanted, version=version, routed=routed, now=now)


def test_a_named_interface_goes_before_the_default_route():
    assert chosen(LO, ETH, WIFI, wanted=["wlan0"], routed="192.0.2.2") == "10.0.0.2"
    assert chosen(LO, ETH, wanted=["192.0.2.2"], routed="198.51.100.1") == "192.0.2.2"


def test_a_named_interface_that_is_down_or_missing_gives_way_to_the_default_route():
    down = interface("wlan0", "10.0.0.2/24", up=False)
    assert chosen(LO, ETH, down, wanted=["wlan0", "eth7"], routed="192.0.2.2") == "192.0.2.2"


def test_the_default_route_is_followed_to_another_network():
    assert chosen(LO, ETH, WIFI, routed="10.0.0.2", now="192.0.2.2") == "10.0.0.2"


def test_without_a_route_any_network_will_do_but_no_loopback():
    assert chosen(LO, ETH) == "192.0.2.2"
    assert chosen(LO, ETH, version=6) == "fd00::2"
    assert chosen(LO, WIFI, version=6) is None


def test_a_bridge_to_containers_is_taken_only_where_there_is_no_other_network():
    assert chosen(DOCKER, ETH, LO) == "192.0.2.2"
    assert chosen(DOCKER, LO, interface("eth0")) == "172.17.0.1"
    assert chosen(DOCKER, ETH, LO, now="172.17.0.1") == "192.0.2.2"


def test_of_several_addresses_the_one_that_is_told_stays():
    eth = interface("eth0", "192.0.2.10/24", "192.0.2.2/24")
    assert chosen(LO, eth) == "192.0.2.10"
    assert chosen(LO, eth, now="192.0.2.2") == "192.0.2.2"
    assert chosen(LO, eth, wanted=["eth0"], now="192.0.2.2") == "192.0.2.2"
    assert chosen(LO, eth, now="192.0.2.3") == "192.0.2.10"


def test_a_node_that_speaks_both_versions_tells_an_address_of_each_that_the_machine_has():
    assert both(LO, ETH) == ("192.0.2.2", "fd00::2")
    assert both(LO, WIFI) == ("10.0.0.2",)
    assert both(LO, interface("eth0", "fd00::2/64")) == ("fd00::2",)
    assert both(LO, ETH, WIFI, routed4="10.0.0.2", now=["192.0.2.2", "fd00::2"]) == (
        "10.0.0.2",
        "fd00::2",
    )


def test_what_is_told_stays_while_there_is_no_network():
    down = interface("eth0", "10.0.0.9/8", up=False)
    assert both(LO, now=["192.0.2.2"]) == ("192.0.2.2",)
    assert both(LO, down, now=["192.0.2.2", "fd00::2"]) == ("192.0.2.2", "fd00::2")


def test_a_node_that_never_had_a_network_tells_loopback_and_then_the_first_that_comes():
    assert both(LO) == both() == ("127.0.0.1",)
    assert both(LO, WIFI, now=["127.0.0.1"]) == ("10.0.0.2",)


def test_a_definite_address_is_told_as_it_is():
    assert own_hosts("127.0.0.1", ["eth0"], ["192.0.2.2"]) == ("127.0.0.1",)
    assert own_hosts("fd00::7", ()) == ("fd00::7",)


@pytest.mark.net
@pytest.mark.parametrize("wildcard", ["0.0.0.0", "::"])  # noqa: S104 - looked at, not bound
def test_for_a_wildcard_this_machine_has_an_address(wildcard):
    hosts = own_hosts(wildcard, ())
    assert hosts
    for host in hosts:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as here:
            here.bind((host, 0))


@pytest.mark.net
def test_a_tcp_socket_on_the_ipv6_wildcard_hears_both_families():
    with bind_tcp("::", 0) as listener:
        assert not listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    with bind_tcp("::1", 0) as listener:
        assert listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
