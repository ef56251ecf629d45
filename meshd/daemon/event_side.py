"""The side of a `Mesh` that is for events and queries: telling, following, asking, answering."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, TypeVar

from meshd.clock import Seconds
from meshd.daemon.link import Link
from meshd.daemon.program_events import EventStream, ProgramEvents, Replies, Reply, payload_params
from meshd.errors import MeshError
from meshd.happening import Event
from meshd.sink import Sink
from meshd.telemetry.log import event, get_logger
from meshd.work.origin import ORIGIN

logger = get_logger(__name__)
Target = TypeVar("Target", bound=Callable[..., Any] | type)
Answer = TypeVar("Answer")


class EventSide(ABC):
    """What a program does with events, whichever way it is part of the mesh."""

    _link: Link | None
    _loop: asyncio.AbstractEventLoop | None

    def __init__(self) -> None:
        self._program = ProgramEvents(self._request)
        self._late: asyncio.Task[None] | None = None

    @abstractmethod
    async def _request(
        self, method: str, params: Any, timeout_s: Seconds = 10.0, sink: Sink | None = None
    ) -> Any:
        """Call a method of the node."""

    @abstractmethod
    def _wait(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        """Run `work` in the mesh's loop, from another thread."""

    async def _follow(self) -> None:
        """See to it that the handlers of events and queries that there are now are called."""
        if self._link is not None and self._program.answerers:
            await self._link.answer_queries(self._program.answerers)
        if self._link is not None:
            self._program.start()

    async def _follow_late(self) -> None:
        """As `_follow`, where nobody waits for it: a refusal is told in the log."""
        try:
            await self._follow()
        except MeshError as error:
            event(logger, "error", "query_refused", reason=error.message)

    def on_event(self, name: str | None = None) -> Callable[[Target], Target]:
        """Call the decorated function with each user's event of this name; of any, if None.

        It takes an `Event`. One that does not await runs in a thread. Events come in order, one
        at a time: a slow function delays those that follow.
        """
        return self._listening(lambda target: self._program.on_event(name, target))

    def on_query(self, name: str) -> Callable[[Target], Target]:
        """Answer queries of this name by what the decorated function returns.

        It takes a `Query`; text and bytes go back as they are, all else as JSON, 1,024 bytes in
        all. What it raises is told to the asker: a MeshError in its words, else that it failed.
        """
        return self._listening(lambda target: self._program.on_query(name, target))

    def _listening(self, add: Callable[[Any], None]) -> Callable[[Target], Target]:
        def decorate(target: Target) -> Target:
            add(target)
            loop = self._loop
            if self._link is None or loop is None:
                return target  # the start will see to it
            if running_loop() is loop:
                self._late = loop.create_task(self._follow_late(), name="meshd-follow")
            else:
                self._wait(self._follow())
            return target

        return decorate

    def events(self, *types: str, since_s: Seconds = 0.0, node: str = "") -> EventStream:
        """What happens in the mesh from now on, in order: `async for event in mesh.events()`.

        Args:
            types: only these ("joined", "suspect", "dead", "event", ...); all, if none is given.
            since_s: begin with what happened in the last so many seconds.
            node: only what is about the node of this name or id.
        """
        return EventStream(self._request, types, since_s, node)

    async def emit(self, name: str, payload: Any = b"", *, coalesce: bool = False) -> None:
        """Tell all nodes of the mesh, this one too.

        Args:
            name: the event's name.
            payload: text, bytes or JSON values; 400 bytes at most.
            coalesce: nodes may leave out all but the newest of this name within a second.

        Raises:
            UsageError: it does not fit.
            BusyError: this node tells too much: 10 a second, 64 at once.
        """
        params = {"name": name, "coalesce": coalesce, **payload_params(payload)}
        await self._request("event", params)

    def query(
        self,
        name: str,
        payload: Any = b"",
        *,
        timeout_s: Seconds | None = None,
        to: Iterable[str] = (),
        capability: str = "",
    ) -> Replies:
        """Ask all nodes, and take the answers of those where a program answers such queries.

        `await` it for a list of all, once the time is over; or take each as it comes:
        `async for reply in mesh.query("uptime")`.

        Args:
            name: the query's name.
            payload: text, bytes or JSON values; 400 bytes at most.
            timeout_s: how long answers are gathered; some seconds, growing with the mesh, if None.
            to: names or ids of the only nodes that shall answer, 16 at most.
            capability: only nodes that offer this shall answer.

        Raises:
            UsageError: it does not fit.
            NoCandidateError: no living node has one of those names.
            BusyError: this node asks too much: 2 queries a second, 16 at once.
        """
        params: dict[str, Any] = {
            "name": name, "nodes": list(to), "capability": capability, **payload_params(payload),
        }  # fmt: skip
        if timeout_s is not None:
            params["timeout_s"] = timeout_s
        return Replies(self._ask, params)

    async def _ask(self, method: str, params: Any, timeout_s: Seconds = 10.0) -> Any:
        """Call a method of the node once it knows which queries this program answers by now."""
        if self._late is not None:
            await asyncio.shield(self._late)
        return await self._request(method, params, timeout_s)

    def events_sync(self, *types: str, **choices: Any) -> Iterator[Event]:
        """`events` for code that does not await."""
        stream = self.events(*types, **choices)
        return iter(lambda: self._wait(anext(stream)), None)

    def emit_sync(self, name: str, payload: Any = b"", **choices: Any) -> None:
        """`emit` for code that does not await."""
        self._wait(self.emit(name, payload, **choices))

    def query_sync(self, name: str, payload: Any = b"", **choices: Any) -> list[Reply]:
        """`query` for code that does not await: all answers, once the time is over."""
        return self._wait(self.query(name, payload, **choices).gather())


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The loop of whoever calls; None where there is none."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def carried(work: Coroutine[Any, Any, Answer]) -> Coroutine[Any, Any, Answer]:
    """The same work, from the origin of whoever asks, for a loop whose task has its own context."""
    origin = ORIGIN.get()

    async def from_there() -> Answer:
        ORIGIN.set(origin)
        return await work

    return from_there()
