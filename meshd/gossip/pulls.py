"""Asking for the node state that rumours tell of, and answering those who ask.

A rumour carries a version and a digest. Whoever told of it is asked first, a moment later and for
all that it told of at once; if it lacks the state itself it says so, and the owner or somebody else
is next. What comes is checked against the digest.
"""

from collections.abc import Iterable, Iterator

import msgspec

from meshd.clock import Instant
from meshd.gossip.beliefs import Beliefs
from meshd.gossip.codec import encode_delta, update_fields
from meshd.gossip.documents import Documents
from meshd.gossip.doors import Budget
from meshd.gossip.effects import StateChanged
from meshd.gossip.messages import Delta, StateDelta, StatePull, Update
from meshd.gossip.outbox import Outbox
from meshd.gossip.sources import Sources
from meshd.gossip.state import Merged, StateStore, Want
from meshd.gossip.timers import Timers
from meshd.model import Address, NodeId

PULLS_MAX = 8
"""Nodes asked at a time."""
PULL_NODES_MAX = 32
"""Nodes whose state one pull asks for."""
STATE_DATAGRAMS_MAX = 16
"""Datagrams in one answer; what is left is asked for again."""
ANSWERS_PER_S = 256
"""Questions for states that are answered a second, and at once."""
_EARLY_MAX = 64  # deltas of one answer that wait for those before them
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
        beliefs: Beliefs,
        states: StateStore,
        timers: Timers,
        outbox: Outbox,
        sources: Sources,
        documents: Documents,
        now: Instant,
    ) -> None:
        self._beliefs = beliefs
        self._states = states
        self._timers = timers
        self._outbox = outbox
        self._sources = sources
        self._documents = documents
        self._open: dict[NodeId, Question] = {}
        self._answering = Budget(ANSWERS_PER_S, ANSWERS_PER_S, now)

    def __len__(self) -> int:
        return len(self._open)

    # Asking

    def on_told(self, teller: NodeId, now: Instant) -> None:
        """A datagram was taken in: ask soon for the state, and the documents, that it told of."""
        if self._states.note_teller(teller):
            self._timers.set_earlier("pull", now + self._sources.gather_s)
        self._documents.on_told(now)

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
            self._open[source] = Question(nodes, Instant(now + self._sources.answer_s))
            fields = ([(w.node, w.epoch, self._states.held_version(w)) for w in wants],)
            self._outbox.send(source, member.address, StatePull, fields)
        self._rearm(now)

    def _due(self, now: Instant) -> dict[NodeId, list[Want]]:
        """Whom to ask for what."""
        batches: dict[NodeId, list[Want]] = {}
        asked = self._asked()
        anybody = self._sources.anybody()
        for want in self._states.wants():
            if want.node in asked or want.not_before > now:
                continue
            source = self._sources.of(
                want.node, want.teller, anybody, tries=want.tries, is_doubted=want.doubted
            )
            if source is None or source in self._open:
                continue
            if source not in batches and len(self._open) + len(batches) == PULLS_MAX:
                continue
            batch = batches.setdefault(source, [])
            if len(batch) < PULL_NODES_MAX:
                batch.append(want)
        return batches

    def _asked(self) -> set[NodeId]:
        """Nodes whose state is being asked for."""
        return {node for question in self._open.values() for node in question.nodes}

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
                want.not_before = Instant(now + self._sources.pause_s(want.tries))

    def _rearm(self, now: Instant) -> None:
        """Wake up for the first question that runs out, or the first want whose pause ends."""
        times = [question.until for question in self._open.values()]
        asked = self._asked()
        times += [w.not_before for w in self._states.wants() if w.node not in asked]
        if times:
            self._timers.set("pull", max(min(times), now + self._sources.gather_s))

    def on_state_delta(self, message: StateDelta, source: NodeId, address: Address, now: Instant
    ) -> None:  # fmt: skip
        """Take in parts of states. With the last of an answer, see who has what it lacked."""
        question = self._open.get(source)
        if question is None or message.parts:
            self._documents.on_answer(message, source, address, now)
            return
        question.received += 1
        deltas = [*question.early, *message.deltas]
        # Datagrams of one answer may overtake each other: what does not follow on yet waits.
        while deltas:
            held_back = [d for d in deltas if not self._merge(d, question, source, address, now)]
            if len(held_back) == len(deltas):
                break
            deltas = held_back
        question.early = deltas[:_EARLY_MAX]
        if question.received >= message.count:
            del self._open[source]
            self._try_elsewhere(question.lacking)
            self._pause(question.lacking, now)
            self.on_due(now)

    def _merge(
        self, delta: Delta, question: Question, source: NodeId, address: Address, now: Instant
    ) -> bool:
        node = delta.node
        merged = self._states.merge(delta, source)
        if merged is Merged.NOTHING:
            return False
        if merged is Merged.WRONG:
            # Still lacking, so that it is asked for elsewhere: of the owner.
            self._outbox.reject("digest_mismatch", address)
            return True
        question.lacking.pop(node, None)
        if merged is Merged.WHOLE:
            self._beliefs.touch(node)
            self._outbox.add(StateChanged(node))
            self._follow(node, address, now)
            return True
        want = self._states.want(node)
        assert want is not None
        # What did not fit is asked for again: the same source, and no new try.
        want.tries, want.teller = 0, source
        return True

    def _follow(self, node: NodeId, address: Address, now: Instant) -> None:
        """Where the state is newer than the record, its rumour is still on its way: as if heard."""
        member, state = self._beliefs.table.get(node), self._states.get(node)
        assert member is not None
        assert state is not None
        if state.epoch == member.epoch and state.version > member.state_version:
            newer = msgspec.structs.replace(
                member, state_version=state.version, digest=state.digest
            )
            self._beliefs.hear(Update(*update_fields(newer)), address, now)

    # Answering

    def on_state_pull(
        self, pull: StatePull, source: NodeId, address: Address, now: Instant, *, is_new: bool
    ) -> None:
        """Answer with what fits into a few datagrams, be it nothing, to where it was asked.

        Whose first word it is (`is_new`), as in a young mesh, gets one datagram of states. Past
        the budget the answer is that nothing is here, so that others are asked.
        """
        if pull.documents and not is_new:
            self._documents.on_pull(pull, source, address, now)
            return
        if pull.documents or not self._answering.take(now):
            self._outbox.reject("busy", address)
            self._outbox.send_bare(source, address, StateDelta, (1,))
            return
        answers = list(self._answers(pull))[: 1 if is_new else STATE_DATAGRAMS_MAX] or [[]]
        for deltas in answers:
            fields = (len(answers),)
            self._outbox.send_with(source, address, StateDelta, fields, deltas)

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
