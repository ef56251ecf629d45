"""Datagrams to messages and back: a fixed header, an optional load record, a msgpack body.

```
header  version u8 | flags u8 | key id u16 | mesh id 8 | destination id 8 (0: unknown) | source 8
load    11 bytes, where flag LOAD is set: the sender's own
body    msgpack array [kind, field, ...]
```

The upper half of the flags tells how many versions above this datagram's the sender speaks.

A datagram is refused by its size before anything is decoded, and every limit of the decoder is set.
48 bytes are kept free in each for the seal that encryption will add.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from ipaddress import IPv6Address
from typing import Any, get_args

import msgpack
import msgspec

from meshd.errors import DecodeError
from meshd.gossip.config import DATAGRAM_BYTES_MAX
from meshd.gossip.messages import (
    Delta,
    Join,
    Message,
    StateChange,
    StateEntry,
    Update,
    UserEvent,
    Welcome,
)
from meshd.model import Address, Epoch, Incarnation, Load, Member, MemberState, MeshId, NodeId
from meshd.structs import Flat

PROTOCOL_VERSION = 1
SEAL_BYTES_RESERVED = 48
FLAG_LOAD = 0x01
_AHEAD_SHIFT = 4
_FLAGS_KNOWN = FLAG_LOAD | 0xF << _AHEAD_SHIFT
AHEAD_MAX = 15
"""Versions above a datagram's own that its header can tell of."""
NOBODY = NodeId(bytes(8))

_HEADER_START = struct.Struct(">BBH8s")
_HEADER = struct.Struct(">BBH8s8s8s")
HEADER_BYTES = _HEADER.size
_LOAD = struct.Struct(">9BH")
LOAD_BYTES = _LOAD.size
LOAD_ENTRY_BYTES = 8 + LOAD_BYTES
LOAD_SEQUENCES = 2**12
IPV4_BYTES, IPV6_BYTES = 6, 18
"""Of a packed address with its port."""
IPV6 = 6
_ARRAY_ELEMENTS_MAX = 512
_STATES = tuple(MemberState)
_pack = msgspec.msgpack.Encoder().encode
_KINDS = {kind.__struct_config__.tag: kind for kind in get_args(Message)}
_TIMELESS = tuple(bytes((int(kind.__struct_config__.tag or 0),)) for kind in (Join, Welcome))


class Datagram(Flat, frozen=True, gc=False):
    """A decoded datagram. `load` is the sender's packed record, or empty.

    `version` is the datagram's own, `newest` the newest that its sender speaks.
    """

    destination: NodeId
    source: NodeId
    load: bytes
    message: Message
    version: int = PROTOCOL_VERSION
    newest: int = PROTOCOL_VERSION


class Outline(Flat, frozen=True, gc=False):
    """What is legible of a datagram in any version: who speaks, to whom, and which versions."""

    mesh: MeshId
    source: NodeId
    version: int
    newest: int


def encode_header(mesh: MeshId, destination: NodeId, source: NodeId, load: bytes = b"") -> bytes:
    """The clear part of a datagram, with the sender's packed load where given."""
    return b"".join((header_start(mesh, with_load=bool(load)), destination, source, load))


def header_start(
    mesh: MeshId, *, with_load: bool, version: int = PROTOCOL_VERSION, ahead: int = 0
) -> bytes:
    """What all headers of a mesh begin with; destination, source and load follow.

    `ahead` is how many versions above `version` the sender speaks, 0 .. AHEAD_MAX.
    """
    flags = (FLAG_LOAD if with_load else 0) | ahead << _AHEAD_SHIFT
    return _HEADER_START.pack(version, flags, 0, mesh)


def outline(data: bytes) -> Outline | None:
    """What is legible of a datagram of whatever version; None if it has no whole header."""
    if len(data) < HEADER_BYTES:
        return None
    version, flags, _key, mesh, _destination, source = _HEADER.unpack_from(data)
    return Outline(mesh, source, version, version + (flags >> _AHEAD_SHIFT))


def encode_body(
    kind: int, fields: Sequence[Any], updates: Sequence[bytes] = (), loads: bytes = b""
) -> bytes:
    """The msgpack body; `updates` are rumours that were encoded once by `encode_update`."""
    body = _pack((kind, *fields))
    return with_riders(body, updates, loads) if updates or loads else body


