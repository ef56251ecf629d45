"""What the daemons of these tests offer."""

import asyncio
import os
import time

from meshd import capability


@capability(tags=["text"], idempotent=True, examples=["say it loudly"])
def shout(text: str) -> str:
    """Say a text loudly."""
    return text.upper()


@capability
def nap(seconds: float) -> int:
    """Sleep in a thread; returns the process that did."""
    time.sleep(seconds)  # plays work: it occupies a thread
    return os.getpid()


@capability
async def doze(seconds: float) -> int:
    """Sleep in the loop, as async code does."""
    await asyncio.sleep(seconds)  # plays work: it occupies a slot
    return os.getpid()


@capability
async def jam(seconds: float) -> int:
    """Block the main loop, as bad async code does."""
    time.sleep(seconds)  # plays work: it blocks the loop
    return os.getpid()


@capability
def fail(text: str) -> str:
    """Fail."""
    raise ValueError(text)
