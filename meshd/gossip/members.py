"""The member table: who is there, in which run and state. Copy-on-write over a shared base."""

import hashlib
import random
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from meshd.gossip.codec import pack_address
from meshd.gossip.messages import BUCKETS
from meshd.model import Address, Epoch, Incarnation, Member, MemberState, NodeId

_PICK_TRIES = 8
_NO_BUCKETS = (0,) * BUCKETS


def precedence(member: Member) -> tuple[int, int, int]:
    """What decides between two beliefs about one member: run, incarnation, then state.

    Within one incarnation alive < suspect < dead < left. Source: SWIM section 4.2, with the run
    (epoch) in front so that a restarted node outranks everything that its old run said.
    """
    return (member.epoch, member.incarnation, member.state)


def join(one: Member, other: Member) -> Member:
    """The belief that holds after hearing both: commutative, associative, idempotent.

    The higher precedence wins the state; the higher (epoch, incarnation) the address, because only
    the member itself raises those, and with it the lag; the state version is the highest heard of
    the winning run, and the digest goes with it.
    """
    high, low = (one, other) if precedence(one) >= precedence(other) else (other, one)
    if (high.epoch, high.incarnation) == (low.epoch, low.incarnation):
        placed, lag = max(high, low, key=_addresses), max(high.lag, low.lag)
    else:
        placed, lag = high, high.lag
    version, digest = high.state_version, high.digest
    if high.epoch == low.epoch:
        version, digest = max((version, digest), (low.state_version, low.digest))
    told = (version, lag, digest)
    if placed is high and told == (high.state_version, high.lag, high.digest):
        return high
    return Member(
        high.node, high.epoch, high.incarnation, high.state, placed.address, version, lag,
        digest, placed.other,
    )  # fmt: skip


def _addresses(member: Member) -> tuple[Address, ...]:
    """Where a member is, in an order on which all agree, whichever of two addresses they use."""
    if member.other is None:
        return (member.address,)
    return (min(member.address, member.other), max(member.address, member.other))


def in_state(member: Member, state: MemberState) -> Member:
    """The same record, but for its state."""
    return Member(
        member.node, member.epoch, member.incarnation, state, member.address, member.state_version,
        member.lag, member.digest, member.other,
    )  # fmt: skip


def is_live(state: MemberState) -> bool:
    """Whether a member in this state is still counted on: alive or suspect."""
    return state <= MemberState.SUSPECT


def is_overtaken(told: Member, held: Member) -> bool:
    """Whether a live record lost for good: to a newer one, or to the end of the very same."""
    if (told.epoch, told.incarnation) == (held.epoch, held.incarnation):
        return not is_live(held.state)
    return (told.epoch, told.incarnation) < (held.epoch, held.incarnation)


def bucket_of(node: NodeId) -> int:
    """Which of the 64 buckets of a sync a node falls into."""
    return node[0] % BUCKETS


def record_hash(member: Member) -> int:
    """8 bytes of BLAKE2b over what a view must agree on.

    A suspicion does not change it (it settles by itself), and the dead are not part of it, so that
    tombstones that expire at different times start no sync.
    """
    return _hash(member.node, member.epoch, member.incarnation, member.state_version)


@lru_cache(maxsize=16_384)
def _hash(node: NodeId, epoch: int, incarnation: int, state_version: int) -> int:
    text = b"%s%d.%d.%d" % (node, epoch, incarnation, state_version)
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


@lru_cache(maxsize=1_024)
def doubt_point(suspect: Member) -> bytes:
    """Where on the ring of ids the verifiers of a doubt begin: another place for each life."""
    text = b"%s%d.%d" % (suspect.node, suspect.epoch, suspect.incarnation)
    return hashlib.blake2b(text, digest_size=8).digest()


class Summary(NamedTuple):
    """What a table counts: the live, the hash of the view, the hash of each bucket, all ids."""

    live: int
    view_hash: int
    buckets: tuple[int, ...]
    ring: tuple[NodeId, ...]


