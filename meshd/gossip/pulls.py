"""Asking for the node state that rumours tell of, and answering those who ask.

A rumour carries a version only. Whoever told of it is asked first, a moment later and for all that
it told of at once; if it lacks the state itself it says so, and the owner or somebody else is next.
"""

import random
from collections.abc import Iterable, Iterator

from meshd.clock import Instant
from meshd.gossip.beliefs import Beliefs
from meshd.gossip.codec import encode_delta
from meshd.gossip.config import GossipConfig
from meshd.gossip.effects import StateChanged
from meshd.gossip.messages import Delta, StateDelta, StatePull
from meshd.gossip.outbox import Outbox
from meshd.gossip.state import StateStore, Want
from meshd.gossip.timers import Timers
from meshd.model import Address, Member, MemberState, NodeId

PULLS_MAX = 8
"""Nodes asked at a time."""
PULL_NODES_MAX = 32
"""Nodes whose state one pull asks for."""
STATE_DATAGRAMS_MAX = 16
"""Datagrams in one answer; what is left is asked for again."""
_OWNER_ASKERS = 64  # about so many nodes ask the owner itself; in a larger mesh the others spread
_GATHER_FRACTION = 0.25  # of the gossip interval: the teller may get the state meanwhile
_EARLY_MAX = 64  # deltas of one answer that wait for those before them
_ANSWER_S = 0.5  # how long an answer is waited for
_RETRY_MAX_S = 8.0
_DOUBLINGS_MAX = 10
_FIELD_BYTES = 16


class Question:
    """What one node was asked for, and what came of it so far."""

    __slots__ = ("early", "lacking", "nodes", "received", "until")

    def __init__(self, nodes: tuple[NodeId, ...], until: Instant) -> None:
        self.nodes = nodes
        self.until = until
        self.received = 0
        self.lacking = dict.fromkeys(nodes)
        self.early: list[Delta] = []


