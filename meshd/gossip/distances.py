"""How far each member is: the own coordinate, what is held of others', and who is told of it.

Coordinates ride on acks: the sender's own where the receiver lacks it, and, where a ping asks, some
of others', so that a newcomer knows its distance to members that it has never probed. A budget
of bytes bounds both.
"""

import random
import struct
from typing import NamedTuple

from meshd.clock import Seconds
from meshd.errors import DecodeError
from meshd.gossip.beliefs import Beliefs
from meshd.gossip.coordinates import (
    COORDINATE_BYTES,
    ERROR_BYTE_MAX,
    ERROR_MAX,
    Coordinate,
    Locator,
    is_coordinate,
    pack_coordinate,
    unpack_checked,
)
from meshd.gossip.members import is_live
from meshd.gossip.outbox import Outbox
from meshd.model import ID_BYTES, NodeId

ERROR_USABLE = 0.5
"""A coordinate less certain than this predicts nothing. A mesh that settles is well below it; a
newcomer in a settled mesh is there after about ten round trips."""
MEMBERS_MAX = 4_096
"""Members whose coordinates are held, or who are remembered as told; then the oldest goes."""
OTHERS_MAX = 8
"""Others' coordinates on one ack."""
ACKS_PER_COORDINATE = 10
"""Of so many acks one may carry the own coordinate: to each asker, and on average over all."""
MOVED_FRACTION = 0.1
"""Of the usual round trip: who moved so far since it was told has news."""
ENOUGH_FRACTION = 0.75
ENOUGH_MEMBERS = 1_000
"""Who holds usable coordinates of this share of all members, or of so many, asks for no more."""
OWN_BYTES = COORDINATE_BYTES + 5
"""What the own coordinate adds to an ack: its field, and the two that must stand before it."""
ENTRY_BYTES = ID_BYTES + COORDINATE_BYTES
SAVED_BYTES_MAX = 8_192
"""What a node may spend at once on those who lack coordinates; the upper half only on others'."""
_RTT_WEIGHT = 0.1
_USABLE_BYTE = int(ERROR_USABLE / ERROR_MAX * ERROR_BYTE_MAX)
_LOOKED_AT_MAX = 2 * OTHERS_MAX
_ENTRY = struct.Struct(f"{ID_BYTES}s{COORDINATE_BYTES}s")


def _is_usable(packed: bytes) -> bool:
    """Whether a packed coordinate predicts anything; without unpacking it."""
    return packed[-1] <= _USABLE_BYTE


class Expected(NamedTuple):
    """A round trip by coordinates. `error`: by which share it may be off, the worse of both."""

    rtt_s: Seconds
    error: float


class _Told(NamedTuple):
    """Which version of the own coordinate a member was last told, and its acks since.

    `is_usable`: whether it could do something with it.
    """

    version: int
    acks: int
    is_usable: bool