class MemberTable:
    """All records, by node id.

    A simulated node starts from a `base` that all share and holds only what differs; a real one
    starts from an empty base. Rows keep the order in which they came, which the probe ring walks
    by index.
    """

    def __init__(
        self,
        base: Mapping[NodeId, Member],
        base_rows: tuple[NodeId, ...],
        *,
        summary: Summary | None = None,
    ) -> None:
        """Start from `base`, whose rows in order are `base_rows`; neither is ever changed.

        Args:
            base: the records that are shared.
            base_rows: their subjects, in the order of the rows.
            summary: that of the base where it is known, so that ten thousand tables on one base
                need not count it ten thousand times.
        """
        self._base = base
        self._base_rows = base_rows
        self._overlay: dict[NodeId, Member] = {}
        self._forgotten: dict[NodeId, None] = {}
        self._rows: list[NodeId] = []
        self._at: dict[bytes, dict[NodeId, None]] | None = None
        self._live, self._hash = 0, 0
        self._buckets: Sequence[int] = _NO_BUCKETS
        self._ring: tuple[NodeId, ...] | None = None
        if summary is not None:
            self._live, self._hash, self._buckets, self._ring = summary
        else:
            for member in base.values():
                self._count(None, member)

    def get(self, node: NodeId) -> Member | None:
        """The record of `node`; None if there is none."""
        member = self._overlay.get(node)
        if member is None and node not in self._forgotten:
            return self._base.get(node)
        return member

    def put(self, member: Member) -> Member | None:
        """Store a record in place of the earlier one, which is returned."""
        node = member.node
        before = self.get(node)
        if before is not None:
            self._unplace(before)
        elif node in self._forgotten:
            del self._forgotten[node]
        else:
            self._rows.append(node)
            self._ring = None
        self._count(before, member)
        self._overlay[node] = member
        if self._at is not None:
            self._place(self._at, member)
        return before

    def forget(self, node: NodeId) -> None:
        """Drop a record whose tombstone has expired. Its row goes too. Idempotent."""
        before = self.get(node)
        if before is None:
            return
        self._count(before, None)
        self._unplace(before)
        self._overlay.pop(node, None)
        if node in self._base:
            self._forgotten[node] = None
        else:
            self._rows.remove(node)
            self._ring = None

    def _count(self, before: Member | None, after: Member | None) -> None:
        """Count `after` in the place of `before`."""
        change = 0
        if before is not None and is_live(before.state):
            self._live -= 1
            change = record_hash(before)
        if after is not None and is_live(after.state):
            self._live += 1
            change ^= record_hash(after)
        counted = after or before
        if change and counted is not None:
            self._hash ^= change
            if not isinstance(self._buckets, list):
                self._buckets = list(self._buckets)
            self._buckets[bucket_of(counted.node)] ^= change

    @property
    def live(self) -> int:
        """How many are alive or suspect, this node included."""
        return self._live

    @property
    def view_hash(self) -> int:
        """XOR of all live records' hashes: equal where views agree."""
        return self._hash

    @property
    def summary(self) -> Summary:
        """For tables that start from what this one holds."""
        return Summary(self._live, self._hash, tuple(self._buckets), self.ring)

    @property
    def ring(self) -> tuple[NodeId, ...]:
        """All ids that have a row, in order; some may be forgotten. Sorted when first needed."""
        if self._ring is None:
            self._ring = tuple(sorted((*self._base_rows, *self._rows)))
        return self._ring

    def first_from(
        self, point: bytes, count: int, wanted: Callable[[Member], bool]
    ) -> list[Member]:
        """The first `count` members from a point of the ring of ids on for which `wanted` holds."""
        ring = self.ring
        start = bisect_left(ring, point)
        found: list[Member] = []
        for step in range(len(ring) if count else 0):
            member = self.get(ring[(start + step) % len(ring)])
            if member is not None and wanted(member):
                found.append(member)
                if len(found) == count:
                    break
        return found

    def __len__(self) -> int:
        return self.row_count - len(self._forgotten)

    def __iter__(self) -> Iterator[Member]:
        for index in range(self.row_count):
            member = self.at(index)
            if member is not None:
                yield member

    @property
    def row_count(self) -> int:
        """Rows to walk: 0 .. row_count - 1. Some may be empty."""
        return len(self._base_rows) + len(self._rows)

    def at(self, row: int) -> Member | None:
        """The record in a row."""
        base = len(self._base_rows)
        return self.get(self._base_rows[row] if row < base else self._rows[row - base])

    def verifiers(self, suspect: Member, count: int) -> Sequence[Member]:
        """Who shall probe a suspect at once.

        They are the first on the ring of all ids from a point that the doubt itself gives, so that
        all choose the same without a word (the expander of observers of Rapid, ATC 2018, in small).
        """
        return self.first_from(
            doubt_point(suspect),
            count,
            lambda m: m.state is MemberState.ALIVE and m.node != suspect.node,
        )

    def at_address(self, address: Address) -> list[Member]:
        """The members that claim an address. Indexed on the first call, kept up from then on."""
        if self._at is None:
            self._at = {}
            for each in self:
                self._place(self._at, each)
        nodes = self._at.get(pack_address(address), ())
        return [member for node in nodes if (member := self.get(node)) is not None]

    def _place(self, at: dict[bytes, dict[NodeId, None]], member: Member) -> None:
        for address in _addresses(member):
            at.setdefault(pack_address(address), {})[member.node] = None

    def _unplace(self, member: Member) -> None:
        if self._at is None:
            return
        for address in _addresses(member):
            packed = pack_address(address)
            here = self._at[packed]
            del here[member.node]
            if not here:
                del self._at[packed]

    def pick(
        self, count: int, rng: random.Random, wanted: Callable[[Member], bool]
    ) -> list[Member]:
        """Up to `count` different members at random for which `wanted` holds.

        A few random rows first; only if they do not do, all rows are looked at.
        """
        rows, base = self.row_count, len(self._base_rows)
        chosen: dict[NodeId, Member] = {}
        for _ in range(_PICK_TRIES * count if rows > 2 * count else 0):
            row = int(rng.random() * rows) - base
            member = self.get(self._rows[row] if row >= 0 else self._base_rows[row])
            if member is not None and member.node not in chosen and wanted(member):
                chosen[member.node] = member
                if len(chosen) == count:
                    return list(chosen.values())
        rest = [m for m in self if m.node not in chosen and wanted(m)]
        rng.shuffle(rest)
        return [*chosen.values(), *rest[: count - len(chosen)]]

    def bucket_hashes(self) -> Sequence[int]:
        """The view hash of each bucket, for a sync."""
        return self._buckets


def new_member(
    node: NodeId, epoch: Epoch, address: Address, other: Address | None = None
) -> Member:
    """A node's own first record."""
    return Member(node, epoch, Incarnation(0), MemberState.ALIVE, address, other=other)
