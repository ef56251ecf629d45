"""The gossip machine: SWIM with Lifeguard, put together from its parts.

```
datagram -> decode -> what rides along (rumours, loads) -> the message itself -> effects
deadline -> each timer that is due -> effects
```

Everything that is decided is decided here and below, from the input, the state and `now` alone.
"""

import random
from typing import assert_never

import msgspec

from meshd.clock import Instant, Seconds
from meshd.errors import DecodeError
from meshd.gossip.beliefs import Beliefs
from meshd.gossip.broadcast import BroadcastQueue
from meshd.gossip.codec import NOBODY, Datagram, decode, encode_update
from meshd.gossip.config import GossipConfig
from meshd.gossip.dialects import Dialects, Versions
from meshd.gossip.distances import Distances
from meshd.gossip.documents import Documents
from meshd.gossip.doors import Doors
from meshd.gossip.double import Double, refused_aside
from meshd.gossip.effects import Effect, Woken
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
    Resumed,
    StateSet,
    StreamPinged,
)
from meshd.gossip.loads import LoadPlane
from meshd.gossip.members import MemberTable, is_live
from meshd.gossip.messages import (
    Ack,
    Answer,
    Busy,
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
    Update,
    Welcome,
)
from meshd.gossip.outbox import Outbox
from meshd.gossip.prober import Prober
from meshd.gossip.pulls import Pulls
from meshd.gossip.reading import Reading
from meshd.gossip.sources import Sources
from meshd.gossip.state import StateStore
from meshd.gossip.sync import ANSWER_DATAGRAMS_MAX, FIRST_ANSWER_DATAGRAMS, Exchange
from meshd.gossip.timers import Timers
from meshd.gossip.trust import Trust
from meshd.gossip.verifier import Verifier
from meshd.model import Address, Member, MemberState, MeshId, NodeId

_REAP_INTERVAL_S = 60.0
_STALL_FRACTION = 0.25  # of the probe interval: a timer later than this says that we were away
_GOSSIP_GAP_FRACTION = 0.1  # of the gossip interval: fresh rumours are gathered for this long
_RICH_HASTE = 2  # rounds that a change of state, which travels with its rumour, takes at once
_HASTY_RUMOURS_MAX = 4  # while more wait, as when a crowd joins, there is no such haste
_ROUNDS_AHEAD = 10  # rounds that fresh rumours may start early; then they wait for the interval
_GRACE_INTERVALS = 5  # probe intervals without a stall, after which one earns an extra interval
_GREETED = 3  # members with whom views are compared at once after a sleep
_CARRIERS = (Ping, Ack, PingReq, Nack, Gossip)  # messages that rumours ride along on
_COSTLY = (PingReq, EventDigest)  # questions whose answers are larger
_HANDSHAKE = (Join, Busy, Welcome, Records)
_ROUNDING = 1e-6  # of the gossip interval: a timer may come this early


