"""The running digest of a simulation, and the last lines of what happened."""

import hashlib
import struct
from collections import deque
from dataclasses import dataclass

from meshd.errors import DecodeError
from meshd.gossip.codec import decode
from meshd.model import Address, MeshId

WAKE, DATAGRAM, READ, ACTION, NOTE, STREAM = range(6)
"""What an event is: a timer, a packet at a socket, a late read, a fault or check, a remark, TCP."""

LINES_MAX = 4_000
SHOWN_MAX = 50
_BATCH = 4_096
_HEAD = struct.Struct("<dBI")


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
        self.events = 0
        self._start_s = start_s
        self._mesh = mesh
        self._hash = hashlib.blake2b(digest_size=16)
        self._parts: list[bytes] = []
        self._last: deque[tuple[float, int, int, bytes, Address | None]] = deque(maxlen=LINES_MAX)

    def add(self, at_s: float, kind: int, node: int, data: bytes, source: Address | None) -> None:
        """Take in one event."""
        self.events += 1
        parts = self._parts
        parts.append(_HEAD.pack(at_s, kind, node & 0xFFFFFFFF))
        parts.append(data)
        self._last.append((at_s, kind, node, data, source))
        if len(parts) >= _BATCH:
            self._hash.update(b"".join(parts))
            parts.clear()

    def note(self, at_s: float, node: int, text: str) -> None:
        """Take in a remark: a fault, or a change of belief."""
        self.add(at_s, NOTE, node, text.encode(), None)

    def digest(self) -> str:
        """Hash of all so far, as 32 hex digits."""
        self._hash.update(b"".join(self._parts))
        self._parts.clear()
        return self._hash.hexdigest()

    def tail(self, *nodes: int) -> tuple[str, ...]:
        """The last lines that concern one of `nodes` (all lines if none is given)."""
        wanted = {*nodes, -1}
        lines = [
            Line(*raw) for raw in self._last if not nodes or raw[2] in wanted or raw[1] == ACTION
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