def with_riders(
    body: bytes, updates: Sequence[bytes], loads: bytes = b"", last: bytes = b""
) -> bytes:
    """A body with rumours, and loads if there are any, appended as its next fields.

    `last` is one more field after them, encoded by `encode_field`, if not empty.
    """
    start = body[0] + (3 if last else 2 if loads else 1)
    ending = _pack(loads) if loads or last else b""
    return b"".join(
        (start.to_bytes(1, "big"), body[1:], _array_header(len(updates)), *updates, ending, last)
    )


def encode_field(value: Any) -> bytes:
    """One field by itself, so that its bytes can be counted."""
    return _pack(value)


def decode(
    data: bytes,
    mesh: MeshId,
    *,
    oldest: int = PROTOCOL_VERSION,
    newest: int = PROTOCOL_VERSION,
) -> Datagram:
    """Parse one datagram of the versions `oldest` .. `newest`; a join or welcome, of any.

    Raises:
        DecodeError: `data` holds no valid message; its text is one of a fixed set of reasons.
    """
    if len(data) > DATAGRAM_BYTES_MAX:
        raise DecodeError("too_large")
    if len(data) <= HEADER_BYTES:
        raise DecodeError("too_short")
    header: tuple[int, int, int, MeshId, NodeId, NodeId] = _HEADER.unpack_from(data)
    version, flags, key, its_mesh, destination, source = header
    if not oldest <= version <= newest and not _is_timeless(data, flags):
        raise DecodeError("other_version")
    if its_mesh != mesh:
        raise DecodeError("other_mesh")
    if key or flags & ~_FLAGS_KNOWN:
        raise DecodeError("sealed")
    at = HEADER_BYTES
    load = b""
    if flags & FLAG_LOAD:
        if len(data) <= at + LOAD_BYTES:
            raise DecodeError("too_short")
        load = data[at : at + LOAD_BYTES]
        at += LOAD_BYTES
    speaks = version + (flags >> _AHEAD_SHIFT)
    return Datagram(destination, source, load, _decode_body(data[at:]), version, speaks)


def _is_timeless(data: bytes, flags: int) -> bool:
    """Whether it is one of the two messages whose form is that of every version."""
    at = HEADER_BYTES + (LOAD_BYTES if flags & FLAG_LOAD else 0) + 1
    return data[at : at + 1] in _TIMELESS


def _decode_body(body: bytes) -> Message:
    try:
        plain = msgpack.unpackb(
            body,
            use_list=False,
            raw=False,
            strict_map_key=True,
            max_str_len=128,
            max_bin_len=DATAGRAM_BYTES_MAX,
            max_array_len=_ARRAY_ELEMENTS_MAX,
            max_map_len=0,
            max_ext_len=0,
            ext_hook=_refuse_extension,
        )
    # StackError, FormatError, ExtraData and UnicodeDecodeError are all ValueErrors.
    except (ValueError, msgpack.UnpackException) as error:
        raise DecodeError("not_msgpack") from error
    # To one kind at a time: converting to the union costs eighty times as much, because msgspec
    # keeps what it knows of a struct, but not of a union.
    # An empty map passes the limit above; what is no array, or an empty one, is no kind either.
    number = plain[0] if isinstance(plain, tuple) and plain else None
    if type(number) is not int:
        raise DecodeError("not_a_message")
    kind = _KINDS.get(number)
    if kind is None:
        # Most likely one of a later version: passed over, as are fields that it appends.
        raise DecodeError("unknown_kind")
    try:
        message: Message = msgspec.convert(plain, kind)
    except msgspec.ValidationError as error:
        raise DecodeError("not_a_message") from error
    return message


def _refuse_extension(code: int, _data: bytes) -> None:
    # An empty one passes the limit above, and would be taken for an array.
    raise ValueError(f"extension type {code} is not part of the protocol")


def _array_header(count: int) -> bytes:
    return bytes((0x90 | count,)) if count < 16 else b"\xdc" + count.to_bytes(2, "big")


def update_fields(
    member: Member,
    accusers: bytes = b"",
    retracted: bytes = b"",
    change: StateChange | None = None,
    *,
    with_digest: bool = True,
) -> tuple[Any, ...]:
    """A rumour's fields in wire order.

    The digest is told of the living only, and where the state is news: who doubts a member, buries
    it, or takes a doubt back says nothing of its state that the others could not know, and in a
    storm such rumours are many.
    """
    digest = member.digest if with_digest and member.state is MemberState.ALIVE else b""
    ending: tuple[Any, ...]
    if change is not None:
        ending = (digest, accusers, retracted, _change_fields(change))
    elif retracted:
        ending = (digest, accusers, retracted)
    elif accusers:
        ending = (digest, accusers)
    else:
        ending = (digest,) if digest else ()
    return (
        int(member.state),
        member.node,
        member.epoch,
        member.incarnation,
        pack_addresses(member.address, member.other),
        member.state_version,
        member.lag,
        *ending,
    )


