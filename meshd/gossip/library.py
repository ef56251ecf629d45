"""Documents by digest: which are held, which are missing, and those that are being put together.

Whatever is longer than an entry may carry is held once, however many keys and nodes refer to it.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum

from meshd.clock import Instant
from meshd.gossip.messages import CHUNK_BYTES, DIGEST_BYTES, StateEntry
from meshd.model import NodeId

LIBRARY_BYTES_MAX = 16 * 1024 * 1024
"""All documents of others that are held; when it is full, the ones that do not fit stay missing."""
NODE_BYTES_MAX = 65_536
"""Documents of one node. A node may not offer more; of one that does, the smallest are taken."""
MISSING_MAX = 65_536
"""Documents known to be missing; further ones are noticed when their node's state changes again."""
ASSEMBLIES_MAX = 8
"""Documents of which some chunks are here. While there are so many, no further one is begun."""


def digest_of(body: bytes) -> bytes:
    """What a document is referred to by."""
    return hashlib.blake2b(body, digest_size=DIGEST_BYTES).digest()


def chunks_of(size: int) -> int:
    """How many chunks make up a document of so many bytes."""
    return -(-size // CHUNK_BYTES)


def documents_of(entries: Iterable[StateEntry]) -> dict[bytes, int]:
    """Digest and size of the documents that a state refers to, the smallest first.

    No more than a node may have: beyond that nothing is asked for. Of a digest that is told with
    several sizes the largest counts, in whatever order they come.
    """
    found: dict[bytes, int] = {}
    for entry in entries:
        if entry.size and entry.value is not None:
            found[entry.value] = max(entry.size, found.get(entry.value, 0))
    taken: dict[bytes, int] = {}
    total = 0
    for digest, size in sorted(found.items(), key=lambda item: (item[1], item[0])):
        total += size
        if total > NODE_BYTES_MAX:
            break
        taken[digest] = size
    return taken


class Added(IntEnum):
    """What became of chunks that came."""

    NOTHING = 0
    SOME = 1
    WHOLE = 2
    WRONG = 3


class Missing:
    """A document that is referred to and not held: what came of it so far, and whom to ask."""

    __slots__ = (
        "chunks", "digest", "doubts", "not_before", "owner", "parts", "size", "teller", "tries",
    )  # fmt: skip

    def __init__(self, digest: bytes, size: int, owner: NodeId, teller: NodeId | None) -> None:
        self.digest = digest
        self.size = size
        self.chunks = chunks_of(size)
        self.owner = owner
        self.teller = teller
        self.tries = 0
        self.not_before = Instant(0.0)
        self.doubts = 0
        self.parts: dict[int, bytes] = {}

    def lacking(self) -> list[int]:
        """Numbers of the chunks that are not here, in order."""
        return [number for number in range(self.chunks) if number not in self.parts]

    def add(self, first: int, data: bytes) -> int:
        """Take in chunks from number `first` on; returns how many were new. Odd pieces are not."""
        new = 0
        for at in range(0, len(data), CHUNK_BYTES):
            number = first + at // CHUNK_BYTES
            piece = data[at : at + CHUNK_BYTES]
            if number not in self.parts and len(piece) == self._piece_bytes(number):
                self.parts[number] = piece
                new += 1
        return new

    def _piece_bytes(self, number: int) -> int:
        """How long a chunk must be; 0 if there is none of that number."""
        return max(0, min(CHUNK_BYTES, self.size - number * CHUNK_BYTES))


class Library:
    """All documents of a node's view. Bounded in bytes, in number of missing and of begun ones."""

    def __init__(self) -> None:
        self._bodies: dict[bytes, bytes] = {}
        self._users: dict[bytes, dict[NodeId, None]] = {}
        self._missing: dict[bytes, Missing] = {}
        self._by_owner: dict[NodeId, dict[bytes, Missing]] = {}
        self._bytes = 0
        self._begun = 0
        self._has_news = False

    # What is held

    def get(self, digest: bytes) -> bytes | None:
        """A document; None if it is not held."""
        return self._bodies.get(digest)

    def put(self, body: bytes) -> bytes:
        """Keep an own document, whatever the room; returns its digest."""
        digest = digest_of(body)
        self._keep(digest, body)
        return digest

    def _keep(self, digest: bytes, body: bytes) -> None:
        missing = self._missing.get(digest)
        if missing is not None:
            self._drop_missing(missing)
        if digest not in self._bodies:
            self._bodies[digest] = body
            self._bytes += len(body)

    def refer(
        self, node: NodeId, before: Mapping[bytes, int], after: Mapping[bytes, int],
        teller: NodeId | None,
    ) -> bool:  # fmt: skip
        """A node's state refers to other documents now; true if some of them are missing.

        What nobody refers to any more is dropped.
        """
        for digest, size in after.items():
            self._users.setdefault(digest, {})[node] = None
            if digest not in self._bodies and digest not in self._missing:
                self._miss(Missing(digest, size, node, teller))
        for digest in before:
            if digest not in after:
                self._leave(digest, node)
        return any(digest in self._missing for digest in after)

    def take_news(self) -> bool:
        """Whether further documents were found missing since the last call."""
        had, self._has_news = self._has_news, False
        return had

    def _miss(self, missing: Missing) -> None:
        if len(self._missing) < MISSING_MAX:
            self._has_news = True
            self._missing[missing.digest] = missing
            self._by_owner.setdefault(missing.owner, {})[missing.digest] = missing

    def _leave(self, digest: bytes, node: NodeId) -> None:
        users = self._users.get(digest)
        if users is None or node not in users:
            return
        del users[node]
        missing = self._missing.get(digest)
        if users:
            if missing is not None and missing.owner == node:
                self._unlist(missing)
                missing.owner = next(iter(users))
                self._by_owner.setdefault(missing.owner, {})[digest] = missing
            return
        del self._users[digest]
        if missing is not None:
            self._drop_missing(missing)
        body = self._bodies.pop(digest, None)
        if body is not None:
            self._bytes -= len(body)

    def users(self, digest: bytes) -> Iterable[NodeId]:
        """Whose states refer to a document."""
        return self._users.get(digest, ())

    # What is missing

    def __len__(self) -> int:
        return len(self._missing)

    def missing(self, digest: bytes) -> Missing | None:
        """A document that is not here."""
        return self._missing.get(digest)

    def all_missing(self) -> Iterable[Missing]:
        """All documents that are not here."""
        return self._missing.values()

    def owners(self) -> list[NodeId]:
        """Whose documents are missing, the one that was served longest ago first."""
        return list(self._by_owner)

    def of(self, owner: NodeId) -> Iterator[Missing]:
        """One node's missing documents, in the order in which they were referred to."""
        return iter(self._by_owner[owner].values())

    def served(self, owner: NodeId) -> None:
        """Something was asked for of this node's documents: it is the last in the row now."""
        self._by_owner[owner] = self._by_owner.pop(owner)

    def may_begin(self, missing: Missing) -> bool:
        """Whether there is room for chunks of this document."""
        if missing.parts:
            return True
        return self._begun < ASSEMBLIES_MAX and self._bytes + missing.size <= LIBRARY_BYTES_MAX

    def add(self, digest: bytes, first: int, data: bytes) -> Added:
        """Take in chunks of a missing document. With the last one it is checked and held."""
        missing = self._missing.get(digest)
        if missing is None or not self.may_begin(missing):
            return Added.NOTHING
        was_begun = bool(missing.parts)
        if not missing.add(first, data):
            return Added.NOTHING
        self._begun += not was_begun
        if len(missing.parts) < missing.chunks:
            return Added.SOME
        body = b"".join(missing.parts[number] for number in range(missing.chunks))
        if digest_of(body) != digest:
            self.start_over(missing)
            missing.doubts += 1
            return Added.WRONG
        self._keep(digest, body)
        return Added.WHOLE

    def start_over(self, missing: Missing) -> None:
        """Drop the chunks that came, and with them their room. Idempotent."""
        self._begun -= bool(missing.parts)
        missing.parts.clear()

    def _drop_missing(self, missing: Missing) -> None:
        self.start_over(missing)
        del self._missing[missing.digest]
        self._unlist(missing)

    def _unlist(self, missing: Missing) -> None:
        mine = self._by_owner[missing.owner]
        del mine[missing.digest]
        if not mine:
            del self._by_owner[missing.owner]
