"""What a program follows, tells, asks and answers in the mesh: the SDK's part for events."""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Mapping
from typing import Any, Protocol, Self, TypeVar

import msgspec

from meshd.clock import Seconds
from meshd.daemon.happenings import Answerer, Asked
from meshd.errors import MeshError, PeerError
from meshd.happening import LOST, Event, payload_from, payload_shape
from meshd.model import check_name
from meshd.telemetry.log import event, get_logger

POLL_S: Seconds = 20.0
"""How long one question for news waits; the answer comes as soon as there are any."""
GRACE_S: Seconds = 10.0
AWAY_PAUSE_S: Seconds = 1.0
RETRY_PAUSE_S: Seconds = 0.1

Handler = TypeVar("Handler", bound=Callable[..., Any])
logger = get_logger(__name__)


class Request(Protocol):
    """Calls a method of the program's node."""

    async def __call__(self, method: str, params: Any, timeout_s: Seconds = ...) -> Any:
        """The result of `method`."""
        ...


class Query(msgspec.Struct, frozen=True):
    """A query as its handler gets it.

    `node` is the id of who asks, in hex; an answer is awaited for `timeout_s`.
    """

    name: str
    payload: bytes
    node: str
    timeout_s: Seconds

    @property
    def text(self) -> str:
        """The payload as text."""
        return self.payload.decode("utf-8", "replace")


class Reply(msgspec.Struct, frozen=True):
    """A node's answer to a query. Where `error` is not empty, it says why there is none."""

    node: str
    name: str
    payload: bytes = b""
    error: str = ""

    @property
    def text(self) -> str:
        """The payload as text."""
        return self.payload.decode("utf-8", "replace")

    @property
    def value(self) -> Any:
        """The payload as JSON."""
        return msgspec.json.decode(self.payload)


class EventStream:
    """Events in order, without end: `async for event in mesh.events()`.

    One of the type "lost" stands for as many as `event.lost` that were gone before this reader
    came to them. A daemon that restarts counts anew, and the stream goes on with its first event.
    """

    def __init__(self, request: Request, types: Iterable[str], since_s: Seconds, node: str) -> None:
        self._request = request
        self._filter = {"types": list(types), "node": node}
        self._from_ms = int((time.time() - since_s) * 1_000)
        self._run: int | None = None
        self._next = 0
        self._waiting: list[Event] = []

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """The next event.

        Raises:
            NoDaemonError: the daemon is away, and stays away for a few seconds.
            UsageError: there is no such type of event.
        """
        while not self._waiting:
            try:
                page = await self._request("events", self._params(), POLL_S + GRACE_S)
            except PeerError:
                # The link got lost, or the node stops: asking again waits for the daemon.
                await asyncio.sleep(RETRY_PAUSE_S)
                continue
            self._run, self._next = page["run"], page["next"]
            if page["lost"]:
                self._waiting.append(Event(0, 0, LOST, "", lost=page["lost"]))
            self._waiting += [msgspec.convert(each, Event) for each in page["events"]]
        return self._waiting.pop(0)

    def _params(self) -> dict[str, Any]:
        if self._run is None:
            # From the time at which this stream was made, whenever it is first read.
            place: dict[str, Any] = {"from_ms": self._from_ms}
        else:
            place = {"after": self._next, "run": self._run}
        return {**self._filter, **place, "wait_s": POLL_S}


class Replies:
    """The answers to a query: `await` them all, or take them as they come by `async for`."""

    def __init__(self, request: Request, params: dict[str, Any]) -> None:
        self._request = request
        self._params = params

    def __await__(self) -> Generator[Any, None, list[Reply]]:
        return self.gather().__await__()

    async def gather(self) -> list[Reply]:
        """All of them, once the time is over."""
        return [reply async for reply in self]

    async def __aiter__(self) -> AsyncIterator[Reply]:
        asked = await self._request("query", self._params)
        after, has_ended = 0, False
        while not has_ended:
            params = {"query": asked["query"], "after": after, "wait_s": POLL_S}
            page = await self._request("answers", params, POLL_S + GRACE_S)
            after, has_ended = page["next"], page["ended"]
            for each in page["replies"]:
                if each["kind"] != "ack":
                    yield _reply(each)


class ProgramEvents:
    """One program's handlers for events and queries."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._listeners: list[tuple[str | None, Callable[..., Any]]] = []
        self._queries: dict[str, Callable[..., Any]] = {}
        self._stream: EventStream | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def answerers(self) -> Mapping[str, Answerer]:
        """Who answers queries, by their names."""
        return {name: _answerer(function) for name, function in self._queries.items()}

    def on_event(self, name: str | None, function: Callable[..., Any]) -> None:
        """Call `function` with each event of this name, or with every user's event.

        Raises:
            UsageError: no event can have that name.
        """
        self._listeners.append((name if name is None else check_name(name, "event"), function))

    def on_query(self, name: str, function: Callable[..., Any]) -> None:
        """Answer queries of this name by what `function` returns.

        Raises:
            UsageError: no query can have that name.
        """
        self._queries[check_name(name, "query")] = function

    def start(self) -> None:
        """Listen from now on, if there is anybody to tell. Idempotent."""
        if self._listeners and self._task is None:
            self._stream = EventStream(self._request, ("event",), 0.0, "")
            self._task = asyncio.create_task(self._listen(self._stream), name="meshd-events")

    async def stop(self) -> None:
        """Listen no more. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _listen(self, stream: EventStream) -> None:
        """Tell the handlers of each event, one at a time and in order."""
        while True:
            try:
                one = await anext(stream)
            except MeshError as error:
                event(logger, "warning", "events_away", reason=error.message, retry_s=AWAY_PAUSE_S)
                await asyncio.sleep(AWAY_PAUSE_S)
                continue
            if one.type == LOST:
                event(logger, "warning", "events_lost", lost=one.lost)
                continue
            for name, function in self._listeners:
                if name is None or name == one.event:
                    await _tell(function, one)


async def _tell(function: Callable[..., Any], one: Event) -> None:
    try:
        await _run(function, one)
    except Exception as error:  # noqa: BLE001 - the border: a handler may raise anything
        event(logger, "error", "event_handler_failed", name=one.event, reason=repr(error))


async def _run(function: Callable[..., Any], argument: Any) -> Any:
    """Call a handler, one that does not await on a thread."""
    if inspect.iscoroutinefunction(function):
        return await function(argument)
    result = await asyncio.to_thread(function, argument)
    return await result if isinstance(result, Awaitable) else result


def _answerer(function: Callable[..., Any]) -> Answerer:
    async def answer(asked: Asked) -> bytes:
        query = Query(asked.name, asked.payload, asked.node, asked.timeout_s)
        return to_payload(await _run(function, query))

    return answer


def to_payload(value: Any) -> bytes:
    """Bytes and text as they are, nothing as nothing, all else as JSON."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    return b"" if value is None else msgspec.json.encode(value)


def payload_params(value: Any) -> dict[str, str]:
    """A payload as the node's methods take it."""
    return payload_shape(to_payload(value))


def _reply(shape: Mapping[str, Any]) -> Reply:
    payload = payload_from(shape.get("payload"), shape.get("payload_base64"))
    return Reply(shape["node"], shape["name"], payload, shape.get("error", ""))
