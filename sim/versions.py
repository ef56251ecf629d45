"""How a process of the next protocol version would speak: what this version must bear with.

The code under test is of one version only. So what a newer node sends is rewritten here on its
way out: each array of the wire gets one more field at its end, now and then a message of a kind
that does not exist yet goes along, and now and then a datagram of the next header version.
"""

from typing import Any, get_args

import msgpack

from meshd.gossip.codec import FLAG_LOAD, HEADER_BYTES, LOAD_BYTES, PROTOCOL_VERSION
from meshd.gossip.messages import (
    Delta,
    DocumentPart,
    Join,
    Message,
    StateChange,
    StateEntry,
    Update,
    Wanted,
    WantedDocument,
    Welcome,
)

NEW_KIND = 100
NEW_KIND_EVERY = 17
NEW_HEADER_EVERY = 29
_NEW_FIELD = (1, b"next", (2,))
_NEW_NUMBER = 7
_TIMELESS = tuple(int(kind.__struct_config__.tag or 0) for kind in (Join, Welcome))
_KINDS: dict[int, Any] = {kind.__struct_config__.tag: kind for kind in get_args(Message)}
_NESTED: dict[str, Any] = {
    "updates": Update, "record": Update, "wanted": Wanted, "deltas": Delta, "entries": StateEntry,
    "delta": StateChange, "documents": WantedDocument, "parts": DocumentPart,
}  # fmt: skip


class Newer:
    """One process of the next version: rewrites what it sends."""

    def __init__(self, bytes_max: int) -> None:
        """Start counting. `bytes_max` is the largest datagram that it may send."""
        self._bytes_max = bytes_max
        self._count = 0

    def __call__(self, data: bytes) -> tuple[bytes, ...]:
        """What it says in place of a datagram of this version."""
        self._count += 1
        said = [grown(data, self._bytes_max)]
        if self._count % NEW_KIND_EVERY == 0:
            at = body_at(data)
            said.append(data[:at] + msgpack.packb((NEW_KIND, _NEW_FIELD)))
        if self._count % NEW_HEADER_EVERY == 0 and kind_of(data) not in _TIMELESS:
            said.append(bytes((PROTOCOL_VERSION + 1,)) + data[1:])
        return tuple(said)


def body_at(data: bytes) -> int:
    """Where a datagram's body begins."""
    return HEADER_BYTES + (LOAD_BYTES if data[1] & FLAG_LOAD else 0)


def kind_of(data: bytes) -> int:
    """The kind of message in a datagram of our own making, without decoding it."""
    return data[body_at(data) + 1]


def grown(data: bytes, bytes_max: int) -> bytes:
    """A datagram with a field more in each array, or as it was where that does not fit."""
    at = body_at(data)
    plain = msgpack.unpackb(data[at:], use_list=True, raw=False)
    kind = _KINDS[plain[0]]
    for nested in (True, False):
        fields = _grow(plain[1:], kind, _NEW_FIELD, nested=nested)
        longer: bytes = data[:at] + msgpack.packb((plain[0], *fields))
        if len(longer) <= bytes_max:
            return longer
    return data


def _grow(fields: list[Any], kind: Any, extra: Any, *, nested: bool) -> list[Any]:
    """All fields of a struct, those with defaults included, and one that it does not know."""
    names = kind.__struct_fields__
    missing = len(names) - len(fields)
    defaults = kind.__struct_defaults__[-missing:] if missing else ()
    whole = [*fields, *defaults]
    if nested:
        for index, name in enumerate(names):
            inner = _NESTED.get(name)
            if inner is not None:
                whole[index] = _grow_inner(name, whole[index], inner)
    return [*whole, extra]


def _grow_inner(name: str, value: Any, inner: Any) -> Any:
    if not isinstance(value, list):
        # None, or a number that is called as the fields of another kind are.
        return value
    if name in {"record", "delta"}:
        return _grow(value, inner, _NEW_NUMBER, nested=True)
    return [_grow(each, inner, _NEW_NUMBER, nested=True) for each in value]
