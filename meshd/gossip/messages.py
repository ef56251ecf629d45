"""The messages on the wire: positional msgpack arrays, first the kind, then these fields in order.

Every message may end with two optional parts that ride along: `updates` (membership rumours) and
`loads` (load records, 19 bytes each: node id and record). Fields that a later version appends are
ignored by an earlier one.
"""

from typing import Annotated

import msgspec

from meshd.model import NodeId

STATE_KEY_CHARS_MAX = 72
INLINE_BYTES_MAX = 400
"""The longest value that travels within its entry; a longer one is a document of its own."""
DOCUMENT_BYTES_MAX = 65_536
"""The longest value that a key may have."""
CHUNK_BYTES = 512
"""Documents travel in pieces of this size, the last one shorter; two fit the usual datagram."""
CHUNKS_MAX = DOCUMENT_BYTES_MAX // CHUNK_BYTES
DIGEST_BYTES = 16
"""BLAKE2b of a document: what it is asked for by."""
BUCKETS = 64
JOIN_PADDING_BYTES = 92
"""What a join is filled up with, so that it is no shorter than its welcome."""
EVENT_PAYLOAD_BYTES_MAX = 400
"""With it an event of the longest name fits the smallest datagram that may be configured."""
EVENT_BYTES_MAX = 520
"""One encoded event or query, its filters included: a datagram of 640 bytes has room for it."""
ANSWER_BYTES_MAX = 1_024
"""One answer to a query, where the configured datagram holds that much."""
EVENTS_PER_DATAGRAM = 16
QUERY_NODES_MAX = 16
"""Nodes that a query may name; a query to more is one to all."""
QUERY_TIMEOUT_MS_MAX = 600_000
DIGEST_EVENTS_MAX = 64
EVENT_HASH_BYTES = 4
ACCUSERS_MAX = 8
"""Whose failed probes a doubt may name; more are not needed by any configuration."""

