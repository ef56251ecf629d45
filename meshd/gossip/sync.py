"""Meeting and comparing notes: the join handshake, and view sync by digest.

A handshake is join -> welcome (with a cookie) -> sync (with the cookie) -> records. Nothing larger
than the question goes to an address before it has proven itself by the cookie.
"""

import hashlib
import random
from collections.abc import Iterator

from meshd.clock import Instant
from meshd.errors import DecodeError
from meshd.gossip.beliefs import Beliefs
from meshd.gossip.codec import (
    NOBODY,
    encode_update,
    pack_address,
    unpack_address,
    update_fields,
)
from meshd.gossip.config import GossipConfig
from meshd.gossip.dialects import Dialects, Versions
from meshd.gossip.doors import Budget, Doors
from meshd.gossip.effects import Joined, VersionRefused
from meshd.gossip.members import bucket_of, precedence
from meshd.gossip.messages import (
    BUCKETS,
    BUSY_ADDRESSES_MAX,
    JOIN_PADDING_BYTES,
    Busy,
    Join,
    Records,
    Sync,
    Update,
    Welcome,
)
from meshd.gossip.outbox import Outbox
from meshd.gossip.timers import Timers
from meshd.model import Address, Member, MemberState, NodeId

JOINS_MAX = 256
JOIN_TRIES = 8
JOIN_RETRY_S = 0.5
JOIN_RETRY_MAX_S = 4.0
ASKS_MAX = 16
"""Syncs of our own under way at a time; the oldest gives way."""
ANSWERS_PER_S = 64
"""Syncs of others that are answered a second, and at once."""
ANSWER_DATAGRAMS_MAX = 64
FIRST_ANSWER_DATAGRAMS = 2
"""So many go to a member's address of which there was only hearsay before its question."""
PUSH_WINDOW_S = 5.0
"""How long after an answer the rows that the asker sends in return are awaited."""
PUSHES_MAX = 64
"""Askers whose rows are awaited; the oldest gives way."""
PROVEN_MAX = 1_024
"""Nodes proven to be at another address than the one they tell; the oldest gives way."""
BUSY_TRIES = 16
"""How often in a row an address may be busy before it is given up."""
BUSY_PAUSE_S = (0.05, 0.5)
"""The first pause after a "busy", at random between these; each further one twice as long."""
_PADDING = bytes(JOIN_PADDING_BYTES)
_RECORDS_FIELD_BYTES = 16
_SYNC_BYTES = 4 * BUCKETS + 24  # of a sync, beside the record
_PAUSE_FRACTION = 0.03  # of the sync interval: the first pause between syncs after a join or a heal
_CROWD, _CROWD_FRACTION = 4, 1 / 32  # new members, at least, and of the live ones
_CROWD_S = 2.0  # within which so many come
_SETTLED_ROUNDS = (1.0, 2.0)  # of gossip without a further one, until a crowd has settled
_SETTLING_MAX_S = 5.0  # if more keep coming, it counts as settled all the same
_SETTLINGS = 2  # comparisons then, with others: whoever is asked may lack the same
_SETTLINGS_SAVED = 64  # crowds that settle at once; further ones one each sync interval:
# a hundred that start one by one, as on a slow machine, are many crowds with pauses between
_CALM_S = 5.0  # so long after a crowd each single member that is new counts as one of it
_OVERDUE_INTERVALS = 6  # after so many sync intervals a mesh that never is quiet syncs all the same
_REUNION_INTERVAL_S = 2.0
_BUSY_BYTES_MAX = 60  # of packed addresses: a busy is no larger than the smallest join
_BUSY_DOUBLINGS_MAX = 4


