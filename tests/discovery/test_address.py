"""Addresses from people, and addresses from strangers."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.discovery.address import (
    Seed,
    is_loopback,
    is_unspecified,
    is_usable,
    literal,
    parse_advertise,
    parse_bind,
    parse_seed,
)
from meshd.errors import UsageError
from meshd.model import Address

ANY = "0.0.0.0"  # noqa: S104  # data of a test: nothing is bound


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("lab-a", "lab-a", 6374),
        (" lab-a:7000 ", "lab-a", 7000),
        ("LAB-A.Example.ORG.", "lab-a.example.org", 6374),
        ("192.168.1.17", "192.168.1.17", 6374),
        ("192.168.1.17:1", "192.168.1.17", 1),
        ("fd00::17", "fd00::17", 6374),
        ("[fd00::17]", "fd00::17", 6374),
        ("[FD00:0::17]:65535", "fd00::17", 65535),
        ("_x.local", "_x.local", 6374),
    ],
)
def test_a_seed_is_read(text, host, port):
    assert parse_seed(text) == Seed(host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":7000",
        "a:0",
        "a:65536",
        "a:",
        "a:x",
        "a:" + "9" * 9999,
        "a:٣",
        "[fd00::17",
        "[fd00::17]x",
        "[lab-a]:1",
        "[1.2.3.4]:1",
        "fd00::xyz",
        "a b",
        "a..b",
        "-" * 64,
        "256.1.1.1",
        "1.2.3",
        "x" * 254,
        ANY,
        "::",
        "224.0.0.251",
        "http://lab-a:1",
        "ü",
    ],
)
def test_what_is_no_seed_is_refused_with_the_text_and_a_hint(text):
    with pytest.raises(UsageError) as caught:
        parse_seed(text)
    assert "is not an address" in caught.value.message
    assert caught.value.hint
    assert len(caught.value.message) < 300


@given(st.text(max_size=40))
def test_any_text_is_a_seed_or_a_usage_error(text):
    try:
        seed = parse_seed(text)
    except UsageError:
        return
    assert parse_seed(str(seed)) == seed


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":0", Address(ANY, 0)),
        ("*:7000", Address(ANY, 7000)),
        ("127.0.0.1", Address("127.0.0.1", 6374)),
        ("localhost:1", Address("127.0.0.1", 1)),
        ("[::]:6374", Address("::", 6374)),
        ("::1", Address("::1", 6374)),
    ],
)
def test_a_bind_address_is_read(text, address):
    assert parse_bind(text) == address


@pytest.mark.parametrize("text", ["lab-a", "224.0.0.1", "1.2.3.4:70000", "[::1"])
def test_what_cannot_be_bound_is_refused(text):
    with pytest.raises(UsageError):
        parse_bind(text)


def test_an_advertised_address_takes_the_bound_port_unless_it_has_one():
    assert parse_advertise("203.0.113.7", 7000) == (Address("203.0.113.7", 7000),)
    assert parse_advertise("[fd00::1]:99", 7000) == (Address("fd00::1", 99),)


def test_an_address_of_each_version_may_be_advertised():
    both = (Address("203.0.113.7", 7000), Address("fd00::1", 7000))
    assert parse_advertise("203.0.113.7, fd00::1", 7000) == both
    assert parse_advertise("[fd00::1]:7000,203.0.113.7", 7000) == both
    for text in ("10.0.0.1,10.0.0.2", "10.0.0.1,fd00::1,fd00::2", "10.0.0.1,"):
        with pytest.raises(UsageError):
            parse_advertise(text, 7000)


@pytest.mark.parametrize("text", ["lab-a", ANY, "::", "224.0.0.1", "10.0.0.1:0", ""])
def test_an_address_that_nobody_can_call_is_not_advertised(text):
    with pytest.raises(UsageError):
        parse_advertise(text, 7000)


def test_kinds_of_hosts():
    assert literal("FD00::0:1") == "fd00::1"
    assert literal("lab-a") is None
    assert is_loopback("127.9.9.9")
    assert not is_loopback("localhost")
    assert is_unspecified("::")
    assert not is_unspecified("lab-a")


LINK = (ipaddress.ip_network("198.18.0.0/24"), ipaddress.ip_network("2001:db9::/64"))
OWN = frozenset({Address("10.0.0.1", 6374), Address("127.0.0.1", 6374)})


def usable(host, port=6374, *, loopback=False):
    return is_usable(Address(host, port), own=OWN, networks=LINK, loopback=loopback)


@pytest.mark.parametrize(
    "host", ["10.0.0.2", "192.168.1.5", "169.254.7.7", "fd00::9", "198.18.0.9"]
)
def test_private_and_on_link_addresses_are_usable(host):
    assert usable(host)


def test_public_addresses_are_usable_on_our_own_link_alone():
    assert usable("2001:db9::5")
    assert not usable("2001:db9:1::5")
    assert not usable("8.8.8.8")
    assert not usable("::ffff:8.8.8.8")


@pytest.mark.parametrize(
    "host",
    [
        ANY,
        "0.1.2.3",
        "::",
        "127.0.0.1",
        "::1",
        "::ffff:127.0.0.1",
        "224.0.0.251",
        "ff02::fb",
        "255.255.255.255",
        "240.0.0.1",
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "fd00:ec2::254",
        "fe80::1",
        "lab-a",
        "",
    ],
)
def test_what_no_peer_can_have_is_never_usable(host):
    assert not usable(host)


def test_our_own_address_and_bad_ports_are_not_usable():
    assert not usable("10.0.0.1")
    assert usable("10.0.0.1", 6375)
    assert not usable("10.0.0.2", 0)
    assert not usable("10.0.0.2", 65536)


def test_loopback_is_usable_where_we_run_on_loopback_except_ourselves():
    assert usable("127.0.0.1", 7000, loopback=True)
    assert not usable("127.0.0.1", 6374, loopback=True)
    assert not usable("::ffff:127.0.0.1", 6374, loopback=True)


@given(st.ip_addresses(), st.integers(-1, 70_000), st.booleans())
def test_no_address_makes_the_check_fail(ip, port, loopback):
    assert usable(str(ip), port, loopback=loopback) in {True, False}
