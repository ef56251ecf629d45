"""TCP and UDP between simulated machines."""

import asyncio
import random

import pytest

from meshd.model import Address, MeshId
from sim.network import Constant, Network, Shape
from sim.trace import Trace
from sim.whole import streams
from sim.whole.loop import Lane, VirtualLoop
from sim.whole.streams import StreamSocket
from sim.whole.wires import Datagrams, Wires

DELAY_S = 0.01


async def passes(seconds):
    """Virtual time passes: nobody waits."""
    await asyncio.sleep(seconds)  # plays work: a handler's, or the network's, in virtual time


class Recorder(asyncio.Protocol):
    """Keeps what happens to it."""

    def __init__(self, *, echo=False):
        self.echo = echo
        self.data = bytearray()
        self.events = []
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport
        self.events.append("made")

    def data_received(self, data):
        self.data += data
        if self.echo:
            self.transport.write(data)

    def eof_received(self):
        self.events.append("eof")

    def pause_writing(self):
        self.events.append("pause")

    def resume_writing(self):
        self.events.append("resume")

    def connection_lost(self, error):
        if not self.lost.done():
            self.lost.set_result(error)


class Two:
    """Two machines, a server on the second."""

    def __init__(self, loss=0.0, seed=1):
        self.loop = VirtualLoop(100.0)
        shape = Shape(latency=Constant(DELAY_S), loss=loss)
        self.network = Network(shape, lambda what: random.Random(f"{seed}/{what}"))
        self.wires = Wires(self.loop, self.network, Trace(MeshId(b"simulate")), random.Random(seed))
        self.one = self.wires.add(0, "10.0.0.1")
        self.two = self.wires.add(1, "10.0.0.2")
        self.accepted = []

    def accept(self):
        protocol = Recorder(echo=True)
        self.accepted.append(protocol)
        return protocol

    async def serve(self):
        return await self.loop.create_server(
            self.accept, sock=StreamSocket(self.wires, self.two, 80)
        )

    async def connect(self, port=80):
        sock = StreamSocket(self.wires, self.one)
        await self.loop.sock_connect(sock, ("10.0.0.2", port))
        _, protocol = await self.loop.create_connection(Recorder, sock=sock)
        return protocol

    def run(self, test):
        try:
            return self.loop.run_until_complete(test)
        finally:
            assert self.loop.problems == []
            self.loop.close()


@pytest.fixture
def two():
    return Two()


def test_bytes_come_back_in_order_after_the_delays(two):
    async def talks():
        await two.serve()
        before = two.loop.time()
        protocol = await two.connect()
        assert two.loop.time() - before == pytest.approx(2 * DELAY_S)
        sent = bytes(range(256)) * 1_000
        protocol.transport.write(sent)
        await passes(1)
        assert bytes(protocol.data) == sent
        protocol.transport.close()
        assert await protocol.lost is None
        await passes(1)
        assert two.accepted[0].events == ["made", "eof"]
        assert (two.one.open_sockets, two.two.open_sockets) == (0, 1)

    two.run(talks())


def test_what_is_lost_is_sent_again():
    two = Two(loss=0.3)

    async def talks():
        await two.serve()
        protocol = await two.connect()
        for number in range(50):
            protocol.transport.write(b"%03d" % number)
        await passes(600)
        assert bytes(protocol.data) == b"".join(b"%03d" % n for n in range(50))

    two.run(talks())
    assert two.network.dropped > 0


def test_who_does_not_listen_refuses(two):
    async def talks():
        before = two.loop.time()
        with pytest.raises(ConnectionRefusedError):
            await two.connect()
        assert two.loop.time() - before == pytest.approx(2 * DELAY_S)

    two.run(talks())


def test_a_cut_machine_does_not_answer_and_the_attempt_ends_at_last(two):
    async def talks():
        await two.serve()
        two.network.partition("cut", (frozenset({0}), frozenset({1})))
        before = two.loop.time()
        with pytest.raises(TimeoutError):
            await two.connect()
        assert 60 < two.loop.time() - before < 200

    two.run(talks())


def test_data_waits_for_the_end_of_a_cut(two):
    async def talks():
        await two.serve()
        protocol = await two.connect()
        two.network.partition("cut", (frozenset({0}), frozenset({1})))
        protocol.transport.write(b"hello")
        await passes(10)
        assert not protocol.data
        two.network.heal("cut")
        await passes(20)
        assert bytes(protocol.data) == b"hello"

    two.run(talks())


def test_a_connection_into_an_endless_cut_is_given_up(two):
    async def talks():
        await two.serve()
        protocol = await two.connect()
        two.network.partition("cut", (frozenset({0}), frozenset({1})))
        protocol.transport.write(b"hello")
        before = two.loop.time()
        assert isinstance(await protocol.lost, TimeoutError)
        assert two.loop.time() - before > streams.GIVE_UP_S

    two.run(talks())


