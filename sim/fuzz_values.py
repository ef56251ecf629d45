"""Datagrams that nobody should send: random, spoilt, and well-formed with hostile values.

What is well-formed follows from the message types themselves, so that a kind that is added is
fuzzed from that day on.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import msgpack
import msgspec
from msgspec import inspect as types

from meshd.gossip.codec import HEADER_BYTES, NOBODY, encode_header, pack_address
from meshd.gossip.config import DATAGRAM_BYTES_MAX
from meshd.gossip.messages import Message
from meshd.model import Address, MeshId, NodeId
from sim.versions import body_at

ID_BYTES = 8
_ADDRESS_BYTES = (6, 18)
_WRONG_TYPE = 0.02
_OUT_OF_RANGE = 0.02
_ITEMS_MAX = 6
_EDGES = (0, 1, 2, 127, 128, 255, 256, 999, 1_000, 1_001, 2**16 - 1, 2**32 - 1, 2**53 - 1)
_ODD: tuple[Any, ...] = (
    None, True, -1, 2**63, 2**64 - 1, 1.5, float("nan"), float("inf"), "", "text", b"", bytes(9),
    (), (1,), ((),), {}, {1: 2}, msgpack.ExtType(5, b""), msgpack.Timestamp(1, 2),
)  # fmt: skip
_KINDS: dict[int, types.StructType] = {}
for _kind in get_args(Message):
    _info = types.type_info(_kind)
    assert isinstance(_info, types.StructType)
    _KINDS[int(_kind.__struct_config__.tag)] = _info


@dataclass(frozen=True)
class Pool:
    """What a fuzzer knows of its target's mesh."""

    mesh: MeshId
    me: NodeId
    members: tuple[tuple[NodeId, Address], ...]
    strangers: tuple[NodeId, ...]
    elsewhere: tuple[Address, ...]
    epoch: int
    recorded: list[bytes] = field(default_factory=list)

    def somebody(self, rng: random.Random) -> NodeId:
        """An id that occurs: of a member, of the target, of nobody."""
        draw = rng.random()
        if draw < 0.6:
            return rng.choice(self.members)[0]
        if draw < 0.75:
            return self.me
        return rng.choice(self.strangers) if draw < 0.9 else NodeId(rng.randbytes(ID_BYTES))

    def somewhere(self, rng: random.Random) -> Address:
        """An address: of a member, or of nobody."""
        return rng.choice(self.members)[1] if rng.random() < 0.5 else rng.choice(self.elsewhere)


def value(kind: types.Type, pool: Pool, rng: random.Random) -> Any:
    """A value of a type; now and then one just outside its range, or of another type."""
    if rng.random() < _WRONG_TYPE:
        return rng.choice(_ODD)
    make = _MAKERS.get(type(kind))
    assert make is not None, f"no values for {kind}"
    return make(kind, pool, rng)


def _integer(kind: types.IntType, pool: Pool, rng: random.Random) -> int:
    low = kind.ge if kind.ge is not None else 0
    high = kind.le if kind.le is not None else (kind.lt or 2**64) - 1
    if rng.random() < _OUT_OF_RANGE:
        return rng.choice((low - 1, high + 1))
    draw = rng.random()
    if draw < 0.3 and high >= 2**53 - 1:
        return pool.epoch + rng.choice((-1, 0, 0, 0, 1, 2, 90_000_000))
    if draw < 0.7:
        return min(high, max(low, rng.choice(_EDGES)))
    return rng.randint(low, min(high, low + 5) if draw < 0.85 else high)


