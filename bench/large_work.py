"""What the bench of many and large calls has done."""

import asyncio
from collections.abc import AsyncIterator

from meshd import capability

MIB = 1_048_576


@capability(idempotent=True)
async def hold(seconds: float) -> float:
    """Take so long, and no processor."""
    await asyncio.sleep(seconds)
    return seconds


@capability(idempotent=True)
async def blob(size: int) -> str:
    """Give back so many bytes."""
    return "x" * size


@capability(idempotent=True)
async def flow(size: int, part: int) -> AsyncIterator[str]:
    """Give so many bytes in parts."""
    for _ in range(size // part):
        yield "x" * part
