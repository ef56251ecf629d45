"""The messages on the wire: positional msgpack arrays, first the kind, then these fields in order.

Every message may end with two optional parts that ride along: `updates` (membership rumours) and
`loads` (load records, 19 bytes each: node id and record). Fields that a later version appends are
ignored by an earlier one.
"""

from typing import Annotated

import msgspec

from meshd.model import NodeId

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
StateCode = Annotated[int, msgspec.Meta(ge=0, le=3)]
PackedAddress = Annotated[bytes, msgspec.Meta(min_length=6, max_length=24)]
Loads = Annotated[bytes, msgspec.Meta(max_length=1_330)]

STATE_KEY_CHARS_MAX = 72
STATE_VALUE_BYTES_MAX = 400
BUCKETS = 64
JOIN_PADDING_BYTES = 84
"""What a join is filled up with, so that it is no shorter than its welcome."""


class Update(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One rumour: a belief about a member.

    `lag` is the member's own word on how late it reads its mail, in steps of 20 ms. Behind a doubt
    stand the failed probes of its `accusers`; `retracted` are those who heard an answer after all.
    Both are ids of 8 bytes, one after the other.
    """

    state: StateCode
    node: Id
    epoch: U53
    incarnation: U32
    address: PackedAddress
    state_version: U32 = 0
    lag: U8 = 0
    accusers: Ids = b""
    retracted: Ids = b""


Updates = Annotated[tuple[Update, ...], msgspec.Meta(max_length=64)]


class StateEntry(msgspec.Struct, frozen=True, array_like=True):
    """One key of a node's state. A value of None says that the key was deleted."""

    key: Annotated[str, msgspec.Meta(min_length=1, max_length=STATE_KEY_CHARS_MAX)]
    version: Annotated[int, msgspec.Meta(ge=1, lt=2**32)]
    value: Annotated[bytes, msgspec.Meta(max_length=STATE_VALUE_BYTES_MAX)] | None


class Wanted(msgspec.Struct, frozen=True, array_like=True):
    """Which part of a node's state is asked for: everything above version `have`."""

    node: Id
    epoch: U53
    have: U32


class Delta(msgspec.Struct, frozen=True, array_like=True):
    """Entries of a node's state in version order, following on from version `base`.

    With them the receiver holds version `upto`; keys that were written again leave gaps.
    """

    node: Id
    epoch: U53
    base: U32
    upto: U32
    entries: Annotated[tuple[StateEntry, ...], msgspec.Meta(max_length=64)]


class Ping(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """Are you there? Answered by an ack with the same `sequence`."""

    sequence: U16
    updates: Updates = ()
    loads: Loads = b""


class Ack(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """Yes. `view_hash` is the low half of the sender's view hash; 0, or none, says nothing."""

    sequence: U16
    view_hash: U32 = 0
    updates: Updates = ()
    loads: Loads = b""


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
    """First word to an address: who are you? Answered by a welcome of no larger size."""

    sequence: U16
    padding: Annotated[bytes, msgspec.Meta(max_length=JOIN_PADDING_BYTES)]


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """This is me; come back with `cookie` to prove that your address is yours.

    `began` is the epoch with which this run began: of two runs with one key the older stays.
    """

    sequence: U16
    cookie: Bytes8
    record: Update
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
    """Please send what I lack of these nodes' states."""

    wanted: Annotated[tuple[Wanted, ...], msgspec.Meta(min_length=1, max_length=40)]


class StateDelta(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """Parts of nodes' states: one of `count` datagrams that make up an answer, be it empty."""

    count: Annotated[int, msgspec.Meta(ge=1, lt=2**8)]
    deltas: Annotated[tuple[Delta, ...], msgspec.Meta(max_length=64)] = ()


Message = (
    Ping | Ack | PingReq | Nack | Gossip | Join | Welcome | Sync | Records | StatePull | StateDelta
)
