"""User events: told by one node, heard once by each, passed on like rumours and then compared."""

import random
from collections.abc import Hashable, Sequence

from meshd.clock import Instant, Seconds
from meshd.errors import BusyError, UsageError
from meshd.gossip.beliefs import Beliefs
from meshd.gossip.codec import NOBODY, event_key
from meshd.gossip.config import GossipConfig
from meshd.gossip.effects import EventHeard
from meshd.gossip.entry import EPOCH_AHEAD_MAX_MS
from meshd.gossip.inputs import AnswerGiven, EventFired, QueryFired
from meshd.gossip.messages import (
    DIGEST_EVENTS_MAX,
    EVENT_BYTES_MAX,
    EVENT_HASH_BYTES,
    EVENT_PAYLOAD_BYTES_MAX,
    EVENTS_PER_DATAGRAM,
    QUERY_NODES_MAX,
    QUERY_TIMEOUT_MS_MAX,
    Answer,
    EventDigest,
    Events,
    Question,
    UserEvent,
)
from meshd.gossip.outbox import Outbox
from meshd.gossip.queries import WANTS_ACKS, Queries, query_timeout_s
from meshd.gossip.recent import (
    HAND_ON_S,
    Buckets,
    EventQueue,
    Recent,
    RecentEvents,
    short_hash,
)
from meshd.gossip.state import StateStore
from meshd.gossip.timers import Timers
from meshd.model import Address, Member, MemberState, NodeId, check_name, is_name

COALESCE = 1
"""The flag of an event of which only the newest of its name need arrive."""
EVENTS_PER_S = 10.0
"""Events of one origin that are taken; its own node refuses more, others drop them."""
EVENTS_BURST = 64
QUERIES_PER_S = 2.0
"""Queries of one origin that are taken: fewer, for each makes every node send to it."""
QUERIES_BURST = 16
EVENTS_WAITING_MAX = 128
COALESCE_S: Seconds = 1.0
COALESCING_MAX = 64
"""Names that are coalesced at a time; events of further ones are delivered at once."""
NEWEST_MAX = 512
"""Names of which one remembers the newest event, so that no older one is delivered after it."""
REPAIR_ROUNDS = 3
"""Times that a node shows its recent events to a member at random soon after the last fresh one.

Then it does so after pauses that double, until its events are too old to be handed on.
"""
HANDED_PER_S = 8.0
"""Datagrams of events that are handed out for digests."""
HANDED_BURST = 32
_HANDED_DATAGRAMS_MAX = 4
_WITNESSED_AHEAD_MS = EPOCH_AHEAD_MAX_MS // 2
_AGE_MS_MAX = 65_535
_HEAD_BYTES = 8  # kind, age and the array's length
_ROUNDS_AHEAD = 10  # rounds that fresh events may start early; then they wait for the interval
_GAP_FRACTION = 0.1  # of the gossip interval: fresh events are gathered for this long
_ROUNDING = 1e-6