class Pulls:
    """What was asked of whom. At most PULLS_MAX questions are open, each node in one of them."""

    def __init__(
        self,
        *,
        config: GossipConfig,
        beliefs: Beliefs,
        states: StateStore,
        timers: Timers,
        outbox: Outbox,
        rng: random.Random,
    ) -> None:
        self._gather_s = config.gossip_interval_s * _GATHER_FRACTION
        self._beliefs = beliefs
        self._states = states
        self._timers = timers
        self._outbox = outbox
        self._rng = rng
        self._open: dict[NodeId, Question] = {}

    def __len__(self) -> int:
        return len(self._open)

    # Asking

    def on_told(self, teller: NodeId, now: Instant) -> None:
        """A datagram was taken in: ask soon for the state that it told of."""
        if self._states.note_teller(teller):
            self._timers.set_earlier("pull", now + self._gather_s)

    def on_due(self, now: Instant) -> None:
        """Send the questions that are due; give up those that had no answer in time."""
        for source, question in list(self._open.items()):
            if question.until <= now:
                del self._open[source]
                self._try_elsewhere(question.lacking)
        for source, wants in self._due(now).items():
            member = self._beliefs.table.get(source)
            assert member is not None
            nodes = tuple(want.node for want in wants)
            self._open[source] = Question(nodes, Instant(now + _ANSWER_S))
            fields = ([(w.node, w.epoch, self._states.held_version(w)) for w in wants],)
            self._outbox.send(source, member.address, StatePull, fields)
        self._rearm(now)

    def _due(self, now: Instant) -> dict[NodeId, list[Want]]:
        """Whom to ask for what."""
        batches: dict[NodeId, list[Want]] = {}
        asked = self._asked()
        anybody = self._anybody()
        for want in self._states.wants():
            if want.node in asked or want.not_before > now:
                continue
            source = self._source(want, anybody)
            if source is None or source in self._open:
                continue
            if source not in batches and len(self._open) + len(batches) == PULLS_MAX:
                continue
            batch = batches.setdefault(source, [])
            if len(batch) < PULL_NODES_MAX:
                batch.append(want)
        return batches

    def _source(self, want: Want, anybody: NodeId | None) -> NodeId | None:
        """First the teller, then the owner as often as it can bear, else anybody."""
        if want.tries == 0 and want.teller is not None and self._can_ask(want.teller):
            return want.teller
        owners_share = _OWNER_ASKERS / max(1, self._beliefs.table.live)
        if self._can_ask(want.node) and self._rng.random() < owners_share:
            return want.node
        return anybody

    def _asked(self) -> set[NodeId]:
        """Nodes whose state is being asked for."""
        return {node for question in self._open.values() for node in question.nodes}

    def _can_ask(self, node: NodeId) -> bool:
        member = self._beliefs.table.get(node)
        return member is not None and self._may_answer(member)

    def _may_answer(self, member: Member) -> bool:
        return member.state is MemberState.ALIVE and self._beliefs.families.can_reach(member)

    def _anybody(self) -> NodeId | None:
        me = self._beliefs.me.node
        found = self._beliefs.table.pick(
            1, self._rng, lambda m: self._may_answer(m) and m.node != me
        )
        return found[0].node if found else None

    def _try_elsewhere(self, nodes: Iterable[NodeId]) -> None:
        for node in nodes:
            want = self._states.want(node)
            if want is not None:
                want.tries += 1

    def _pause(self, nodes: Iterable[NodeId], now: Instant) -> None:
        """After a second source that lacks it, wait: twice as long each time."""
        for node in nodes:
            want = self._states.want(node)
            if want is not None and want.tries > 1:
                pause_s = self._gather_s * 2 ** min(want.tries - 1, _DOUBLINGS_MAX)
                want.not_before = Instant(now + min(_RETRY_MAX_S, pause_s))

    def _rearm(self, now: Instant) -> None:
        """Wake up for the first question that runs out, or the first want whose pause ends."""
        times = [question.until for question in self._open.values()]
        asked = self._asked()
        times += [w.not_before for w in self._states.wants() if w.node not in asked]
        if times:
            self._timers.set("pull", max(min(times), now + self._gather_s))

    def on_state_delta(self, message: StateDelta, source: NodeId, address: Address, now: Instant
    ) -> None:  # fmt: skip
        """Take in parts of states. With the last of an answer, see who has what it lacked."""
        question = self._open.get(source)
        if question is None:
            self._outbox.reject("unasked", address)
            return
        question.received += 1
        deltas = [*question.early, *message.deltas]
        # Datagrams of one answer may overtake each other: what does not follow on yet waits.
        while deltas:
            held_back = [delta for delta in deltas if not self._merge(delta, question, source)]
            if len(held_back) == len(deltas):
                break
            deltas = held_back
        question.early = deltas[:_EARLY_MAX]
        if question.received >= message.count:
            del self._open[source]
            self._try_elsewhere(question.lacking)
            self._pause(question.lacking, now)
            self.on_due(now)

    def _merge(self, delta: Delta, question: Question, source: NodeId) -> bool:
        node = delta.node
        if not self._states.merge(delta):
            return False
        self._beliefs.touch(node)
        self._outbox.add(StateChanged(node))
        question.lacking.pop(node, None)
        want = self._states.want(node)
        if want is not None:
            # What did not fit is asked for again: the same source, and no new try.
            want.tries, want.teller = 0, source
        return True

    # Answering

    def on_state_pull(self, pull: StatePull, requester: Member) -> None:
        """Answer with what fits into a few datagrams, be it nothing."""
        answers = list(self._answers(pull))[:STATE_DATAGRAMS_MAX] or [[]]
        for deltas in answers:
            fields = (len(answers),)
            self._outbox.send_with(requester.node, requester.address, StateDelta, fields, deltas)

    def _answers(self, pull: StatePull) -> Iterator[list[bytes]]:
        deltas: list[bytes] = []
        room = free = self._outbox.room - _FIELD_BYTES
        for wanted in pull.wanted:
            node = wanted.node
            have = wanted.have
            state = self._states.get(node)
            if state is None or state.epoch != wanted.epoch:
                continue
            while have < state.version:
                delta = state.delta_since(node, have, free)
                if delta is not None:
                    deltas.append(encode_delta(delta))
                    free -= len(deltas[-1])
                    have = delta.upto
                elif deltas:
                    yield deltas
                    deltas, free = [], room
                else:
                    break
        if deltas:
            yield deltas
