"""Routing's settings of a running node: read anew at a reload, and when the policy file changes."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from meshd.capability.definition import CapabilityDefinition
from meshd.clock import Seconds
from meshd.config import Config, RoutingConfig
from meshd.daemon.settings import routing_settings
from meshd.discovery.base import Pause, cancel
from meshd.errors import UsageError
from meshd.routing.settings import Overrides
from meshd.telemetry.log import event, get_logger

if TYPE_CHECKING:
    from meshd.daemon.node import Node

POLL_S: Seconds = 2.0
FAULTS_SHOWN = 5

Reread = tuple[tuple[CapabilityDefinition, ...], tuple[str, ...]]
"""What a reload brings: all capabilities, and the keys of `[routing]` that changed."""

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
        self._seen: object = None
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
        try:
            return self._reread()
        except UsageError as error:
            self._failed(error)
            raise

    def use(self, fresh: RoutingConfig) -> tuple[str, ...]:
        """Route by these settings from now on; returns the key paths of those that changed."""
        changed = changes(self._held, fresh)
        if changed:
            self._node.dispatcher.use(routing_settings(fresh))
            event(logger, "info", "routing_changed", changed=",".join(changed))
        self._held = fresh
        self._node.problems.pop("routing", None)
        return changed

    async def _watch(self) -> None:
        while True:
            await self._look()
            await self._pause.wait(POLL_S)

    async def _look(self) -> None:
        path = self._held.policy_file
        mark = await asyncio.to_thread(_mark, path) if path else None
        if mark == self._seen:
            return
        self._seen = mark  # of a broken file as well: it is told once
        try:
            fresh = await asyncio.to_thread(self._reread)
        except UsageError as error:
            self._failed(error)
        else:
            self.use(fresh.routing)

    def _failed(self, error: UsageError) -> None:
        faults = error.data.get("faults") or [error.message]
        more = [f"and {len(faults) - FAULTS_SHOWN} more"] if len(faults) > FAULTS_SHOWN else []
        reason = "; ".join([*faults[:FAULTS_SHOWN], *more])
        problem = f"routing goes on by its old settings, for the new ones are wrong: {reason}"
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