class EventPlane:
    """All that one node tells, hears and passes on of users' events and queries."""

    def __init__(
        self,
        *,
        config: GossipConfig,
        beliefs: Beliefs,
        states: StateStore,
        timers: Timers,
        outbox: Outbox,
        rng: random.Random,
        floor: int,
        now: Instant,
    ) -> None:
        self._config = config
        self._beliefs = beliefs
        self._timers = timers
        self._outbox = outbox
        self._rng = rng
        self._recent = RecentEvents(floor)
        self._queue = EventQueue(EVENTS_WAITING_MAX)
        self._telling = Buckets(EVENTS_PER_S, EVENTS_BURST)
        self._asking = Buckets(QUERIES_PER_S, QUERIES_BURST)
        self._handing = Buckets(HANDED_PER_S, HANDED_BURST)
        self._queries = Queries(
            config=config, beliefs=beliefs, states=states, timers=timers, outbox=outbox
        )
        self._held: dict[str, Recent] = {}
        self._newest: dict[str, int] = {}
        self._clock = floor
        self._sent_at = now
        self._rounds_left = float(_ROUNDS_AHEAD)
        self._repairs = 0

    @property
    def clock(self) -> int:
        """The highest Lamport time heard or told: a later run need take nothing up to it."""
        return self._clock

    @property
    def dropped(self) -> int:
        """Events that were not passed on as often as they should: too many waited."""
        return self._queue.dropped

    def pending(self) -> dict[str, int]:
        """What waits, for metrics and for resource checks."""
        return {
            "events": len(self._queue),
            "queries": len(self._queries),
            "recent_events": len(self._recent),
        }

    # Telling

    def fire(self, fired: EventFired, now: Instant) -> None:
        """Tell all nodes, this one too.

        Raises:
            UsageError: it is no valid event; nothing was told.
            BusyError: this node tells too much; nothing was told.
        """
        self._tell(fired.name, fired.payload, COALESCE if fired.coalesce else 0, None, now)

    def ask(self, fired: QueryFired, now: Instant) -> None:
        """Ask all nodes, this one too.

        Raises:
            UsageError: it is no valid query; nothing was asked.
            BusyError: this node asks too much; nothing was asked.
        """
        usual_s = query_timeout_s(self._config, self._beliefs.table.live)
        timeout_s = usual_s if fired.timeout_s is None else fired.timeout_s
        if not 0.001 <= timeout_s <= QUERY_TIMEOUT_MS_MAX / 1_000:
            raise UsageError(f"a query's timeout is 0.001 .. {QUERY_TIMEOUT_MS_MAX // 1_000} s")
        if len(fired.nodes) > QUERY_NODES_MAX:
            raise UsageError(
                f"a query may name {QUERY_NODES_MAX} nodes, not {len(fired.nodes)}",
                hint="ask all nodes and choose among the answers, or name a capability",
            )
        if fired.capability:
            check_name(fired.capability, "capability")
        self._queries.check_room()
        question = Question(
            fired.query, round(timeout_s * 1_000), b"".join(fired.nodes), fired.capability
        )
        flags = WANTS_ACKS if fired.wants_acks else 0
        self._tell(fired.name, fired.payload, flags, question, now)

    def give(self, given: AnswerGiven, now: Instant) -> None:
        """Answer a query."""
        self._queries.give(given, now)

    def _tell(
        self, name: str, payload: bytes, flags: int, question: Question | None, now: Instant
    ) -> None:
        check_name(name, "event")
        if len(payload) > EVENT_PAYLOAD_BYTES_MAX:
            raise _too_large(len(payload), "payload", EVENT_PAYLOAD_BYTES_MAX)
        if self._beliefs.leaving:
            raise UsageError("this node has left the mesh", hint="come back with: meshd join HOST")
        time = max(self._clock + 1, self._wall_ms(now))
        event = UserEvent(time, self._beliefs.me.node, flags, name, payload, question)
        # Measured as it will be sent, before anything is changed.
        recent = Recent.of(event, now)
        if len(recent.encoded) > EVENT_BYTES_MAX:
            raise _too_large(len(recent.encoded), "query with its filters", EVENT_BYTES_MAX)
        if not self._is_within_rate(event, now):
            raise BusyError(
                f"one node may tell {EVENTS_PER_S:g} events a second, {EVENTS_BURST} at once,"
                f" and ask {QUERIES_PER_S:g} queries, {QUERIES_BURST} at once",
                hint="tell and ask less, or say more in one",
            )
        if question is not None:
            self._queries.open(question, now)
        self._take(recent, now)

    def _wall_ms(self, now: Instant) -> int:
        return self._beliefs.wall.at_ms(now)

    # Hearing

    def on_events(self, message: Events, address: Address, now: Instant) -> None:
        """Take in the events of one datagram."""
        for event in message.events:
            key = event_key(event)
            if self._recent.knows(key):
                continue
            refusal = self._refusal(event, message.age_ms, now)
            if refusal:
                self._outbox.reject(refusal, address)
            else:
                self._take(Recent.of(event, Instant(now - message.age_ms / 1_000)), now)

    def _refusal(self, event: UserEvent, age_ms: int, now: Instant) -> str:
        """Why an event is dropped; empty if it is taken."""
        question = event.question
        if not is_name(event.name) or (question is not None and len(question.nodes) % 8):
            return "bad_event"
        if event.time > self._wall_ms(now) + EPOCH_AHEAD_MAX_MS:
            return "event_ahead"
        if self._recent.is_old(event) or age_ms >= HAND_ON_S * 1_000:
            return "event_old"
        return "" if self._is_within_rate(event, now) else "event_rate"

    def _is_within_rate(self, event: UserEvent, now: Instant) -> bool:
        # Origins that nobody knows share one rate: their ids cost nothing.
        known = self._beliefs.table.get(event.origin) is not None
        buckets = self._telling if event.question is None else self._asking
        return buckets.take(event.origin if known else NOBODY, now)

    def _take(self, recent: Recent, now: Instant) -> None:
        event = recent.event
        # Whoever is ahead by more than that shall not push all others' times out of bounds.
        self._clock = max(self._clock, min(event.time, self._wall_ms(now) + _WITNESSED_AHEAD_MS))
        self._recent.add(recent, self._wall_ms(now))
        if recent.is_current(now):
            slot: Hashable = event.name if event.flags & COALESCE else recent.key
            self._queue.add(slot, recent)
            self._timers.set_earlier(("events", "round"), now)
            self.stir(now)
        if event.question is not None:
            self._queries.on_question(event, event.question, recent.born, now)
        elif event.flags & COALESCE:
            self._hold(recent, now)
        else:
            self._deliver(recent, now)

    def _hold(self, recent: Recent, now: Instant) -> None:
        """Deliver the newest of a name, a little later; never an older one after a newer."""
        name = recent.event.name
        if recent.event.time <= self._newest.get(name, -1):
            return
        self._newest.pop(name, None)
        if len(self._newest) >= NEWEST_MAX:
            del self._newest[next(iter(self._newest))]
        self._newest[name] = recent.event.time
        if name not in self._held:
            if len(self._held) >= COALESCING_MAX:
                self._deliver(recent, now)
                return
            self._timers.set(("events", ("held", name)), now + COALESCE_S)
        self._held[name] = recent

    def _deliver(self, recent: Recent, now: Instant) -> None:
        event = recent.event
        coalesce, age_s = bool(event.flags & COALESCE), recent.age_s(now)
        self._outbox.add(
            EventHeard(event.time, event.origin, event.name, event.payload, coalesce, age_s)
        )

    def on_answer(self, answer: Answer, member: Member, address: Address) -> None:
        """An answer to an own query, or the receipt of one of ours."""
        self._queries.on_answer(answer, member, address)

    # Timers

    def on_due(self, what: object, now: Instant) -> None:
        """One of this part's timers is due."""
        match what:
            case "round":
                self._on_round(now)
            case "repair":
                self._on_repair(now)
            case ("held", str() as name):
                self._deliver(self._held.pop(name), now)
            case ("query", int() as query):
                self._queries.on_over(query)
            case ("answer", (bytes() as origin, int() as query)):
                self._queries.on_answer_due((NodeId(origin), query), now)
            case _:
                raise AssertionError(f"no such timer: {what!r}")

    def _on_round(self, now: Instant) -> None:
        """Pass waiting events on to a few members at random."""
        interval_s = self._config.gossip_interval_s
        since = (now - self._sent_at) / interval_s
        rounds_left = min(_ROUNDS_AHEAD, self._rounds_left + since)
        wait = max(1 - rounds_left, _GAP_FRACTION - since)
        if wait > _ROUNDING:
            self._timers.set(("events", "round"), now + wait * interval_s)
            return
        targets = self._pick(self._config.gossip_fanout)
        if not targets:
            # Who comes later asks for what it missed.
            self._queue.clear()
            return
        self._sent_at = now
        self._rounds_left = rounds_left - 1
        free = self._outbox.room - _HEAD_BYTES
        for target in targets:
            taken = self._queue.take(free, self._outbox.limit, EVENTS_PER_DATAGRAM, now)
            self._send(target, taken, now)
        if len(self._queue):
            self._timers.set(("events", "round"), now + interval_s)

    def _pick(self, count: int) -> Sequence[Member]:
        me, can_reach = self._beliefs.me.node, self._beliefs.families.can_reach
        return self._beliefs.table.pick(
            count,
            self._rng,
            lambda m: m.state <= MemberState.SUSPECT and m.node != me and can_reach(m),
        )

    def _send(self, target: Member, events: Sequence[Recent], now: Instant) -> None:
        if events:
            age_ms = min(_AGE_MS_MAX, int(max(each.age_s(now) for each in events) * 1_000))
            # In the order of their times: what one datagram brings is heard in that order.
            parts = [each.encoded for each in sorted(events, key=lambda each: each.event.time)]
            self._outbox.send_with(target.node, target.address, Events, (age_ms,), parts)

    # Comparing what was heard

    def stir(self, now: Instant) -> None:
        """Compare soon, with a few members: one of them may lack events, or this node may.

        After a fresh event, and when this node has just met the mesh.
        """
        self._repairs = 0
        self._plan_repair(now)

    def reunited(self, now: Instant) -> None:
        """A member that was held dead lives: it may lack what was told meanwhile."""
        if self._recent.current(now):
            self.stir(now)

    def _plan_repair(self, now: Instant) -> None:
        # Not all at once: each waits for its own part of the time. The first rounds come soon; who
        # was missed by all of them is found later, as long as there is something to compare.
        longer = 2.0 ** max(0, self._repairs - REPAIR_ROUNDS + 1)
        wait_s = self._config.quiet_s * (0.5 + 0.5 * self._rng.random()) * longer
        # What is planned stays: events that keep coming must not put it off for ever.
        self._timers.set_earlier(("events", "repair"), now + wait_s)

    def _on_repair(self, now: Instant) -> None:
        self._repairs += 1
        for target in self._pick(1):
            self._show(target, now, is_answer=False)
        if self._repairs < REPAIR_ROUNDS or self._recent.current(now):
            self._plan_repair(now)

    def _show(self, target: Member, now: Instant, *, is_answer: bool) -> None:
        current = self._recent.current(now)
        shown = current[:DIGEST_EVENTS_MAX]
        # What a run before this one heard is not lacking here, though it is not remembered.
        since = shown[-1].event.time if len(current) > len(shown) else self._recent.floor
        hashes = b"".join(short_hash(each.key) for each in shown)
        fields = (since, hashes, is_answer)
        self._outbox.send(target.node, target.address, EventDigest, fields)

    def on_digest(
        self, digest: EventDigest, member: Member, address: Address, now: Instant
    ) -> None:
        """A member shows what it heard: hand it what it lacks, and ask for what is missing here."""
        if address != member.address:
            # Maybe it moved, maybe it is not the member: nothing larger goes to that address.
            self._outbox.reject("unproven", address)
            return
        hashes = digest.hashes
        theirs = {
            hashes[at : at + EVENT_HASH_BYTES] for at in range(0, len(hashes), EVENT_HASH_BYTES)
        }
        lacking = [
            each
            for each in self._recent.current(now)
            if each.event.time >= digest.since and short_hash(each.key) not in theirs
        ]
        self._hand(lacking, member, now)
        if not digest.is_answer and theirs - self._recent.hashes():
            self._show(member, now, is_answer=True)

    def _hand(self, lacking: list[Recent], member: Member, now: Instant) -> None:
        """Send events to one member, the newest first, in a few datagrams."""
        free = self._outbox.room - _HEAD_BYTES
        for _ in range(_HANDED_DATAGRAMS_MAX):
            taken: list[Recent] = []
            size = 0
            while lacking and len(taken) < EVENTS_PER_DATAGRAM:
                size += len(lacking[0].encoded)
                if size > free:
                    break
                taken.append(lacking.pop(0))
            if not taken or not self._handing.take(NOBODY, now):
                return
            self._send(member, taken, now)


def _too_large(size: int, what: str, limit: int) -> UsageError:
    return UsageError(
        f"the {what} has {size} bytes, more than the {limit} that events may have",
        hint="tell where the data is, or send it by a call",
    )