def encode_update(
    member: Member,
    accusers: bytes = b"",
    retracted: bytes = b"",
    *,
    change: StateChange | None = None,
    with_digest: bool = True,
) -> bytes:
    """One rumour, encoded once and kept."""
    return _pack(update_fields(member, accusers, retracted, change, with_digest=with_digest))


def ids_of(packed: bytes) -> Iterator[NodeId]:
    """The ids in a field of accusers; a torn last one is left out."""
    return (NodeId(packed[at : at + 8]) for at in range(0, len(packed) - 7, 8))


def change_bytes(change: StateChange) -> int:
    """By how much a change makes a rumour longer."""
    return len(_pack(_change_fields(change)))


def _change_fields(change: StateChange) -> tuple[Any, ...]:
    return change.base, [_entry_fields(entry) for entry in change.entries]


def _entry_fields(entry: StateEntry) -> tuple[Any, ...]:
    plain = (entry.key, entry.version, entry.value)
    return (*plain, entry.size) if entry.size else plain


def member_from(update: Update, ip_version: int = 4) -> Member:
    """The record that a rumour states; of two addresses that of `ip_version` is the one to use.

    Raises:
        DecodeError: its address cannot be anybody's.
    """
    return _member(
        update.node,
        update.epoch,
        update.incarnation,
        update.state,
        update.address,
        update.state_version,
        update.lag,
        update.digest,
        ip_version,
    )


@lru_cache(maxsize=16_384)
def _member(
    node: bytes, epoch: int, incarnation: int, state: int, address: bytes, state_version: int,
    lag: int, digest: bytes, ip_version: int,
) -> Member:  # fmt: skip
    """One value for the same record, however often it is told; simulated nodes share it, too."""
    used, other = unpack_addresses(address)
    if other is not None and ip_version == IPV6:
        used, other = other, used
    return Member(
        node=NodeId(node),
        epoch=Epoch(epoch),
        incarnation=Incarnation(incarnation),
        state=_STATES[state],
        address=used,
        state_version=state_version,
        lag=lag,
        digest=digest,
        other=other,
    )


def states(update: Update, member: Member) -> bool:
    """Whether a rumour says what the record of the same node says already, or less."""
    return (
        update.state == member.state
        and update.incarnation == member.incarnation
        and update.epoch == member.epoch
        and update.state_version <= member.state_version
        and (update.digest <= member.digest or update.state_version < member.state_version)
        and update.lag <= member.lag
        and update.address == pack_addresses(member.address, member.other)
    )


@lru_cache(maxsize=16_384)
def pack_address(address: Address) -> bytes:
    """4 or 16 bytes of IP and 2 of port."""
    port = address.port.to_bytes(2, "big")
    if ":" in address.host:
        return IPv6Address(address.host.partition("%")[0]).packed + port
    return bytes(int(part) for part in address.host.split(".")) + port


@lru_cache(maxsize=16_384)
def pack_addresses(used: Address, other: Address | None) -> bytes:
    """One address, or two of different IP versions: IPv4 first, whichever of them is used here."""
    if other is None:
        return pack_address(used)
    one, two = pack_address(used), pack_address(other)
    return one + two if len(one) < len(two) else two + one


def unpack_addresses(packed: bytes) -> tuple[Address, Address | None]:
    """Read what `pack_addresses` wrote: IPv4 first where there are two.

    Raises:
        DecodeError: as `unpack_address` does.
    """
    if len(packed) == IPV4_BYTES + IPV6_BYTES:
        return unpack_address(packed[:IPV4_BYTES]), unpack_address(packed[IPV4_BYTES:])
    return unpack_address(packed), None


