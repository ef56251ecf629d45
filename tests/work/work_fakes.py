"""What tests of work share: a platform whose clock stands still, and capabilities with a gate."""

import asyncio
import random
from concurrent.futures import Executor, ThreadPoolExecutor

from meshd.capability.definition import CapabilityDefinition, RemoteHandler, capability, collect
from meshd.capability.manifest import Manifest
from meshd.clock import Instant
from meshd.work.worker import Worker, WorkResult


class StillClock:
    """Monotonic time moved by hand."""

    def __init__(self) -> None:
        self.at = 100.0

    def now(self) -> Instant:
        return Instant(self.at)

    def wall_ms(self) -> int:
        return 0


class WorkPlatform:
    """The parts of a platform that work uses."""

    def __init__(self) -> None:
        self.clock = StillClock()
        self.threads: list[ThreadPoolExecutor] = []

    def random(self, purpose: str) -> random.Random:
        return random.Random(purpose)

    def executor(self, workers: int) -> Executor:
        self.threads.append(ThreadPoolExecutor(workers))
        return self.threads[-1]


def one(function) -> CapabilityDefinition:
    """The definition of one function."""
    (found,) = collect(function)
    return found


class Gate:
    """Capabilities that begin when called and end when they are let through."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.began: list[str] = []
        self.news = asyncio.Condition()
        self.cancelled: list[str] = []

    @capability
    async def wait(self, text: str = "") -> str:
        async with self.news:
            self.began.append(text)
            self.news.notify_all()
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled.append(text)
            raise
        return text

    @capability(idempotent=True)
    async def fail(self, text: str = "") -> str:
        self.began.append(text)
        raise ValueError(text)

    @capability
    async def fail_once(self, text: str = "") -> str:
        self.began.append(text)
        raise ValueError(text)

    async def until(self, count: int) -> None:
        async with self.news:
            await self.news.wait_for(lambda: len(self.began) >= count)


@capability
def shout(text: str) -> str:
    return text.upper()


def begin(worker: Worker, name: str, value=None, **options) -> asyncio.Task[WorkResult]:
    return asyncio.create_task(worker.run(name, value, **options))


async def turns(number: int = 5) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


def remote(name: str, call, owner: str, **options) -> CapabilityDefinition:
    return CapabilityDefinition(Manifest(name=name, **options), RemoteHandler(call, owner))
