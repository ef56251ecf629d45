"""Versioned node state: each node writes its own keys, all others copy them by version.

The idea is chitchat's (and scuttlebutt's, van Renesse et al. 2008): one writer a state, one growing
version a write, deltas in version order so that a cut delta is still a valid prefix. A digest over
the whole tells whether a copy is right; long values are documents that are held by their digest.
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping
from enum import IntEnum
from itertools import pairwise

import msgspec

from meshd.clock import Instant
from meshd.errors import UsageError
from meshd.gossip.codec import change_bytes, encode_delta
from meshd.gossip.library import NODE_BYTES_MAX, Library, digest_of, documents_of
from meshd.gossip.messages import (
    DIGEST_BYTES,
    DOCUMENT_BYTES_MAX,
    INLINE_BYTES_MAX,
    STATE_KEY_CHARS_MAX,
    Delta,
    StateChange,
    StateEntry,
    Update,
)
from meshd.model import Epoch, Member, NodeId

STATE_KEYS_MAX = 1_024
STATE_VERSION_JUMP_MAX = 1_000_000
"""A version further above the known one is not believed: soon nobody could outrank it."""
CAPABILITY_KEY = "cap/"
"""What the keys that tell a node's capabilities begin with."""
DOCUMENT_KEY = "doc/"
"""Keys that begin so hold documents, be they ever so short: nobody chooses by them."""
CHANGE_BYTES_MAX = 300
"""The longest change that travels with its rumour; a longer one is pulled."""
CHANGES_MAX = 256
"""Last changes that are kept, to be passed on with their rumours; the oldest gives way."""
_ENTRIES_PER_DELTA_MAX = 64
_ENTRIES_PER_CHANGE_MAX = 16
_ENTRY_BYTES = 17  # of an entry, beside its key and its value
_STATE_DIGEST_BYTES = 8
_pack = msgspec.msgpack.Encoder().encode


