"""What leaves the machine: effects in order, and datagrams filled up with what waits."""

from collections.abc import Sequence
from typing import Any, get_args

from meshd.gossip.broadcast import BroadcastQueue, transmit_limit
from meshd.gossip.codec import (
    HEADER_BYTES,
    LOAD_ENTRY_BYTES,
    SEAL_BYTES_RESERVED,
    encode_body,
    encode_field,
    with_riders,
)
from meshd.gossip.config import GossipConfig
from meshd.gossip.dialects import Dialects
from meshd.gossip.effects import DatagramRejected, Effect, SendDatagram
from meshd.gossip.loads import LoadPlane
from meshd.gossip.messages import Message
from meshd.model import Address, NodeId

_BIN_HEADER_BYTES = 3
_ARRAY_HEADER_BYTES = 3
_UPDATES_MAX = 64
_FULL = 24  # room below which nothing that waits could fit
_TAGS: dict[type[Message], int] = {kind: kind.__struct_config__.tag for kind in get_args(Message)}


class Outbox:
    """Collects the effects of one step."""

    def __init__(
        self,
        *,
        me: NodeId,
        dialects: Dialects,
        config: GossipConfig,
        rumours: BroadcastQueue,
        loads: LoadPlane,
    ) -> None:
        self._me = me
        self._dialects = dialects
        self._bytes_max = config.datagram_bytes_max - SEAL_BYTES_RESERVED
        self._mult = config.transmit_mult
        self._rumours = rumours
        self._loads = loads
        self._effects: list[Effect] = []
        self.limit = 0
        """How often a rumour is to be sent."""
        self.set_members(1)

    def add(self, effect: Effect) -> None:
        """Append an effect."""
        self._effects.append(effect)

    def reject(self, reason: str, source: Address) -> None:
        """Report a datagram that was dropped."""
        self._effects.append(DatagramRejected(reason, source))

    def drain(self) -> list[Effect]:
        """The effects so far; the outbox starts anew."""
        effects, self._effects = self._effects, []
        return effects

    def set_members(self, live: int) -> None:
        """How many live members there are now: the transmit limit grows with them."""
        self.limit = transmit_limit(self._mult, live)

    @property
    def room(self) -> int:
        """Bytes for a body without anything riding along."""
        return self._bytes_max - HEADER_BYTES - len(self._loads.own)

    def send(
        self, to: NodeId, address: Address, kind: type[Message], fields: Sequence[Any]
    ) -> None:
        """Send a message with nothing riding along but the own load."""
        self._put(to, address, encode_body(_TAGS[kind], fields))

    def send_bare(
        self, to: NodeId, address: Address, kind: type[Message], fields: Sequence[Any]
    ) -> None:
        """Send a message to an unproven address: no byte more than it needs."""
        start = self._dialects.starts(to)[0]
        data = b"".join((start, to, self._me, encode_body(_TAGS[kind], fields)))
        self._effects.append(SendDatagram(address, data))

    def send_with(
        self,
        to: NodeId,
        address: Address,
        kind: type[Message],
        fields: Sequence[Any],
        parts: Sequence[bytes],
    ) -> None:
        """Send a message whose last field is an array of encoded `parts`, and nothing else."""
        self._put(to, address, encode_body(_TAGS[kind], fields, parts))

    def send_full(
        self,
        to: NodeId,
        address: Address,
        kind: type[Message],
        fields: Sequence[Any],
        *,
        first: tuple[NodeId, bytes] | None = None,
        also: Sequence[bytes] = (),
        last: Any = None,
    ) -> None:
        """Send a message and fill its datagram with rumours, then with load records.

        Args:
            to: the receiver's id.
            address: where it is.
            kind: the message's class.
            fields: its fixed fields, in order.
            first: subject and rumour that must ride along before all others: what the receiver
                has to hear to defend itself (Lifeguard's buddy system).
            also: rumours that go before all others as far as there is room.
            last: the field after what rides along; none if it is empty or 0.
        """
        body = encode_body(_TAGS[kind], fields)
        ending = encode_field(last) if last else b""
        free = self.room - len(body) - _ARRAY_HEADER_BYTES
        if ending:
            # Before it stand the loads, be they empty.
            free -= len(ending) + _BIN_HEADER_BYTES
        updates: list[bytes] = []
        if first is not None:
            updates.append(first[1])
            free -= len(first[1])
        for rumour in also:
            if len(rumour) <= free:
                updates.append(rumour)
                free -= len(rumour)
        if free > _FULL and self._rumours.tier_of:
            taken = self._rumours.take(
                free,
                self.limit,
                exclude=first[0] if first else None,
                count=_UPDATES_MAX - len(updates),
            )
            updates += taken
            free -= sum(map(len, taken))
        loads = b""
        if free > LOAD_ENTRY_BYTES + _BIN_HEADER_BYTES and self._loads.waiting:
            loads = self._loads.take(free - _BIN_HEADER_BYTES)
        if updates or loads or ending:
            body = with_riders(body, updates, loads, ending)
        self._put(to, address, body)

    def _put(self, to: NodeId, address: Address, body: bytes) -> None:
        load = self._loads.own
        start = self._dialects.starts(to)[bool(load)]
        data = b"".join((start, to, self._me, load, body))
        self._effects.append(SendDatagram(address, data))