class Distances:
    """Keeps the own coordinate, and those of others as they were last heard."""

    def __init__(self, beliefs: Beliefs, outbox: Outbox, rng: random.Random) -> None:
        self._beliefs = beliefs
        self._outbox = outbox
        self._locator = Locator(rng)
        self._at_version = self._locator.here
        self._version = 0
        self._has_moved = False
        self._usual_s: Seconds = 0.0
        self._direct: dict[NodeId, bytes] = {}
        self._second_hand: dict[NodeId, bytes] = {}
        self._usable = 0
        self._told: dict[NodeId, _Told] = {}
        self._turn: list[NodeId] = []
        self._earned_bytes = 0.0
        self._saved_bytes = float(SAVED_BYTES_MAX)

    # Asking and telling

    def wanted(self) -> int:
        """How many coordinates to ask the next member for; 0 where enough are known."""
        others = self._beliefs.table.live - 1
        if self._usable >= min(ENOUGH_FRACTION * others, ENOUGH_MEMBERS):
            return 0
        return min(OTHERS_MAX, others - self._usable)

    def for_ack(self, asker: NodeId, wanted: int) -> bytes:
        """What an ack to a member carries: nothing, or the own coordinate, then others'.

        Who has none of ours that is of use, or asks, is told out of what was saved up; who has one
        is told of news, and now and then anew, out of what acks have earned since.
        """
        self._earn()
        told = self._told.pop(asker, None)
        lacks = told is None or not told.is_usable or wanted > 0
        if lacks and self._saved_bytes >= OWN_BYTES:
            self._saved_bytes -= OWN_BYTES
            return self._tell(asker) + self._others(asker, wanted)
        if told is None:
            return b""
        due = told.version != self._version or told.acks >= ACKS_PER_COORDINATE - 1
        if due and self._earned_bytes >= OWN_BYTES:
            self._earned_bytes -= OWN_BYTES
            return self._tell(asker)
        self._told[asker] = told._replace(acks=told.acks + 1)
        return b""

    def _earn(self) -> None:
        """Each ack earns its share; what is not spent on repeating is saved for newcomers."""
        earned = self._earned_bytes + OWN_BYTES / ACKS_PER_COORDINATE
        self._earned_bytes = min(OWN_BYTES, earned)
        self._saved_bytes = min(SAVED_BYTES_MAX, self._saved_bytes + earned - self._earned_bytes)

    def _tell(self, asker: NodeId) -> bytes:
        if len(self._told) >= MEMBERS_MAX:
            del self._told[next(iter(self._told))]
        self._told[asker] = _Told(self._version, 0, self.here.error <= ERROR_USABLE)
        return pack_coordinate(self.here)

    def _others(self, asker: NodeId, wanted: int) -> bytes:
        """The next usable coordinates in turn, as far as the budget reaches."""
        spare = int(self._saved_bytes - SAVED_BYTES_MAX / 2) // ENTRY_BYTES
        count = min(wanted, OTHERS_MAX, spare)
        entries: list[bytes] = []
        get = self._beliefs.table.get
        for _ in range(_LOOKED_AT_MAX):
            if len(entries) >= count or not (self._turn or self._begin_turn()):
                break
            node = self._turn.pop()
            packed = self._held(node)
            if packed and _is_usable(packed) and node != asker:
                member = get(node)
                if member is not None and is_live(member.state):
                    entries.append(node + packed)
        self._saved_bytes -= ENTRY_BYTES * len(entries)
        return b"".join(entries)

    def _begin_turn(self) -> bool:
        """List whom there is to tell of."""
        if self._usable:
            self._turn = [
                node
                for table in (self._direct, self._second_hand)
                for node, packed in table.items()
                if packed[-1] <= _USABLE_BYTE
            ]
        return bool(self._turn)

    # Hearing

    def measured(self, node: NodeId, rtt_s: Seconds, coordinates: bytes) -> None:
        """A member itself answered an own probe after `rtt_s`; its ack may carry coordinates."""
        if coordinates:
            try:
                self._hear(node, coordinates)
            except DecodeError as error:
                member = self._beliefs.table.get(node)
                assert member is not None
                self._outbox.reject(error.message, member.address)
        packed = self._direct.get(node)
        if packed is not None and self._locator.update(node, unpack_checked(packed), rtt_s):
            self._on_moved(rtt_s)

    def _hear(self, node: NodeId, coordinates: bytes) -> None:
        """Take in what an ack carries: all of it, or nothing.

        Others' coordinates are looked at, and unpacked only when somebody asks for a distance:
        nearly every ack of a mesh that settles carries some.

        Raises:
            DecodeError: something in it is no coordinate.
        """
        own, others = coordinates[:COORDINATE_BYTES], coordinates[COORDINATE_BYTES:]
        if not is_coordinate(own) or len(others) % ENTRY_BYTES:
            raise DecodeError("bad_coordinate")
        entries: list[tuple[bytes, bytes]] = list(_ENTRY.iter_unpack(others))
        for _, packed in entries:
            if not is_coordinate(packed):
                raise DecodeError("bad_coordinate")
        self._drop(self._second_hand, node)
        self._store(self._direct, node, own)
        for other, packed in entries:
            if _is_usable(packed):
                self._hear_second_hand(NodeId(other), packed)

    def _hear_second_hand(self, node: NodeId, packed: bytes) -> None:
        """What a member says of another one counts where nothing better is known."""
        direct = self._direct.get(node)
        if direct is not None and _is_usable(direct):
            return
        member = self._beliefs.table.get(node)
        if member is None or not is_live(member.state) or node == self._beliefs.me.node:
            return
        # The table's own copy of the id: the datagram's would be one more.
        node = member.node
        if self._second_hand.get(node) != packed:
            self._beliefs.touch(node)
        self._store(self._second_hand, node, packed)

    def _store(self, table: dict[NodeId, bytes], node: NodeId, packed: bytes) -> None:
        """Newest last: when the table is full, the oldest goes."""
        self._drop(table, node)
        if len(table) >= MEMBERS_MAX:
            self._drop(table, next(iter(table)))
        table[node] = packed
        self._usable += _is_usable(packed)

    def _drop(self, table: dict[NodeId, bytes], node: NodeId) -> None:
        before = table.pop(node, None)
        if before is not None:
            self._usable -= _is_usable(before)

    def _on_moved(self, rtt_s: Seconds) -> None:
        """See whether the own coordinate is news by now."""
        usual_s = self._usual_s or rtt_s
        self._usual_s = usual_s + _RTT_WEIGHT * (rtt_s - usual_s)
        here, before = self.here, self._at_version
        surer = not before.error / 2 <= here.error <= before.error * 2
        if surer or here.moved_s(before) > MOVED_FRACTION * self._usual_s:
            self._at_version = here
            self._version += 1
            self._has_moved = True

    def touch_estimates(self) -> None:
        """Touch the rows that show nothing but an estimate, if the own place has changed.

        For whoever makes a view: moves are more frequent, and not all nodes have one.
        """
        if not self._has_moved:
            return
        self._has_moved = False
        touch, measured = self._beliefs.touch, self._beliefs.rtt_s
        for table in (self._direct, self._second_hand):
            for node in table:
                if node not in measured:
                    touch(node)

    # Reading

    @property
    def here(self) -> Coordinate:
        """The own coordinate."""
        return self._locator.here

    def _held(self, node: NodeId) -> bytes | None:
        """A member's coordinate: first-hand, unless only second-hand is usable."""
        return self._second_hand.get(node, self._direct.get(node))

    def expected(self, node: NodeId) -> Expected | None:
        """The round trip to a member, where both coordinates are certain enough to tell."""
        packed = self._held(node)
        if packed is None or self.here.error > ERROR_USABLE or not _is_usable(packed):
            return None
        there = unpack_checked(packed)
        return Expected(self.here.distance_s(there), max(self.here.error, there.error))
