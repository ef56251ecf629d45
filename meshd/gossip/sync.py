"""Meeting and comparing notes: the join handshake, and view sync by digest.

A handshake is join -> welcome (with a cookie) -> sync (with the cookie) -> records. Nothing larger
than the question goes to an address before it has proven itself by the cookie.
"""

import hashlib
import random
from collections.abc import Iterator

from meshd.clock import Instant
from meshd.gossip.beliefs import Beliefs
from meshd.gossip.codec import NOBODY, encode_update, update_fields
from meshd.gossip.config import GossipConfig
from meshd.gossip.effects import Joined
from meshd.gossip.members import bucket_of, precedence
from meshd.gossip.messages import (
    BUCKETS,
    JOIN_PADDING_BYTES,
    Join,
    Records,
    Sync,
    Update,
    Welcome,
)
from meshd.gossip.outbox import Outbox
from meshd.gossip.timers import Timers
from meshd.model import Address, Member, NodeId

JOINS_MAX = 256
JOIN_TRIES = 8
JOIN_RETRY_S = 0.5
JOIN_RETRY_MAX_S = 4.0
ASKS_MAX = 16
"""Syncs of our own under way at a time; the oldest gives way."""
ANSWERS_PER_S = 64
"""Syncs of others that are answered a second, and at once."""
ANSWER_DATAGRAMS_MAX = 64
_PADDING = bytes(JOIN_PADDING_BYTES)
_RECORDS_FIELD_BYTES = 16
_PAUSE_FRACTION = 0.1  # of the sync interval: the first pause between syncs after a join or a heal
_OVERDUE_INTERVALS = 6  # after so many sync intervals a mesh that never is quiet syncs all the same
_REUNION_INTERVAL_S = 2.0


class JoinTry:
    """One address that we want to meet."""

    __slots__ = ("limit", "node", "sequence", "tries")

    def __init__(self, sequence: int, limit: int) -> None:
        self.sequence = sequence
        self.limit = limit
        self.tries = 0
        self.node: NodeId | None = None


class Ask:
    """A sync of our own under way: where it went, and the rows that came back so far."""

    __slots__ = ("address", "rows")

    def __init__(self, address: Address) -> None:
        self.address = address
        self.rows: dict[NodeId, tuple[int, int, int]] = {}


