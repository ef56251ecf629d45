"""Seeds and the peers file, with a resolver and pauses of our own."""

import asyncio
import os
import random

import pytest

from meshd.discovery.address import Seed, parse_seed
from meshd.discovery.base import Pause, SourceState
from meshd.discovery.static import (
    ADDRESSES_PER_SEED_MAX,
    PEERS_FILE_BYTES_MAX,
    PeersFileSource,
    StaticSource,
    parse_peers,
)
from meshd.model import Address


class Steps(Pause):
    """A pause that ends when the test says so, and records how long it should have been."""

    def __init__(self):
        super().__init__()
        self.asked = asyncio.Queue()
        self._go = asyncio.Semaphore(0)

    async def wait(self, seconds):
        self.asked.put_nowait(seconds)
        await self._go.acquire()

    async def next(self):
        """Wait until the source pauses, and let it go on."""
        async with asyncio.timeout(5):
            seconds = await self.asked.get()
        self._go.release()
        return seconds

    async def until_paused(self):
        async with asyncio.timeout(5):
            seconds = await self.asked.get()
        self.asked.put_nowait(seconds)
        return seconds


class World:
    """What the source may ask: a name service and the mesh's state."""

    def __init__(self):
        self.names = {"lab-b": ["10.0.0.2", "fd00::2"]}
        self.alive = set()
        self.alone = True
        self.hints = []
        self.lookups = []

    async def resolve(self, host, port):
        self.lookups.append(host)
        if host not in self.names:
            raise OSError(-2, "Name or service not known")
        return [Address(a, port) for a in self.names[host]]

    def options(self, pause):
        return {
            "is_alone": lambda: self.alone,
            "is_alive": lambda address: address in self.alive,
            "rng": random.Random(1),
            "pause": pause,
        }


@pytest.fixture
def world():
    return World()


@pytest.fixture
async def started(world):
    """Start a source over the given seeds; stop it in the end."""
    sources = []

    async def start(*seeds):
        pause = Steps()
        source = StaticSource([parse_seed(s) for s in seeds], world.resolve, **world.options(pause))
        await source.start(world.hints.append)
        sources.append(source)
        return source, pause

    yield start
    for source in sources:
        await source.stop()
        await source.stop()


async def test_names_and_addresses_become_hints_without_a_node(world, started):
    source, pause = await started("lab-b:7000", "10.0.0.9")
    await pause.until_paused()
    assert [h.address for h in world.hints] == [
        Address("10.0.0.2", 7000),
        Address("fd00::2", 7000),
        Address("10.0.0.9", 6374),
    ]
    assert {(h.node, h.source) for h in world.hints} == {(None, "seeds")}
    assert world.lookups == ["lab-b"]
    assert source.status().state is SourceState.OK


async def test_delays_double_from_one_second_to_a_minute_at_most(world, started):
    _, pause = await started("lab-b")
    delays = [await pause.next() for _ in range(9)]
    for delay, nominal in zip(delays, (1, 2, 4, 8, 16, 32, 48, 48, 48), strict=True):
        assert 0.75 * nominal <= delay <= min(60, 1.25 * nominal)


async def test_seeds_rest_once_their_members_are_alive_and_start_again_when_one_is_gone(
    world, started
):
    _, pause = await started("lab-b", "10.0.0.9")
    for _ in range(4):
        await pause.next()
    await pause.until_paused()
    world.alone = False
    world.alive = {Address("fd00::2", 6374), Address("10.0.0.9", 6374)}
    world.hints.clear()
    await pause.next()
    await pause.next()
    await pause.until_paused()
    assert world.hints == []
    world.alive.discard(Address("10.0.0.9", 6374))
    await pause.next()
    assert 0.75 <= await pause.next() <= 1.25
    assert {h.address for h in world.hints} == {Address("10.0.0.9", 6374)}


async def test_a_seed_that_is_not_there_is_tried_every_minute_though_we_are_not_alone(
    world, started
):
    world.alone, world.alive = False, {Address("fd00::2", 6374)}
    _, pause = await started("lab-b", "10.0.0.9")
    delays = [await pause.next() for _ in range(200)]
    assert max(delays) <= 60
    await pause.until_paused()
    assert len([h for h in world.hints if h.address == Address("10.0.0.9", 6374)]) == 201


async def test_alone_even_seeds_whose_address_is_our_own_are_tried(world, started):
    world.alive = {Address("10.0.0.9", 6374)}
    _, pause = await started("10.0.0.9")
    await pause.until_paused()
    assert [h.address for h in world.hints] == [Address("10.0.0.9", 6374)]


async def test_a_name_that_does_not_resolve_is_reported_once_and_tried_again(
    world, started, caplog
):
    source, pause = await started("lab-x", "lab-b")
    await pause.next()
    await pause.next()
    await pause.until_paused()
    assert world.lookups.count("lab-x") == 3
    assert caplog.text.count("seed_unresolved") == 1
    assert "lab-x does not resolve" in source.status().detail
    assert source.status().state is SourceState.OK
    world.names["lab-x"] = ["10.0.0.7"]
    await pause.next()
    await pause.until_paused()
    assert "lab-x" not in source.status().detail


