"""The gossip machine: SWIM with Lifeguard, put together from its parts.

```
datagram -> decode -> what rides along (rumours, loads) -> the message itself -> effects
deadline -> each timer that is due -> effects
```

Everything that is decided is decided here and below, from the input, the state and `now` alone.
"""

import random
from collections.abc import Mapping
from typing import assert_never

import msgspec

from meshd.clock import Instant, Seconds
from meshd.errors import DecodeError
from meshd.gossip.beliefs import Beliefs
from meshd.gossip.broadcast import BroadcastQueue
from meshd.gossip.codec import NOBODY, Datagram, decode
from meshd.gossip.config import GossipConfig
from meshd.gossip.distances import Distances, Expected
from meshd.gossip.documents import Documents
from meshd.gossip.effects import Effect
from meshd.gossip.events import EventPlane
from meshd.gossip.health import LocalHealth
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
    StateSet,
)
from meshd.gossip.loads import LoadPlane
from meshd.gossip.members import MemberTable, is_live, record_hash
from meshd.gossip.messages import (
    Ack,
    Answer,
    EventDigest,
    Events,
    Gossip,
    Join,
    Message,
    Nack,
    Ping,
    PingReq,
    Records,
    StateDelta,
    StatePull,
    Sync,
    Welcome,
)
from meshd.gossip.outbox import Outbox
from meshd.gossip.prober import Prober
from meshd.gossip.pulls import Pulls
from meshd.gossip.sources import Sources
from meshd.gossip.state import NodeState, StateStore
from meshd.gossip.sync import Exchange
from meshd.gossip.timers import Timers
from meshd.gossip.verifier import Verifier
from meshd.model import Address, Load, Member, MemberState, MeshId, NodeId

_REAP_INTERVAL_S = 60.0
_STALL_FRACTION = 0.25  # of the probe interval: a timer later than this says that we were away
_GOSSIP_GAP_FRACTION = 0.1  # of the gossip interval: fresh rumours are gathered for this long
_RICH_HASTE = 2  # rounds that a change of state, which travels with its rumour, takes at once
_ROUNDS_AHEAD = 10  # rounds that fresh rumours may start early; then they wait for the interval
_GRACE_INTERVALS = 5  # probe intervals without a stall, after which one earns an extra interval
_CARRIERS = (Ping, Ack, PingReq, Nack, Gossip)  # messages that rumours ride along on
_ROUNDING = 1e-6  # of the gossip interval: a timer may come this early
_STRANGER_INTERVAL_S = 0.5  # so that strangers are asked at most two packets a second


