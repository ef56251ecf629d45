"""Meeting and comparing notes: the join handshake, view sync by digest, and pulling node state.

A handshake is join -> welcome (with a cookie) -> sync (with the cookie) -> records. Nothing larger
than the question goes to an address before it has proven itself by the cookie.
"""

import hashlib
import random
from collections.abc import Iterator

from meshd.clock import Instant
from meshd.gossip.beliefs import Beliefs
from meshd.gossip.codec import NOBODY, encode_delta, encode_update, update_fields
from meshd.gossip.config import GossipConfig
from meshd.gossip.effects import Joined, StateChanged
from meshd.gossip.members import bucket_of, is_live, precedence
from meshd.gossip.messages import (
    BUCKETS,
    Join,
    Records,
    StateDelta,
    StatePull,
    Sync,
    Update,
    Wanted,
    Welcome,
)
from meshd.gossip.outbox import Outbox
from meshd.gossip.state import StateStore
from meshd.gossip.timers import Timers
from meshd.model import Address, Member, MemberState, NodeId

JOINS_MAX = 256
JOIN_TRIES = 4
JOIN_RETRY_S = 0.5
ANSWER_DATAGRAMS_MAX = 64
STATE_DATAGRAMS_MAX = 16
_PULL_NODES_MAX = 32
_PULL_RETRY_S = 0.5
_PADDING = bytes(56)  # a join is no shorter than its welcome
_RECORDS_FIELD_BYTES = 16


class JoinTry:
    """One address that we want to meet."""

    __slots__ = ("node", "sequence", "tries")

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence
        self.tries = 0
        self.node: NodeId | None = None


