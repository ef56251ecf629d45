"""The gossip shell: owns the socket, the one timer and the machine; publishes the view.

It runs where `Platform.run_protocol` puts it: on a thread with a loop of its own, so that probes
are answered while user code blocks the main loop.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar

from meshd.capability.manifest import CapabilitySummary, Manifest
from meshd.clock import Instant, Seconds
from meshd.errors import UsageError
from meshd.gossip.config import DATAGRAM_BYTES_MAX, GossipConfig
from meshd.gossip.effects import (
    DatagramRejected,
    Effect,
    MemberChanged,
    PingAnswered,
    ProbeCompleted,
    SendDatagram,
    StateChanged,
    StreamPing,
)
from meshd.gossip.explanation import Explanation
from meshd.gossip.inputs import (
    AddressChanged,
    AnswerGiven,
    DatagramReceived,
    DeadlineReached,
    EventFired,
    Input,
    JoinRequested,
    LeaveRequested,
    LoadSampled,
    PingRequested,
    QueryFired,
    RejoinRequested,
    Resumed,
    StateSet,
    StreamPinged,
)
from meshd.gossip.members import new_member
from meshd.gossip.questions import IsEnough, LoadAnswers, LoadQuestion, LoadQuestions
from meshd.gossip.rows import MANIFEST_KEY, NOWHERE, ViewBuilder, manifest_from, own_entries
from meshd.gossip.state import NodeState
from meshd.gossip.streams import StreamPinger, StreamPings
from meshd.gossip.swim import Swim
from meshd.model import Address, Epoch, Load, MeshId, NodeId, Site
from meshd.platform import Platform, ProtocolRunner
from meshd.telemetry.log import get_logger
from meshd.view import ClusterView

logger = get_logger(__name__)

DRAIN_DATAGRAMS_MAX = 1_024
LEAVE_HEARERS = 3
SLEEP_S = 1.0
"""From so long on a suspend counts as one; the two clocks drift apart by less."""
_PUBLISH_INTERVAL_S = 0.02  # changes of members that come closer together are published as one
_REFRESH_INTERVAL_S = 0.1  # loads and signs of life come with every packet: fewer views carry them
_LEAVE_POLL_S = 0.02
_ASK_TIMEOUT_S = 5.0
_ROUNDING_S = 1e-6

Answer = TypeVar("Answer")


class _Forward(Protocol):
    def __call__(self, view: ClusterView, *, is_news: bool) -> None: ...


class GossipService:
    """One node's gossip, running. Its methods are for the main loop, `view` for any thread."""

    def __init__(
        self,
        *,
        platform: Platform,
        mesh: MeshId,
        node: NodeId,
        epoch: Epoch,
        bind: Address,
        advertise: Callable[[Address], tuple[Address, ...]],
        config: GossipConfig,
        listener: Callable[[Effect], None],
        event_floor: int = 0,
        streams: StreamPinger | None = None,
        load_now: Callable[[], Load | None] | None = None,
    ) -> None:
        """Bind the socket; nothing is sent before `start`.

        Args:
            platform: the machine.
            mesh: which mesh to be in.
            node: own id.
            epoch: this run; above all earlier runs'.
            bind: where to listen; port 0 picks one.
            advertise: from the bound address to the one that others are told, or two of them:
                IPv4 and IPv6.
            config: the protocol's numbers.
            listener: called in the protocol's loop with every effect that is not a datagram.
            event_floor: Lamport time up to which an earlier run heard all users' events.
            streams: pings a member over its call port, in the protocol's loop; closed with it.
            load_now: this node's load where it has changed since it was last asked, else None;
                asked by the protocol's thread before it answers its mail.

        Raises:
            OSError: the address cannot be bound.
        """
        self._platform = platform
        self._clock = platform.clock
        self._listener = listener
        self._endpoint = platform.open_datagram(bind, bytes_max=DATAGRAM_BYTES_MAX)
        self.bound = self._endpoint.address
        self.addresses = advertise(self.bound)
        me = new_member(node, epoch, *self.addresses)
        rng = platform.random("gossip")
        self._swim = Swim(me, mesh, config, rng, self._clock.now(), event_floor=event_floor)
        self._rows = ViewBuilder(config)
        self.descriptions = 0
        """How often this node was described; a view says how many of them it tells."""
        self._description = 0
        self._runner: ProtocolRunner | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = Instant(0.0)
        self._publishing: asyncio.TimerHandle | None = None
        self._subscribers: list[_Forward] = []
        self._has_news = True
        self._counters: Counter[str] = Counter()
        self._readers: dict[asyncio.Future[None], tuple[NodeId, str]] = {}
        self._asleep_s = self._clock.boot_s() - self._clock.now()
        self._pings: dict[NodeId, dict[asyncio.Future[Seconds], Instant]] = {}
        self._questions = LoadQuestions()
        self._load_now = load_now
        self._streams = StreamPings(streams, self._on_stream_pinged, self._counters)
        self.lag_s: Seconds = 0.0
        """How late the protocol's last timer was."""
        self.view = self._rows.build(self._swim)
        """The newest snapshot."""

    # From the main loop

    async def start(self) -> None:
        """Begin to listen and to probe."""
        self._runner = await self._platform.run_protocol(self._begin)

    def release(self) -> None:
        """Give the socket back of a service that was never started."""
        self._endpoint.close()

    async def stop(self) -> None:
        """Close the socket and end the protocol's loop. Idempotent."""
        runner = self._runner
        if runner is None:
            self.release()
            return
        await self._ask(self._close)
        self._runner = None
        await runner.stop()

    def join(self, *addresses: Address) -> None:
        """Try to meet whoever is at these addresses."""
        self._submit(JoinRequested(addresses))

    def describe(
        self, *, name: str, version: str, manifests: tuple[Manifest, ...], site: Site = NOWHERE
    ) -> None:
        """Set this node's own state: what others see of it.

        Raises:
            UsageError: the manifests are too large to be gossiped; nothing changed.
        """
        entries = own_entries(name, version, manifests, site)
        NodeState(Epoch(0)).write_all(entries)
        self.descriptions += 1
        self._call(self._describe, entries, self.descriptions)

    async def manifest(
        self, node: NodeId, summary: CapabilitySummary, timeout_s: Seconds
    ) -> Manifest | None:
        """What a node says in full of a capability of which it told `summary`.

        None if that is not here, and does not come within `timeout_s`, or is not what the summary
        is of.
        """
        key = MANIFEST_KEY + summary.name

        async def read() -> bytes | None:
            body = self._swim.value_of(node, key)
            if body is None and timeout_s > 0:
                changed = asyncio.get_running_loop().create_future()
                self._readers[changed] = (node, key)
                try:
                    await asyncio.wait([changed], timeout=timeout_s)
                finally:
                    del self._readers[changed]
                body = self._swim.value_of(node, key)
            return body

        body = await self._ask(read, timeout_s + _ASK_TIMEOUT_S)
        return None if body is None else manifest_from(body, summary)

    def tell_load(self, load_now: Callable[[], Load]) -> None:
        """Tell how busy this node is, as the protocol's thread then finds it.

        A load that came ready made could be older than one that was taken for the mail before.
        """
        self._call(lambda: self._step(LoadSampled(load_now())))

    @property
    def address(self) -> Address:
        """Where others reach this node: the address that is told first."""
        return self.addresses[0]

    def set_address(self, *addresses: Address) -> None:
        """This node is reachable elsewhere from now on; by IPv4 and IPv6 where two are given."""
        self.addresses = addresses
        self._submit(AddressChanged(*addresses))

    async def leave(self, timeout_s: Seconds) -> int:
        """Say goodbye; returns how often that was sent, once enough others were told.

        Who stands aside says none: it would be taken for that of the first.
        """
        return await self._ask(lambda: self._leave(timeout_s), timeout_s + _ASK_TIMEOUT_S)

    def rejoin(self) -> None:
        """Come back after a leave."""
        self._submit(RejoinRequested())

    async def ping(self, node: NodeId, timeout_s: Seconds) -> Seconds | None:
        """The round trip to a member by one datagram each way; None if none came back."""

        async def ask() -> Seconds | None:
            answer: asyncio.Future[Seconds] = asyncio.get_running_loop().create_future()
            waiting = self._pings.setdefault(node, {})
            waiting[answer] = self._clock.now()
            self._step(PingRequested(node))
            try:
                async with asyncio.timeout(timeout_s):
                    return await answer
            except TimeoutError:
                return None
            finally:
                del waiting[answer]
                if not waiting:
                    self._pings.pop(node, None)

        return await self._ask(ask, timeout_s + _ASK_TIMEOUT_S)

    async def probe(
        self,
        nodes: Iterable[NodeId],
        timeout_s: Seconds,
        is_enough: IsEnough = lambda _: False,
    ) -> LoadAnswers:
        """Ask members how busy they are, by one datagram each way; who is silent is missing.

        It ends with the last answer, with one that makes `is_enough` true, or with the time.
        """
        question = LoadQuestion(tuple(nodes), is_enough)
        self._call(self._ask_loads, question)
        try:
            await question.wait(timeout_s)
        finally:
            if question.is_open:
                self._call(self._questions.forget, question)
        return question.answers

    async def explain(self, node: NodeId) -> Explanation | None:
        """Why a member is believed to be what it is; None if it is unknown."""

        async def read() -> Explanation | None:
            return self._swim.explain(node, self._clock.now())

        return await self._ask(read)

    async def wish(self, event: EventFired | QueryFired) -> None:
        """Tell all nodes, or ask them.

        Raises:
            UsageError: gossip cannot carry it, or does not run; nothing was told.
            BusyError: it is one too many; nothing was told.
        """
        if self._runner is None:
            raise UsageError("this node is not running", hint="start it again: meshd start")

        async def step() -> None:
            self._step(event)

        await self._ask(step)

    def answer(self, given: AnswerGiven) -> None:
        """Answer a query that was heard."""
        self._submit(given)

    @property
    def health(self) -> int:
        """Lifeguard's local health score: 0 is well. For any thread."""
        return self._swim.health

    def is_heard(self, node: NodeId) -> bool:
        """Whether this node ever heard a member itself: of others it has but hearsay."""
        return self._swim.heard_at(node) is not None

    @property
    def is_aside(self) -> bool:
        """Whether another process with this node's key takes part instead. For any thread."""
        return self._swim.is_aside

    @property
    def event_clock(self) -> int:
        """The highest Lamport time of a user's event: what the next run skips. For any thread."""
        return self._swim.event_clock

    def on_view(
        self,
        callback: Callable[[ClusterView], None],
        wants_all: Callable[[], bool] = lambda: True,
    ) -> None:
        """Call `callback` in the running loop with new views; at least with the newest.

        Views that tell nothing new but loads and signs of life wake that loop, which an idle node
        would pay for several times a second, only where `wants_all()`, asked by the protocol's
        thread, is true.
        """
        loop = asyncio.get_running_loop()

        def forward(view: ClusterView, *, is_news: bool) -> None:
            if is_news or wants_all():
                with contextlib.suppress(RuntimeError):  # that loop has closed: nobody listens
                    loop.call_soon_threadsafe(callback, view)

        self._subscribers.append(forward)

    def counters(self) -> Mapping[str, int]:
        """Packets, bytes and refusals so far, and what waits now. Safe from any thread."""
        return {
            **self._counters.copy(),
            **{f"pending_{what}": count for what, count in self._swim.pending().items()},
            "events_dropped": self._swim.events_dropped,
            "documents_refused": self._swim.documents_refused,
            "health_score": self._swim.health,
        }

    def only_by_stream(self) -> tuple[NodeId, ...]:
        """Members that answer calls, but no datagram. Safe from any thread."""
        return self._streams.only_by_stream()

    # Between the loops

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        if self._runner is not None:
            self._runner.call(function, *arguments)

    def _submit(self, event: Input) -> None:
        self._call(self._step, event)

    async def _ask(
        self, function: Callable[[], Awaitable[Answer]], timeout_s: Seconds = _ASK_TIMEOUT_S
    ) -> Answer:
        """Run a coroutine in the protocol's loop and wait for its answer here."""
        here = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = here.create_future()
        tasks: list[asyncio.Task[None]] = []

        def settle(set_it: Callable[[Any], None], value: object) -> None:
            if not answer.done():
                set_it(value)

        async def run() -> None:
            try:
                value = await function()
            except Exception as error:  # noqa: BLE001 - handed over whole, to be raised by the caller
                here.call_soon_threadsafe(settle, answer.set_exception, error)
            else:
                here.call_soon_threadsafe(settle, answer.set_result, value)

        self._call(lambda: tasks.append(asyncio.ensure_future(run())))
        async with asyncio.timeout(timeout_s):
            return await answer

    # In the protocol's loop

    def _ask_loads(self, question: LoadQuestion) -> None:
        now = self._clock.now()
        for node in question.nodes:
            self._questions.ask(node, question, now)
            self._step(PingRequested(node))

    async def _begin(self) -> None:
        self._endpoint.on_readable(self._on_readable)
        self._arm()

    async def _close(self) -> None:
        for handle in (self._timer, self._publishing):
            if handle is not None:
                handle.cancel()
        await self._streams.close()
        self._endpoint.close()

    def _describe(self, entries: dict[str, bytes | None], number: int) -> None:
        own = self._swim.state_of(self._swim.me.node)
        dropped = dict.fromkeys(own.values() if own is not None else ())
        self._step(StateSet({**dropped, **entries}))
        self._description = number
        self._has_news = True
        self._publish()

    async def _leave(self, timeout_s: Seconds) -> int:
        others = self._swim.members.live - 1
        self._step(LeaveRequested())
        if self._swim.is_aside:
            return 0
        give_up = self._clock.now() + timeout_s
        heard_by = 0
        # Until the rumour is out: sent as often as any is. Who leaves meanwhile, as when all stop
        # at once, need not hear it, and then there is nobody to send it to.
        while (sent := self._swim.goodbyes_sent()) is not None:
            heard_by = sent
            if not self._swim.members.live or self._clock.now() >= give_up:
                return heard_by
            await asyncio.sleep(_LEAVE_POLL_S)
        return max(heard_by, min(LEAVE_HEARERS, others))

    def _on_readable(self) -> None:
        try:
            self._look_for_sleep()
            self._drain()
        finally:
            self._arm()

    def _on_timer(self) -> None:
        self._timer = None
        try:
            self._look_for_sleep()
            # Mail first: whoever was stopped must hear the others before it judges them.
            due = self._swim.next_deadline()
            self._drain()
            now = self._clock.now()
            if due is not None and due <= now:
                self.lag_s = now - due
                self._run_safely(DeadlineReached(), now)
        finally:
            self._arm()

    def _look_for_sleep(self) -> None:
        """Notice that the machine was suspended, before the mail or a timer is taken for news."""
        now = self._clock.now()
        asleep_s = self._clock.boot_s() - now
        slept_s, self._asleep_s = asleep_s - self._asleep_s, asleep_s
        if slept_s >= SLEEP_S:
            self._counters["suspends"] += 1
            self._run_safely(Resumed(slept_s), now)

    def _drain(self) -> None:
        """Read what waits, up to a bound, so that a flood does not starve the timers."""
        waiting = self._endpoint.receive(DRAIN_DATAGRAMS_MAX)
        now = self._clock.now()
        if waiting:
            self._look_at_load(now)
        for data, source, waited_s in waiting:
            self._counters["packets_received"] += 1
            self._counters["bytes_received"] += len(data)
            self._run_safely(DatagramReceived(data, source, waited_s), now)

    def _look_at_load(self, now: Instant) -> None:
        """What is answered now carries our load: a probe asks how busy we are, not how we were."""
        try:
            load = None if self._load_now is None else self._load_now()
        except Exception as error:  # noqa: BLE001 - whoever tells the load may fail at anything
            self._note_fault(error)
        else:
            if load is not None:
                self._run_safely(LoadSampled(load), now)

    def _step(self, event: Input) -> None:
        try:
            self._run(event, self._clock.now())
        finally:
            self._arm()

    def _run_safely(self, event: Input, now: Instant) -> None:
        """Take one input that nobody waits for. A bug that it meets costs this input alone."""
        try:
            self._run(event, now)
        except Exception as error:  # noqa: BLE001 - a bug may raise anything
            self._note_fault(error)

    def _note_fault(self, error: Exception) -> None:
        """A bug of ours: counted each time, told once."""
        self._counters["internal_errors"] += 1
        if self._counters["internal_errors"] == 1:
            # In full, and once: a peer that found it may go on with it.
            fields = {"reason": repr(error)}
            logger.error("internal_error", exc_info=error, extra={"fields": fields})

    def _run(self, event: Input, now: Instant) -> None:
        is_news = False
        for effect in self._swim.step(event, now):
            if isinstance(effect, SendDatagram):
                self._counters["packets_sent"] += 1
                self._counters["bytes_sent"] += len(effect.data)
                if not self._endpoint.send(effect.data, effect.to):
                    self._counters["sends_failed"] += 1
            else:
                is_news |= _is_news(effect)
                self._on_effect(effect, now)
        self._has_news |= is_news
        self._publish_within(_PUBLISH_INTERVAL_S if is_news else _REFRESH_INTERVAL_S)

    def _publish_within(self, delay_s: Seconds) -> None:
        """Publish so late at most; a view that is due earlier carries it, too."""
        loop = asyncio.get_running_loop()
        if self._publishing is not None:
            if self._publishing.when() <= loop.time() + delay_s:
                return
            self._publishing.cancel()
        self._publishing = loop.call_later(delay_s, self._publish)

    def _on_effect(self, effect: Effect, now: Instant) -> None:
        if isinstance(effect, DatagramRejected):
            self._counters[f"rejected_{effect.reason}"] += 1
        elif isinstance(effect, ProbeCompleted):
            self._counters["probes_ok" if effect.succeeded else "probes_failed"] += 1
            self._streams.on_probe_completed(effect)
        elif isinstance(effect, MemberChanged):
            self._counters[f"became_{effect.member.state.name.lower()}"] += 1
            self._rows.member_changed(effect.member.node, now)
            self._streams.on_member_changed(effect)
        elif isinstance(effect, StateChanged):
            for reader, (node, key) in self._readers.items():
                if not reader.done() and self._swim.value_of(node, key) is not None:
                    reader.set_result(None)
        elif isinstance(effect, PingAnswered):
            told = self._swim.load_of(effect.node)
            asked_by = Instant(now - effect.rtt_s + _ROUNDING_S)
            load = None if told is None else told[0]
            self._questions.answered(effect.node, effect.rtt_s, load, asked_by)
            for answer, asked_at in self._pings.get(effect.node, {}).items():
                # A late answer to an earlier question is older than this one.
                if not answer.done() and now - effect.rtt_s >= asked_at - _ROUNDING_S:
                    answer.set_result(effect.rtt_s)
        elif isinstance(effect, StreamPing):
            self._streams.start(effect)
        self._listener(effect)

    def _on_stream_pinged(self, event: StreamPinged) -> None:
        self._step(event)

    def _publish(self) -> None:
        if self._publishing is not None:
            self._publishing.cancel()
            self._publishing = None
        self.view = view = self._rows.build(self._swim, self._description)
        is_news, self._has_news = self._has_news, False
        for forward in self._subscribers:
            forward(view, is_news=is_news)

    def _arm(self) -> None:
        """See to it that the one timer fires by the machine's next deadline.

        Where that has moved on, as after most packets, the timer stays: waking once in vain costs
        less than setting it anew each time.
        """
        at = self._swim.next_deadline()
        if at is None or (self._timer is not None and self._timer_at <= at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        delay_s = max(0.0, at - self._clock.now())
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._on_timer)


def _is_news(effect: Effect) -> bool:
    """Whether routing waits for it: who is there, what it offers, that it cannot be reached."""
    if isinstance(effect, ProbeCompleted):
        return not effect.succeeded
    return isinstance(effect, MemberChanged | StateChanged)