class Exchange:
    """All that is asked and answered beyond a ping."""

    def __init__(
        self,
        *,
        config: GossipConfig,
        beliefs: Beliefs,
        timers: Timers,
        outbox: Outbox,
        rng: random.Random,
        now: Instant,
    ) -> None:
        self._config = config
        self._beliefs = beliefs
        self._timers = timers
        self._outbox = outbox
        self._rng = rng
        self._secret = rng.randbytes(16)
        self._joins: dict[Address, JoinTry] = {}
        self._synced_at = now
        self._pause_s = config.sync_interval_s * _PAUSE_FRACTION
        self._reunited_at = Instant(now - _REUNION_INTERVAL_S)
        self._asks: dict[NodeId, Ask] = {}
        self._answers_left = float(ANSWERS_PER_S)
        self._answered_at = now

    # Joining

    def join(self, address: Address, now: Instant, *, tries: int = JOIN_TRIES) -> None:
        """Try to meet whoever is at `address`, with pauses that double up to a few seconds."""
        if len(self._joins) >= JOINS_MAX or address in self._joins or self._beliefs.is_at(address):
            return
        self._joins[address] = JoinTry(self._rng.randrange(2**16), tries)
        self.on_join_due(address, now)

    def on_join_due(self, address: Address, now: Instant) -> None:
        """Send the (next) join, or give up: whoever gave the hint may give it again."""
        attempt = self._joins[address]
        if attempt.tries >= attempt.limit:
            del self._joins[address]
            return
        self._timers.set(
            ("join", address), now + min(JOIN_RETRY_MAX_S, JOIN_RETRY_S * 2**attempt.tries)
        )
        attempt.tries += 1
        self._outbox.send(NOBODY, address, Join, (attempt.sequence, _PADDING))

    def on_join(self, join: Join, source: NodeId, address: Address) -> None:
        """A stranger asks who we are: answer in no more bytes than it asked in."""
        if self._beliefs.leaving:
            self._outbox.reject("leaving", address)
            return
        if len(join.padding) < JOIN_PADDING_BYTES:
            self._outbox.reject("short_join", address)
            return
        cookie = self._cookie(source, address)
        record = update_fields(self._beliefs.me)
        fields = (join.sequence, cookie, record, self._beliefs.began)
        self._outbox.send_bare(source, address, Welcome, fields)

    def is_own(self, join: Join) -> bool:
        """Whether a join is one of ours that came back to us."""
        return any(attempt.sequence == join.sequence for attempt in self._joins.values())

    def is_asked(self, welcome: Welcome, address: Address) -> bool:
        """Whether a welcome answers a join of ours."""
        attempt = self._joins.get(address)
        return attempt is not None and attempt.sequence == welcome.sequence

    def on_welcome(self, welcome: Welcome, source: NodeId, address: Address, now: Instant) -> None:
        """The address answered: show the cookie, and compare views."""
        if not self.is_asked(welcome, address):
            self._outbox.reject("unasked", address)
            return
        attempt = self._joins[address]
        if welcome.record.node != source:
            self._outbox.reject("not_its_own_record", address)
            return
        attempt.node = source
        self._beliefs.hear(welcome.record, address, now)
        self._ask(source, address, welcome.cookie, now)

    def _cookie(self, source: NodeId, address: Address) -> bytes:
        text = source + str(address).encode()
        return hashlib.blake2b(text, digest_size=8, key=self._secret).digest()

    # Comparing views

    def compare(self, peer: Member, their_hash: int, now: Instant) -> None:
        """A member's view hash came on an ack: sync if the views differ although all is quiet.

        The pause between two syncs starts short after a join or a heal, when a lost rumour is
        likely, and doubles up to the sync interval.
        """
        if their_hash == self.short_hash:
            return
        beliefs, config = self._beliefs, self._config
        still_s = min(config.quiet_s, self._pause_s)
        quiet = not beliefs.rumours.tier_of and now - beliefs.changed_at >= still_s
        since_s = now - self._synced_at
        overdue = since_s >= _OVERDUE_INTERVALS * config.sync_interval_s
        if overdue or (quiet and since_s >= self._pause_s):
            self._pause_s = min(config.sync_interval_s, 2 * self._pause_s)
            self._ask(peer.node, peer.address, b"", now)

    def reunite(self, peer: Member, now: Instant) -> None:
        """A member whom we held dead spoke for itself: a split has healed, or it slept.

        Exchange views at once. What either side holds dead becomes a doubt on the other, which its
        subject refutes there, so that the sides need not find each other one by one.
        """
        self._pause_s = self._config.sync_interval_s * _PAUSE_FRACTION
        if now - self._reunited_at >= _REUNION_INTERVAL_S:
            self._reunited_at = now
            self._ask(peer.node, peer.address, b"", now)

    def greet(self, peer: Member, now: Instant) -> None:
        """Compare views with a member at once, whatever is believed."""
        self._ask(peer.node, peer.address, b"", now)

    @property
    def short_hash(self) -> int:
        """The part of the view hash that rides on acks: never 0, which says nothing."""
        return (self._beliefs.table.view_hash & 0xFFFFFFFF) or 1

    def _ask(self, node: NodeId, address: Address, cookie: bytes, now: Instant) -> None:
        self._synced_at = now
        self._asks.pop(node, None)
        if len(self._asks) == ASKS_MAX:
            del self._asks[next(iter(self._asks))]
        self._asks[node] = Ask(address)
        hashes = b"".join(_short(h) for h in self._beliefs.table.bucket_hashes())
        me = encode_update(self._beliefs.me)
        self._outbox.send_with(node, address, Sync, (cookie, hashes), (me,))

    def on_sync(self, sync: Sync, source: NodeId, address: Address, now: Instant) -> None:
        """Somebody shows its view: answer with the records of each bucket that differs.

        The answer is large, so it goes to an address proven by the cookie, or to where the sender
        is known to be. A stranger without a cookie gets none.
        """
        beliefs = self._beliefs
        proven = sync.cookie == self._cookie(source, address)
        if not proven and beliefs.table.get(source) is None:
            self._outbox.reject("unproven", address)
            return
        for update in sync.updates:
            if update.node == source:
                beliefs.hear(update, address, now)
        member = beliefs.table.get(source)
        if member is None or beliefs.leaving:
            # It was refused, or we are out of the mesh ourselves.
            return
        if not self._may_answer(now):
            self._outbox.reject("busy", address)
            return
        if proven:
            beliefs.heard_from(source, now)
        self._answer(sync, source, address if proven else member.address)

    def _may_answer(self, now: Instant) -> bool:
        """Whether one more sync is within what this node answers a second."""
        refill = (now - self._answered_at) * ANSWERS_PER_S
        self._answers_left = min(float(ANSWERS_PER_S), self._answers_left + refill)
        self._answered_at = now
        if self._answers_left < 1:
            return False
        self._answers_left -= 1
        return True

    def _answer(self, sync: Sync, source: NodeId, address: Address) -> None:
        mine = self._beliefs.table.bucket_hashes()
        mask = 0
        for bucket in range(BUCKETS):
            if sync.hashes[4 * bucket : 4 * bucket + 4] != _short(mine[bucket]):
                mask |= 1 << bucket
        records = [encode_update(m) for m in self._beliefs.table if mask >> bucket_of(m.node) & 1]
        self._send_records(source, address, mask, records, ask_back=True)

    def _send_records(
        self, node: NodeId, address: Address, mask: int, records: list[bytes], *, ask_back: bool
    ) -> None:
        chunks = list(self._chunks(records))[:ANSWER_DATAGRAMS_MAX] or [[]]
        packed = mask.to_bytes(8, "big") if ask_back else bytes(8)
        for index, chunk in enumerate(chunks):
            last = ask_back and index == len(chunks) - 1
            self._outbox.send_with(node, address, Records, (packed, last), chunk)

    def _chunks(self, encoded: list[bytes]) -> Iterator[list[bytes]]:
        chunk: list[bytes] = []
        free = self._outbox.room - _RECORDS_FIELD_BYTES
        for item in encoded:
            if chunk and (len(item) > free or len(chunk) == BUCKETS):
                yield chunk
                chunk, free = [], self._outbox.room - _RECORDS_FIELD_BYTES
            chunk.append(item)
            free -= len(item)
        if chunk:
            yield chunk

    def on_records(self, records: Records, source: NodeId, address: Address, now: Instant) -> None:
        """Rows of somebody's table. After the last, send what it lacks.

        That may be far more than came, so it goes only to where our own question went.
        """
        ask = self._asks.get(source)
        if ask is not None and ask.address != address:
            ask = None
        joining = any(attempt.node == source for attempt in self._joins.values())
        for update in records.updates:
            if ask is not None:
                ask.rows[update.node] = _rank(update)
            # A newcomer's whole first view is news to nobody else.
            if not self._beliefs.knows(update):
                self._beliefs.hear(update, address, now, synced=True, spread=not joining)
        if not records.last or ask is None:
            return
        del self._asks[source]
        mask = int.from_bytes(records.mask, "big")
        behind = [
            encode_update(member)
            for member in self._beliefs.table
            if mask >> bucket_of(member.node) & 1
            and precedence(member) > ask.rows.get(member.node, (-1, 0, 0))
        ]
        if behind:
            self._send_records(source, address, mask, behind, ask_back=False)
        if joining:
            self._end_joins(source)

    def _end_joins(self, node: NodeId) -> None:
        for address in [a for a, attempt in self._joins.items() if attempt.node == node]:
            del self._joins[address]
            self._timers.cancel(("join", address))
        self._pause_s = self._config.sync_interval_s * _PAUSE_FRACTION
        self._outbox.add(Joined(node))


def _short(value: int) -> bytes:
    return (value & 0xFFFFFFFF).to_bytes(4, "big")


def _rank(update: Update) -> tuple[int, int, int]:
    return update.epoch, update.incarnation, update.state
