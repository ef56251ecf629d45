"""The UDP endpoint on real loopback sockets."""

import asyncio
import socket
import sys
import time

import pytest

from meshd.gossip.transport import UdpEndpoint, _waited_s
from meshd.model import Address

pytestmark = pytest.mark.net
LOOPBACK = Address("127.0.0.1", 0)


@pytest.fixture
def pair():
    one = UdpEndpoint(LOOPBACK, bytes_max=1400)
    two = UdpEndpoint(LOOPBACK, bytes_max=1400)
    yield one, two
    one.close()
    two.close()


async def _readable(endpoint: UdpEndpoint) -> None:
    arrived = asyncio.Event()
    endpoint.on_readable(arrived.set)
    async with asyncio.timeout(5):
        await arrived.wait()


def _mail(received):
    return [(data, source) for data, source, _ in received]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux notes when a datagram came")
async def test_a_datagram_that_lay_at_the_socket_says_for_how_long(pair):
    one, two = pair
    began = time.monotonic()
    one.send(b"first", two.address)
    await _readable(two)
    time.sleep(0.05)  # plays work: the process does not read
    one.send(b"second", two.address)
    (_, _, first_s), (_, _, second_s) = two.receive(2)
    took_s = time.monotonic() - began
    assert 0.05 <= first_s <= took_s + 0.01
    assert 0 <= second_s <= took_s - 0.05 + 0.01


def test_without_the_kernels_note_nothing_is_said_to_have_waited():
    assert _waited_s([]) == 0.0
    assert _waited_s([(socket.SOL_SOCKET, 1, bytes(16))]) == 0.0


async def test_datagrams_arrive_oldest_first_and_no_more_than_asked_for(pair):
    one, two = pair
    for number in range(5):
        assert one.send(bytes([number]), two.address)
    await _readable(two)
    assert _mail(two.receive(2)) == [(b"\0", one.address), (b"\1", one.address)]
    assert [data for data, _ in _mail(two.receive(100))] == [b"\2", b"\3", b"\4"]
    assert two.receive(100) == []


async def test_a_datagram_that_is_too_long_is_read_as_one_byte_too_many(pair):
    one, two = pair
    one.send(bytes(5000), two.address)
    await _readable(two)
    assert len(two.receive(1)[0][0]) == 1401


async def test_a_closed_port_of_a_peer_breaks_neither_sending_nor_receiving(pair):
    one, two = pair
    gone = UdpEndpoint(LOOPBACK, bytes_max=1400)
    address = gone.address
    gone.close()
    for _ in range(3):
        one.send(b"x", address)
    two.send(b"still here", one.address)
    await _readable(one)
    assert _mail(one.receive(10)) == [(b"still here", two.address)]


def test_what_cannot_be_sent_is_lost_and_says_so(pair):
    one, _ = pair
    assert not one.send(bytes(70_000), Address("127.0.0.1", 9))
    assert not one.send(b"x", Address("::1", 9))


def test_a_taken_port_is_an_error_of_the_system(pair):
    one, _ = pair
    with pytest.raises(OSError, match="in use"):
        UdpEndpoint(one.address, bytes_max=1400)


def test_closing_twice_is_harmless(pair):
    one, _ = pair
    one.close()
    one.close()


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
async def test_a_dual_stack_socket_hears_and_answers_both_families():
    try:
        dual = UdpEndpoint(Address("::", 0), bytes_max=1400)
    except OSError as error:
        pytest.skip(f"IPv6 is switched off here: {error}")
    four = UdpEndpoint(LOOPBACK, bytes_max=1400)
    try:
        four.send(b"hello", Address("127.0.0.1", dual.address.port))
        await _readable(dual)
        assert _mail(dual.receive(1)) == [(b"hello", four.address)]
        assert dual.send(b"back", four.address)
        await _readable(four)
        assert _mail(four.receive(1)) == [(b"back", Address("127.0.0.1", dual.address.port))]
    finally:
        dual.close()
        four.close()