class Swim(Reading):
    """One node's whole gossip protocol. Satisfies `Machine[Input, Effect]`.

    Args:
        me: the node's own record as it starts: its epoch outranks all earlier runs'.
        mesh: datagrams of any other mesh are refused.
        config: the protocol's numbers.
        rng: the only source of chance.
        now: the present.
        table: rows to start from, for the simulator; empty if not given.
        versions: the protocol versions that it speaks.
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
        versions: Versions = Versions(),  # noqa: B008 - a frozen value
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
        self._doors = Doors(now)
        self._dialects = Dialects(mesh, versions)
        self._outbox = Outbox(
            me=me.node, dialects=self._dialects, config=config, rumours=self._rumours,
            loads=self._loads,
        )  # fmt: skip
        self._beliefs = Beliefs(
            me=me, config=config, table=MemberTable({}, ()) if table is None else table,
            rumours=self._rumours, loads=self._loads, states=self._states, timers=self._timers,
            outbox=self._outbox, health=self._health, doors=self._doors, dialects=self._dialects,
            now=now,
        )  # fmt: skip
        self._distances = Distances(self._beliefs, self._outbox, rng)
        self._prober = Prober(
            config=config, beliefs=self._beliefs, timers=self._timers, outbox=self._outbox,
            health=self._health, doors=self._doors, dialects=self._dialects,
            distances=self._distances, rng=rng, now=now,
        )  # fmt: skip
        self._verifier = Verifier(
            config=config, beliefs=self._beliefs, prober=self._prober, timers=self._timers,
            health=self._health, rng=rng,
        )  # fmt: skip
        self._exchange = Exchange(
            config=config, beliefs=self._beliefs, timers=self._timers, outbox=self._outbox,
            doors=self._doors, dialects=self._dialects, rng=rng, now=now,
        )  # fmt: skip
        sources = Sources(config, self._beliefs, rng)
        self._documents = Documents(
            config=config, beliefs=self._beliefs, library=self._states.library,
            timers=self._timers, outbox=self._outbox, sources=sources, now=now,
        )  # fmt: skip
        self._pulls = Pulls(
            beliefs=self._beliefs, states=self._states, timers=self._timers, outbox=self._outbox,
            sources=sources, documents=self._documents, now=now,
        )  # fmt: skip
        self._events = EventPlane(
            config=config, beliefs=self._beliefs, states=self._states, timers=self._timers,
            outbox=self._outbox, rng=rng, floor=event_floor, now=now,
        )  # fmt: skip
        self._trust = Trust(
            mesh=mesh, beliefs=self._beliefs, exchange=self._exchange, pulls=self._pulls,
            doors=self._doors, dialects=self._dialects, outbox=self._outbox, now=now,
        )  # fmt: skip
        self._double = Double(
            beliefs=self._beliefs, outbox=self._outbox, doors=self._doors, rng=rng, now=now
        )
        self._gossiped_at = now
        self._rounds_left = float(_ROUNDS_AHEAD)
        self._stalled_at = Instant(now - _GRACE_INTERVALS * config.probe_interval_s)
        self._timers.set("reap", now + _REAP_INTERVAL_S)

    # The machine's two doors

    def step(self, event: Input, now: Instant) -> list[Effect]:
        """Take one input. Never raises for what a peer sent: that is a DatagramRejected.

        Raises:
            UsageError: a StateSet, EventFired or QueryFired holds what gossip cannot carry, or an
                event or query comes while this node stands aside; nothing changed.
            BusyError: an EventFired or QueryFired is one too many; nothing changed.
        """
        if self._double.is_aside and not self._may_go_on(event, now):
            return self._outbox.drain()
        match event:
            case DatagramReceived():
                self._on_datagram(event, now)
            case DeadlineReached():
                self._on_deadline(now)
            case JoinRequested():
                for address in event.addresses:
                    self._double.vouch(address)
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
            case Resumed():
                self._on_resumed(event, now)
            case StreamPinged():
                self._prober.on_stream_pinged(event, now)
                self._verifier.on_stream_pinged(event)
            case AddressChanged():
                me = self._beliefs.me
                if (event.address, event.other) != (me.address, me.other):
                    self._beliefs.raise_incarnation(now, address=event.address, other=event.other)
            case EventFired():
                self._events.fire(event, now)
            case QueryFired():
                self._events.ask(event, now)
            case AnswerGiven():
                self._events.give(event, now)
            case _:
                assert_never(event)
        if self._beliefs.foreign is not None:
            if isinstance(event, DatagramReceived) and self._trust.is_proven(
                self._beliefs.teller, event.source
            ):
                self._double.vouch(self._beliefs.foreign)
            self._double.on_foreign(self._beliefs.foreign, now)
            self._beliefs.foreign = None
        return self._outbox.drain()

    def _may_go_on(self, event: Input, now: Instant) -> bool:
        """While another process with this key takes part, only what sends nothing is done."""
        if isinstance(event, DatagramReceived):
            datagram = self._decode(event, now)
            if datagram is not None and datagram.source == self._beliefs.me.node:
                self._on_own_id(datagram, event.source, now)
            return False
        if isinstance(event, DeadlineReached):
            if now >= self._double.due_at:
                self._double.on_due(now)
            return False
        if isinstance(event, EventFired | QueryFired):
            raise refused_aside()
        if isinstance(event, Resumed):
            self._beliefs.wall.slept(event.slept_s)
            return False
        return not isinstance(event, JoinRequested | PingRequested | AnswerGiven)

    @property
    def is_aside(self) -> bool:
        """Whether this node takes no part, for another process has its key. For any thread."""
        return self._double.is_aside

    def next_deadline(self) -> Instant | None:
        """When the machine wants a DeadlineReached."""
        return self._double.due_at if self._double.is_aside else self._timers.next_deadline()

    # Datagrams

    def _decode(self, event: DatagramReceived, now: Instant) -> Datagram | None:
        if not self._doors.lets_in(event.source, self._beliefs.table, now):
            self._outbox.reject("flood", event.source)
            return None
        oldest, newest = self._dialects.versions
        try:
            return decode(event.data, self._mesh, oldest=oldest, newest=newest)
        except DecodeError as error:
            self._outbox.reject(error.message, event.source)
            if error.message == "other_version":
                self._trust.on_other_version(event.data, event.source, now)
            return None

    def _on_own_id(self, datagram: Datagram, address: Address, now: Instant) -> None:
        """Somebody speaks in our name: an echo of ourselves, or a double."""
        message = datagram.message
        if isinstance(message, Join):
            if not self._double.is_own(message) and not self._exchange.is_own(message):
                # Also who stands aside answers that it is there: so the first one learns of it.
                self._exchange.on_join(message, datagram.source, address, now)
                if not self._double.is_aside:
                    self._double.on_foreign(address, now)
        elif isinstance(message, Welcome) and (
            self._double.is_asked(message, address) or self._exchange.is_asked(message, address)
        ):
            self._double.on_welcome(message, address, now)
        else:
            self._outbox.reject("own_id", address)

    def _on_datagram(self, event: DatagramReceived, now: Instant) -> None:
        datagram = self._decode(event, now)
        if datagram is None:
            return
        me = self._beliefs.me.node
        if datagram.source == me:
            self._on_own_id(datagram, event.source, now)
        elif datagram.source == NOBODY:
            self._outbox.reject("own_id", event.source)
        elif datagram.destination != me and not (
            datagram.destination == NOBODY and isinstance(datagram.message, Join)
        ):
            self._outbox.reject("other_destination", event.source)
        else:
            self._beliefs.teller = datagram.source
            self._beliefs.mail_waited(event.waited_s, now)
            member = self._beliefs.table.get(datagram.source)
            if member is None:
                self._on_unproven(datagram, event.source, now)
            else:
                self._on_member(datagram, member, event.source, now)
            self._trust.hear_who_is_proven(now)

    def _on_unproven(self, datagram: Datagram, address: Address, now: Instant) -> None:
        """Somebody outside the table, or a member's id from elsewhere.

        The handshake, by which both learn what the other believes; answers no larger than the
        question; and rows that were asked for there.
        """
        source = datagram.source
        is_known = self._beliefs.table.get(source) is not None
        match datagram.message:
            case Join() as join:
                self._exchange.on_join(join, source, address, now)
            case Busy() as busy:
                self._exchange.on_busy(busy, source, address, now)
            case Welcome() as welcome:
                if self._exchange.on_welcome(welcome, source, address, now):
                    self._pulls.on_told(source, now)
                    self._events.stir(now)
            case Sync() as sync:
                self._exchange.on_sync(sync, source, address, now, datagrams=0)
                self._pulls.on_told(source, now)
            case Records() as records if is_known:
                self._exchange.on_records(records, source, address, now)
                self._pulls.on_told(source, now)
            case Gossip() as gossip:
                self._trust.on_unproven_news(gossip.updates, source, address, now)
            case Ping() as ping:
                self._outbox.send_bare(source, address, Ack, (ping.sequence,))
                self._trust.on_unproven_news(ping.updates, source, address, now)
            case PingReq() as request:
                self._outbox.send_bare(source, address, Nack, (request.sequence,))
            case StatePull():
                self._outbox.send_bare(source, address, StateDelta, (1,))
            case _:
                self._outbox.reject("unproven" if is_known else "not_a_member", address)
        # Who asks a thing knows us; a member may have moved, or it is somebody else.
        is_worth_it = is_known and not isinstance(datagram.message, _HANDSHAKE)
        if is_worth_it or isinstance(datagram.message, Ping | PingReq | StatePull):
            self._trust.meet(source, address, now)

    def _on_member(
        self, datagram: Datagram, member: Member, address: Address, now: Instant
    ) -> None:
        # The table's own copy of the id: the sender's would be one more for each that is kept.
        node = member.node
        message = datagram.message
        if not self._exchange.is_at(member, address):
            self._on_unproven(datagram, address, now)
            return
        is_new = node not in self._beliefs.heard_at
        self._beliefs.heard_from(node, now)
        if is_new and isinstance(message, _COSTLY):
            # Of its address there is only hearsay: whoever forges it must do so more than once.
            self._on_unproven(datagram, address, now)
            return
        self._dialects.heard(node, datagram.newest)
        if datagram.load and is_live(member.state):
            self._loads.heard_directly(node, datagram.load, now)
        if isinstance(message, _CARRIERS):
            self._on_riders(message.updates, message.loads, member, address, now)
        # What rode along may have been about the sender itself.
        current = self._beliefs.table.get(node)
        assert current is not None
        if member.state is MemberState.DEAD and current.state is MemberState.ALIVE:
            self._exchange.reunite(current, now)
            self._events.reunited(now)
        self._on_message(message, current, address, now, is_new=is_new)
        self._pulls.on_told(node, now)
        self._exchange.on_told(now)

    def _on_riders(
        self, updates: tuple[Update, ...], loads: bytes, member: Member, address: Address,
        now: Instant,
    ) -> None:  # fmt: skip
        """Take in what rides along on a member's datagram; put it right where it is behind."""
        if updates:
            self._trust.on_news(updates, member, address, now)
        if loads:
            for told in self._loads.heard_rumour(loads, self._is_live, now):
                self._loads.pass_on(told)
                self._beliefs.touch(told)
                self._timers.set_earlier("gossip", now + self._config.gossip_interval_s)

    def _on_message(
        self, message: Message, member: Member, address: Address, now: Instant, *, is_new: bool
    ) -> None:
        node = member.node
        match message:
            case Ping():
                if member.is_at(address):
                    self._prober.on_ping(message, member, self._exchange.short_hash)
                else:
                    # It has proven to be there, too; does it know where all others believe it is?
                    fields = (message.sequence, self._exchange.short_hash)
                    record = encode_update(member)
                    self._outbox.send_full(node, address, Ack, fields, first=(node, record))
            case Ack():
                self._verifier.on_ack(message, node)
                self._prober.on_ack(message, node, now)
                if message.view_hash and member.state is MemberState.ALIVE:
                    self._exchange.compare(member, message.view_hash, now)
            case PingReq():
                if member.is_at(address):
                    self._prober.on_ping_req(message, member, now)
                else:
                    self._outbox.send_bare(node, address, Nack, (message.sequence,))
            case Nack():
                self._prober.on_nack(message, node)
            case Gossip():
                if member.state is MemberState.DEAD and address == member.address:
                    # It does not know, or it would have denied it.
                    self._beliefs.overtaken.append(node)
                    self._trust.correct(node, address, now)
            case Join():
                self._exchange.on_join(message, node, address, now)
            case Busy():
                self._exchange.on_busy(message, node, address, now)
            case Welcome():
                self._exchange.on_welcome(message, node, address, now)
            case Sync():
                datagrams = FIRST_ANSWER_DATAGRAMS if is_new else ANSWER_DATAGRAMS_MAX
                self._exchange.on_sync(message, node, address, now, datagrams=datagrams)
            case Records():
                self._exchange.on_records(message, node, address, now)
            case StatePull():
                self._pulls.on_state_pull(message, node, address, now, is_new=is_new)
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
        more. If it goes on, no more than that, or a starved node would never judge anybody: what
        was late already at the last stall counts once.
        """
        interval_s = self._config.probe_interval_s
        late_s = min(late_s, now - self._stalled_at)
        grace_s = interval_s if now - self._stalled_at >= _GRACE_INTERVALS * interval_s else 0.0
        self._stalled_at = now
        self._timers.shift(late_s + grace_s, _is_verdict)
        self._beliefs.doubts.put_off(late_s + grace_s)
        self._prober.put_off(late_s + grace_s)
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
                self._timers.set("reap", now + _REAP_INTERVAL_S)
                self._beliefs.reap(now)
                self._beliefs.lag_faded(now)
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
            case "settle":
                self._exchange.on_settled(now)
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
        is_hasty = self._rumours.is_rich and len(self._rumours) <= _HASTY_RUMOURS_MAX
        haste = _RICH_HASTE if is_hasty else 1
        self._gossiped_at = now
        self._rounds_left = rounds_left - haste
        me, can_reach = self._beliefs.me.node, self._beliefs.families.can_reach
        targets = self._beliefs.table.pick(
            config.gossip_fanout * haste,
            self._rng,
            lambda m: m.state <= MemberState.SUSPECT and m.node != me and can_reach(m),
        )
        for target in targets:
            if self._rumours.tier_of or self._loads.waiting:
                self._outbox.send_full(target.node, target.address, Gossip, ())
        if targets and (self._rumours.tier_of or self._loads.waiting):
            self._timers.set_earlier("gossip", now + config.gossip_interval_s)

    # Local wishes

    def _on_state_set(self, event: StateSet, now: Instant) -> None:
        own = self._states.own
        if not own.has_room(event.entries):
            # The others copy what was deleted, too, and that only a new run ends.
            self._states.renew(event.entries)
            self._beliefs.begin_anew(now)
        elif self._states.write(event.entries):
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

    def _on_resumed(self, event: Resumed, now: Instant) -> None:
        """What is believed is from before a sleep: nobody is judged, all have to be heard again.

        A few members are told at once that this node is here. If they hold it dead, it refutes.
        """
        beliefs = self._beliefs
        self._on_stall(0.0, now)
        beliefs.wall.slept(event.slept_s)
        beliefs.doubt_reach()
        self._outbox.add(Woken(event.slept_s))
        if beliefs.leaving:
            return
        me, can_reach = beliefs.me.node, beliefs.families.can_reach
        for member in beliefs.table.pick(
            _GREETED, self._rng, lambda m: is_live(m.state) and m.node != me and can_reach(m)
        ):
            self._exchange.greet(member, now)


def _is_verdict(key: object) -> bool:
    """Whether a timer judges somebody else."""
    return key in {"probe", "probe_timeout"} or (
        isinstance(key, tuple) and key[0] in {"suspicion", "verdict", "slow"}
    )