class NodeState:
    """One node's keys in one of its runs. Deleted keys stay listed: others must hear of them."""

    __slots__ = ("_digest", "entries", "epoch", "version")

    def __init__(self, epoch: Epoch) -> None:
        self.epoch = epoch
        self.version = 0
        self.entries: dict[str, StateEntry] = {}
        self._digest: bytes | None = b""

    def write(self, key: str, value: bytes | None) -> bool:
        """Set a key of one's own state; as `write_all`."""
        return self.write_all({key: value})

    def write_all(self, entries: Mapping[str, bytes | None]) -> bool:
        """Set keys of one's own state (None deletes); false if that changes nothing.

        Raises:
            UsageError: a key or a value is too large to be gossiped, or there are too many keys or
                too many bytes; nothing changed.
        """
        held = self.entries
        changed = {
            key: entry
            for key, value in sorted(entries.items())
            if _content(entry := _entry(key, value)) != _content(held.get(key))
        }
        for key in changed:
            _check_value(key, entries[key])
        if len(held.keys() | changed.keys()) > STATE_KEYS_MAX:
            raise UsageError(
                f"a node's state holds at most {STATE_KEYS_MAX} keys",
                hint="offer fewer capabilities a node",
            )
        _check_room({**held, **changed})
        for key, entry in changed.items():
            self.version += 1
            # Re-inserted at the end: iteration order is version order.
            held.pop(key, None)
            held[key] = StateEntry(key, self.version, entry.value, entry.size)
        self._digest = None
        return bool(changed)

    def has_room(self, entries: Mapping[str, bytes | None]) -> bool:
        """Whether all keys would fit in, beside those that were deleted in this run."""
        added = {key for key, value in entries.items() if value is not None}
        return len(self.entries.keys() | added) <= STATE_KEYS_MAX

    def renewed(self, entries: Mapping[str, bytes | None]) -> "NodeState":
        """The state after a write, for the next run: without a trace of what was ever deleted.

        Raises:
            UsageError: as `write_all`.
        """
        other = self.copy()
        gone = {key for key, value in entries.items() if value is None}
        other.entries = {each.key: each for each in self.live() if each.key not in gone}
        other.write_all({key: value for key, value in entries.items() if value is not None})
        other.becomes(Epoch(self.epoch + 1), sum(1 for _ in other.live()))
        return other

    def merge(self, delta: Delta) -> bool:
        """Take in a delta of the same run; false if it does not follow on or says nothing new.

        One whose versions are not in order within its bounds could not be passed on: refused too,
        as is one that refers to a document by what is no digest, or by one digest with two sizes.
        """
        if delta.base > self.version or delta.upto <= self.version:
            return False
        versions = [delta.base, *(entry.version for entry in delta.entries), delta.upto + 1]
        if any(one >= next_one for one, next_one in pairwise(versions)):
            return False
        documents = {(e.value, e.size) for e in delta.entries if e.size}
        if any(len(digest or b"") != DIGEST_BYTES for digest, _ in documents):
            return False
        if len({digest for digest, _ in documents}) < len(documents):
            return False
        for entry in delta.entries:
            if entry.version > self.version:
                self.entries.pop(entry.key, None)
                if len(self.entries) < STATE_KEYS_MAX:
                    self.entries[entry.key] = entry
        self.version = delta.upto
        self._digest = None
        return True

    def delta_since(self, node: NodeId, have: int, bytes_free: int) -> Delta | None:
        """What a holder of version `have` lacks, cut to what fits; None if nothing (fits)."""
        if have >= self.version:
            return None
        empty = Delta(node, self.epoch, have, self.version, (), self.digest)
        bytes_free -= len(encode_delta(empty))
        entries: list[StateEntry] = []
        upto, digest = self.version, self.digest
        for entry in self.entries.values():
            if entry.version <= have:
                continue
            size = len(entry.key.encode()) + len(entry.value or b"") + _ENTRY_BYTES
            if size > bytes_free or len(entries) == _ENTRIES_PER_DELTA_MAX:
                upto, digest = entries[-1].version if entries else have, b""
                break
            bytes_free -= size
            entries.append(entry)
        if upto <= have or bytes_free < 0:
            return None
        return Delta(node, self.epoch, have, upto, tuple(entries), digest)

    def change_since(self, base: int) -> StateChange | None:
        """All that was written after version `base`; None if that is too much for a rumour."""
        entries = []
        for entry in reversed(self.entries.values()):
            if entry.version <= base:
                break
            entries.append(entry)
            if len(entries) > _ENTRIES_PER_CHANGE_MAX:
                return None
        change = StateChange(base, tuple(reversed(entries)))
        return change if change_bytes(change) <= CHANGE_BYTES_MAX else None

    @property
    def digest(self) -> bytes:
        """8 bytes over all keys that are set and their values; empty where there are none.

        A document counts by its own digest, so that a copy can be checked before it has them.
        """
        if self._digest is None:
            live = sorted((e.key, e.value, e.size) for e in self.live())
            hashed = hashlib.blake2b(_pack(live), digest_size=_STATE_DIGEST_BYTES)
            self._digest = hashed.digest() if live else b""
        return self._digest

    def copy(self) -> "NodeState":
        """The same state, to go on with apart."""
        other = NodeState(self.epoch)
        other.version = self.version
        other.entries = dict(self.entries)
        other._digest = self._digest
        return other

    def can_be(self, epoch: Epoch, version: int) -> bool:
        """Whether the same content can stand for that run and version: each key takes a write."""
        if epoch == self.epoch:
            return version >= self.version
        return version >= sum(1 for _ in self.live())

    def becomes(self, epoch: Epoch, version: int) -> None:
        """Take the content for that of another run, or a later version, of the same digest.

        In a new run the keys are numbered in their own order, as the run itself does that sets
        them all at once. Where it did not, a copy that is made of two sources comes out wrong, and
        its digest tells.
        """
        if epoch != self.epoch:
            live = sorted(self.live(), key=lambda entry: entry.key)
            first = version - len(live) + 1
            self.entries = {
                entry.key: StateEntry(entry.key, first + number, entry.value, entry.size)
                for number, entry in enumerate(live)
            }
        self.epoch, self.version = epoch, version

    def live(self) -> Iterator[StateEntry]:
        """The entries of all keys that are set."""
        return (entry for entry in self.entries.values() if entry.value is not None)

    def values(self) -> Mapping[str, bytes]:
        """The keys that are set; where the value is a document, its digest."""
        return {entry.key: entry.value for entry in self.live() if entry.value is not None}


