"""Whom we knew: kept on disk, and tried again for ever when they are not alive."""

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from meshd.clock import Clock
from meshd.discovery.base import Found, Hint, Pause, SourceState, SourceStatus, cancel
from meshd.discovery.retry import RetrySchedule
from meshd.model import ID_BYTES, NAME_CHARS_MAX, Address, NodeId
from meshd.security.files import DamagedError, read_checked, set_aside, write_checked
from meshd.telemetry.log import event, get_logger

CACHE_FILE = "peers.cache"
ENTRIES_MAX = 4096
ADDRESSES_MAX = 8
TICK_S = 1.0
SAVE_S = 10.0
"""Changes reach the disk at most this much later; a stop writes them at once."""

SAVE_NEWS_S = 2.0
"""As above, for a node or an address that the disk does not know: a crash should not forget it."""

SEEN_GRAIN_MS = 60_000
"""A newer `seen` alone is worth a write only past this."""

HINTS_PER_TICK = 32

logger = get_logger(__name__)


class CachedPeer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A node that was a living member once. `seen_ms` is wall-clock ms since 1970 UTC.

    `addresses` are the newest first.
    """

    node: NodeId
    name: str
    addresses: tuple[Address, ...]
    seen_ms: int


class PeerCache:
    """The last known peers: at most 4096, the least recently seen leave first.

    Only what a node proved itself belongs here (living members), never hints or hearsay. Nothing
    raises: a disk that is full costs one warning and what is in memory stays; `problem` says so.
    `changes` grows whenever a node enters or leaves, `evicted` counts those that made room.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._peers: dict[NodeId, CachedPeer] = {}
        self._dirty = False
        self._has_news = False
        self._writing = threading.Lock()
        self.problem = ""
        self.evicted = 0
        self.changes = 0

    def __len__(self) -> int:
        return len(self._peers)

    @property
    def dirty(self) -> bool:
        """Whether memory holds what the disk does not."""
        return self._dirty

    @property
    def has_news(self) -> bool:
        """Whether memory holds a node or an address that the disk was not yet given."""
        return self._has_news

    @property
    def peers(self) -> tuple[CachedPeer, ...]:
        """All entries, the most recently seen first."""
        return tuple(sorted(self._peers.values(), key=lambda p: (-p.seen_ms, p.node)))

    def get(self, node: NodeId) -> CachedPeer | None:
        """What is known of `node`."""
        return self._peers.get(node)

    def remember(
        self,
        node: NodeId,
        address: Address,
        name: str,
        wall_ms: int,
        *,
        other: Address | None = None,
    ) -> None:
        """A living member was seen here, or at its `other` address, under this name."""
        known = self._peers.get(node)
        here = (address,) if other is None else (address, other)
        older = () if known is None else tuple(a for a in known.addresses if a not in here)
        addresses = (*here, *older)[:ADDRESSES_MAX]
        if (
            known is not None
            and (known.addresses, known.name) == (addresses, name)
            and wall_ms - known.seen_ms < SEEN_GRAIN_MS
        ):
            return
        self._peers[node] = CachedPeer(node, name[:NAME_CHARS_MAX], addresses, wall_ms)
        self._dirty = True
        self._has_news = self._has_news or known is None or known.addresses != addresses
        if known is None:
            self.changes += 1
            self._evict()

    def _evict(self) -> None:
        while len(self._peers) > ENTRIES_MAX:
            oldest = min(self._peers.values(), key=lambda p: (p.seen_ms, p.node))
            del self._peers[oldest.node]
            self.evicted += 1

    def forget(self, node: NodeId) -> None:
        """Never try `node` again, e.g. because it left for good."""
        if self._peers.pop(node, None) is not None:
            self._dirty = True
            self.changes += 1

    def load(self) -> None:
        """Read the file; a damaged one is kept aside with a warning, and we begin afresh."""
        try:
            peers = _decode(read_checked(self._path))
        except FileNotFoundError:
            return
        except OSError as error:
            self._failed("cannot read", error)
            return
        except (DamagedError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            aside = set_aside(self._path)
            kept = aside or "(not kept)"
            event(logger, "warning", "cache_damaged", path=self._path, reason=error, kept_as=kept)
            return
        # What is in memory already is newer than the file.
        self._peers = {peer.node: peer for peer in peers} | self._peers
        self.changes += 1
        self._evict()

    def encode(self) -> bytes:
        """The file's body."""
        return msgspec.json.encode(self.peers)

    def write(self, body: bytes) -> bool:
        """Write an encoded body; blocks, so run it in a thread. False if the disk refused."""
        try:
            with self._writing:  # a cancelled save may still be writing in its thread
                write_checked(self._path, body)
        except OSError as error:
            self._failed("cannot write", error)
            return False
        self.problem = ""
        return True

    async def save(self) -> None:
        """Bring memory to the disk, if they differ, without blocking the loop."""
        if not self._dirty:
            return
        self._dirty = False  # what changes during the write is written the next time
        had_news, self._has_news = self._has_news, False
        written = False
        try:
            written = await asyncio.to_thread(self.write, self.encode())
        finally:
            self._dirty = self._dirty or not written
            self._has_news = self._has_news or (had_news and not written)

    def _failed(self, what: str, error: OSError) -> None:
        first = not self.problem
        self.problem = f"{what} {self._path}: {error.strerror}"
        if first:
            event(logger, "warning", "cache_failed", reason=self.problem, effect="kept in memory")


def _decode(body: bytes) -> Sequence[CachedPeer]:
    """The entries of a body.

    Raises:
        msgspec.MsgspecError: it holds something else, or more of it than we ever write.
    """
    peers = msgspec.json.decode(body, type=list[CachedPeer])
    if len(peers) > ENTRIES_MAX or not all(
        len(p.node) == ID_BYTES and 0 < len(p.addresses) <= ADDRESSES_MAX for p in peers
    ):
        raise msgspec.ValidationError("entries out of bounds")
    return peers


class CacheSource:
    """Hints at cached peers that are not alive: 1 s, 2 s, 4 s ... when alone, else 30 s .. 1 h.

    `is_alive` says whether a node is a living member (ourselves included), `share` which part of
    those that are due to try, since others have them in their caches, too; both must be cheap.
    """

    def __init__(
        self,
        cache: PeerCache,
        *,
        clock: Clock,
        is_alone: Callable[[], bool],
        is_alive: Callable[[NodeId], bool],
        rng: random.Random,
        pause: Pause | None = None,
        share: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self._cache = cache
        self._share = share
        self._clock = clock
        self._is_alone = is_alone
        self._is_alive = is_alive
        self._schedule: RetrySchedule[NodeId] = RetrySchedule(rng)
        self._pause = pause or Pause()
        self._saved_at = clock.now()
        self._changes = -1
        self._task: asyncio.Task[None] | None = None

    async def start(self, found: Found) -> None:
        """Read the file and begin to hint, the most recently seen first."""
        if self._task is not None:
            return
        await asyncio.to_thread(self._cache.load)
        self._saved_at = self._clock.now()
        self._task = asyncio.create_task(self._run(found), name="discovery-cache")

    async def stop(self) -> None:
        """Write what is not yet on disk. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            await cancel(task)
            await self._cache.save()

    def retry(self) -> None:
        """Try all again now."""
        self._schedule.hurry(self._clock.now())
        self._pause.wake()

    def status(self) -> SourceStatus:
        """Failed while the disk refuses; hints go on from memory. Off while there are none."""
        count = f"{len(self._cache)} known"
        if not len(self._cache) and not self._cache.problem:
            return SourceStatus("cache", SourceState.OFF, "nobody is known yet")
        if self._cache.problem:
            detail = f"{count}, in memory only: {self._cache.problem}"
            return SourceStatus("cache", SourceState.FAILED, detail)
        return SourceStatus("cache", SourceState.OK, count)

    async def _run(self, found: Found) -> None:
        while True:
            self._tick(found)
            now = self._clock.now()
            if now - self._saved_at >= (SAVE_NEWS_S if self._cache.has_news else SAVE_S):
                self._saved_at = now
                await self._cache.save()
            await self._pause.wait(TICK_S)

    def _tick(self, found: Found) -> None:
        now = self._clock.now()
        alone = self._is_alone()
        if self._changes != self._cache.changes:
            self._changes = self._cache.changes
            for peer in self._cache.peers:
                self._schedule.add(peer.node, now)
        due = self._schedule.due(
            now, alone=alone, is_alive=self._is_alive, limit=HINTS_PER_TICK, share=self._share()
        )
        for node in due:
            known = self._cache.get(node)
            if known is None:
                self._schedule.remove(node)
                continue
            for address in known.addresses:
                found(Hint(address, node, "cache"))


def read_peers(path: Path) -> tuple[CachedPeer, ...]:
    """The entries of a cache file, for `meshd doctor`; nothing where it cannot be read."""
    with contextlib.suppress(OSError, DamagedError, msgspec.MsgspecError, UnicodeDecodeError):
        return tuple(_decode(read_checked(path)))
    return ()