async def test_when_no_seed_resolves_the_source_has_failed_and_goes_on(world, started):
    source, pause = await started("lab-x")
    await pause.until_paused()
    assert source.status().state is SourceState.FAILED
    assert await pause.next() > 0


async def test_a_resolver_that_hangs_is_given_up(world, started, monkeypatch):
    async def hang(_host, _port):
        await asyncio.Event().wait()

    monkeypatch.setattr("meshd.discovery.static.RESOLVE_TIMEOUT_S", 0.01)
    world.resolve = hang
    source, pause = await started("lab-b")
    await pause.until_paused()
    assert "did not resolve within" in source.status().detail


async def test_a_name_that_the_codec_refuses_is_a_fault_like_others(world, started):
    async def refuse(_host, _port):
        raise UnicodeError("label too long")

    world.resolve = refuse
    source, pause = await started("lab-b")
    await pause.until_paused()
    assert "label too long" in source.status().detail


async def test_a_name_with_a_thousand_addresses_is_cut(world, started):
    world.names["lab-b"] = [f"10.1.{i // 250}.{i % 250 + 1}" for i in range(1000)]
    _, pause = await started("lab-b")
    await pause.until_paused()
    assert len(world.hints) == ADDRESSES_PER_SEED_MAX


async def test_without_seeds_the_source_is_off(started):
    source, _ = await started()
    assert source.status().state is SourceState.OFF


async def test_retry_ends_the_pause_at_once(world):
    source = StaticSource(
        [Seed("10.0.0.9")], world.resolve, **{**world.options(None), "pause": None}
    )
    seen = asyncio.Queue()
    await source.start(seen.put_nowait)
    await source.start(seen.put_nowait)
    try:
        async with asyncio.timeout(0.7):
            await seen.get()
            source.retry()
            await seen.get()
    finally:
        await source.stop()


def test_a_peers_file_is_read_line_by_line():
    content = parse_peers("# mesh\nlab-b\n\n  10.0.0.9:7000  # rack 2\r\nbad line\n[::1\n")
    assert content.seeds == (Seed("lab-b"), Seed("10.0.0.9", 7000))
    assert [number for number, _ in content.faults] == [5, 6]
    assert "'bad line' is not an address" in content.faults[0][1]


def test_a_peers_file_with_too_many_lines_is_cut(monkeypatch):
    monkeypatch.setattr("meshd.discovery.static.SEEDS_MAX", 2)
    content = parse_peers("a\nb\nc\nd\n")
    assert [s.host for s in content.seeds] == ["a", "b"]
    assert content.faults[0][0] == 3


@pytest.fixture
async def watched(world, tmp_path):
    """Start a source over a peers file; yields its path, the source and its pauses."""
    path = tmp_path / "peers"
    pause = Steps()
    source = PeersFileSource(path, world.resolve, **world.options(pause))
    yield path, source, pause
    await source.stop()


async def hinted(world, address):
    async with asyncio.timeout(5):
        while address not in {h.address for h in world.hints}:
            await asyncio.sleep(0)


async def test_a_changed_peers_file_is_read_again(world, watched):
    path, source, pause = watched
    path.write_text("10.0.0.1\n")
    await source.start(world.hints.append)
    await source.start(world.hints.append)
    await hinted(world, Address("10.0.0.1", 6374))
    path.write_text("10.0.0.1\n10.0.0.22\n")
    await pause.next()
    await hinted(world, Address("10.0.0.22", 6374))
    assert source.status().state is SourceState.OK
    assert "2 given" in source.status().detail
    source.retry()


async def test_faulty_lines_are_warned_with_their_numbers(world, watched, caplog):
    path, source, _ = watched
    path.write_text("10.0.0.1\nnot an address\n")
    await source.start(world.hints.append)
    assert "line 2: 'not an address'" in source.status().detail
    assert caplog.records[-1].fields["line"] == 2


async def test_a_missing_file_is_a_failed_source_until_it_appears(world, watched, caplog):
    path, source, pause = watched
    await source.start(world.hints.append)
    assert source.status().state is SourceState.FAILED
    await pause.next()
    await pause.until_paused()
    assert caplog.text.count("peers_file_unreadable") == 1
    path.write_text("10.0.0.1\n")
    await pause.next()
    await hinted(world, Address("10.0.0.1", 6374))
    assert source.status().state is SourceState.OK


@pytest.mark.parametrize("data", [b"\xff\xfe", b"#" * (PEERS_FILE_BYTES_MAX + 1)])
async def test_a_file_that_is_no_text_or_too_large_keeps_the_earlier_content(world, watched, data):
    path, source, pause = watched
    path.write_text("10.0.0.1\n")
    await source.start(world.hints.append)
    path.write_bytes(data)
    os.utime(path, ns=(1, 1))
    await pause.next()
    await pause.until_paused()
    assert source.status().state is SourceState.FAILED
    assert "cannot use" in source.status().detail
    world.hints.clear()
    source.retry()
    await hinted(world, Address("10.0.0.1", 6374))


async def test_an_empty_peers_file_is_fine(world, watched):
    path, source, _ = watched
    path.write_text("# nobody yet\n")
    await source.start(world.hints.append)
    assert source.status().state is SourceState.OK