@lru_cache(maxsize=16_384)
def unpack_address(packed: bytes) -> Address:
    """Read what `pack_address` wrote.

    Raises:
        DecodeError: the length is neither 6 nor 18, the port is 0, or the IP is unspecified,
            multicast or broadcast: nobody can be reached there.
    """
    port = int.from_bytes(packed[-2:], "big")
    host = packed[:-2]
    if port == 0 or len(host) not in {4, 16}:
        raise DecodeError("bad_address")
    if len(host) == 4:
        if host[0] == 0 or host[0] >= 224:
            raise DecodeError("bad_address")
        return Address(".".join(map(str, host)), port)
    ip = IPv6Address(host)
    if ip.is_unspecified or ip.is_multicast or ip.ipv4_mapped is not None:
        raise DecodeError("bad_address")
    return Address(str(ip), port)


def pack_load(load: Load) -> bytes:
    """11 bytes: fractions in 1/255, counts and times on a log scale, flags and sequence."""
    flags = load.ready | load.full << 1 | load.draining << 2
    return _LOAD.pack(
        _to_fraction(load.cpu_fraction),
        _to_fraction(load.mem_fraction),
        _to_scale(load.in_flight, 4),
        _to_scale(load.queue, 4),
        _to_scale(load.slots, 4),
        _to_scale(_to_count(load.service_s * 1e6), 3),
        _to_scale(_to_count(load.dispatch_per_s * 10), 3),
        _to_fraction(load.error_fraction),
        _to_scale(_to_count(load.lag_s * 1e3), 3),
        flags << 12 | load.sequence % LOAD_SEQUENCES,
    )


def unpack_load(packed: bytes) -> Load:
    """Read what `pack_load` wrote. Every pattern of 11 bytes is a valid record."""
    cpu, mem, in_flight, queue, slots, service, dispatch, errors, lag, tail = _LOAD.unpack(packed)
    return Load(
        cpu_fraction=cpu / 255,
        mem_fraction=mem / 255,
        in_flight=_from_scale(in_flight, 4),
        queue=_from_scale(queue, 4),
        slots=_from_scale(slots, 4),
        service_s=_from_scale(service, 3) / 1e6,
        dispatch_per_s=_from_scale(dispatch, 3) / 10,
        error_fraction=errors / 255,
        lag_s=_from_scale(lag, 3) / 1e3,
        ready=bool(tail & 0x1000),
        full=bool(tail & 0x2000),
        draining=bool(tail & 0x4000),
        sequence=tail % LOAD_SEQUENCES,
    )


def load_sequence(packed: bytes) -> int:
    """The sequence in a packed record, without unpacking the rest."""
    return int.from_bytes(packed[-2:], "big") % LOAD_SEQUENCES


def is_newer_load(sequence: int, than: int) -> bool:
    """Whether `sequence` comes after `than` on the circle of 4096 (RFC 1982)."""
    return 0 < (sequence - than) % LOAD_SEQUENCES < LOAD_SEQUENCES // 2


def _to_fraction(value: float) -> int:
    return 0 if not math.isfinite(value) else round(min(1.0, max(0.0, value)) * 255)


def _to_count(value: float) -> int:
    """The nearest count; no number is none, and all that is endless is as much as can be said."""
    return 0 if math.isnan(value) else round(min(2.0**40, max(0.0, value)))


def _to_scale(value: int, mantissa_bits: int) -> int:
    """A byte on a log scale: exact for small values, then within one part in 2**mantissa_bits."""
    one = 1 << mantissa_bits
    if value < 2 * one:
        return max(0, value)
    exponent = value.bit_length() - mantissa_bits - 1
    code = (exponent + 1) * one + (value >> exponent) - one
    return min(code, 255)


def _from_scale(code: int, mantissa_bits: int) -> int:
    one = 1 << mantissa_bits
    if code < 2 * one:
        return code
    exponent = code // one - 1
    return (code % one + one) << exponent


def encode_delta(delta: Delta) -> bytes:
    """One delta, to be counted against the room of a datagram before it is sent."""
    entries = [_entry_fields(entry) for entry in delta.entries]
    ending = (delta.digest,) if delta.digest else ()
    return _pack((delta.node, delta.epoch, delta.base, delta.upto, entries, *ending))


def encode_event(event: UserEvent) -> bytes:
    """One user event, encoded once and kept."""
    return _pack(event)


def event_key(event: UserEvent) -> bytes:
    """What tells one event from all others: a hash of its Lamport time, origin, name and payload.

    Fields of later versions stay out of it, so that all versions tell events apart alike.
    """
    told = _pack((event.time, event.origin, event.name, event.payload))
    return blake2b(told, digest_size=8).digest()
