"""The wish that a node stop, from whoever has it to whoever carries it out."""

import asyncio

from meshd.clock import Seconds


class Stopping:
    """Somebody asked this node to stop: when, and how much time running tasks get."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self.drain_s: Seconds | None = None

    @property
    def is_asked(self) -> bool:
        """Whether somebody did."""
        return self._asked.is_set()

    def ask(self, drain_s: Seconds | None = None) -> None:
        """Stop; None gives the configured time."""
        self.drain_s = drain_s
        self._asked.set()

    async def wait(self) -> None:
        """Until somebody asks."""
        await self._asked.wait()
