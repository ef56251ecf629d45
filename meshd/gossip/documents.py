"""Fetching the documents that states refer to, in chunks, and handing them out.

The mask of a question names the chunks that are lacking, so that a loss costs what was lost and any
holder can go on where another one stopped. Small documents come first, nobody's documents hold up
another's, and a budget of bytes a second keeps a crowd of large ones from flooding the mesh.
"""

from collections.abc import Iterator

from meshd.clock import Instant, Seconds
from meshd.gossip.beliefs import Beliefs
from meshd.gossip.config import GossipConfig
from meshd.gossip.effects import StateChanged
from meshd.gossip.library import Added, Library, Missing, chunks_of
from meshd.gossip.members import is_live
from meshd.gossip.messages import (
    CHUNK_BYTES,
    DocumentPart,
    StateDelta,
    StatePull,
    WantedDocument,
)
from meshd.gossip.outbox import Outbox
from meshd.gossip.sources import Sources
from meshd.gossip.timers import Timers
from meshd.model import Address, NodeId

QUESTIONS_MAX = 4
"""Nodes that are asked for documents at a time."""
QUESTION_CHUNKS_MAX = 32
"""Chunks of one question: 16 KiB, about as many datagrams as a socket takes in at once."""
QUESTION_DOCUMENTS_MAX = 16
OWNER_CHUNKS_MIN = 4
"""However many nodes' documents wait, each gets its share of every round, and at least this."""
ANSWERS_PER_ASKER = 8
"""A node hands out so many times the bytes that it asks for; then it says: not now."""
ROOM_INTERVAL_S = 1.0
"""The shortest time between two looks through a full library for what the gone offered."""
_FIELD_BYTES = 16  # of an answer, around its parts
_PART_BYTES = 26  # of a part, around its data
_STALLED_TRIES = 3  # asked so often in vain, a document that was begun gives its room to others
_IDLE_S = 1.0  # when nobody can be asked now, look again so late


class Budget:
    """Chunks that may be spent: so many a second, and at most what a second brings at once."""

    def __init__(self, chunks_per_s: float, now: Instant) -> None:
        self.per_s = chunks_per_s
        self.left = chunks_per_s
        self._at = now

    def refill(self, now: Instant) -> int:
        """Whole chunks that are left now."""
        self.left = min(self.per_s, self.left + (now - self._at) * self.per_s)
        self._at = now
        return int(self.left)

    def wait_s(self, chunks: int) -> Seconds:
        """How long until there are so many."""
        return max(0.0, chunks - self.left) / self.per_s


class Question:
    """Documents that one node was asked for: which chunks, and which of them came."""

    __slots__ = ("asked", "came", "received", "until")

    def __init__(self, until: Instant) -> None:
        self.asked: dict[bytes, list[int]] = {}
        self.came: dict[bytes, None] = {}
        self.received = 0
        self.until = until

    @property
    def chunks(self) -> int:
        """How many chunks it asks for."""
        return sum(map(len, self.asked.values()))


