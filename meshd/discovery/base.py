"""What every way of finding peers has in common: it gives hints and never decides anything."""

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Protocol

import msgspec

from meshd.model import Address, NodeId

Resolver = Callable[[str, int], Awaitable[list[Address]]]
"""Addresses of a host name, in the system's order; raises OSError (`Platform.resolve`)."""


class SourceState(StrEnum):
    """Whether a source can find anybody; a limited one finds some, and its detail says whom not."""

    OK = "ok"
    LIMITED = "limited"
    OFF = "off"
    FAILED = "failed"


class SourceStatus(msgspec.Struct, frozen=True):
    """One line of `meshd status`: a failed source says in `detail` why, and what goes on."""

    source: str
    state: SourceState
    detail: str = ""


class Hint(msgspec.Struct, frozen=True):
    """Somebody may answer at `address`: worth a join attempt, and nothing more than that.

    `node` is whom the source expects there, if it knows; it is unproven.
    """

    address: Address
    node: NodeId | None
    source: str


Found = Callable[[Hint], None]
"""Takes a hint; must return at once and must not raise."""


class PeerSource(Protocol):
    """A way to find peers. Its failure never stops the daemon."""

    async def start(self, found: Found) -> None:
        """Begin to give hints. Raises nothing because of the network, the disk or a peer."""
        ...

    async def stop(self) -> None:
        """Stop and release everything. Idempotent."""
        ...

    def retry(self) -> None:
        """Try everybody again now: the network is another, or we slept."""
        ...

    def status(self) -> SourceStatus:
        """How it goes."""
        ...


class Pause:
    """A wait that somebody else can cut short."""

    def __init__(self) -> None:
        self._woken = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Return after `seconds`, or at once when woken since the last wait."""
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return
        self._woken.clear()

    def wake(self) -> None:
        """End the present wait, or the next one."""
        self._woken.set()


async def cancel(task: "asyncio.Task[None] | None") -> None:
    """Cancel a task of ours and wait until it is gone."""
    if task is None:
        return
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
