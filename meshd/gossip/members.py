"""The member table: who is there, in which run and state. Copy-on-write over a shared base."""

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping

from meshd.gossip.codec import pack_address
from meshd.gossip.messages import BUCKETS
from meshd.model import Address, Epoch, Incarnation, Member, MemberState, NodeId

_PICK_TRIES = 8


def precedence(member: Member) -> tuple[int, int, int]:
    """What decides between two beliefs about one member: run, incarnation, then state.

    Within one incarnation alive < suspect < dead < left. Source: SWIM section 4.2, with the run
    (epoch) in front so that a restarted node outranks everything that its old run said.
    """
    return (member.epoch, member.incarnation, member.state)


def join(one: Member, other: Member) -> Member:
    """The belief that holds after hearing both: commutative, associative, idempotent.

    The higher precedence wins the state; the higher (epoch, incarnation) the address, because only
    the member itself raises those; the state version is the highest heard of the winning run.
    """
    high, low = (one, other) if precedence(one) >= precedence(other) else (other, one)
    if (high.epoch, high.incarnation) == (low.epoch, low.incarnation):
        address = max(high.address, low.address)
    else:
        address = high.address
    version = high.state_version
    if high.epoch == low.epoch:
        version = max(version, low.state_version)
    if address is high.address and version == high.state_version:
        return high
    return Member(high.node, high.epoch, high.incarnation, high.state, address, version)


def is_live(state: MemberState) -> bool:
    """Whether a member in this state is still counted on: alive or suspect."""
    return state <= MemberState.SUSPECT


def bucket_of(node: NodeId) -> int:
    """Which of the 64 buckets of a sync a node falls into."""
    return node[0] % BUCKETS


def record_hash(member: Member) -> int:
    """8 bytes of BLAKE2b over what a view must agree on.

    A suspicion does not change it (it settles by itself), and the dead are not part of it, so that
    tombstones that expire at different times start no sync.
    """
    text = b"%s%d.%d.%d" % (
        member.node,
        member.epoch,
        member.incarnation,
        member.state_version,
    )
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


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
        summary: tuple[int, int] | None = None,
    ) -> None:
        """Start from `base`, whose rows in order are `base_rows`; neither is ever changed.

        Args:
            base: the records that are shared.
            base_rows: their subjects, in the order of the rows.
            summary: `live` and `view_hash` of the base where they are known, so that ten thousand
                tables on one base need not count it ten thousand times.
        """
        self._base = base
        self._base_rows = base_rows
        self._overlay: dict[NodeId, Member | None] = {}
        self._rows: list[NodeId] = []
        self._live = 0
        self._hash = 0
        self._empty = 0
        self._at: dict[bytes, dict[NodeId, None]] | None = None
        if summary is not None:
            self._live, self._hash = summary
        else:
            for member in base.values():
                self._count(member, 1)

    def get(self, node: NodeId) -> Member | None:
        """The record of `node`; None if there is none."""
        if node in self._overlay:
            return self._overlay[node]
        return self._base.get(node)

    def put(self, member: Member) -> None:
        """Store a record in place of the earlier one."""
        before = self.get(member.node)
        if before is not None:
            self._count(before, -1)
            self._unplace(before)
        elif member.node in self._base:
            self._empty -= 1
        else:
            self._rows.append(member.node)
        self._count(member, 1)
        self._overlay[member.node] = member
        if self._at is not None:
            self._at.setdefault(pack_address(member.address), {})[member.node] = None

    def forget(self, node: NodeId) -> None:
        """Drop a record whose tombstone has expired. Its row goes too. Idempotent."""
        before = self.get(node)
        if before is None:
            return
        self._count(before, -1)
        self._unplace(before)
        if node in self._base:
            self._overlay[node] = None
            self._empty += 1
        else:
            del self._overlay[node]
            self._rows.remove(node)

    def _count(self, member: Member, sign: int) -> None:
        if is_live(member.state):
            self._live += sign
            self._hash ^= record_hash(member)

    @property
    def live(self) -> int:
        """How many are alive or suspect, this node included."""
        return self._live

    @property
    def view_hash(self) -> int:
        """XOR of all live records' hashes: equal where views agree."""
        return self._hash

    def __len__(self) -> int:
        return self.row_count - self._empty

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

    def at_address(self, address: Address) -> list[Member]:
        """The members that claim an address. Indexed on the first call, kept up from then on."""
        if self._at is None:
            self._at = {}
            for each in self:
                self._at.setdefault(pack_address(each.address), {})[each.node] = None
        nodes = self._at.get(pack_address(address), ())
        return [member for node in nodes if (member := self.get(node)) is not None]

    def _unplace(self, member: Member) -> None:
        if self._at is None:
            return
        packed = pack_address(member.address)
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
        if not count or not self.row_count:
            return []
        chosen: dict[NodeId, Member] = {}
        for _ in range(_PICK_TRIES * count):
            member = self.at(rng.randrange(self.row_count))
            if member is not None and member.node not in chosen and wanted(member):
                chosen[member.node] = member
                if len(chosen) == count:
                    return list(chosen.values())
        rest = [m for m in self if m.node not in chosen and wanted(m)]
        rng.shuffle(rest)
        return [*chosen.values(), *rest[: count - len(chosen)]]

    def bucket_hashes(self) -> list[int]:
        """The view hash of each bucket, for a sync."""
        hashes = [0] * BUCKETS
        for member in self:
            if is_live(member.state):
                hashes[bucket_of(member.node)] ^= record_hash(member)
        return hashes


def new_member(node: NodeId, epoch: Epoch, address: Address) -> Member:
    """A node's own first record."""
    return Member(node, epoch, Incarnation(0), MemberState.ALIVE, address)
