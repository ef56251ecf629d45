"""Addresses that the operator named: `--join` seeds and the lines of a peers file."""

import asyncio
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from meshd.discovery.address import Seed, literal, parse_seed
from meshd.discovery.base import (
    Found,
    Hint,
    Pause,
    Resolver,
    SourceState,
    SourceStatus,
    cancel,
)
from meshd.discovery.retry import Backoff, jittered
from meshd.errors import UsageError
from meshd.model import Address
from meshd.telemetry.log import event, get_logger

FIRST_S = 1.0
LIMIT_S = 48.0
"""Jitter included, a seed that is not there is tried at least once a minute, for ever."""

CHECK_S = 5.0
"""How often satisfied seeds are looked at again."""

RESOLVE_TIMEOUT_S = 10.0
RESOLVES_AT_ONCE = 8
ADDRESSES_PER_SEED_MAX = 16
SEEDS_MAX = 4096
PEERS_FILE_BYTES_MAX = 1024 * 1024
PEERS_FILE_POLL_S = 2.0
FAULTS_SHOWN = 5

logger = get_logger(__name__)


class StaticSource:
    """Resolves seeds and hints at them again, for as long as we are alone or one is not alive.

    `is_alone` says whether we know of no other living member; `is_alive` whether a living member
    (ourselves included: people give one seed list to all) has an address. Both are asked often
    and must be cheap. Names are resolved anew at each round, because DNS changes.
    """

    def __init__(
        self,
        seeds: Sequence[Seed],
        resolver: Resolver,
        *,
        is_alone: Callable[[], bool],
        is_alive: Callable[[Address], bool],
        rng: random.Random,
        name: str = "seeds",
        pause: Pause | None = None,
    ) -> None:
        self._seeds = tuple(dict.fromkeys(seeds))[:SEEDS_MAX]
        self._resolver = resolver
        self._is_alone = is_alone
        self._is_alive = is_alive
        self._rng = rng
        self._name = name
        self._pause = pause or Pause()
        self._backoff = Backoff(rng, first_s=FIRST_S, limit_s=LIMIT_S)
        self._addresses: dict[Seed, tuple[Address, ...]] = {}
        self._faults: dict[Seed, str] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self, found: Found) -> None:
        """Begin; the first round runs in the background."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(found), name=f"discovery-{self._name}")

    async def stop(self) -> None:
        """End. Idempotent."""
        task, self._task = self._task, None
        await cancel(task)

    def retry(self) -> None:
        """Try all again now, e.g. because the network changed."""
        self._backoff.reset()
        self._pause.wake()

    def replace(self, seeds: Sequence[Seed]) -> None:
        """Go on with these seeds instead."""
        self._seeds = tuple(dict.fromkeys(seeds))[:SEEDS_MAX]
        self._addresses = {s: a for s, a in self._addresses.items() if s in set(self._seeds)}
        self._faults = {s: f for s, f in self._faults.items() if s in set(self._seeds)}
        self.retry()

    def status(self) -> SourceStatus:
        """Failed only if no seed at all resolves."""
        if not self._seeds:
            return SourceStatus(self._name, SourceState.OFF, "none given")
        faults = "; ".join(list(self._faults.values())[:FAULTS_SHOWN])
        state = SourceState.OK if len(self._faults) < len(self._seeds) else SourceState.FAILED
        detail = f"{len(self._seeds)} given"
        return SourceStatus(self._name, state, f"{detail}; {faults}" if faults else detail)

    async def _run(self, found: Found) -> None:
        while True:
            wanted = self._wanted()
            if wanted:
                await self._round(wanted, found)
                await self._pause.wait(self._backoff.next())
            else:
                self._backoff.reset()
                await self._pause.wait(jittered(self._rng, CHECK_S))

    def _wanted(self) -> list[Seed]:
        if self._is_alone():
            return list(self._seeds)
        return [seed for seed in self._seeds if not self._is_satisfied(seed)]

    def _is_satisfied(self, seed: Seed) -> bool:
        return any(self._is_alive(address) for address in self._addresses.get(seed, ()))

    async def _round(self, seeds: Sequence[Seed], found: Found) -> None:
        for start in range(0, len(seeds), RESOLVES_AT_ONCE):
            batch = seeds[start : start + RESOLVES_AT_ONCE]
            results = await asyncio.gather(*(self._resolve(seed) for seed in batch))
            for seed, addresses in zip(batch, results, strict=True):
                if addresses:
                    self._addresses[seed] = addresses
                if not self._is_satisfied(seed) or self._is_alone():
                    for address in addresses:
                        found(Hint(address, None, self._name))

    async def _resolve(self, seed: Seed) -> tuple[Address, ...]:
        host = literal(seed.host)
        if host is not None:
            return (Address(host, seed.port),)
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT_S):
                addresses = await self._resolver(seed.host, seed.port)
        except TimeoutError:
            self._failed(seed, f"{seed.host} did not resolve within {RESOLVE_TIMEOUT_S:.0f} s")
        except (OSError, UnicodeError) as error:
            # UnicodeError: the system's IDNA codec refuses some names.
            reason = getattr(error, "strerror", None) or str(error)
            self._failed(seed, f"{seed.host} does not resolve: {reason}")
        else:
            self._faults.pop(seed, None)
            return tuple(dict.fromkeys(addresses))[:ADDRESSES_PER_SEED_MAX]
        return ()

    def _failed(self, seed: Seed, fault: str) -> None:
        if self._faults.get(seed) != fault:  # one warning for each new fault, not for each try
            self._faults[seed] = fault
            event(logger, "warning", "seed_unresolved", seed=str(seed), reason=fault)


class PeersFile(msgspec.Struct, frozen=True):
    """What a peers file says: its addresses, and its faults as `(line number, sentence)`."""

    seeds: tuple[Seed, ...] = ()
    faults: tuple[tuple[int, str], ...] = ()


def parse_peers(text: str) -> PeersFile:
    """One address a line; `#` begins a comment; faulty lines are skipped and reported."""
    seeds: list[Seed] = []
    faults: list[tuple[int, str]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        if len(seeds) >= SEEDS_MAX:
            faults.append((number, f"more than {SEEDS_MAX} addresses; the rest is ignored"))
            break
        try:
            seeds.append(parse_seed(entry))
        except UsageError as error:
            faults.append((number, error.message))
    return PeersFile(tuple(seeds), tuple(faults))


class PeersFileSource:
    """A file with one address a line, read again whenever it changes."""

    def __init__(
        self,
        path: Path,
        resolver: Resolver,
        *,
        is_alone: Callable[[], bool],
        is_alive: Callable[[Address], bool],
        rng: random.Random,
        pause: Pause | None = None,
    ) -> None:
        self._path = path
        self._static = StaticSource(
            (), resolver, is_alone=is_alone, is_alive=is_alive, rng=rng, name="peers-file"
        )
        self._pause = pause or Pause()
        self._seen: tuple[int, int, int] | None = None
        self._content = PeersFile()
        self._fault = ""
        self._task: asyncio.Task[None] | None = None

    async def start(self, found: Found) -> None:
        """Read the file and watch it."""
        if self._task is None:
            await self._look()
            await self._static.start(found)
            self._task = asyncio.create_task(self._watch(), name="discovery-peers-file-watch")

    async def stop(self) -> None:
        """End. Idempotent."""
        task, self._task = self._task, None
        await cancel(task)
        await self._static.stop()

    def retry(self) -> None:
        """Try all addresses again now, and look at the file again."""
        self._pause.wake()
        self._static.retry()

    def status(self) -> SourceStatus:
        """Failed while the file cannot be read; the last good content stays in use."""
        if self._fault:
            return SourceStatus("peers-file", SourceState.FAILED, self._fault)
        status = self._static.status()
        parts = [f"{self._path}: {status.detail}"]
        parts += [f"line {n}: {fault}" for n, fault in self._content.faults[:FAULTS_SHOWN]]
        state = SourceState.OK if status.state is SourceState.OFF else status.state
        return SourceStatus("peers-file", state, "; ".join(parts))

    async def _watch(self) -> None:
        while True:
            await self._pause.wait(PEERS_FILE_POLL_S)
            await self._look()

    async def _look(self) -> None:
        try:
            read = await asyncio.to_thread(_read_if_changed, self._path, self._seen)
        except OSError as error:
            self._failed(f"cannot read {self._path}: {error.strerror}")
            return
        except ValueError as error:
            self._failed(f"cannot use {self._path}: {error}")
            return
        self._fault = ""
        if read is None:
            return
        self._seen, text = read
        self._content = parse_peers(text)
        for number, fault in self._content.faults:
            event(logger, "warning", "peers_file_line", path=self._path, line=number, reason=fault)
        self._static.replace(self._content.seeds)

    def _failed(self, fault: str) -> None:
        self._seen = None
        if self._fault != fault:
            self._fault = fault
            event(logger, "warning", "peers_file_unreadable", reason=fault)


def _read_if_changed(
    path: Path, seen: tuple[int, int, int] | None
) -> tuple[tuple[int, int, int], str] | None:
    """The file's mark and text; None if the mark is `seen`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too large, or not text.
    """
    stat = path.stat()
    mark = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
    if mark == seen:
        return None
    if stat.st_size > PEERS_FILE_BYTES_MAX:
        raise ValueError(f"it is larger than {PEERS_FILE_BYTES_MAX} bytes")
    with path.open("rb") as file:
        data = file.read(PEERS_FILE_BYTES_MAX)
    try:
        return mark, data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8 text") from error
