"""The running digest of a simulation, and the last lines of what happened."""

import hashlib
import struct
from dataclasses import dataclass

from meshd.errors import DecodeError
from meshd.gossip.codec import decode
from meshd.model import Address, MeshId

WAKE, DATAGRAM, READ, ACTION, NOTE, STREAM = range(6)
"""What an event is: a timer, a packet at a socket, a late read, a fault or check, a remark, TCP."""

SHOWN_MAX = 50
_BATCH = 4_096
"""Events hashed at once. The last batch is kept: so many lines at least can be shown."""
_HEAD = struct.Struct("<dBi")
_Raw = tuple[float, int, int, bytes, Address | None]


@dataclass(frozen=True, slots=True)
class Line:
    """One event as it happened. `node` is an index, -1 for the world itself."""

    at_s: float
    kind: int
    node: int
    data: bytes
    source: Address | None


class Trace:
    """Everything that a run processed, as one hash; and the end of it, for people."""

    def __init__(self, mesh: MeshId, start_s: float = 0.0) -> None:
        """Start empty. `start_s` is the time that lines for people count from."""
        self._start_s = start_s
        self._mesh = mesh
        self._hash = hashlib.blake2b(digest_size=16)
        self._hashed = 0
        self._before: list[_Raw] = []
        self._batch: list[_Raw] = []

    @property
    def events(self) -> int:
        """How many there were so far."""
        return self._hashed + len(self._batch)

    def add(self, at_s: float, kind: int, node: int, data: bytes, source: Address | None) -> None:
        """Take in one event."""
        batch = self._batch
        batch.append((at_s, kind, node, data, source))
        if len(batch) >= _BATCH:
            self._hash_batch()

    def _hash_batch(self) -> None:
        pack = _HEAD.pack
        parts = [pack(at_s, kind, node) + data for at_s, kind, node, data, _ in self._batch]
        self._hash.update(b"".join(parts))
        self._hashed += len(parts)
        self._before, self._batch = self._batch, []

    def note(self, at_s: float, node: int, text: str) -> None:
        """Take in a remark: a fault, or a change of belief."""
        self.add(at_s, NOTE, node, text.encode(), None)

    def digest(self) -> str:
        """Hash of all so far, as 32 hex digits."""
        so_far = self._hash.copy()
        for at_s, kind, node, data, _ in self._batch:
            so_far.update(_HEAD.pack(at_s, kind, node) + data)
        return so_far.hexdigest()

    def tail(self, *nodes: int, kinds: tuple[int, ...] = ()) -> tuple[str, ...]:
        """The last lines that concern one of `nodes`, of these `kinds`; of any if none is given."""
        wanted = {*nodes, -1}
        lines = [
            Line(*raw)
            for raw in (*self._before, *self._batch)
            if (not nodes or raw[2] in wanted or raw[1] == ACTION)
            and (not kinds or raw[1] in kinds)
        ]
        return tuple(self._text(line) for line in lines[-SHOWN_MAX:])

    def _text(self, line: Line) -> str:
        who = "world" if line.node < 0 else f"node {line.node}"
        return f"{line.at_s - self._start_s:12.6f} {who:>10}  {self._what(line)}"

    def _what(self, line: Line) -> str:
        if line.kind == WAKE:
            return "timer"
        if line.kind in {ACTION, NOTE}:
            return line.data.decode()
        if line.kind == STREAM:
            return f"gets {line.data.decode()} by TCP from {line.source}"
        verb = "reads late" if line.kind == READ else "receives"
        try:
            message = decode(line.data, self._mesh).message
        except DecodeError as error:
            return f"{verb} {len(line.data)} bytes from {line.source} ({error.message})"
        updates = " ".join(
            f"{update.node.hex()}:{update.state}@{update.incarnation}"
            for update in getattr(message, "updates", ())
        )
        return f"{verb} {type(message).__name__} from {line.source} {updates}".rstrip()
