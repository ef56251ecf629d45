"""Whom we knew, on disk and in memory."""

import asyncio
import errno
import os
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.discovery import cache as cache_module
from meshd.discovery.base import Pause, SourceState, SourceStatus
from meshd.discovery.cache import ADDRESSES_MAX, CacheSource, PeerCache, read_peers
from meshd.model import Address, NodeId
from meshd.security.files import write_checked


def node(number):
    return NodeId(number.to_bytes(8, "big"))


def at(number, port=6374):
    return Address(f"10.0.{number // 250}.{number % 250 + 1}", port)


@pytest.fixture
def cache(tmp_path):
    return PeerCache(tmp_path / "peers.cache")


async def test_what_was_remembered_survives_a_restart(cache, tmp_path):
    cache.remember(node(1), at(1), "lab-a", 1000)
    cache.remember(node(2), at(2), "lab-b", 2000)
    await cache.save()
    again = PeerCache(tmp_path / "peers.cache")
    again.load()
    assert again.peers == cache.peers
    assert [p.name for p in again.peers] == ["lab-b", "lab-a"]
    assert not again.dirty


def test_the_newest_address_comes_first_and_old_ones_are_bounded(cache):
    for port in range(1, 20):
        cache.remember(node(1), at(1, port), "lab-a", port)
    addresses = cache.get(node(1)).addresses
    assert len(addresses) == ADDRESSES_MAX
    assert addresses[0].port == 19
    cache.remember(node(1), at(1, 15), "lab-a", 100)
    assert [a.port for a in cache.get(node(1)).addresses[:2]] == [15, 19]


async def test_a_slightly_newer_sighting_alone_is_not_worth_a_write(cache):
    cache.remember(node(1), at(1), "lab-a", 0)
    await cache.save()
    cache.remember(node(1), at(1), "lab-a", 59_999)
    assert not cache.dirty
    cache.remember(node(1), at(1), "lab-a", 60_000)
    assert cache.dirty


def test_the_least_recently_seen_leave_when_it_is_full(cache, monkeypatch):
    monkeypatch.setattr(cache_module, "ENTRIES_MAX", 3)
    for number in (1, 2, 3, 4):
        cache.remember(node(number), at(number), "n", number * 100)
    assert {p.node for p in cache.peers} == {node(2), node(3), node(4)}
    assert cache.evicted == 1
    assert len(cache) == 3


def test_the_forgotten_are_gone(cache):
    cache.remember(node(1), at(1), "n", 1)
    before = cache.changes
    cache.forget(node(1))
    cache.forget(node(1))
    assert cache.get(node(1)) is None
    assert cache.changes == before + 1


def test_no_file_is_an_empty_cache(cache, caplog):
    cache.load()
    assert cache.peers == ()
    assert caplog.text == ""