class Want:
    """State that a rumour told of and that is not held: whom to ask, and from when on.

    `doubted` says that what another one gave was not what the digest stands for: the owner itself
    is asked then, for all of it.
    """

    __slots__ = (
        "digest", "doubted", "epoch", "node", "not_before", "teller", "tries", "version",
    )  # fmt: skip

    def __init__(self, node: NodeId, epoch: Epoch, version: int, digest: bytes) -> None:
        self.node = node
        self.epoch = epoch
        self.version = version
        self.digest = digest
        self.teller: NodeId | None = None
        self.tries = 0
        self.not_before = Instant(0.0)
        self.doubted = False


class Merged(IntEnum):
    """What became of a delta."""

    NOTHING = 0
    PART = 1
    WHOLE = 2
    WRONG = 3


class StateStore:
    """The states of all nodes, and which of them this node still has to ask for.

    What is held is whole, and right as far as its digest is known; what is being pulled is kept
    apart until it is both.
    """

    def __init__(self, me: NodeId, epoch: Epoch) -> None:
        self.own = NodeState(epoch)
        self.library = Library()
        self._me = me
        self._held: dict[NodeId, NodeState] = {}
        self._begun: dict[NodeId, NodeState] = {}
        self._wants: dict[NodeId, Want] = {}
        self._untold: dict[NodeId, None] = {}
        self._changes: dict[NodeId, tuple[int, int, StateChange]] = {}

    def get(self, node: NodeId) -> NodeState | None:
        """What is held of a node's state: of its last run, until there is all of the new one."""
        return self.own if node == self._me else self._held.get(node)

    def value(self, node: NodeId, key: str) -> bytes | None:
        """A key's value; None if it is not set, or is a document that is not here (yet)."""
        state = self.get(node)
        entry = None if state is None else state.entries.get(key)
        if entry is None or entry.value is None:
            return None
        return self.library.get(entry.value) if entry.size else entry.value

    # One's own

    def write(self, entries: Mapping[str, bytes | None]) -> bool:
        """Set keys of one's own state (None deletes); false if that changes nothing.

        Raises:
            UsageError: as `NodeState.write_all`; nothing changed.
        """
        before, base = documents_of(self.own.live()), self.own.version
        if not self.own.write_all(entries):
            return False
        self._written(entries, before, base)
        return True

    def renew(self, entries: Mapping[str, bytes | None]) -> None:
        """Write in a run that follows the present one: there is no room for more deleted keys.

        Raises:
            UsageError: as `NodeState.write_all`; nothing changed.
        """
        before = documents_of(self.own.live())
        self.own = self.own.renewed(entries)
        self._written(entries, before, 0)

    def _written(
        self, entries: Mapping[str, bytes | None], before: Mapping[bytes, int], base: int
    ) -> None:
        for key, value in entries.items():
            if value is not None and is_document(key, value):
                self.library.put(value)
        self.library.refer(self._me, before, documents_of(self.own.live()), None)
        self._note_change(self._me, self.own.epoch, self.own.version, self.own.change_since(base))

    def outrank(self, version: int) -> None:
        """Let the own state, as it is, be newer than a version that it never had."""
        self.own.becomes(self.own.epoch, version + 1)

    # What travels with rumours

    def offered(self, member: Member, change: StateChange) -> None:
        """A rumour brought a node's last change along."""
        held = self._changes.get(member.node)
        if held is None or (member.epoch, member.state_version) > held[:2]:
            self._note_change(member.node, member.epoch, member.state_version, change)

    def offered_late(self, update: Update, member: Member) -> bool:
        """The rumour came before, but without its change: true if that is of use still."""
        if update.state_version != member.state_version or member.node not in self._wants:
            return False
        assert update.delta is not None
        self.offered(member, update.delta)
        return True

    def _note_change(
        self, node: NodeId, epoch: int, version: int, change: StateChange | None
    ) -> None:
        self._changes.pop(node, None)
        if change is None:
            return
        if len(self._changes) == CHANGES_MAX:
            del self._changes[next(iter(self._changes))]
        self._changes[node] = (epoch, version, change)

    def change_of(self, member: Member) -> StateChange | None:
        """A member's last change, to be passed on with the rumour of it."""
        epoch, version, change = self._changes.get(member.node, (0, 0, None))
        return change if (epoch, version) == (member.epoch, member.state_version) else None

    # What is missing

    def heard(self, member: Member) -> bool:
        """Here is the newest that is known of a node; true if its state is known better now.

        What is held under the same digest is right for the new version, or run, too: nothing is
        pulled. What the rumour brought along may be all that is missing.
        """
        node, epoch, version = member.node, member.epoch, member.state_version
        held = self._held.get(node)
        if held is not None and held.epoch < epoch and version == 0:
            # The new run says nothing of itself (yet), so what the last one said is void.
            self._drop(node, held)
            held = None
        if held is not None and self._is_right(held, member):
            self.unwant(node)
            return False
        if version == 0:
            self.unwant(node)
            return False
        want = self._wants.get(node)
        if want is None or (want.epoch, want.version, want.digest) != (
            epoch, version, member.digest,
        ):  # fmt: skip
            want = self._wants[node] = Want(node, epoch, version, member.digest)
            self._untold[node] = None
        if held is not None and (held.epoch, held.version) == (epoch, version):
            want.doubted = True
            self._begun.pop(node, None)
            return False
        change = self.change_of(member)
        if change is None:
            return False
        delta = Delta(node, epoch, change.base, version, change.entries, member.digest)
        return self.merge(delta, None) is Merged.WHOLE

    def _is_right(self, held: NodeState, member: Member) -> bool:
        """Whether what is held is all that the record tells of; it stands for that then."""
        epoch, version, digest = member.epoch, member.state_version, member.digest
        if held.epoch == epoch and held.version > version:
            return True
        if held.epoch == epoch and held.version == version:
            return not digest or digest == held.digest
        if digest and digest == held.digest and held.can_be(epoch, version):
            held.becomes(epoch, version)
            return True
        return False

    def note_teller(self, teller: NodeId) -> bool:
        """Remember who told of what is wanted since the last call; false if that is nothing."""
        if not self._untold:
            return False
        untold, self._untold = self._untold, {}
        for node in untold:
            self._wants[node].teller = teller
        return True

    def wants(self) -> Collection[Want]:
        """All that is missing, longest waiting first."""
        return self._wants.values()

    def want(self, node: NodeId) -> Want | None:
        """What is missing of one node."""
        return self._wants.get(node)

    def held_version(self, want: Want) -> int:
        """Up to which version the wanted state is here."""
        return self._begin(want).version

    def _begin(self, want: Want) -> NodeState:
        """What a wanted state is put together from: what came so far, else what is held."""
        begun, held = self._begun.get(want.node), self._held.get(want.node)
        if begun is not None and begun.epoch == want.epoch:
            return begun
        if held is not None and held.epoch == want.epoch and not want.doubted:
            return held
        return NodeState(want.epoch)

    def merge(self, delta: Delta, source: NodeId | None) -> Merged:
        """Take in a delta that was asked for, or came with its rumour (then `source` is None)."""
        node = delta.node
        want = self._wants.get(node)
        if want is None or want.epoch != delta.epoch:
            return Merged.NOTHING
        state = self._begin(want)
        if state is self._held.get(node):
            state = state.copy()
        if not state.merge(delta):
            return Merged.NOTHING
        return self._settle(state, want, delta, source)

    def _settle(self, state: NodeState, want: Want, delta: Delta, source: NodeId | None) -> Merged:
        """See whether a state is whole, and whether it is what its digest stands for."""
        node, digest = want.node, delta.digest
        if state.version == want.version:
            digest = want.digest or digest
        elif state.version < want.version or not digest:
            self._begun[node] = state
            return Merged.PART
        self._begun.pop(node, None)
        is_leap = state.version - want.version > STATE_VERSION_JUMP_MAX
        if is_leap or (digest and digest != state.digest):
            if source is not None:
                # What came with a rumour had another base than its author meant; no one lied.
                want.doubted = True
                want.tries = max(1, want.tries)
            return Merged.WRONG
        held = self._held.get(node)
        before = {} if held is None else documents_of(held.live())
        self._held[node] = state
        self.unwant(node)
        self.library.refer(node, before, documents_of(state.live()), source)
        return Merged.WHOLE

    def unwant(self, node: NodeId) -> None:
        """Ask no more for a node's state. Idempotent."""
        self._wants.pop(node, None)
        self._untold.pop(node, None)
        self._begun.pop(node, None)

    def forget(self, node: NodeId) -> None:
        """Drop a node's state. Idempotent."""
        held = self._held.get(node)
        if held is not None:
            self._drop(node, held)
        self._changes.pop(node, None)
        self.unwant(node)

    def _drop(self, node: NodeId, held: NodeState) -> None:
        del self._held[node]
        self.library.refer(node, documents_of(held.live()), {}, None)