class Swim:
    """One node's whole gossip protocol. Satisfies `Machine[Input, Effect]`.

    Args:
        me: the node's own record as it starts: its epoch outranks all earlier runs'.
        mesh: datagrams of any other mesh are refused.
        config: the protocol's numbers.
        rng: the only source of chance.
        now: the present.
        table: rows to start from, for the simulator; empty if not given.
        event_floor: Lamport time up to which an earlier run heard all users' events.
    """

    def __init__(
        self,
        me: Member,
        mesh: MeshId,
        config: GossipConfig,
        rng: random.Random,
        now: Instant,
        table: MemberTable | None = None,
        event_floor: int = 0,
    ) -> None:
        self._mesh = mesh
        self._config = config
        self._rng = rng
        self._timers = Timers()
        self._health = LocalHealth(config.health_max)
        self._rumours = BroadcastQueue()
        self._loads = LoadPlane(me.node, me.epoch, config)
        self._states = StateStore(me.node, me.epoch)
        self._outbox = Outbox(
            mesh=mesh, me=me.node, config=config, rumours=self._rumours, loads=self._loads
        )
        self._beliefs = Beliefs(
            me=me,
            config=config,
            table=MemberTable({}, ()) if table is None else table,
            rumours=self._rumours,
            loads=self._loads,
            states=self._states,
            timers=self._timers,
            outbox=self._outbox,
            health=self._health,
            now=now,
        )
        self._distances = Distances(self._beliefs, self._outbox, rng)
        self._prober = Prober(
            config=config, beliefs=self._beliefs, timers=self._timers, outbox=self._outbox,
            health=self._health, distances=self._distances, rng=rng, now=now,
        )  # fmt: skip
        self._verifier = Verifier(
            config=config, beliefs=self._beliefs, prober=self._prober, timers=self._timers,
            health=self._health, rng=rng,
        )  # fmt: skip
        self._exchange = Exchange(
            config=config, beliefs=self._beliefs, timers=self._timers, outbox=self._outbox,
            rng=rng, now=now,
        )  # fmt: skip
        sources = Sources(config, self._beliefs, rng)
        self._documents = Documents(
            config=config, beliefs=self._beliefs, library=self._states.library,
            timers=self._timers, outbox=self._outbox, sources=sources, now=now,
        )  # fmt: skip
        self._pulls = Pulls(
            beliefs=self._beliefs, states=self._states, timers=self._timers, outbox=self._outbox,
            sources=sources, documents=self._documents,
        )  # fmt: skip
        self._events = EventPlane(
            config=config, beliefs=self._beliefs, states=self._states, timers=self._timers,
            outbox=self._outbox, rng=rng, floor=event_floor, now=now,
        )  # fmt: skip
        self._gossiped_at = now
        self._rounds_left = float(_ROUNDS_AHEAD)
        self._stranger_at = Instant(now - _STRANGER_INTERVAL_S)
        self._stalled_at = Instant(now - _GRACE_INTERVALS * config.probe_interval_s)
        self._timers.set("reap", now + _REAP_INTERVAL_S)

    # The machine's two doors

    def step(self, event: Input, now: Instant) -> list[Effect]:
        """Take one input. Never raises for what a peer sent: that is a DatagramRejected.

        Raises:
            UsageError: a StateSet, EventFired or QueryFired holds what gossip cannot carry;
                nothing changed.
            BusyError: an EventFired or QueryFired is one too many; nothing changed.
        """
        match event:
            case DatagramReceived():
                self._on_datagram(event, now)
            case DeadlineReached():
                self._on_deadline(now)
            case JoinRequested():
                for address in event.addresses:
                    self._exchange.join(address, now)
            case StateSet():
                self._on_state_set(event, now)
            case LoadSampled():
                if self._loads.sampled(event.load, self._beliefs.table.live, now):
                    self._timers.set_earlier("gossip", now)
                self._beliefs.touch(self._beliefs.me.node)
            case LeaveRequested():
                self._on_leave(now)
            case RejoinRequested():
                self._on_rejoin(now)
            case PingRequested():
                self._prober.ping_now(event.node, now)
            case AddressChanged():
                if event.address != self._beliefs.me.address:
                    self._beliefs.raise_incarnation(now, address=event.address)
            case EventFired():
                self._events.fire(event, now)
            case QueryFired():
                self._events.ask(event, now)
            case AnswerGiven():
                self._events.give(event, now)
            case _:
                assert_never(event)
        return self._outbox.drain()

    def next_deadline(self) -> Instant | None:
        """When the machine wants a DeadlineReached."""
        return self._timers.next_deadline()

    # Datagrams

    def _on_datagram(self, event: DatagramReceived, now: Instant) -> None:
        try:
            datagram = decode(event.data, self._mesh)
        except DecodeError as error:
            self._outbox.reject(error.message, event.source)
            return
        me = self._beliefs.me.node
        if datagram.source in (me, NOBODY):
            self._outbox.reject("own_id", event.source)
        elif datagram.destination != me and not (
            datagram.destination == NOBODY and isinstance(datagram.message, Join)
        ):
            self._outbox.reject("other_destination", event.source)
        else:
            self._beliefs.mail_waited(event.waited_s, now)
            member = self._beliefs.table.get(datagram.source)
            if member is None:
                self._on_stranger(datagram, event.source, now)
            else:
                self._on_member(datagram, member, event.source, now)

    def _on_stranger(self, datagram: Datagram, address: Address, now: Instant) -> None:
        """Somebody outside the table: the handshake, and answers no larger than the question."""
        source = datagram.source
        match datagram.message:
            case Join() as join:
                self._exchange.on_join(join, source, address)
            case Welcome() as welcome:
                self._exchange.on_welcome(welcome, source, address, now)
                self._pulls.on_told(source, now)
                self._events.stir(now)
            case Sync() as sync:
                self._exchange.on_sync(sync, source, address, now)
                self._pulls.on_told(source, now)
            case Gossip() as gossip:
                # In a crowd of newcomers the news of the sender may come after its own news.
                self._beliefs.hear_all(gossip.updates, address, now)
                self._pulls.on_told(source, now)
            case Ping() as ping:
                self._outbox.send_bare(source, address, Ack, (ping.sequence,))
                self._beliefs.hear_all(ping.updates, address, now)
                self._pulls.on_told(source, now)
                self._meet(source, address, now)
            case PingReq() as request:
                self._outbox.send_bare(source, address, Nack, (request.sequence,))
                self._meet(source, address, now)
            case StatePull():
                self._outbox.send_bare(source, address, StateDelta, (1,))
                self._meet(source, address, now)
            case _:
                self._outbox.reject("not_a_member", address)

    def _meet(self, stranger: NodeId, address: Address, now: Instant) -> None:
        """It knows us, so it is worth getting to know at this address, but not at any rate."""
        member = self._beliefs.table.get(stranger)
        known = member is not None and member.address == address
        if not known and now - self._stranger_at >= _STRANGER_INTERVAL_S:
            self._stranger_at = now
            self._exchange.join(address, now, tries=1)

    def _on_member(
        self, datagram: Datagram, member: Member, address: Address, now: Instant
    ) -> None:
        # The table's own copy of the id: the sender's would be one more for each that is kept.
        node = member.node
        self._beliefs.heard_from(node, now)
        if datagram.load and is_live(member.state):
            self._loads.heard_directly(node, datagram.load, now)
        message = datagram.message
        if isinstance(message, _CARRIERS):
            if message.updates:
                self._beliefs.hear_all(message.updates, address, now)
            if message.loads:
                for told in self._loads.heard_rumour(message.loads, self._is_live, now):
                    self._loads.pass_on(told)
                    self._beliefs.touch(told)
                    self._timers.set_earlier("gossip", now + self._config.gossip_interval_s)
        # What rode along may have been about the sender itself.
        current = self._beliefs.table.get(node)
        assert current is not None
        if member.state is MemberState.DEAD and current.state is MemberState.ALIVE:
            self._exchange.reunite(current, now)
            self._events.reunited(now)
        self._on_message(message, current, address, now)
        self._pulls.on_told(node, now)

    def _on_message(self, message: Message, member: Member, address: Address, now: Instant) -> None:
        node = member.node
        match message:
            case Ping():
                if address == member.address:
                    self._prober.on_ping(message, member, self._exchange.short_hash)
                else:
                    # Maybe it moved, maybe it is not the member: no more bytes than it sent, and
                    # the handshake, by which both learn what the other believes.
                    self._outbox.send_bare(node, address, Ack, (message.sequence,))
                    self._meet(node, address, now)
            case Ack():
                self._verifier.on_ack(message, node)
                self._prober.on_ack(message, node, now)
                if message.view_hash and member.state is MemberState.ALIVE:
                    self._exchange.compare(member, message.view_hash, now)
            case PingReq():
                self._prober.on_ping_req(message, member, now)
            case Nack():
                self._prober.on_nack(message, node)
            case Gossip():
                pass
            case Join():
                self._exchange.on_join(message, node, address)
            case Welcome():
                self._exchange.on_welcome(message, node, address, now)
            case Sync():
                self._exchange.on_sync(message, node, address, now)
            case Records():
                self._exchange.on_records(message, node, address, now)
            case StatePull():
                self._pulls.on_state_pull(message, member, now)
            case StateDelta():
                self._pulls.on_state_delta(message, node, address, now)
            case Events():
                self._events.on_events(message, address, now)
            case Answer():
                self._events.on_answer(message, member, address)
            case EventDigest():
                self._events.on_digest(message, member, address, now)
            case _:
                assert_never(message)

    def _is_live(self, node: NodeId) -> bool:
        member = self._beliefs.table.get(node)
        return member is not None and is_live(member.state)

    # Timers

    def _on_deadline(self, now: Instant) -> None:
        due = self._timers.next_deadline()
        if due is not None and now - due > self._config.probe_interval_s * _STALL_FRACTION:
            self._on_stall(now - due, now)
        while (key := self._timers.pop_due(now)) is not None:
            self._on_timer(key, now)

    def _on_stall(self, late_s: Seconds, now: Instant) -> None:
        """We were stopped or starved: whatever seems late may be late because of us.

        So verdicts count only the time that we were awake, and after a single pause one interval
        more. If it goes on, no more than that, or a starved node would never judge anybody.
        """
        interval_s = self._config.probe_interval_s
        grace_s = interval_s if now - self._stalled_at >= _GRACE_INTERVALS * interval_s else 0.0
        self._stalled_at = now
        self._timers.shift(late_s + grace_s, _is_verdict)
        self._health.stalled()

    def _on_timer(self, key: object, now: Instant) -> None:
        match key:
            case "probe":
                self._prober.on_tick(now)
            case "probe_timeout":
                self._prober.on_timeout(now)
            case "gossip":
                self._on_gossip(now)
            case "reconnect":
                self._prober.on_reconnect(now)
            case "pull":
                self._pulls.on_due(now)
            case "documents":
                self._documents.on_due(now)
            case "reap":
                self._beliefs.reap(now)
                self._beliefs.lag_faded(now)
                self._timers.set("reap", now + _REAP_INTERVAL_S)
            case ("suspicion", bytes() as node):
                self._verifier.on_suspicion_due(NodeId(node), now)
            case ("verify", bytes() as node):
                self._verifier.on_doubt(NodeId(node), now)
            case ("verdict", int() as sequence):
                self._verifier.on_verdict_due(sequence, now)
            case ("slow", int() as sequence):
                self._prober.on_slow_due(sequence, now)
            case ("nack", int() as sequence):
                self._prober.on_nack_due(sequence)
            case ("relay", int() as sequence):
                self._prober.on_relay_over(sequence)
            case ("join", Address() as address):
                self._exchange.on_join_due(address, now)
            case ("events", what):
                self._events.on_due(what, now)
            case _:
                raise AssertionError(f"no such timer: {key!r}")

    def _on_gossip(self, now: Instant) -> None:
        """Send waiting rumours to a few members at random."""
        config = self._config
        if not self._rumours.tier_of and not self._loads.waiting:
            return
        since = (now - self._gossiped_at) / config.gossip_interval_s
        rounds_left = min(_ROUNDS_AHEAD, self._rounds_left + since)
        wait = max(1 - rounds_left, _GOSSIP_GAP_FRACTION - since)
        if wait > _ROUNDING:
            self._timers.set("gossip", now + wait * config.gossip_interval_s)
            return
        # What a change brings along is worth most to those who have not heard of it.
        haste = _RICH_HASTE if self._rumours.is_rich else 1
        self._gossiped_at = now
        self._rounds_left = rounds_left - haste
        me = self._beliefs.me.node
        targets = self._beliefs.table.pick(
            config.gossip_fanout * haste,
            self._rng,
            lambda m: m.state <= MemberState.SUSPECT and m.node != me,
        )
        for target in targets:
            if self._rumours.tier_of or self._loads.waiting:
                self._outbox.send_full(target.node, target.address, Gossip, ())
        if targets and (self._rumours.tier_of or self._loads.waiting):
            self._timers.set_earlier("gossip", now + config.gossip_interval_s)

    # Local wishes

    def _on_state_set(self, event: StateSet, now: Instant) -> None:
        if self._states.write(event.entries):
            own = self._states.own
            me = msgspec.structs.replace(
                self._beliefs.me, state_version=own.version, digest=own.digest
            )
            self._beliefs.replace_self(me, now)

    def _on_leave(self, now: Instant) -> None:
        if self._beliefs.leaving:
            return
        self._beliefs.leaving = True
        left = msgspec.structs.replace(self._beliefs.me, state=MemberState.LEFT)
        self._beliefs.replace_self(left, now)

    def _on_rejoin(self, now: Instant) -> None:
        if not self._beliefs.leaving:
            return
        self._beliefs.leaving = False
        self._beliefs.raise_incarnation(now, state=MemberState.ALIVE)

    # Reading

    @property
    def me(self) -> Member:
        """The own record."""
        return self._beliefs.me

    @property
    def health(self) -> int:
        """Lifeguard's local health score: 0 is well."""
        return self._health.score

    @property
    def members(self) -> MemberTable:
        """All records. To be read, not written."""
        return self._beliefs.table

    def state_of(self, node: NodeId) -> NodeState | None:
        """What is held of a node's state."""
        return self._states.get(node)

    def value_of(self, node: NodeId, key: str) -> bytes | None:
        """What a node says under a key; None if nothing, or a document that is not here yet."""
        return self._states.value(node, key)

    def load_of(self, node: NodeId) -> tuple[Load, Instant] | None:
        """A node's newest load record and when it came."""
        return self._loads.get(node)

    @property
    def load_told(self) -> tuple[Load, Instant] | None:
        """The own load that last became a rumour, and when."""
        return self._loads.told

    def heard_at(self, node: NodeId) -> Instant | None:
        """When a packet last came from a member itself."""
        return self._beliefs.heard_at.get(node)

    def rtt_s(self, node: NodeId) -> float | None:
        """Moving average of direct probes' round trips."""
        return self._beliefs.rtt_s.get(node)

    def rtt_expected(self, node: NodeId) -> Expected | None:
        """The round trip by network coordinates, and how far off that may be."""
        return self._distances.expected(node)

    def is_reachable(self, node: NodeId) -> bool:
        """False from an own failed probe round until the member is heard again."""
        return node not in self._beliefs.unreachable

    def take_touched(self) -> Mapping[NodeId, None]:
        """Members whose row in the view may have changed since the last call."""
        self._distances.touch_estimates()
        return self._beliefs.take_touched()

    def drop_touched(self) -> None:
        """Nobody makes a view of this one: let what piled up go."""
        self._beliefs.take_touched()

    def goodbyes_sent(self) -> int | None:
        """How often the own record was passed on; None once it needs no more."""
        return self._rumours.sent(self._beliefs.me.node)

    def explain(self, node: NodeId) -> tuple[tuple[Instant, str], ...]:
        """The last events of a member, oldest first: why it is believed to be what it is."""
        return self._beliefs.history(node)

    @property
    def event_clock(self) -> int:
        """The highest Lamport time of a user's event heard or told: what the next run skips."""
        return self._events.clock

    @property
    def events_dropped(self) -> int:
        """Users' events that were not passed on as often as they should: too many waited."""
        return self._events.dropped

    def pending(self) -> Mapping[str, int]:
        """What waits, for metrics and for resource checks."""
        return {
            "rumours": len(self._rumours),
            "timers": len(self._timers),
            "suspicions": len(self._beliefs.suspicions),
            "relays": self._prober.relays,
            "verifications": len(self._verifier),
            "pulls": len(self._pulls) + len(self._documents),
            "documents": len(self._states.library),
            "gone": len(self._beliefs.gone),
            **self._events.pending(),
        }

    def validate(self) -> None:
        """Check what must always hold; the simulator runs it after each step.

        Raises:
            AssertionError: a bug of ours.
        """
        beliefs = self._beliefs
        live = [m for m in beliefs.table if is_live(m.state)]
        assert beliefs.table.live == len(live)
        view_hash = 0
        for member in live:
            view_hash ^= record_hash(member)
        assert beliefs.table.view_hash == view_hash
        assert beliefs.table.get(beliefs.me.node) == beliefs.me
        assert beliefs.me.state is (MemberState.LEFT if beliefs.leaving else MemberState.ALIVE)
        suspects = {m.node for m in live if m.state is MemberState.SUSPECT}
        assert suspects == set(beliefs.suspicions)
        for node in suspects:
            assert self._timers.pending(("suspicion", node))
        gone = {m.node for m in beliefs.table if not is_live(m.state)} - {beliefs.me.node}
        assert gone == set(beliefs.gone)


def _is_verdict(key: object) -> bool:
    """Whether a timer judges somebody else."""
    return key in {"probe", "probe_timeout"} or (
        isinstance(key, tuple) and key[0] in {"suspicion", "verdict", "slow"}
    )
