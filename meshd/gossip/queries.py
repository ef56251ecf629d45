"""Questions to all nodes: who answers, and how the answers come back to whoever asked."""

import math

import msgspec

from meshd.clock import Instant, Seconds
from meshd.errors import BusyError
from meshd.gossip.beliefs import Beliefs
from meshd.gossip.config import GossipConfig
from meshd.gossip.effects import QueryAnswered, QueryEnded, QueryHeard
from meshd.gossip.inputs import AnswerGiven
from meshd.gossip.members import is_live
from meshd.gossip.messages import ANSWER_BYTES_MAX, Answer, Question, UserEvent
from meshd.gossip.outbox import Outbox
from meshd.gossip.state import CAPABILITY_KEY, StateStore
from meshd.gossip.timers import Timers
from meshd.model import Address, Member, NodeId

OPEN_MAX = 64
"""Own queries that may wait for answers at a time."""
ANSWERING_MAX = 256
"""Queries of others that may wait for this node's answer; the oldest is given up."""
ANSWERS_MAX = 1_024
"""Answers, and as many signs of receipt, that are taken to one query."""
ANSWER_TRIES = 3
"""An answer is sent so often until its receipt is confirmed."""
TIMEOUT_MULT = 16
WANTS_ACKS = 2
"""The flag of a query whose receipt shall be confirmed at once."""
_ACK, _ANSWER, _REFUSAL, _CONFIRMED = range(4)
_ANSWER_HEAD_BYTES = 11  # kind, query, part and the length of the payload
_RETRY_INTERVALS = 2  # gossip intervals until an answer is sent again

Key = tuple[NodeId, int]
"""Who asked, and the number that it gave its query."""


def query_timeout_s(config: GossipConfig, members: int) -> Seconds:
    """How long answers are gathered unless said otherwise (Serf's default: 16 rounds a decade)."""
    return config.gossip_interval_s * TIMEOUT_MULT * math.ceil(math.log10(max(1, members) + 1))


class Asked:
    """An own query: who may answer (None: anybody), who has."""

    __slots__ = ("acked", "answered", "nodes")

    def __init__(self, nodes: frozenset[NodeId] | None) -> None:
        self.nodes = nodes
        self.acked: dict[NodeId, None] = {}
        self.answered: dict[NodeId, None] = {}


class Owed(msgspec.Struct):
    """An answer that somebody waits for: `part` and `payload` once there is one."""

    deadline: Instant
    part: int = _ANSWER
    payload: bytes | None = None
    tries: int = 0