def _content(entry: StateEntry | None) -> tuple[bytes | None, int]:
    """What an entry says, whenever it was written. A key that never was is as one deleted."""
    return (None, 0) if entry is None else (entry.value, entry.size)


def is_document(key: str, value: bytes) -> bool:
    """Whether a value is gossiped as a document: a long one, or one that nobody waits for."""
    return len(value) > (DIGEST_BYTES if key.startswith(DOCUMENT_KEY) else INLINE_BYTES_MAX)


def _entry(key: str, value: bytes | None) -> StateEntry:
    """How a value is gossiped: within its entry, or as a document."""
    if value is None or not is_document(key, value):
        return StateEntry(key, 0, value)
    return StateEntry(key, 0, digest_of(value), len(value))


def _check_value(key: str, value: bytes | None) -> None:
    if not 1 <= len(key.encode()) <= STATE_KEY_CHARS_MAX:
        raise UsageError(f"state key {key[:80]!r} is empty or over {STATE_KEY_CHARS_MAX} bytes")
    if value is not None and len(value) > DOCUMENT_BYTES_MAX:
        raise UsageError(
            f"state {key!r} is {len(value):,} bytes; gossip carries {DOCUMENT_BYTES_MAX:,}",
            hint="shorten the capability's description, examples or schemas",
        )


def _check_room(entries: Mapping[str, StateEntry]) -> None:
    """Refuse more documents than others would take."""
    total = sum(entry.size for entry in entries.values())
    if total > NODE_BYTES_MAX:
        largest = max(entries.values(), key=lambda entry: entry.size)
        raise UsageError(
            f"this node's documents would be {total:,} bytes; each node has room for "
            f"{NODE_BYTES_MAX:,}, because every other one keeps a copy "
            f"(the largest is {largest.key!r} with {largest.size:,})",
            hint="shorten descriptions, examples or schemas, or offer fewer capabilities a node",
        )