class Documents:
    """Questions for documents: at most one to a node, each document in one of them."""

    def __init__(
        self,
        *,
        config: GossipConfig,
        beliefs: Beliefs,
        library: Library,
        timers: Timers,
        outbox: Outbox,
        sources: Sources,
        now: Instant,
    ) -> None:
        self._delay_s = config.gossip_interval_s
        self._beliefs = beliefs
        self._library = library
        self._timers = timers
        self._outbox = outbox
        self._sources = sources
        chunks_per_s = max(float(QUESTION_CHUNKS_MAX), config.document_bytes_per_s / CHUNK_BYTES)
        self._asking = Budget(chunks_per_s, now)
        self._answering = Budget(chunks_per_s * ANSWERS_PER_ASKER, now)
        self._open: dict[NodeId, Question] = {}
        self._room_at = now

    def __len__(self) -> int:
        return len(self._open)

    # Asking

    def on_told(self, now: Instant) -> None:
        """Something was taken in: if it told of documents, ask for them, but after the states."""
        if self._library.take_news():
            self._timers.set_earlier("documents", now + self._delay_s)

    def on_due(self, now: Instant) -> None:
        """Send the questions that are due; end those that had no answer, or no more of it."""
        for source, question in list(self._open.items()):
            if question.until <= now:
                self._close(source, question, now)
        self._ask(now)

    def _ask(self, now: Instant) -> None:
        for source, question in self._plan(now).items():
            member = self._beliefs.table.get(source)
            assert member is not None
            self._open[source] = question
            wanted = [(digest, _mask(chunks)) for digest, chunks in question.asked.items()]
            self._outbox.send(source, member.address, StatePull, ((), wanted))
        self._rearm(now)

    def _plan(self, now: Instant) -> dict[NodeId, Question]:
        """Whom to ask for what: one owner after another, of each the smallest first."""
        plan: dict[NodeId, Question] = {}
        owners = self._library.owners()
        quota = max(OWNER_CHUNKS_MIN, QUESTION_CHUNKS_MAX // max(1, len(owners)))
        budget = self._asking.refill(now)
        asked = {digest for question in self._open.values() for digest in question.asked}
        anybody = self._sources.anybody() if owners else None
        for owner in owners:
            if budget <= 0 or self._is_full(plan):
                break
            share = min(quota, budget)
            spent = self._plan_owner(owner, share, anybody, asked, plan, now)
            if spent:
                self._library.served(owner)
                budget -= spent
                self._asking.left -= spent
        return plan

    def _is_full(self, plan: dict[NodeId, Question]) -> bool:
        """Whether nobody else may be asked, and those who are have enough to do."""
        return len(self._open) + len(plan) >= QUESTIONS_MAX and all(
            question.chunks >= QUESTION_CHUNKS_MAX for question in plan.values()
        )

    def _plan_owner(
        self, owner: NodeId, share: int, anybody: NodeId | None, asked: set[bytes],
        plan: dict[NodeId, Question], now: Instant,
    ) -> int:  # fmt: skip
        """Put an owner's documents into questions; returns for how many chunks."""
        spent = 0
        for missing in self._library.of(owner):
            if spent >= share:
                break
            if missing.digest in asked or missing.not_before > now:
                continue
            question = self._question_for(missing, anybody, plan, now)
            if question is None:
                continue
            room = min(share - spent, QUESTION_CHUNKS_MAX - question.chunks)
            chunks = missing.lacking()[:room]
            question.asked[missing.digest] = chunks
            spent += len(chunks)
        return spent

    def _question_for(
        self, missing: Missing, anybody: NodeId | None, plan: dict[NodeId, Question], now: Instant
    ) -> Question | None:
        """The question that a document fits in; None if it must wait."""
        if not (self._is_offered(missing) and self._has_room(missing, now)):
            return None
        source = self._sources.of(
            missing.owner,
            missing.teller,
            anybody,
            tries=missing.tries,
            is_doubted=missing.doubts > 0,
        )
        if source is None or source in self._open:
            return None
        question = plan.get(source)
        if question is None:
            if len(self._open) + len(plan) >= QUESTIONS_MAX:
                return None
            question = plan[source] = Question(Instant(now + self._sources.answer_s))
        is_full = len(question.asked) >= QUESTION_DOCUMENTS_MAX
        return None if is_full or question.chunks >= QUESTION_CHUNKS_MAX else question

    def _is_offered(self, missing: Missing) -> bool:
        """Whether somebody whose document it is is there: those of the gone are not fetched."""
        return any(map(self._is_here, self._library.users(missing.digest)))

    def _is_here(self, node: NodeId) -> bool:
        member = self._beliefs.table.get(node)
        is_me = node == self._beliefs.me.node
        return is_me or (member is not None and is_live(member.state))

    def _has_room(self, missing: Missing, now: Instant) -> bool:
        """Whether a document may be begun; of a full library the gone's make room, now and then."""
        if self._library.may_begin(missing):
            return True
        if now < self._room_at:
            return False
        self._room_at = Instant(now + ROOM_INTERVAL_S)
        return self._library.make_room(missing, self._is_here)

    def _rearm(self, now: Instant) -> None:
        """Wake up for the first question that runs out, the budget, or the first pause's end."""
        times = [question.until for question in self._open.values()]
        if len(self._open) < QUESTIONS_MAX and len(self._library):
            pauses = [m.not_before for m in self._library.all_missing() if m.not_before > now]
            short_s = self._asking.wait_s(OWNER_CHUNKS_MIN)
            idle = Instant(now + (short_s or _IDLE_S))
            times.append(min([idle, *pauses]))
        if times:
            self._timers.set("documents", max(min(times), now + self._sources.gather_s / 10))

    def on_answer(
        self, message: StateDelta, source: NodeId, address: Address, now: Instant
    ) -> None:
        """Take in chunks. After the last datagram of an answer, or what came of it, go on."""
        question = self._open.get(source)
        if question is None or message.deltas:
            self._outbox.reject("unasked", address)
            return
        question.received += 1
        for part in message.parts:
            if part.digest in question.asked:
                self._take(part, question, source, address, now)
        if question.received >= message.count:
            self._close(source, question, now)
            self._ask(now)
        else:
            question.until = min(question.until, Instant(now + self._sources.gather_s))
            self._timers.set_earlier("documents", question.until)

    def _take(
        self, part: DocumentPart, question: Question, source: NodeId, address: Address, now: Instant
    ) -> None:
        missing = self._library.missing(part.digest)
        users = tuple(self._library.users(part.digest))
        added = self._library.add(part.digest, part.first, part.data)
        if missing is None or added is Added.NOTHING:
            return
        question.came[part.digest] = None
        if added is Added.WRONG:
            self._outbox.reject("digest_mismatch", address)
            missing.not_before = Instant(now + self._sources.pause_s(missing.doubts))
            return
        missing.tries, missing.teller = 0, source
        if added is Added.WHOLE:
            for node in users:
                self._beliefs.touch(node)
                self._outbox.add(StateChanged(node))

    def _close(self, source: NodeId, question: Question, now: Instant) -> None:
        """An answer has ended: of what brought nothing somebody else is asked, after a pause."""
        del self._open[source]
        for digest in question.asked:
            missing = self._library.missing(digest)
            if missing is None or digest in question.came:
                continue
            missing.tries += 1
            if missing.tries > 1:
                missing.not_before = Instant(now + self._sources.pause_s(missing.tries))
            if missing.tries == _STALLED_TRIES:
                self._library.start_over(missing)

    # Answering

    def on_pull(self, pull: StatePull, source: NodeId, address: Address, now: Instant) -> None:
        """Answer with the chunks that were asked for, as far as the budget goes."""
        budget = min(QUESTION_CHUNKS_MAX, self._answering.refill(now))
        parts = list(self._parts(pull.documents, budget))
        self._answering.left -= sum(chunks_of(len(data)) for _, _, data in parts)
        answers = list(self._packed(parts))
        for each in answers:
            fields = (len(answers), (), each)
            self._outbox.send(source, address, StateDelta, fields)

    def _parts(
        self, wanted: tuple[WantedDocument, ...], budget: int
    ) -> Iterator[tuple[bytes, int, bytes]]:
        """Runs of chunks, each short enough for a datagram; an empty one where there is none."""
        longest = (self._outbox.room - _FIELD_BYTES - _PART_BYTES) // CHUNK_BYTES
        for document in wanted:
            body = self._library.get(document.digest)
            if body is None:
                yield document.digest, 0, b""
                continue
            chunks = _numbers(document.mask, chunks_of(len(body)))[:budget]
            budget -= len(chunks)
            if not chunks:
                yield document.digest, 0, b""
            for first, count in _runs(chunks, longest):
                at = first * CHUNK_BYTES
                yield document.digest, first, body[at : at + count * CHUNK_BYTES]

    def _packed(
        self, parts: list[tuple[bytes, int, bytes]]
    ) -> Iterator[list[tuple[bytes, int, bytes]]]:
        """Parts in datagrams, in their order; there is one part at least."""
        packed: list[tuple[bytes, int, bytes]] = []
        room = free = self._outbox.room - _FIELD_BYTES
        for part in parts:
            size = _PART_BYTES + len(part[2])
            if packed and size > free:
                yield packed
                packed, free = [], room
            packed.append(part)
            free -= size
        yield packed


def _mask(chunks: list[int]) -> bytes:
    """Chunk numbers as bits: number i is bit i."""
    bits = 0
    for number in chunks:
        bits |= 1 << number
    return bits.to_bytes(chunks[-1] // 8 + 1, "big")


def _numbers(mask: bytes, count: int) -> list[int]:
    """The chunk numbers below `count` in a mask, in order."""
    bits = int.from_bytes(mask, "big")
    return [number for number in range(count) if bits >> number & 1]


def _runs(chunks: list[int], longest: int) -> Iterator[tuple[int, int]]:
    """Consecutive chunk numbers as first and count, none longer than a datagram carries."""
    start = 0
    for end in range(1, len(chunks) + 1):
        is_last = end == len(chunks) or chunks[end] != chunks[end - 1] + 1
        if is_last or end - start == longest:
            yield chunks[start], end - start
            start = end
