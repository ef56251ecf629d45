"""Routing's settings of a running node: read anew at a reload, and when the policy file changes."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from meshd.clock import Seconds
from meshd.config import Config, RoutingConfig
from meshd.daemon.settings import routing_settings
from meshd.discovery.base import Pause, cancel
from meshd.errors import MeshError, UsageError
from meshd.routing.rules import Rules
from meshd.routing.settings import Overrides
from meshd.telemetry.log import event, get_logger

if TYPE_CHECKING:
    from meshd.daemon.node import Node

POLL_S: Seconds = 2.0
SETTLE_S: Seconds = 0.5
"""How long a changed file is left alone: some editors empty it, and write it a moment later."""
FAULTS_SHOWN = 5

Reloaded = tuple[tuple[str, ...], tuple[str, ...]]
"""What a reload changed: names of capabilities, and keys of `[routing]`."""

_UNREAD = object()
"""A mark that no file has."""

logger = get_logger(__name__)


class RoutingWatch:
    """Keeps a node's routing as the configuration says.

    A new policy file brings all that routing is told, from every file, as a reload does. While any
    of it is wrong, what held before goes on, and `meshd status` says so.
    """

    def __init__(
        self, node: "Node", reread: Callable[[], Config], *, pause: Pause | None = None
    ) -> None:
        """`reread` gives the configuration as it is now; it is called on a thread as well."""
        self._node = node
        self._reread = reread
        self._pause = pause or Pause()
        self._held = node.config.routing
        self._generation = 0  # of what was read last; what was begun before it is stale
        self._last: object = _UNREAD  # the file at the last look
        self._used: object = None  # the file whose policies hold
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to watch the policy file; the node has been started."""
        self._task = asyncio.create_task(self._watch(), name="meshd-routing-watch")

    async def stop(self) -> None:
        """End. Idempotent."""
        task, self._task = self._task, None
        await cancel(task)

    def read(self) -> Config:
        """The configuration as it is now.

        Raises:
            UsageError: it is wrong; what held before goes on.
        """
        self._generation += 1
        try:
            return self._reread()
        except UsageError as error:
            self._failed(error)
            raise

    def check(self, fresh: RoutingConfig) -> None:
        """Whether `use` would take these settings.

        Raises:
            UsageError: it would not; what held before goes on.
        """
        try:
            Rules(routing_settings(fresh))
        except UsageError as error:
            self._failed(error)
            raise

    def use(self, fresh: RoutingConfig) -> tuple[str, ...]:
        """Route by these settings from now on; returns the key paths of those that changed.

        Raises:
            UsageError: those of a capability are out of range; nothing changed.
        """
        changed = changes(self._held, fresh)
        if changed:
            self._node.dispatcher.use(routing_settings(fresh))
            event(logger, "info", "routing_changed", changed=",".join(changed))
        self._held = fresh
        self._generation += 1
        self._node.problems.pop("routing", None)
        return changed

    async def _watch(self) -> None:
        while True:
            await self._pause.wait(await self._look())

    async def _look(self) -> Seconds:
        """Read the file if it is new and finished; returns how long to wait for the next look."""
        generation = self._generation
        try:
            return await self._follow()
        except Exception as error:  # noqa: BLE001 - the next look may go better
            # Ending here would leave the file unwatched, and nobody would know.
            if generation == self._generation:
                self._failed(error)
            return POLL_S

    async def _follow(self) -> Seconds:
        path = self._held.policy_file
        mark = await asyncio.to_thread(_mark, path) if path else None
        last, self._last = self._last, mark
        if mark == self._used:
            return POLL_S
        if mark != last:
            return SETTLE_S  # it may be half written
        generation = self._generation
        fresh = await asyncio.to_thread(self._reread)
        if generation == self._generation:  # or a reload has read what is newer
            self.use(fresh.routing)
            self._used = mark
        return POLL_S

    def _failed(self, error: Exception) -> None:
        self._used = _UNREAD  # even the old file, should it come back, is news: the problem is over
        if isinstance(error, MeshError):
            what, faults = "wrong", error.data.get("faults") or [error.message]
        else:
            what, faults = "not to be read", [repr(error)]
        more = [f"and {len(faults) - FAULTS_SHOWN} more"] if len(faults) > FAULTS_SHOWN else []
        reason = "; ".join([*faults[:FAULTS_SHOWN], *more])
        problem = f"routing goes on by its old settings, for the new ones are {what}: {reason}"
        if self._node.problems.get("routing") != problem:
            self._node.problems["routing"] = problem
            event(logger, "error", "routing_not_changed", reason=reason)


def changes(old: RoutingConfig, new: RoutingConfig) -> tuple[str, ...]:
    """The keys within `[routing]` that differ: `retries`, `capability.translate`."""
    keys = [
        key
        for key in old.__struct_fields__
        if key != "capability" and getattr(old, key) != getattr(new, key)
    ]
    names = dict.fromkeys((*old.capability, *new.capability))
    none = Overrides()
    keys += [
        f"capability.{name}"
        for name in names
        if old.capability.get(name, none) != new.capability.get(name, none)
    ]
    return tuple(keys)


def _mark(path: str) -> object:
    """What differs once the file has changed."""
    try:
        found = Path(path).stat()
    except OSError as error:
        return str(error)
    return found.st_mtime_ns, found.st_size, found.st_ino
