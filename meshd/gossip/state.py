"""Versioned node state: each node writes its own keys, all others copy them by version.

The idea is chitchat's (and scuttlebutt's, van Renesse et al. 2008): one writer a state, one growing
version a write, deltas in version order so that a cut delta is still a valid prefix.
"""

from collections.abc import Collection, Mapping
from itertools import pairwise

from meshd.clock import Instant
from meshd.errors import UsageError
from meshd.gossip.codec import encode_delta
from meshd.gossip.messages import (
    STATE_KEY_CHARS_MAX,
    STATE_VALUE_BYTES_MAX,
    Delta,
    StateEntry,
)
from meshd.model import Epoch, NodeId

STATE_KEYS_MAX = 512
CAPABILITY_KEY = "cap/"
"""What the keys that tell a node's capabilities begin with."""
_ENTRIES_PER_DELTA_MAX = 64


class NodeState:
    """One node's keys in one of its runs. Deleted keys stay listed: others must hear of them."""

    __slots__ = ("entries", "epoch", "version")

    def __init__(self, epoch: Epoch) -> None:
        self.epoch = epoch
        self.version = 0
        self.entries: dict[str, StateEntry] = {}

    def write(self, key: str, value: bytes | None) -> bool:
        """Set a key of one's own state; as `write_all`."""
        return self.write_all({key: value})

    def write_all(self, entries: Mapping[str, bytes | None]) -> bool:
        """Set keys of one's own state (None deletes); false if that changes nothing.

        Raises:
            UsageError: a key or a value is too large to be gossiped, or there are too many keys;
                nothing changed.
        """
        changed = {key: value for key, value in entries.items() if self._value(key) != value}
        for key, value in changed.items():
            _check_entry(key, value)
        if len(self.entries.keys() | changed.keys()) > STATE_KEYS_MAX:
            raise UsageError(
                f"a node's state holds at most {STATE_KEYS_MAX} keys, deleted ones included",
                hint="restart the daemon if it has changed its capabilities that often",
            )
        for key, value in changed.items():
            self.version += 1
            # Re-inserted at the end: iteration order is version order.
            self.entries.pop(key, None)
            self.entries[key] = StateEntry(key, self.version, value)
        return bool(changed)

    def _value(self, key: str) -> bytes | None:
        held = self.entries.get(key)
        return None if held is None else held.value

    def merge(self, delta: Delta) -> bool:
        """Take in a delta of the same run; false if it does not follow on or says nothing new.

        One whose versions are not in order within its bounds could not be passed on: refused too.
        """
        if delta.base > self.version or delta.upto <= self.version:
            return False
        versions = [delta.base, *(entry.version for entry in delta.entries), delta.upto + 1]
        if any(one >= next_one for one, next_one in pairwise(versions)):
            return False
        for entry in delta.entries:
            if entry.version > self.version:
                self.entries.pop(entry.key, None)
                if len(self.entries) < STATE_KEYS_MAX:
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


class Want:
    """State that a rumour told of and that is not held: whom to ask, and from when on."""

    __slots__ = ("epoch", "node", "not_before", "teller", "tries", "version")

    def __init__(self, node: NodeId, epoch: Epoch, version: int) -> None:
        self.node = node
        self.epoch = epoch
        self.version = version
        self.teller: NodeId | None = None
        self.tries = 0
        self.not_before = Instant(0.0)


class StateStore:
    """The states of all nodes, and which of them this node still has to ask for."""

    def __init__(self, me: NodeId, epoch: Epoch) -> None:
        self.own = NodeState(epoch)
        self._me = me
        self._held: dict[NodeId, NodeState] = {}
        self._wants: dict[NodeId, Want] = {}
        self._untold: dict[NodeId, None] = {}

    def get(self, node: NodeId) -> NodeState | None:
        """What is held of a node's state: of its last run, until there is some of the new one."""
        return self.own if node == self._me else self._held.get(node)

    def heard_version(self, node: NodeId, epoch: Epoch, version: int) -> None:
        """A rumour says that `node` is at `version` in its run `epoch`, the newest run known."""
        held = self._held.get(node)
        if held is not None and held.epoch < epoch and version == 0:
            # The new run says nothing of itself (yet), so what the last one said is void.
            del self._held[node]
        have = held.version if held is not None and held.epoch == epoch else 0
        if version <= have:
            self.unwant(node)
            return
        want = self._wants.get(node)
        if want is None or (want.epoch, want.version) != (epoch, version):
            self._wants[node] = Want(node, epoch, version)
            self._untold[node] = None

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
        """Up to which version the wanted state is held."""
        held = self._held.get(want.node)
        return held.version if held is not None and held.epoch == want.epoch else 0

    def merge(self, delta: Delta) -> bool:
        """Take in a delta that was asked for; false if it changes nothing."""
        node = delta.node
        want = self._wants.get(node)
        if want is None or want.epoch != delta.epoch:
            return False
        held = self._held.get(node)
        if held is None or held.epoch != delta.epoch:
            held = NodeState(Epoch(delta.epoch))
        if not held.merge(delta):
            return False
        self._held[node] = held
        if held.version >= want.version:
            self.unwant(node)
        return True

    def unwant(self, node: NodeId) -> None:
        """Ask no more for a node's state. Idempotent."""
        self._wants.pop(node, None)
        self._untold.pop(node, None)

    def forget(self, node: NodeId) -> None:
        """Drop a node's state. Idempotent."""
        self._held.pop(node, None)
        self.unwant(node)


def _check_entry(key: str, value: bytes | None) -> None:
    if not 1 <= len(key.encode()) <= STATE_KEY_CHARS_MAX:
        raise UsageError(f"state key {key[:80]!r} is empty or over {STATE_KEY_CHARS_MAX} bytes")
    if value is not None and len(value) > STATE_VALUE_BYTES_MAX:
        raise UsageError(
            f"state {key!r} is {len(value)} bytes; gossip carries {STATE_VALUE_BYTES_MAX}",
            hint="shorten the description or tags; the full manifest is not gossiped",
        )
