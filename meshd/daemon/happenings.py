"""From the protocol's effects to what people and programs follow, ask and answer on one node.

Effects come on the protocol's thread. They go into bounded places at once, and the main loop is
woken: it may be blocked for long, and nothing grows meanwhile.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec

from meshd.clock import Seconds
from meshd.daemon.event_log import EventLog, kind_of
from meshd.errors import MeshError, PeerError, UsageError
from meshd.gossip.effects import (
    ConflictSeen,
    Effect,
    EventHeard,
    MemberChanged,
    QueryAnswered,
    QueryEnded,
    QueryHeard,
    StateChanged,
)
from meshd.gossip.inputs import AnswerGiven, EventFired, QueryFired
from meshd.happening import Event, Kind, payload_shape
from meshd.model import NodeId
from meshd.telemetry.log import LimitedLog, get_logger
from meshd.view import ClusterView, Peer

if TYPE_CHECKING:
    from meshd.daemon.node import Node

QUERIES_KEPT_MAX = 128
"""Own queries whose answers can still be read; the oldest makes room."""
INBOX_MAX = 256
"""Queries of others that wait for a blocked main loop; the oldest makes room."""
ANSWERING_MAX = 64
"""Handlers of queries that run at a time; further queries are refused."""

NAMELESS_MS = 1_000
"""How long the news that a node has joined waits for its name."""

Answerer = Callable[["Asked"], Awaitable[bytes]]

logger = get_logger(__name__)


class Asked(msgspec.Struct, frozen=True):
    """A query as whoever answers it sees it: who asks what, and how long an answer is awaited."""

    name: str
    payload: bytes
    node: str
    timeout_s: Seconds


class Gathering:
    """The answers to one own query, as they come."""

    def __init__(self, timeout_s: Seconds | None) -> None:
        self.timeout_s = timeout_s
        self.replies: list[QueryAnswered] = []
        self.has_ended = False


class Happenings:
    """The event log of one node, its own queries, and who answers others' queries here."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self.log = EventLog()
        self.run = 0
        """Which run of the daemon the log's numbers are of."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_waking = False
        self._is_closed = False
        self._news: set[asyncio.Future[None]] = set()
        self._inbox: deque[QueryHeard] = deque(maxlen=INBOX_MAX)
        self._gatherings: dict[int, Gathering] = {}
        self._answerers: dict[str, tuple[Answerer, object]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._described: dict[NodeId, tuple[str, ...]] = {}
        self._redescribed: dict[NodeId, int] = {}  # in views past this version
        self._nameless: dict[NodeId, tuple[MemberChanged, int]] = {}
        self._lock = threading.Lock()  # over the two above, and over the order of what is noted
        self._clock = 0
        self._health = 0
        self._random = node.platform.random("queries")
        self._limited = LimitedLog(logger)

    def begin(self, run: int) -> int:
        """Number this run; returns the Lamport time up to which the last one heard events."""
        self.run = run
        self._clock = self._node.state.read_event_clock()
        return self._clock

    @property
    def is_clock_news(self) -> bool:
        """Whether events were heard that the disk does not know of."""
        return self._node.gossip.event_clock > self._clock

    def keep_clock(self) -> None:
        """Write to disk up to where events were heard, if that changed. It may block."""
        clock = self._node.gossip.event_clock
        if clock > self._clock and self._node.state.write_event_clock(clock):
            self._clock = clock

    def look_at_health(self) -> None:
        """Note where Lifeguard's score of this node has changed."""
        score = self._node.gossip.health
        if score != self._health:
            text = f"local health is {score}, was {self._health} (0 is well)"
            self._health = score
            self.note(Kind.HEALTH, self._node.node_id, reason=text)

    def start(self) -> None:
        """Belong to the running loop."""
        self._loop = asyncio.get_running_loop()

    async def close(self) -> None:
        """End what waits and what answers. Idempotent."""
        self._is_closed = True
        self._on_wake()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # On the protocol's thread

    def on_effect(self, effect: Effect) -> None:
        """Take in an effect; wakes the main loop where somebody there may care."""
        match effect:
            case MemberChanged():
                self._on_member(effect)
            case EventHeard():
                self._on_event(effect)
            case ConflictSeen():
                text = f"another process at {effect.address} runs with this node's key"
                self.note(Kind.CONFLICT, self._node.node_id, reason=text)
            case StateChanged():
                self.redescribed(effect.node)
            case QueryHeard():
                self._inbox.append(effect)
                self._wake()
            case QueryAnswered():
                gathering = self._gatherings.get(effect.query)
                if gathering is not None:
                    gathering.replies.append(effect)
                    self._wake()
            case QueryEnded():
                gathering = self._gatherings.get(effect.query)
                if gathering is not None:
                    gathering.has_ended = True
                    self._wake()
            case _:
                pass

    def _on_event(self, effect: EventHeard) -> None:
        fields: dict[str, Any] = {
            "event": effect.name,
            "lamport": effect.time,
            "age_s": round(effect.age_s, 3),
            **payload_shape(effect.payload),
        }
        self.note(Kind.EVENT, effect.origin, **fields)

    def _on_member(self, effect: MemberChanged) -> None:
        """Note a change; of a newcomer a moment later, when its name is known."""
        node = effect.member.node
        now = self._node.clock.wall_ms()
        with self._lock:
            self._note_joined(node)
            if kind_of(effect) is Kind.JOINED and not self.name_of(node):
                self._nameless[node] = (effect, now)
            else:
                self._note_member(effect, now)

    def _note_joined(self, node: NodeId) -> None:
        held = self._nameless.pop(node, None)
        if held is not None:
            self._note_member(*held)

    def _note_member(self, effect: MemberChanged, wall_ms: int) -> None:
        member, accuser = effect.member, effect.accuser
        self.note(
            kind_of(effect), member.node, wall_ms, incarnation=member.incarnation,
            reason=effect.reason, accuser="" if accuser is None else accuser.hex(),
        )  # fmt: skip

    def note(self, kind: Kind, node: NodeId, wall_ms: int | None = None, **fields: Any) -> Event:
        """Append to the log. Any thread may do it."""
        at_ms = self._node.clock.wall_ms() if wall_ms is None else wall_ms
        added = self.log.add(kind, node.hex(), at_ms, name=self.name_of(node), **fields)
        self._wake()
        return added

    def _wake(self) -> None:
        if self._loop is not None and not self._is_waking and not self._is_closed:
            self._is_waking = True
            try:
                self._loop.call_soon_threadsafe(self._on_wake)
            except RuntimeError:
                self._is_closed = True  # that loop has closed: nobody listens

    # On the main loop

    def _on_wake(self) -> None:
        self._is_waking = False
        news, self._news = self._news, set()
        for waiter in news:
            if not waiter.done():
                waiter.set_result(None)
        while self._inbox and not self._is_closed:
            self._answer(self._inbox.popleft())

    async def wait_until(self, found: Callable[[], bool], wait_s: Seconds) -> None:
        """Return once `found()` holds, or `wait_s` have passed.

        Raises:
            PeerError: it does not hold, and the node closes: it never will.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(wait_s):
                while not self._is_closed and not found():
                    waiter: asyncio.Future[None] = loop.create_future()
                    self._news.add(waiter)
                    try:
                        if not found():
                            await waiter
                    finally:
                        self._news.discard(waiter)
        except TimeoutError:
            return
        if self._is_closed and not found():
            raise PeerError("this node is stopping: there will be no more news")

    def name_of(self, node: NodeId) -> str:
        """The name of a node, where it is known."""
        peer = self._node.view().get(node)
        return "" if peer is None or peer.name == node.hex() else peer.name

    @property
    def is_waiting(self) -> bool:
        """Whether the next view, be it news or not, lets something be noted."""
        return bool(self._nameless or self._redescribed)

    def on_view(self, view: ClusterView) -> None:
        """Note what nodes offer otherwise than before, of those whose state has changed."""
        now = self._node.clock.wall_ms()
        with self._lock:
            for node, (_, at_ms) in list(self._nameless.items()):
                if self.name_of(node) or now - at_ms > NAMELESS_MS:
                    self._note_joined(node)
            redescribed = [n for n, told in self._redescribed.items() if told < view.version]
            for node in redescribed:
                del self._redescribed[node]
        for node in redescribed:
            peer = view.get(node)
            if peer is not None:
                self._compare(peer)
        if len(self._described) > len(view.peers):
            held = self._described
            self._described = {node: held[node] for node in held if view.get(node) is not None}

    def redescribed(self, node: NodeId) -> None:
        """A node, maybe this one, offers something else as of the next view. Any thread may tell.

        Views that are older may still be on their way to this loop.
        """
        with self._lock:
            self._redescribed[node] = self._node.view().version

    def _compare(self, peer: Peer) -> None:
        now = tuple(sorted(f"{c.name} {c.version}" for c in peer.capabilities))
        before = self._described.get(peer.node)
        self._described[peer.node] = now
        if before is None or before == now:
            return
        more = [text for text in now if text not in before]
        less = [text for text in before if text not in now]
        parts = (("offers", more), ("no longer offers", less))
        reason = "; ".join(f"{what} {', '.join(texts)}" for what, texts in parts if texts)
        self.note(Kind.UPDATED, peer.node, incarnation=peer.incarnation, reason=reason)

    # Telling and asking

    async def emit(self, name: str, payload: bytes, *, coalesce: bool) -> None:
        """Tell all nodes.

        Raises:
            UsageError: it is no valid event.
            BusyError: this node tells too much.
        """
        await self._node.gossip.wish(EventFired(name, payload, coalesce))

    async def ask(
        self, name: str, payload: bytes, *, timeout_s: Seconds | None,
        nodes: tuple[NodeId, ...], capability: str,
    ) -> int:  # fmt: skip
        """Ask all nodes, or some; returns the number under which answers can be read.

        Raises:
            UsageError: it is no valid query.
            BusyError: this node asks too much.
        """
        query = self._random.getrandbits(32)
        if len(self._gatherings) >= QUERIES_KEPT_MAX:
            del self._gatherings[next(iter(self._gatherings))]
        self._gatherings[query] = Gathering(timeout_s)
        fired = QueryFired(query, name, payload, timeout_s, nodes, capability)
        try:
            await self._node.gossip.wish(fired)
        except MeshError:
            del self._gatherings[query]
            raise
        return query

    def gathering(self, query: int) -> Gathering:
        """The answers to an own query.

        Raises:
            UsageError: it was not asked here, or long ago.
        """
        found = self._gatherings.get(query)
        if found is None:
            raise UsageError(f"no query {query} is remembered", hint="ask again: meshd query NAME")
        return found

    # Answering

    def answer_with(self, names: tuple[str, ...], answerer: Answerer, owner: object) -> None:
        """Let `answerer` answer queries of these names, in place of those that `owner` answered.

        Raises:
            UsageError: somebody else answers one of them; nothing changed.
        """
        self.check_free(names, owner)
        self.forget_owner(owner)
        self._answerers |= dict.fromkeys(names, (answerer, owner))

    def check_free(self, names: tuple[str, ...], owner: object) -> None:
        """Whether `owner` may answer queries of these names.

        Raises:
            UsageError: somebody else answers one of them.
        """
        taken = [n for n in names if n in self._answerers and self._answerers[n][1] is not owner]
        if taken:
            raise UsageError(
                f"another program answers {', '.join(taken)} on this node", hint="rename the query"
            )

    def forget_owner(self, owner: object) -> None:
        """Whoever answered is gone. Idempotent."""
        self._answerers = {n: held for n, held in self._answerers.items() if held[1] is not owner}

    def _answer(self, heard: QueryHeard) -> None:
        held = self._answerers.get(heard.name)
        if held is None:
            return
        if len(self._tasks) >= ANSWERING_MAX:
            busy = AnswerGiven(heard.origin, heard.query, b"too many queries at once", True)
            self._node.gossip.answer(busy)
            return
        work = self._run(heard, held[0])
        task = asyncio.get_running_loop().create_task(work, name="meshd-query")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, heard: QueryHeard, answerer: Answerer) -> None:
        asked = Asked(heard.name, heard.payload, heard.origin.hex(), heard.timeout_s)
        is_error = False
        try:
            async with asyncio.timeout(heard.timeout_s):
                payload = await answerer(asked)
        except TimeoutError:
            return  # nobody takes an answer any more
        except MeshError as error:
            payload, is_error = error.message.encode()[:400], True
        except Exception as error:  # noqa: BLE001 - the border: a handler may raise anything
            self._limited.event("warning", "query_failed", query=heard.name, reason=repr(error))
            payload, is_error = b"the node's handler failed", True
        self._node.gossip.answer(AnswerGiven(heard.origin, heard.query, payload, is_error))