def _bytes(kind: types.BytesType, pool: Pool, rng: random.Random) -> bytes:
    low = kind.min_length or 0
    high = min(DATAGRAM_BYTES_MAX if kind.max_length is None else kind.max_length, 600)
    if (low, kind.max_length) == _ADDRESS_BYTES:
        return pack_address(pool.somewhere(rng)) if rng.random() < 0.9 else rng.randbytes(6)
    if low == high == ID_BYTES and rng.random() < 0.9:
        return pool.somebody(rng)
    if rng.random() < _OUT_OF_RANGE:
        return bytes(max(0, rng.choice((low - 1, high + 1))))
    length = rng.choice((low, high, rng.randint(low, high), min(high, max(low, ID_BYTES))))
    ids = b"".join(pool.somebody(rng) for _ in range(length // ID_BYTES))
    return ids + rng.randbytes(length - len(ids)) if rng.random() < 0.5 else rng.randbytes(length)


def _text(kind: types.StrType, pool: Pool, rng: random.Random) -> str:
    del pool
    high = min(kind.max_length or 64, 100) + (rng.random() < _OUT_OF_RANGE)
    words = ("name", "version", "k", "x" * high, "\u202e", "a\x00b", "\x1b[2J", "")
    return rng.choice(words)[:high]


def _several(kind: Any, pool: Pool, rng: random.Random) -> list[Any]:
    count = rng.choice((0, 1, 1, 2, rng.randint(0, _ITEMS_MAX)))
    return [value(kind.item_type, pool, rng) for _ in range(count)]


def _struct(kind: types.StructType, pool: Pool, rng: random.Random) -> list[Any]:
    fields = [value(each.type, pool, rng) for each in kind.fields]
    if rng.random() < 0.3:
        needed = sum(each.required for each in kind.fields)
        fields = fields[: rng.randint(max(0, needed - (rng.random() < 0.1)), len(fields))]
    return [*fields, rng.choice(_ODD)] if rng.random() < 0.05 else fields


def _either(kind: types.UnionType, pool: Pool, rng: random.Random) -> Any:
    return value(rng.choice(kind.types), pool, rng)


def _number(kind: types.FloatType, pool: Pool, rng: random.Random) -> float:
    del kind, pool
    return rng.choice((0.0, -0.0, 1.0, -1.0, 1e308, 1e-320, float("nan"), float("-inf")))


_MAKERS: dict[type[types.Type], Callable[[Any, Pool, random.Random], Any]] = {
    types.IntType: _integer,
    types.BytesType: _bytes,
    types.StrType: _text,
    types.BoolType: lambda _kind, _pool, rng: rng.random() < 0.5,
    types.FloatType: _number,
    types.NoneType: lambda _kind, _pool, _rng: None,
    types.VarTupleType: _several,
    types.ListType: _several,
    types.TupleType: lambda kind, pool, rng: [value(each, pool, rng) for each in kind.item_types],
    types.StructType: _struct,
    types.UnionType: _either,
}


def structured(pool: Pool, rng: random.Random) -> tuple[bytes, Address]:
    """A message of some kind in somebody's name, from somewhere."""
    number = rng.choice(tuple(_KINDS))
    body = packed([number, *_struct(_KINDS[number], pool, rng)])
    source, address = rng.choice(pool.members)
    if rng.random() < 0.4:
        source = pool.somebody(rng)
    if rng.random() < 0.4:
        address = pool.somewhere(rng)
    to = pool.me if rng.random() < 0.95 else rng.choice((NOBODY, pool.somebody(rng)))
    if number == 6 and rng.random() < 0.7:
        to = NOBODY
    load = rng.randbytes(11) if rng.random() < 0.3 else b""
    return encode_header(pool.mesh, to, source, load) + body, address


def packed(plain: Sequence[Any]) -> bytes:
    """A body; what msgpack cannot say becomes nil."""
    try:
        packed_body: bytes = msgpack.packb(plain)
    except (OverflowError, ValueError):
        packed_body = msgpack.packb([plain[0], None])
    return packed_body


def noise(pool: Pool, rng: random.Random) -> tuple[bytes, Address]:
    """Random bytes, with a valid header half of the time."""
    data = rng.randbytes(rng.choice((0, 1, 27, 28, 29, 60, rng.randint(0, 1_500))))
    if rng.random() < 0.5:
        data = encode_header(pool.mesh, pool.me, pool.somebody(rng)) + data
    return data, pool.somewhere(rng)


def spoilt(pool: Pool, rng: random.Random) -> tuple[bytes, Address]:
    """A datagram that was really sent to the target, and what became of it on a bad way."""
    data = rng.choice(pool.recorded)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(_SPOILERS)(data, pool, rng)
    return data, pool.somewhere(rng)


def _flipped(data: bytes, _pool: Pool, rng: random.Random) -> bytes:
    if not data:
        return data
    bit = rng.randrange(8 * len(data))
    return data[: bit // 8] + bytes((data[bit // 8] ^ 1 << bit % 8,)) + data[bit // 8 + 1 :]


def _cut(data: bytes, _pool: Pool, rng: random.Random) -> bytes:
    return data[: rng.randint(0, len(data))]


def _spliced(data: bytes, pool: Pool, rng: random.Random) -> bytes:
    other = rng.choice(pool.recorded)
    return data[: rng.randint(0, len(data))] + other[rng.randint(0, len(other)) :]


def _renamed(data: bytes, pool: Pool, rng: random.Random) -> bytes:
    """In another's name."""
    if len(data) < HEADER_BYTES:
        return data
    return data[: HEADER_BYTES - ID_BYTES] + pool.somebody(rng) + data[HEADER_BYTES:]


def _rearranged(data: bytes, _pool: Pool, rng: random.Random) -> bytes:
    """Fields in another order, twice, left out, or of another type."""
    if len(data) < HEADER_BYTES:
        return data
    at = body_at(data)
    try:
        plain = msgpack.unpackb(data[at:], use_list=True, raw=True, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException):
        return data
    if not isinstance(plain, list) or len(plain) < 2:
        return data
    fields = _some_list(plain, rng)
    index = rng.randrange(len(fields))
    draw = rng.randrange(4)
    if draw == 0:
        rng.shuffle(fields)
    elif draw == 1:
        fields.insert(index, fields[index])
    elif draw == 2:
        del fields[index]
    else:
        fields[index] = rng.choice(_ODD)
    return data[:at] + (packed(plain) if plain else b"\x90")


def _some_list(plain: list[Any], rng: random.Random) -> list[Any]:
    """One of the lists in a body that hold something."""
    while True:
        inner = [each for each in plain if isinstance(each, list) and each]
        if not inner or rng.random() < 0.4:
            return plain
        plain = rng.choice(inner)


_SPOILERS: tuple[Callable[[bytes, Pool, random.Random], bytes], ...] = (
    _flipped, _flipped, _cut, _spliced, _renamed, _rearranged, _rearranged,
)  # fmt: skip
KINDS_OF_INPUT: dict[str, Callable[[Pool, random.Random], tuple[bytes, Address]]] = {
    "noise": noise,
    "spoilt": spoilt,
    "structured": structured,
}


def is_message(data: bytes) -> bool:
    """Whether a body could be read as a list that begins with a kind: for reports."""
    try:
        plain = msgspec.msgpack.decode(data[body_at(data) :])
    except (msgspec.DecodeError, IndexError):
        return False
    return isinstance(plain, list) and bool(plain) and plain[0] in _KINDS
