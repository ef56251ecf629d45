"""What the chaos bench has done: each run appends what it did to a file, in one write."""

import asyncio
import os
import random

from meshd import capability

LOG = os.environ.get("CHAOS_LOG", os.devnull)
NODE = os.environ.get("CHAOS_NODE", "")
WORK_S = (0.002, 0.02)


async def _take_effect(kind: str, number: int) -> int:
    """Begin with the effect: what is cut off in the middle has had it all the same."""
    with open(LOG, "ab", buffering=0) as log:  # noqa: PTH123 - one line, at once
        log.write(b"%s %d %s\n" % (kind.encode(), number, NODE.encode()))
    await asyncio.sleep(random.uniform(*WORK_S))
    return number


@capability
async def once(number: int) -> int:
    """Must not take effect twice."""
    return await _take_effect("once", number)


@capability(idempotent=True)
async def again(number: int) -> int:
    """May take effect again."""
    return await _take_effect("again", number)


@capability(idempotent=True)
async def keyed(number: int) -> int:
    """May take effect again, but once a worker: each call has a key."""
    return await _take_effect("keyed", number)