class JoinTry:
    """One address that we want to meet. For each join that is sent there is one question."""

    __slots__ = ("is_answered", "limit", "node", "refusals", "sequence", "tries")

    def __init__(self, sequence: int, limit: int) -> None:
        self.sequence = sequence
        self.limit = limit
        self.tries = 0
        self.refusals = 0
        self.node: NodeId | None = None
        self.is_answered = False


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
        doors: Doors,
        dialects: Dialects,
        rng: random.Random,
        now: Instant,
    ) -> None:
        self._config = config
        self._beliefs = beliefs
        self._timers = timers
        self._outbox = outbox
        self._doors = doors
        self._versions = dialects.versions
        self._rng = rng
        self._secret = rng.randbytes(16)
        self._joins: dict[Address, JoinTry] = {}
        self._synced_at = now
        self._pause_s = config.sync_interval_s * _PAUSE_FRACTION
        self._reunited_at = Instant(now - _REUNION_INTERVAL_S)
        self._live = beliefs.table.live
        self._newcomers = 0
        self._newcomers_since = now
        self._crowd_until = now
        self._settlings = 0
        self._settle_by = now
        self._crowds = Budget(1 / config.sync_interval_s, _SETTLINGS_SAVED, now)
        self._asks: dict[NodeId, Ask] = {}
        self._answers = Budget(ANSWERS_PER_S, ANSWERS_PER_S, now)
        self._pushes: dict[NodeId, tuple[Address, Instant]] = {}
        self._proven: dict[NodeId, Address] = {}

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
        attempt.tries += 1
        attempt.is_answered = False
        self._retry_later(attempt, address, now)
        self._outbox.send(NOBODY, address, Join, (attempt.sequence, _PADDING, *self._versions))

    def _retry_later(self, attempt: JoinTry, address: Address, now: Instant) -> None:
        pause_s = min(JOIN_RETRY_MAX_S, JOIN_RETRY_S * 2 ** (attempt.tries - 1))
        self._timers.set(("join", address), now + pause_s)

    def is_trying(self, address: Address) -> bool:
        """Whether a join to `address` is under way."""
        return address in self._joins

    def on_join(self, join: Join, source: NodeId, address: Address, now: Instant) -> None:
        """A stranger asks who we are: answer in no more bytes than it asked in.

        Who speaks no version of ours is answered as well, so that it learns why it cannot join.
        """
        if self._beliefs.leaving:
            self._outbox.reject("leaving", address)
            return
        if len(join.padding) < JOIN_PADDING_BYTES:
            self._outbox.reject("short_join", address)
            return
        if not self._doors.may_join(address, now):
            self._outbox.reject("busy", address)
            self._send_busy(join.sequence, source, address)
            return
        cookie = self._cookie(source, address)
        record = update_fields(self._beliefs.me)
        fields = (join.sequence, cookie, record, *self._versions, self._beliefs.began)
        self._outbox.send_bare(source, address, Welcome, fields)
        self._is_understood(Versions(join.oldest, join.newest), address)

    def _is_understood(self, theirs: Versions, address: Address) -> bool:
        """Whether there is a version in common; if not, that is reported and nobody's fault."""
        if self._versions.common(theirs) is not None:
            return True
        self._outbox.reject("other_version", address)
        self._outbox.add(VersionRefused(address, theirs.oldest, theirs.newest))
        return False

    def _send_busy(self, sequence: int, source: NodeId, address: Address) -> None:
        """Not now: name others to knock at, as many as fit into no more bytes than the question."""
        beliefs = self._beliefs
        others = beliefs.table.pick(
            BUSY_ADDRESSES_MAX,
            self._rng,
            lambda m: (
                m.state is MemberState.ALIVE
                and m.node not in {beliefs.me.node, source}
                and m.node not in beliefs.unreachable
            ),
        )
        packed: list[bytes] = []
        for other in others:
            one = pack_address(other.address)
            if sum(map(len, packed)) + len(one) + 2 * len(packed) + 2 <= _BUSY_BYTES_MAX:
                packed.append(one)
        self._outbox.send_bare(source, address, Busy, (sequence, packed))

    def on_busy(self, busy: Busy, source: NodeId, address: Address, now: Instant) -> None:
        """Whom we asked has no time: come back later, and try those it named meanwhile."""
        attempt = self._joins.get(address)
        if attempt is None or (attempt.sequence != busy.sequence and attempt.node != source):
            self._outbox.reject("unasked", address)
            return
        attempt.refusals += 1
        if attempt.refusals > BUSY_TRIES:
            del self._joins[address]
            self._timers.cancel(("join", address))
            return
        # It lives, so it is not given up for want of answers.
        attempt.tries = 1
        doublings = min(attempt.refusals - 1, _BUSY_DOUBLINGS_MAX)
        pause_s = self._rng.uniform(*BUSY_PAUSE_S) * 2**doublings
        self._timers.set(("join", address), now + pause_s)
        for packed in busy.addresses:
            try:
                other = unpack_address(packed)
            except DecodeError:
                continue
            if other not in self._joins and self._doors.may_probe(now):
                self.join(other, now, tries=1)

    def is_own(self, join: Join) -> bool:
        """Whether a join is one of ours that came back to us."""
        return any(attempt.sequence == join.sequence for attempt in self._joins.values())

    def is_asked(self, welcome: Welcome, address: Address) -> bool:
        """Whether a welcome answers a join of ours."""
        attempt = self._joins.get(address)
        return attempt is not None and attempt.sequence == welcome.sequence

    def on_welcome(self, welcome: Welcome, source: NodeId, address: Address, now: Instant) -> bool:
        """The address answered: show the cookie, and compare views; false if it is refused."""
        if not self.is_asked(welcome, address):
            self._outbox.reject("unasked", address)
            return False
        attempt = self._joins[address]
        if welcome.record.node != source:
            self._outbox.reject("not_its_own_record", address)
            return False
        if not self._is_understood(Versions(welcome.oldest, welcome.newest), address):
            del self._joins[address]
            self._timers.cancel(("join", address))
            return False
        if attempt.is_answered:
            # Whoever is slow to answer has several of our joins: one question is enough for it.
            return False
        attempt.node, attempt.is_answered = source, True
        self._retry_later(attempt, address, now)
        self._prove(source, address)
        self._beliefs.hear(welcome.record, address, now, own=True)
        self._ask(source, address, welcome.cookie, now)
        return True

    def _prove(self, node: NodeId, address: Address) -> None:
        """A node has answered at an address: it is there, whatever address it tells others."""
        self._proven.pop(node, None)
        if len(self._proven) >= PROVEN_MAX:
            del self._proven[next(iter(self._proven))]
        self._proven[node] = address

    def is_at(self, member: Member, address: Address) -> bool:
        """Whether a member may be taken to speak from `address`: it tells so, or has proven it."""
        return member.is_at(address) or self._proven.get(member.node) == address

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

    def on_told(self, now: Instant) -> None:
        """A datagram was taken in: while a crowd joins, see later that nobody is missed.

        Rumours miss one pair in some thousands; of fifty that join at once that is nearly always
        somebody, who would be noticed by the next acks.
        """
        live = self._beliefs.table.live
        if live > self._live:
            if now - self._newcomers_since > _CROWD_S:
                self._newcomers, self._newcomers_since = 0, now
            self._newcomers += live - self._live
            if self._newcomers >= max(_CROWD, live * _CROWD_FRACTION):
                self._crowd_until = Instant(now + _CALM_S)
            if now < self._crowd_until:
                self._settle_soon(now)
        self._live = live

    def _settle_soon(self, now: Instant) -> None:
        if not self._settlings:
            if not self._crowds.take(now):
                return  # acks show, later, who is missed
            self._settle_by = Instant(now + _SETTLING_MAX_S)
        self._settlings = _SETTLINGS
        self._settle_later(now)

    def _settle_later(self, now: Instant) -> None:
        rounds = self._rng.uniform(*_SETTLED_ROUNDS)
        at = now + rounds * self._config.gossip_interval_s
        self._timers.set("settle", max(now, min(at, self._settle_by)))

    def on_settled(self, now: Instant) -> None:
        """No further member has come for a moment: compare views with somebody."""
        self._settlings -= 1
        beliefs = self._beliefs
        me, can_reach = beliefs.me.node, beliefs.families.can_reach
        for peer in beliefs.table.pick(
            1, self._rng, lambda m: m.state is MemberState.ALIVE and m.node != me and can_reach(m)
        ):
            self._ask(peer.node, peer.address, b"", now)
        if self._settlings:
            self._settle_by = Instant(now + _SETTLING_MAX_S)
            self._settle_later(now)

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
        if cookie:
            introduction = self._beliefs.introduction()
            me = introduction if len(introduction) <= self._outbox.room - _SYNC_BYTES else me
        self._outbox.send_with(node, address, Sync, (cookie, hashes), (me,))

    def on_sync(
        self, sync: Sync, source: NodeId, address: Address, now: Instant, *, datagrams: int
    ) -> None:
        """Somebody shows its view: answer with the records of each bucket that differs.

        The answer is large, so it goes to an address proven by the cookie, or to where the sender
        is known to be, and nowhere else: `datagrams` is how many it may have there, 0 if the
        sender is not at home.
        """
        beliefs = self._beliefs
        proven = sync.cookie == self._cookie(source, address)
        if not (proven or datagrams):
            self._outbox.reject("unproven", address)
            return
        for update in sync.updates:
            if update.node == source:
                beliefs.hear(update, address, now, own=proven)
        member = beliefs.table.get(source)
        if member is None or beliefs.leaving:
            # It was refused, or we are out of the mesh ourselves.
            return
        if proven:
            self._prove(source, address)
        if not self._answers.take(now):
            self._outbox.reject("busy", address)
            if proven:
                self._send_busy(0, source, address)
            return
        if proven:
            beliefs.heard_from(source, now)
        if proven:
            datagrams = ANSWER_DATAGRAMS_MAX
        self._answer(sync, source, address, datagrams, now, is_newcomer=proven)

    def _answer(
        self, sync: Sync, source: NodeId, address: Address, datagrams: int, now: Instant, *,
        is_newcomer: bool,
    ) -> None:  # fmt: skip
        self._pushes.pop(source, None)
        if len(self._pushes) >= PUSHES_MAX:
            del self._pushes[next(iter(self._pushes))]
        self._pushes[source] = (address, now)
        mine = self._beliefs.table.bucket_hashes()
        mask = 0
        for bucket in range(BUCKETS):
            if sync.hashes[4 * bucket : 4 * bucket + 4] != _short(mine[bucket]):
                mask |= 1 << bucket
        rows = [m for m in self._beliefs.table if mask >> bucket_of(m.node) & 1]
        encoded = {m.node: encode_update(m) if is_newcomer else self._row(m, now) for m in rows}
        records = list(encoded.values())
        if len(list(self._chunks(records))) > datagrams:
            mask, records = self._cut(mask, encoded, datagrams)
        self._send_records(source, address, mask, records, datagrams, ask_back=True)

    def _row(self, member: Member, now: Instant) -> bytes:
        """A row for a member of the mesh.

        Of a newcomer that this node never heard it says who has met it, so that whoever takes the
        row in does not answer for it.
        """
        beliefs = self._beliefs
        if member.state is not MemberState.ALIVE or member.node in beliefs.heard_at:
            return encode_update(member)
        return encode_update(member, beliefs.sponsors.named(member, now))

    def _cut(self, mask: int, rows: dict[NodeId, bytes], datagrams: int) -> tuple[int, list[bytes]]:
        """What of too many rows one answer holds, and the buckets that are in it as a whole.

        Of the others nothing is asked back: it would be sent as lacking here.
        """
        nodes = sorted(rows, key=bucket_of)
        chunks = list(self._chunks([rows[node] for node in nodes]))
        records = [record for chunk in chunks[:datagrams] for record in chunk]
        for node in nodes[len(records) :]:
            mask &= ~(1 << bucket_of(node))
        return mask, records

    def _send_records(
        self, node: NodeId, address: Address, mask: int, records: list[bytes], datagrams: int, *,
        ask_back: bool,
    ) -> None:  # fmt: skip
        chunks = list(self._chunks(records))[:datagrams] or [[]]
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
        asked = ask is not None
        member = self._beliefs.table.get(source)
        is_awaited = asked or self._is_awaited(source, address, now)
        if not is_awaited and (member is None or not self.is_at(member, address)):
            self._outbox.reject("unproven", address)
            return
        joining = any(attempt.node == source for attempt in self._joins.values())
        for update in self._beliefs.once_of_self(records.updates):
            if ask is not None:
                ask.rows[update.node] = _rank(update)
            # A newcomer's whole first view is news to nobody else.
            if not self._beliefs.knows(update):
                self._beliefs.hear(
                    update, address, now, synced=True, spread=not joining, asked=asked
                )
        if not records.last or ask is None:
            return
        del self._asks[source]
        mask = int.from_bytes(records.mask, "big")
        behind = [
            self._row(member, now)
            for member in self._beliefs.table
            if mask >> bucket_of(member.node) & 1
            and precedence(member) > ask.rows.get(member.node, (-1, 0, 0))
        ]
        if behind:
            self._send_records(source, address, mask, behind, ANSWER_DATAGRAMS_MAX, ask_back=False)
        if joining:
            # What it tells of itself from now on names who has met it.
            self._beliefs.sponsors.answer_for(self._beliefs.me, source, now)
            self._beliefs.spread_self(now, is_state_news=True)
            self._end_joins(source)

    def _is_awaited(self, source: NodeId, address: Address, now: Instant) -> bool:
        """Whether these rows may be what an answer of ours asked for in return.

        The other's own sync brought that about, so they are looked at as closely as any news.
        """
        push = self._pushes.get(source)
        return push is not None and push[0] == address and now - push[1] <= PUSH_WINDOW_S

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
