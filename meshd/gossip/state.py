"""Versioned node state: each node writes its own keys, all others copy them by version.

The idea is chitchat's (and scuttlebutt's, van Renesse et al. 2008): one writer a state, one growing
version a write, deltas in version order so that a cut delta is still a valid prefix.
"""

from collections.abc import Mapping

from meshd.errors import UsageError
from meshd.gossip.codec import encode_delta
from meshd.gossip.messages import (
    STATE_KEY_CHARS_MAX,
    STATE_VALUE_BYTES_MAX,
    Delta,
    StateEntry,
    Wanted,
)
from meshd.model import Epoch, NodeId

STATE_KEYS_MAX = 512
_ENTRIES_PER_DELTA_MAX = 64


class NodeState:
    """One node's keys in one of its runs. Deleted keys stay listed: others must hear of them."""

    __slots__ = ("entries", "epoch", "version")

    def __init__(self, epoch: Epoch) -> None:
        self.epoch = epoch
        self.version = 0
        self.entries: dict[str, StateEntry] = {}

    def write(self, key: str, value: bytes | None) -> bool:
        """Set a key of one's own state (None deletes); false if that changes nothing.

        Raises:
            UsageError: the key or the value is too large to be gossiped, or there are too many
                keys; nothing changed.
        """
        held = self.entries.get(key)
        if (held.value if held else None) == value:
            return False
        if not 1 <= len(key.encode()) <= STATE_KEY_CHARS_MAX:
            raise UsageError(f"state key {key[:80]!r} is empty or over {STATE_KEY_CHARS_MAX} bytes")
        if value is not None and len(value) > STATE_VALUE_BYTES_MAX:
            raise UsageError(
                f"state {key!r} is {len(value)} bytes; gossip carries {STATE_VALUE_BYTES_MAX}",
                hint="shorten the description or tags; the full manifest is not gossiped",
            )
        if held is None and len(self.entries) >= STATE_KEYS_MAX:
            raise UsageError(
                f"a node's state holds at most {STATE_KEYS_MAX} keys, deleted ones included",
                hint="restart the daemon if it has changed its capabilities that often",
            )
        self.version += 1
        # Re-inserted at the end: iteration order is version order.
        self.entries.pop(key, None)
        self.entries[key] = StateEntry(key, self.version, value)
        return True

    def merge(self, delta: Delta) -> bool:
        """Take in a delta of the same run; false if it does not follow on or says nothing new."""
        if delta.base > self.version or delta.upto <= self.version:
            return False
        for entry in delta.entries:
            if entry.version > self.version and len(self.entries) < STATE_KEYS_MAX:
                self.entries.pop(entry.key, None)
                self.entries[entry.key] = entry
        self.version = delta.upto
        return True

    def delta_since(self, node: NodeId, have: int, bytes_free: int) -> Delta | None:
        """What a holder of version `have` lacks, cut to what fits; None if nothing (fits)."""
        if have >= self.version:
            return None
        empty = Delta(node, self.epoch, have, self.version, ())
        bytes_free -= len(encode_delta(empty))
        entries: list[StateEntry] = []
        upto = self.version
        for entry in self.entries.values():
            if entry.version <= have:
                continue
            size = len(entry.key.encode()) + len(entry.value or b"") + 12
            if size > bytes_free or len(entries) == _ENTRIES_PER_DELTA_MAX:
                upto = entries[-1].version if entries else have
                break
            bytes_free -= size
            entries.append(entry)
        if upto <= have or bytes_free < 0:
            return None
        return Delta(node, self.epoch, have, upto, tuple(entries))

    def values(self) -> Mapping[str, bytes]:
        """The keys that are set."""
        return {key: e.value for key, e in self.entries.items() if e.value is not None}


class StateStore:
    """The states of all nodes, and which of them this node still has to ask for."""

    def __init__(self, me: NodeId, epoch: Epoch) -> None:
        self.own = NodeState(epoch)
        self._me = me
        self._held: dict[NodeId, NodeState] = {}
        self._wanted: dict[NodeId, tuple[Epoch, int]] = {}

    def get(self, node: NodeId) -> NodeState | None:
        """What is held of a node's state."""
        return self.own if node == self._me else self._held.get(node)

    def heard_version(self, node: NodeId, epoch: Epoch, version: int) -> None:
        """A rumour says that `node` is at `version` in its run `epoch`."""
        held = self._held.get(node)
        if held is not None and held.epoch > epoch:
            return
        have = 0 if held is None or held.epoch < epoch else held.version
        if version > have:
            self._wanted[node] = (epoch, version)
        else:
            self._wanted.pop(node, None)

    def wanted(self, count: int) -> list[Wanted]:
        """Up to `count` requests for what is known to be missing, longest waiting first."""
        requests = []
        for node, (epoch, _) in list(self._wanted.items())[:count]:
            held = self._held.get(node)
            have = held.version if held is not None and held.epoch == epoch else 0
            requests.append(Wanted(node, epoch, have))
            # To the end of the line, so that one that nobody answers holds up no other.
            self._wanted[node] = self._wanted.pop(node)
        return requests

    @property
    def complete(self) -> bool:
        """Whether nothing is known to be missing."""
        return not self._wanted

    def merge(self, delta: Delta) -> bool:
        """Take in a delta that was asked for; false if it changes nothing."""
        node = NodeId(delta.node)
        want = self._wanted.get(node)
        if want is None or want[0] != delta.epoch:
            return False
        held = self._held.get(node)
        if held is None or held.epoch < delta.epoch:
            held = NodeState(Epoch(delta.epoch))
        if not held.merge(delta):
            return False
        self._held[node] = held
        if held.version >= want[1]:
            self._wanted.pop(node)
        return True

    def forget(self, node: NodeId) -> None:
        """Drop a node's state. Idempotent."""
        self._held.pop(node, None)
        self._wanted.pop(node, None)