def test_a_killed_process_ends_its_connections(two):
    async def talks():
        await two.serve()
        protocol = await two.connect()
        await passes(1)
        two.two.kill()
        assert await protocol.lost is None
        assert protocol.events == ["made", "eof"]
        with pytest.raises(ConnectionRefusedError):
            await two.connect()

    two.run(talks())


def test_who_writes_to_a_killed_process_that_it_heard_nothing_of_is_reset(two):
    async def talks():
        await two.serve()
        protocol = await two.connect()
        await passes(1)
        two.network.cut("deaf", frozenset({1}), frozenset({0}))
        two.two.kill()
        await passes(1)
        assert not protocol.lost.done()
        two.network.heal("deaf")
        protocol.transport.write(b"hello")
        assert await protocol.lost is None or protocol.lost.done()

    two.run(talks())


def test_who_aborts_resets_the_other(two):
    async def talks():
        await two.serve()
        protocol = await two.connect()
        await passes(1)
        protocol.transport.abort()
        assert isinstance(await two.accepted[0].lost, ConnectionResetError)

    two.run(talks())


def test_a_reader_that_pauses_holds_the_writer_back(two):
    async def talks():
        await two.serve()
        protocol = await two.connect()
        await passes(1)
        reader = two.accepted[0]
        reader.echo = False
        reader.transport.pause_reading()
        sent = bytes(3 * streams.RECEIVE_BUFFER_BYTES)
        protocol.transport.write(sent)
        await passes(5)
        assert protocol.events[-1] == "pause"
        assert protocol.transport.get_write_buffer_size() > 0
        assert not reader.data
        reader.transport.resume_reading()
        await passes(5)
        assert len(reader.data) == len(sent)
        assert protocol.events[-1] == "resume"

    two.run(talks())


def test_an_attempt_that_is_given_up_leaves_no_socket(two):
    async def connects_and_stays():
        await two.connect()
        await passes(1)

    async def talks():
        await two.serve()
        for delay_s in (DELAY_S, 2 * DELAY_S, 2.5 * DELAY_S):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(connects_and_stays(), delay_s)
        await passes(1)
        for protocol in two.accepted:
            protocol.transport.close()

    two.run(talks())


@pytest.mark.parametrize("after_s", [1.5 * DELAY_S, 2.5 * DELAY_S])
def test_whom_a_closed_listener_had_not_accepted_yet_is_reset_and_leaves_no_socket(two, after_s):
    """The answer is on its way; or the connection is made, and nobody has taken it up."""

    async def connects_and_hears_the_end():
        protocol = await two.connect()
        raise await protocol.lost

    async def talks():
        server = await two.serve()
        two.loop.call_later(after_s, server.close)
        with pytest.raises(ConnectionResetError):
            await connects_and_hears_the_end()
        await passes(1)
        assert two.accepted == []
        assert two.two.open_sockets == two.one.open_sockets == 0

    two.run(talks())


@pytest.mark.parametrize("killed_after_s", [0.5 * DELAY_S, 1.5 * DELAY_S, 1.5])
def test_a_killed_process_connects_to_nobody_any_more(two, killed_after_s):
    """Not by what is on its way, nor when a cut heals into which it was dialling."""
    lane = Lane("killed")

    async def talks():
        await two.serve()
        if killed_after_s > 1:
            two.network.partition("cut", (frozenset({0}), frozenset({1})))
        dialling = asyncio.create_task(two.connect(), context=lane.context())
        await passes(killed_after_s)
        two.loop.end(lane)
        two.one.kill()
        two.network.heal()
        await passes(200)
        assert not dialling.done()
        assert two.accepted == []
        assert two.one.open_sockets == 0
        assert two.two.open_sockets == 1, "its listener"

    two.run(talks())
    two.loop.bury(lane)


def test_datagrams_arrive_late_at_a_starved_process(two):
    got = []

    async def talks():
        source = Datagrams(two.wires, two.one, 7, 100)
        target = Datagrams(two.wires, two.two, 7, 100)
        target.on_readable(
            lambda: got.extend((two.loop.time(), d) for d, _, _ in target.receive(9))
        )
        two.two.late_s = (0.5, 2.5)
        for number in range(20):
            source.send(b"%d" % number, target.address)
        await passes(30)
        source.send(b"x" * 200, target.address)
        source.send(b"nobody", Address("10.9.9.9", 7))
        source.send(b"closed", Address("10.0.0.2", 8))
        await passes(30)
        target.close()
        target.close()

    two.run(talks())
    assert [d for _, d in got[:20]] == [b"%d" % n for n in range(20)]
    assert got[0][0] >= 100.5
    assert len(got[20][1]) == 101, "longer than the limit shows as one byte more"
    assert len(got) == 21