Id = Annotated[NodeId, msgspec.Meta(min_length=8, max_length=8)]
Ids = Annotated[bytes, msgspec.Meta(max_length=8 * ACCUSERS_MAX)]
Bytes8 = Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]
BytesTo8 = Annotated[bytes, msgspec.Meta(max_length=8)]
U8 = Annotated[int, msgspec.Meta(ge=0, lt=2**8)]
U16 = Annotated[int, msgspec.Meta(ge=0, lt=2**16)]
U32 = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
U53 = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
Digest = Annotated[bytes, msgspec.Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
StateCode = Annotated[int, msgspec.Meta(ge=0, le=3)]
PackedAddress = Annotated[bytes, msgspec.Meta(min_length=6, max_length=24)]
Loads = Annotated[bytes, msgspec.Meta(max_length=1_330)]
Coordinates = Annotated[bytes, msgspec.Meta(max_length=253)]

BUSY_ADDRESSES_MAX = 5
VERSION = Annotated[int, msgspec.Meta(ge=1, lt=2**8)]


class StateEntry(msgspec.Struct, frozen=True, array_like=True):
    """One key of a node's state. A value of None says that the key was deleted.

    Where `size` is not 0 the value is a document of that many bytes, and `value` its digest.
    """

    key: Annotated[str, msgspec.Meta(min_length=1, max_length=STATE_KEY_CHARS_MAX)]
    version: Annotated[int, msgspec.Meta(ge=1, lt=2**32)]
    value: Annotated[bytes, msgspec.Meta(max_length=INLINE_BYTES_MAX)] | None
    size: Annotated[int, msgspec.Meta(ge=0, le=DOCUMENT_BYTES_MAX)] = 0


class StateChange(msgspec.Struct, frozen=True, array_like=True):
    """What a node changed last: with `entries`, who holds version `base` holds the newest one."""

    base: U32
    entries: Annotated[tuple[StateEntry, ...], msgspec.Meta(max_length=16)]


class Update(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One rumour: a belief about a member.

    `lag` is the member's own word on how late it reads its mail, in steps of 20 ms. `digest` stands
    for its whole state at `state_version`, where the sender knows it. Behind a doubt stand the
    failed probes of its `accusers`; `retracted` are those who heard an answer after all. Both are
    ids of 8 bytes, one after the other; a newcomer's sponsor, which shook hands with it, stands
    in place of accusers. `delta` is the member's last change, if it is small.
    """

    state: StateCode
    node: Id
    epoch: U53
    incarnation: U32
    address: PackedAddress
    state_version: U32 = 0
    lag: U8 = 0
    digest: BytesTo8 = b""
    accusers: Ids = b""
    retracted: Ids = b""
    delta: StateChange | None = None


Updates = Annotated[tuple[Update, ...], msgspec.Meta(max_length=64)]


class Wanted(msgspec.Struct, frozen=True, array_like=True):
    """Which part of a node's state is asked for: everything above version `have`."""

    node: Id
    epoch: U53
    have: U32


class Delta(msgspec.Struct, frozen=True, array_like=True):
    """Entries of a node's state in version order, following on from version `base`.

    With them the receiver holds version `upto`; keys that were written again leave gaps. `digest`
    is that of the whole state, where `upto` is the newest version that the sender holds.
    """

    node: Id
    epoch: U53
    base: U32
    upto: U32
    entries: Annotated[tuple[StateEntry, ...], msgspec.Meta(max_length=64)]
    digest: BytesTo8 = b""


class WantedDocument(msgspec.Struct, frozen=True, array_like=True):
    """Which chunks of a document are asked for: bit i of `mask` (big-endian) is chunk i."""

    digest: Digest
    mask: Annotated[bytes, msgspec.Meta(min_length=1, max_length=CHUNKS_MAX // 8)]


class DocumentPart(msgspec.Struct, frozen=True, array_like=True):
    """Chunks of a document, one after another from number `first`; none: not here, or not now."""

    digest: Digest
    first: U8
    data: Annotated[bytes, msgspec.Meta(max_length=1_400)]


class Ping(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """Are you there? Answered by an ack with the same `sequence`.

    `wanted`: how many members' coordinates the sender would like to be told.
    """

    sequence: U16
    updates: Updates = ()
    loads: Loads = b""
    wanted: U8 = 0


class Ack(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """Yes. `view_hash` is the low half of the sender's view hash; 0, or none, says nothing.

    `coordinates`: the sender's (21 bytes), then others' with their ids (29 each).
    """

    sequence: U16
    view_hash: U32 = 0
    updates: Updates = ()
    loads: Loads = b""
    coordinates: Coordinates = b""


class PingReq(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Please ping `target`, a member, for me, and pass its ack on (SWIM section 3.1)."""

    sequence: U16
    target: Id
    updates: Updates = ()
    loads: Loads = b""


class Nack(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """I asked, and have no ack yet (Lifeguard section IV-A): your own packets do get through."""

    sequence: U16
    updates: Updates = ()
    loads: Loads = b""


class Gossip(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Nothing but what rides along."""

    updates: Updates = ()
    loads: Loads = b""


class Join(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """First word to an address: who are you? Answered by a welcome of no larger size.

    Its form, and the welcome's, is the same in every protocol version: `oldest` and `newest` are
    the versions that the sender speaks, and are how two nodes find that they share none.
    """

    sequence: U16
    padding: Annotated[bytes, msgspec.Meta(max_length=JOIN_PADDING_BYTES)]
    oldest: VERSION = 1
    newest: VERSION = 1


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """This is me; come back with `cookie` to prove that your address is yours.

    `began` is the epoch with which this run began: of two runs with one key the older stays.
    """

    sequence: U16
    cookie: Bytes8
    record: Update
    oldest: VERSION = 1
    newest: VERSION = 1
    began: U53 = 0


class Sync(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """My view in 64 hashes of 4 bytes; tell me what differs. `cookie` (or none) opens the door."""

    cookie: BytesTo8
    hashes: Annotated[bytes, msgspec.Meta(min_length=4 * BUCKETS, max_length=4 * BUCKETS)]
    updates: Updates = ()


class Records(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """Records of the buckets in `mask`; the last one of an answer asks for yours in return."""

    mask: Bytes8
    last: bool
    updates: Updates = ()


class StatePull(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """Please send what I lack of these nodes' states, or these chunks of documents."""

    wanted: Annotated[tuple[Wanted, ...], msgspec.Meta(max_length=40)]
    documents: Annotated[tuple[WantedDocument, ...], msgspec.Meta(max_length=32)] = ()


class StateDelta(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """Parts of states, or of documents: one of `count` datagrams of an answer, be it empty."""

    count: Annotated[int, msgspec.Meta(ge=1, lt=2**8)]
    deltas: Annotated[tuple[Delta, ...], msgspec.Meta(max_length=64)] = ()
    parts: Annotated[tuple[DocumentPart, ...], msgspec.Meta(max_length=64)] = ()


class Question(msgspec.Struct, frozen=True, array_like=True):
    """What makes an event a query: who shall answer, and for how long answers are gathered.

    `nodes` are ids, 8 bytes each, none for everybody; `capability` is a name, or empty for any.
    """

    query: U32
    timeout_ms: Annotated[int, msgspec.Meta(ge=1, le=QUERY_TIMEOUT_MS_MAX)]
    nodes: Annotated[bytes, msgspec.Meta(max_length=8 * QUERY_NODES_MAX)] = b""
    capability: Annotated[str, msgspec.Meta(max_length=64)] = ""


class UserEvent(msgspec.Struct, frozen=True, array_like=True):
    """What a user tells all nodes. `time` is a Lamport time; bits of `flags` are in `events`."""

    time: U53
    origin: Id
    flags: U8
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    payload: Annotated[bytes, msgspec.Meta(max_length=EVENT_PAYLOAD_BYTES_MAX)]
    question: Question | None = None


class Events(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """User events on their way; `age_ms` is the time since the eldest of them was told."""

    age_ms: U16
    events: Annotated[
        tuple[UserEvent, ...], msgspec.Meta(min_length=1, max_length=EVENTS_PER_DATAGRAM)
    ]


class Answer(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """To the asker of `query`: got it (0), an answer (1), a refusal in words (2).

    From the asker: your answer has come (3); without that, it is sent again.
    """

    query: U32
    part: Annotated[int, msgspec.Meta(ge=0, le=3)]
    payload: Annotated[bytes, msgspec.Meta(max_length=ANSWER_BYTES_MAX)] = b""


class EventDigest(msgspec.Struct, frozen=True, array_like=True, tag=14):
    """The recent events that I hold from `since` on, 4 bytes of hash each: send what I lack.

    One that `is_answer` asks for nothing but events.
    """

    since: U53
    hashes: Annotated[bytes, msgspec.Meta(max_length=EVENT_HASH_BYTES * DIGEST_EVENTS_MAX)]
    is_answer: bool = False


class Busy(msgspec.Struct, frozen=True, array_like=True, tag=15):
    """Too many want in here at once: come back later, or knock at one of `addresses`.

    The answer to a join or to a sync (`sequence` 0), and no larger than either.
    """

    sequence: U16
    addresses: Annotated[
        tuple[PackedAddress, ...], msgspec.Meta(max_length=BUSY_ADDRESSES_MAX)
    ] = ()


Message = (
    Ping
    | Ack
    | PingReq
    | Nack
    | Gossip
    | Join
    | Welcome
    | Sync
    | Records
    | StatePull
    | StateDelta
    | Events
    | Answer
    | EventDigest
    | Busy
)