class Exchange:
    """All that is asked and answered beyond a ping."""

    def __init__(
        self,
        *,
        config: GossipConfig,
        beliefs: Beliefs,
        states: StateStore,
        timers: Timers,
        outbox: Outbox,
        rng: random.Random,
        now: Instant,
    ) -> None:
        self._config = config
        self._beliefs = beliefs
        self._states = states
        self._timers = timers
        self._outbox = outbox
        self._rng = rng
        self._secret = rng.randbytes(16)
        self._joins: dict[Address, JoinTry] = {}
        self._synced_at = Instant(now - config.sync_interval_s)
        self._asked: NodeId | None = None
        self._answered: dict[NodeId, tuple[int, int, int]] = {}

    # Joining

    def join(self, address: Address, now: Instant) -> None:
        """Try to meet whoever is at `address`."""
        if len(self._joins) >= JOINS_MAX or address in self._joins or self._beliefs.is_at(address):
            return
        self._joins[address] = JoinTry(self._rng.randrange(2**16))
        self.on_join_due(address, now)

    def on_join_due(self, address: Address, now: Instant) -> None:
        """Send the (next) join, or give up: whoever gave the hint may give it again."""
        attempt = self._joins.get(address)
        if attempt is None:
            return
        if attempt.tries >= JOIN_TRIES:
            del self._joins[address]
            return
        self._timers.set(("join", address), now + JOIN_RETRY_S * 2**attempt.tries)
        attempt.tries += 1
        self._outbox.send(NOBODY, address, Join, (attempt.sequence, _PADDING))

    def on_join(self, join: Join, source: NodeId, address: Address) -> None:
        """A stranger asks who we are: answer in no more bytes than it asked in."""
        cookie = self._cookie(source, address)
        record = update_fields(self._beliefs.me)
        self._outbox.send(source, address, Welcome, (join.sequence, cookie, record))

    def on_welcome(self, welcome: Welcome, source: NodeId, address: Address, now: Instant) -> None:
        """The address answered: show the cookie, and compare views."""
        attempt = self._joins.get(address)
        if attempt is None or attempt.sequence != welcome.sequence:
            self._outbox.reject("unasked", address)
            return
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
        """A member's view hash came on an ack: sync if the views differ although all is quiet."""
        beliefs, config = self._beliefs, self._config
        quiet = not beliefs.rumours and now - beliefs.changed_at >= config.quiet_s
        if (
            quiet
            and their_hash != self.short_hash
            and now - self._synced_at >= config.sync_interval_s
        ):
            self._ask(peer.node, peer.address, b"", now)

    @property
    def short_hash(self) -> int:
        """The part of the view hash that rides on acks: never 0, which says nothing."""
        return (self._beliefs.table.view_hash & 0xFFFFFFFF) or 1

    def _ask(self, node: NodeId, address: Address, cookie: bytes, now: Instant) -> None:
        self._synced_at = now
        self._asked = node
        self._answered = {}
        hashes = b"".join(_short(h) for h in self._beliefs.table.bucket_hashes())
        me = encode_update(self._beliefs.me)
        self._outbox.send_with(node, address, Sync, (cookie, hashes), (me,))

    def on_sync(self, sync: Sync, source: NodeId, address: Address, now: Instant) -> None:
        """Somebody shows its view: answer with the records of each bucket that differs."""
        member = self._beliefs.table.get(source)
        if member is None:
            if sync.cookie != self._cookie(source, address):
                self._outbox.reject("unproven", address)
                return
            for update in sync.updates:
                if update.node == source:
                    self._beliefs.hear(update, address, now)
            self._beliefs.heard_from(source, now)
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
        """Rows of somebody's table. After the last, send what it lacks."""
        joining = any(attempt.node == source for attempt in self._joins.values())
        for update in records.updates:
            if source == self._asked:
                self._answered[NodeId(update.node)] = _rank(update)
            # A newcomer's whole first view is news to nobody else.
            self._beliefs.hear(update, address, now, synced=True, spread=not joining)
        if not records.last or source != self._asked:
            return
        self._asked = None
        mask = int.from_bytes(records.mask, "big")
        behind = [
            encode_update(member)
            for member in self._beliefs.table
            if mask >> bucket_of(member.node) & 1
            and precedence(member) > self._answered.get(member.node, (-1, 0, 0))
        ]
        self._answered = {}
        if behind:
            self._send_records(source, address, mask, behind, ask_back=False)
        if joining:
            self._end_joins(source)

    def _end_joins(self, node: NodeId) -> None:
        for address in [a for a, attempt in self._joins.items() if attempt.node == node]:
            del self._joins[address]
            self._timers.cancel(("join", address))
        self._outbox.add(Joined(node))

    # Node state

    def pull_missing(self, source: Member | None, now: Instant) -> None:
        """Ask for state that rumours told of, first whoever told."""
        if self._states.complete or self._timers.pending("pull"):
            return
        self._timers.set("pull", now + _PULL_RETRY_S)
        wanted = self._states.wanted(_PULL_NODES_MAX)
        if source is None or not is_live(source.state):
            source = self._someone_for(wanted)
        if source is not None:
            fields = ([(w.node, w.epoch, w.have) for w in wanted],)
            self._outbox.send(source.node, source.address, StatePull, fields)

    def _someone_for(self, wanted: list[Wanted]) -> Member | None:
        """The owner of what is missing most of the time, else anybody."""
        table, me = self._beliefs.table, self._beliefs.me.node
        owner = table.get(NodeId(wanted[0].node))
        if owner is not None and owner.state is MemberState.ALIVE and self._rng.random() < 0.75:
            return owner
        found = table.pick(1, self._rng, lambda m: m.state is MemberState.ALIVE and m.node != me)
        return found[0] if found else None

    def on_state_pull(self, pull: StatePull, requester: Member) -> None:
        """Answer with what fits into a few datagrams; the rest is asked for again."""
        deltas: list[bytes] = []
        free = self._outbox.room - _RECORDS_FIELD_BYTES
        sent = 0
        for wanted in pull.wanted:
            have = wanted.have
            state = self._states.get(NodeId(wanted.node))
            while state is not None and state.epoch == wanted.epoch and sent < STATE_DATAGRAMS_MAX:
                delta = state.delta_since(NodeId(wanted.node), have, free)
                if delta is not None:
                    deltas.append(encode_delta(delta))
                    free -= len(deltas[-1])
                    have = delta.upto
                elif deltas and have < state.version:
                    self._outbox.send_with(
                        requester.node, requester.address, StateDelta, (), deltas
                    )
                    deltas, free = [], self._outbox.room - _RECORDS_FIELD_BYTES
                    sent += 1
                else:
                    break
        if deltas:
            self._outbox.send_with(requester.node, requester.address, StateDelta, (), deltas)

    def on_state_delta(self, message: StateDelta, source: Member, now: Instant) -> None:
        """Take in parts of states; ask on while there is progress."""
        progress = False
        for delta in message.deltas:
            if self._states.merge(delta):
                progress = True
                self._beliefs.touch(NodeId(delta.node))
                self._outbox.add(StateChanged(NodeId(delta.node)))
        if progress:
            self._timers.cancel("pull")
            self.pull_missing(source, now)


def _short(value: int) -> bytes:
    return (value & 0xFFFFFFFF).to_bytes(4, "big")


def _rank(update: Update) -> tuple[int, int, int]:
    return update.epoch, update.incarnation, update.state
