"""The loop of every system's caller: the same calls, counted in the same way.

It runs in the systems' own environments, so it needs the standard library alone. Orders come as
JSON lines on stdin, figures go back as JSON lines on stdout.
"""

import asyncio
import json
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

TEXT = "hello"
Call = Callable[[], Awaitable[object]]


def say(value: Any) -> None:
    """Tell the bench."""
    print(json.dumps(value), flush=True)


def summary(taken: list[float], seconds: float) -> dict[str, float]:
    """Milliseconds and calls a second."""
    ordered = sorted(taken)
    return {
        "count": len(ordered),
        "p50_ms": round(ordered[len(ordered) // 2], 4),
        "p99_ms": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 4),
        "per_s": round(len(ordered) / seconds, 1),
    }


async def until_answered(call: Call) -> None:
    """Until the system works: it has a minute."""
    for _ in range(600):
        try:
            await call()
        except Exception:  # noqa: BLE001 - each system has its own error for "not yet"
            await asyncio.sleep(0.1)
        else:
            return
    await call()


async def crowd(call: Call, callers: int, seconds: float) -> tuple[list[float], float]:
    """With so many callers at once: milliseconds of each call, and seconds in all."""
    taken: list[float] = []
    began = time.perf_counter()

    async def caller() -> None:
        while (at := time.perf_counter()) < began + seconds:
            await call()
            taken.append((time.perf_counter() - at) * 1_000)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return taken, time.perf_counter() - began


async def single(call: Call, count: int) -> tuple[list[float], float]:
    """One after the other: as `crowd`."""
    taken = []
    began = time.perf_counter()
    for _ in range(count):
        at = time.perf_counter()
        await call()
        taken.append((time.perf_counter() - at) * 1_000)
    return taken, time.perf_counter() - began


async def obey(call: Call) -> None:
    """Take orders until there are no more."""
    await until_answered(call)
    say("ready")
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = json.loads(line)
        if "callers" in order:
            say(summary(*await crowd(call, order["callers"], order["seconds"])))
        else:
            say(summary(*await single(call, order["calls"])))


def obey_in_threads(call: Callable[[], None]) -> None:
    """The same for a system whose client blocks: each caller is a thread."""
    for tries in range(600):
        try:
            call()
        except Exception:
            if tries == 599:
                raise
            time.sleep(0.1)
        else:
            break
    say("ready")
    for line in sys.stdin:
        order = json.loads(line)
        taken: list[float] = []
        began = time.perf_counter()

        def caller(ends: float, most: int, taken: list[float] = taken) -> None:
            while (at := time.perf_counter()) < ends and len(taken) < most:
                call()
                taken.append((time.perf_counter() - at) * 1_000)

        if "callers" in order:
            ends = began + order["seconds"]
            threads = [
                threading.Thread(target=caller, args=(ends, 10**9)) for _ in range(order["callers"])
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        else:
            caller(float("inf"), order["calls"])
        say(summary(taken, time.perf_counter() - began))


def run(main: Awaitable[None]) -> None:
    """Run a role, on uvloop where there is one."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        new_event_loop = asyncio.new_event_loop

    async def body() -> None:
        await main

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(body())