class Queries:
    """Both sides of every query."""

    def __init__(
        self,
        *,
        config: GossipConfig,
        beliefs: Beliefs,
        states: StateStore,
        timers: Timers,
        outbox: Outbox,
    ) -> None:
        self._config = config
        self._beliefs = beliefs
        self._states = states
        self._timers = timers
        self._outbox = outbox
        self._asked: dict[int, Asked] = {}
        self._owed: dict[Key, Owed] = {}

    def __len__(self) -> int:
        return len(self._asked) + len(self._owed)

    # Asking

    def check_room(self) -> None:
        """Whether one more query may be asked now.

        Raises:
            BusyError: too many wait for answers.
        """
        if len(self._asked) >= OPEN_MAX:
            raise BusyError(
                f"{OPEN_MAX} queries of this node already wait for answers",
                hint="wait until one ends, or give them shorter timeouts",
            )

    def open(self, question: Question, now: Instant) -> None:
        """Gather answers from now on."""
        nodes = _ids(question.nodes)
        self._asked[question.query] = Asked(frozenset(nodes) if nodes else None)
        ends_at = now + question.timeout_ms / 1_000
        self._timers.set(("events", ("query", question.query)), ends_at)

    def on_over(self, query: int) -> None:
        """The time for answers is over."""
        del self._asked[query]
        self._outbox.add(QueryEnded(query))

    def on_answer(self, answer: Answer, member: Member, address: Address) -> None:
        """An answer to an own query, or the receipt of one of ours."""
        if answer.part == _CONFIRMED:
            self._settle((member.node, answer.query))
            return
        asked = self._asked.get(answer.query)
        if asked is None or not (asked.nodes is None or member.node in asked.nodes):
            self._outbox.reject("unasked", address)
            return
        if answer.part != _ACK:
            receipt = (answer.query, _CONFIRMED)
            self._outbox.send(member.node, member.address, Answer, receipt)
        self._collect(answer, asked, member.node, address)

    def _collect(self, answer: Answer, asked: Asked, node: NodeId, source: Address) -> None:
        table = asked.acked if answer.part == _ACK else asked.answered
        if node in table:
            return
        if len(table) >= ANSWERS_MAX:
            self._outbox.reject("too_many_answers", source)
            return
        table[node] = None
        payload = None if answer.part == _ACK else answer.payload
        is_error = answer.part == _REFUSAL
        self._outbox.add(QueryAnswered(answer.query, node, payload, is_error))
        if asked.nodes is not None and asked.nodes <= asked.answered.keys():
            self._timers.cancel(("events", ("query", answer.query)))
            self.on_over(answer.query)

    # Answering

    def on_question(
        self, event: UserEvent, question: Question, born: Instant, now: Instant
    ) -> None:
        """A query came: if this node is meant, whoever runs it is told."""
        deadline = Instant(born + question.timeout_ms / 1_000)
        if now >= deadline or not self._is_meant(question):
            return
        if len(self._owed) >= ANSWERING_MAX:
            self._settle(next(iter(self._owed)))
        key = event.origin, question.query
        self._owed[key] = Owed(deadline)
        self._timers.set(("events", ("answer", key)), deadline)
        if event.flags & WANTS_ACKS:
            self._send(key, _ACK, b"")
        self._outbox.add(
            QueryHeard(event.origin, question.query, event.name, event.payload, deadline - now)
        )

    def _is_meant(self, question: Question) -> bool:
        nodes = _ids(question.nodes)
        if nodes and self._beliefs.me.node not in nodes:
            return False
        if not question.capability:
            return True
        entry = self._states.own.entries.get(CAPABILITY_KEY + question.capability)
        return entry is not None and entry.value is not None

    def give(self, given: AnswerGiven, now: Instant) -> None:
        """Answer a query; without effect where nobody waits (any more) or it is answered."""
        key = given.origin, given.query
        owed = self._owed.get(key)
        if owed is None or owed.payload is not None:
            return
        owed.part = _REFUSAL if given.is_error else _ANSWER
        owed.payload = given.payload
        room = min(ANSWER_BYTES_MAX, self._outbox.room - _ANSWER_HEAD_BYTES)
        if len(given.payload) > room:
            owed.part = _REFUSAL
            text = f"the answer has {len(given.payload)} bytes, more than the {room} that fit"
            owed.payload = text.encode()
        self.on_answer_due(key, now)

    def on_answer_due(self, key: Key, now: Instant) -> None:
        """Send an answer (again), or give up."""
        owed = self._owed[key]
        if owed.payload is None or now >= owed.deadline or owed.tries >= ANSWER_TRIES:
            del self._owed[key]
            return
        owed.tries += 1
        again_s = _RETRY_INTERVALS * self._config.gossip_interval_s
        self._timers.set(("events", ("answer", key)), now + again_s)
        self._send(key, owed.part, owed.payload)

    def _send(self, key: Key, part: int, payload: bytes) -> None:
        origin, query = key
        me = self._beliefs.me
        if origin == me.node:
            asked = self._asked.get(query)
            if asked is not None:
                self._collect(Answer(query, part, payload), asked, origin, me.address)
            if part != _ACK:
                self._settle(key)
            return
        member = self._beliefs.table.get(origin)
        if member is not None and is_live(member.state):
            self._outbox.send(origin, member.address, Answer, (query, part, payload))

    def _settle(self, key: Key) -> None:
        """Nobody waits for this answer any more. Idempotent."""
        if self._owed.pop(key, None) is not None:
            self._timers.cancel(("events", ("answer", key)))


def _ids(packed: bytes) -> list[NodeId]:
    return [NodeId(packed[at : at + 8]) for at in range(0, len(packed), 8)]
