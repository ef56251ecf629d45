"""Runs the programs that the configuration declares for events and queries, each in order."""

import asyncio
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from meshd.capability.definition import CommandHandler
from meshd.daemon.happenings import Asked
from meshd.errors import MeshError, PeerError, UsageError
from meshd.event_handler import EventHandler
from meshd.gossip.messages import EVENT_PAYLOAD_BYTES_MAX
from meshd.happening import Event
from meshd.telemetry.log import event, get_logger
from meshd.work.command import run_command

if TYPE_CHECKING:
    from meshd.daemon.node import Node

WAIT_S = 3_600.0
OUTPUT_BYTES_MAX = 65_536
"""What a handler of events may write: nobody reads it."""

logger = get_logger(__name__)


class EventCommands:
    """The declared handlers of one node.

    Each handler of events reads the node's log with a cursor of its own and runs one program at a
    time: nothing is queued, and what it is too slow for is lost to it alone, which the log tells.
    """

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._running: list[tuple[EventHandler, asyncio.Task[None]]] = []
        self._has_begun = False

    def check(self, handlers: Iterable[EventHandler]) -> None:
        """Whether `use` would take these.

        Raises:
            UsageError: an attached program answers one of the queries.
        """
        queries = tuple(each.query for each in handlers if each.query)
        self._node.happenings.check_free(queries, self)

    def use(self, handlers: Iterable[EventHandler]) -> None:
        """Run these, and no others; those that stay go on where they are.

        The first ones hear all since the node's start, later ones what happens from now on.

        Raises:
            UsageError: an attached program answers one of the queries; nothing changed.
        """
        wanted = tuple(handlers)
        by_query = {each.query: each for each in wanted if each.query}

        async def answer(asked: Asked) -> bytes:
            return await self._answer(by_query[asked.name], asked)

        self._node.happenings.answer_with(tuple(by_query), answer, self)
        following = [each for each in wanted if each.on]
        kept: list[tuple[EventHandler, asyncio.Task[None]]] = []
        for handler, task in self._running:
            if handler in following:
                following.remove(handler)
                kept.append((handler, task))
            else:
                task.cancel()
        after = self._node.happenings.log.last if self._has_begun else 0
        for handler in following:
            work = self._follow(handler, after)
            kept.append((handler, asyncio.create_task(work, name=f"meshd-handler {handler.label}")))
        self._running = kept
        self._has_begun = True

    async def stop(self) -> None:
        """End them, with the programs that run. Idempotent."""
        self._node.happenings.forget_owner(self)
        tasks = [task for _, task in self._running]
        self._running = []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, handler: EventHandler, upto: int) -> None:
        happenings = self._node.happenings
        while True:
            page = happenings.log.read(upto, handler.wants, limit=1)
            if page.lost:
                event(logger, "warning", "handler_too_slow", handler=handler.label, lost=page.lost)
            upto = page.next
            for each in page.events:
                await self._run(handler, each)
            if not page.events:
                try:
                    await happenings.wait_until(partial(self._has_news, upto), WAIT_S)
                except PeerError:
                    return  # the node stops

    def _has_news(self, upto: int) -> bool:
        return self._node.happenings.log.last > upto

    async def _run(self, handler: EventHandler, happened: Event) -> None:
        env = {"MESHD_EVENT": happened.type, "MESHD_EVENT_NAME": happened.event}
        line = msgspec.json.encode(happened) + b"\n"
        try:
            async with asyncio.timeout(handler.timeout_s):
                await self._command(handler, env, line, OUTPUT_BYTES_MAX)
        except TimeoutError:
            _failed(handler, f"it was ended after {handler.timeout_s:g} s")
        except MeshError as error:
            _failed(handler, error.message)
        except Exception as error:  # noqa: BLE001 - a fault of ours must not end the handler
            _failed(handler, repr(error))

    async def _answer(self, handler: EventHandler, asked: Asked) -> bytes:
        env = {"MESHD_QUERY": asked.name, "MESHD_QUERY_NODE": asked.node}
        try:
            async with asyncio.timeout(handler.timeout_s):
                said = await self._command(handler, env, asked.payload, EVENT_PAYLOAD_BYTES_MAX)
                return said.removesuffix(b"\n").removesuffix(b"\r")
        except TimeoutError:
            raise UsageError(f"no answer within {handler.timeout_s:g} s") from None

    async def _command(
        self, handler: EventHandler, env: dict[str, str], stdin: bytes, output_bytes_max: int
    ) -> bytes:
        # With the socket, `meshd peers` and the like in a handler ask this very daemon.
        env = {"MESHD_SOCKET": self._node.control_path, **env, **handler.env}
        command = CommandHandler(handler.command, handler.cwd, env)
        return await run_command(command, stdin, handler.label, output_bytes_max)


def _failed(handler: EventHandler, why: str) -> None:
    event(logger, "warning", "handler_failed", handler=handler.label, reason=why)