@given(st.data())
def test_a_file_that_is_cut_anywhere_is_kept_aside_and_forgotten(tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("cut")
    cache = PeerCache(directory / "c")
    cache.remember(node(1), at(1), "lab-a", 1)
    assert cache.write(cache.encode())
    content = (directory / "c").read_bytes()
    (directory / "c").write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    fresh = PeerCache(directory / "c")
    fresh.load()
    assert fresh.peers == ()
    assert (directory / "c.damaged-1").exists()


@pytest.mark.parametrize(
    "body",
    [
        b"[]x",
        b"{}",
        b'[{"node": "AQ==", "name": "", "addresses": [{"host": "a", "port": 1}], "seen_ms": 1}]',
        b'[{"node": "AAAAAAAAAAE=", "name": "", "addresses": [], "seen_ms": 1}]',
        b'[{"node": "AAAAAAAAAAE=", "name": "\xff", "addresses": [], "seen_ms": 1}]',
    ],
)
def test_a_whole_file_of_another_shape_is_damaged(cache, tmp_path, body, caplog):
    write_checked(tmp_path / "peers.cache", body)
    assert read_peers(tmp_path / "peers.cache") == ()
    cache.load()
    assert cache.peers == ()
    assert "cache_damaged" in caplog.text


def test_an_unreadable_file_costs_a_warning(cache, tmp_path, caplog):
    (tmp_path / "peers.cache").mkdir()
    cache.load()
    assert "cache_failed" in caplog.text


def refuse(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def test_a_full_disk_costs_one_warning_and_loses_nothing(
    cache, tmp_path, monkeypatch, caplog
):
    cache.remember(node(1), at(1), "lab-a", 1)
    await cache.save()
    cache.remember(node(2), at(2), "lab-b", 2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        await cache.save()
        await cache.save()
    assert caplog.text.count("cache_failed") == 1
    assert "No space left" in cache.problem
    assert cache.dirty
    assert len(cache) == 2
    assert [p.name for p in read_peers(tmp_path / "peers.cache")] == ["lab-a"]
    await cache.save()
    assert cache.problem == ""
    assert len(read_peers(tmp_path / "peers.cache")) == 2


def test_four_thousand_entries_fit_the_bound_of_state_files(cache):
    for number in range(cache_module.ENTRIES_MAX):
        for port in range(ADDRESSES_MAX):
            cache.remember(node(number), at(number, 65_000 + port), "n" * 64, 2**50)
    assert cache.write(cache.encode())
    assert len(read_peers(cache._path)) == cache_module.ENTRIES_MAX


class World(Pause):
    """The clock, the mesh and the source's pauses in one: a pause moves the clock."""

    def __init__(self):
        super().__init__()
        self.time = 0.0
        self.alone = True
        self.alive = set()
        self.hints = []
        self.end = asyncio.Event()
        self.until = 0.0

    def now(self):
        return self.time

    def wall_ms(self):
        return 0

    async def wait(self, seconds):
        if self.time >= self.until:
            self.end.set()
            await asyncio.Event().wait()
        self.time += seconds
        await asyncio.sleep(0)

    def found(self, hint):
        self.hints.append((self.time, hint))


async def run(world, cache, until, **more):
    world.until = until
    source = CacheSource(
        cache,
        clock=world,
        is_alone=lambda: world.alone,
        is_alive=lambda n: n in world.alive,
        rng=random.Random(1),
        pause=world,
        **more,
    )
    await source.start(world.found)
    await source.start(world.found)
    async with asyncio.timeout(5):
        await world.end.wait()
    await source.stop()
    await source.stop()
    return source


async def test_alone_all_known_peers_are_tried_at_once_the_last_seen_first(cache):
    cache.remember(node(1), at(1), "old", 1)
    cache.remember(node(2), at(2), "new", 2)
    world = World()
    source = await run(world, cache, until=8)
    assert [h.node for _, h in world.hints[:2]] == [node(2), node(1)]
    assert {h.source for _, h in world.hints} == {"cache"}
    assert len([t for t, h in world.hints if h.node == node(1)]) >= 3
    assert source.status().state is SourceState.OK


async def test_a_source_that_knows_nobody_is_off(cache):
    source = await run(World(), cache, until=3)
    assert source.status() == SourceStatus("cache", SourceState.OFF, "nobody is known yet")


async def test_living_peers_are_left_alone(cache):
    cache.remember(node(1), at(1), "a", 1)
    cache.remember(node(2), at(2), "b", 1)
    world = World()
    world.alone, world.alive = False, {node(1)}
    await run(world, cache, until=100)
    assert {h.node for _, h in world.hints} == {node(2)}
    assert world.hints[0][0] >= 20


async def test_a_large_cache_is_tried_a_few_at_a_time(cache):
    for number in range(100):
        cache.remember(node(number), at(number), "n", number)
    world = World()
    await run(world, cache, until=3)
    first = [h for t, h in world.hints if t == 0]
    assert len(first) == cache_module.HINTS_PER_TICK
    assert len({h.node for _, h in world.hints}) == 100


async def test_in_company_others_have_the_same_memory_and_each_tries_its_share(cache):
    for number in range(100):
        cache.remember(node(number), at(number), "n", number)
    world = World()
    world.alone = False
    await run(world, cache, until=60, share=lambda: 0.2)
    assert 5 < len(world.hints) < 40


async def test_on_another_network_all_are_tried_again_at_once(cache):
    cache.remember(node(1), at(1), "a", 1)
    world = World()
    world.alone = False
    source = CacheSource(
        cache,
        clock=world,
        is_alone=lambda: False,
        is_alive=lambda _: False,
        rng=random.Random(1),
    )
    await source.start(world.found)
    await asyncio.sleep(0)
    assert world.hints == []
    source.retry()
    async with asyncio.timeout(5):
        while not world.hints:
            await asyncio.sleep(0)
    await source.stop()


async def test_the_forgotten_are_not_tried(cache):
    cache.remember(node(1), at(1), "a", 1)
    world = World()
    found, world.found = world.found, lambda hint: (found(hint), cache.forget(node(1)))
    await run(world, cache, until=60)
    assert len(world.hints) == 1


async def test_changes_reach_the_disk_while_it_runs_and_at_the_stop(cache, tmp_path):
    world = World()
    cache.remember(node(1), at(1), "a", 1)
    await run(world, cache, until=15)
    assert len(read_peers(tmp_path / "peers.cache")) == 1
    cache.remember(node(2), at(2), "b", 1)
    world.end.clear()
    await run(world, cache, until=0)
    assert len(read_peers(tmp_path / "peers.cache")) == 2


async def test_a_new_node_and_a_new_address_reach_the_disk_soon(cache, tmp_path):
    world = World()
    cache.remember(node(1), at(1), "a", 1)
    for address in (at(1), at(2)):
        cache.remember(node(1), address, "a", 1)
        assert cache.has_news
        world.end.clear()
        world.until = world.time + cache_module.SAVE_NEWS_S + cache_module.TICK_S
        source = CacheSource(
            cache, clock=world, is_alone=lambda: True, is_alive=lambda n: False,
            rng=random.Random(1), pause=world,
        )  # fmt: skip
        await source.start(world.found)
        async with asyncio.timeout(5):
            await world.end.wait()
        (kept,) = read_peers(tmp_path / "peers.cache")
        assert kept.addresses[0] == address
        assert not cache.has_news
        await source.stop()


async def test_a_source_whose_disk_is_full_says_so_and_goes_on(cache, monkeypatch):
    monkeypatch.setattr(os, "fsync", refuse)
    cache.remember(node(1), at(1), "a", 1)
    world = World()
    source = await run(world, cache, until=30)
    assert source.status().state is SourceState.FAILED
    assert "in memory only" in source.status().detail
    assert world.hints


async def test_a_save_that_is_cancelled_is_made_up_for(cache, monkeypatch):
    monkeypatch.setattr(asyncio, "to_thread", never)
    cache.remember(node(1), at(1), "a", 1)
    task = asyncio.create_task(cache.save())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert cache.dirty


async def never(*_):
    await asyncio.Event().wait()


def test_entries_are_plain_json_with_the_node_in_base64(cache):
    cache.remember(node(1), at(1), "a", 1)
    assert msgspec.json.decode(cache.encode())[0]["node"] == "AAAAAAAAAAE="
