"""What happened to each member in this node's eyes, kept small: a mesh that splits tells much."""

import struct

from meshd.clock import Instant
from meshd.gossip.explanation import PastEvent
from meshd.gossip.members import is_live
from meshd.model import Incarnation, Member, MemberState, NodeId

EVENTS_MAX = 32
"""Events kept of one member; older ones are forgotten."""
HEARD_OF = "heard of"
TOLD = "told by a peer"
UNANSWERED = "no answer to a probe"
RAN_OUT = "not refuted in time"
RESTARTED = "restarted"
GOODBYE = "said goodbye"
REFUTED = "refuted"
MOVED = "moved to another address"
RETURNED = "came back"
CONFIRMED = "suspicion confirmed"
RETRACTED = "suspicion taken back"
_REASONS = (
    HEARD_OF, TOLD, UNANSWERED, RAN_OUT, RESTARTED, GOODBYE, REFUTED, MOVED, CONFIRMED, RETRACTED,
    RETURNED,
)  # fmt: skip
_RISEN = {MemberState.ALIVE: MOVED, MemberState.LEFT: RETURNED}
_CODES = {reason: code for code, reason in enumerate(_REASONS)}
_EVENT = struct.Struct("<dBBI8s8s")
_NOBODY = bytes(8)


class History:
    """The last events of each member, 30 bytes each; values are made when somebody asks."""

    def __init__(self) -> None:
        self._events: dict[NodeId, bytes] = {}

    def note(
        self, member: Member, reason: str, accuser: NodeId | None, teller: NodeId | None,
        now: Instant,
    ) -> None:  # fmt: skip
        """Add what happened.

        Args:
            member: as it is believed to be from now on.
            reason: one of the constants above.
            accuser: whose failed probe stands behind it, if anybody's does.
            teller: who sent the datagram that told it, if one did.
            now: when.
        """
        event = _EVENT.pack(
            now,
            _CODES[reason],
            member.state,
            member.incarnation,
            accuser or _NOBODY,
            teller or _NOBODY,
        )
        held = self._events.get(member.node, b"")
        self._events[member.node] = held[-(EVENTS_MAX - 1) * _EVENT.size :] + event

    def of(self, node: NodeId) -> tuple[PastEvent, ...]:
        """What happened to a member, oldest first."""
        return tuple(
            PastEvent(
                Instant(at),
                MemberState(state),
                Incarnation(incarnation),
                _REASONS[code],
                _id(accuser),
                _id(teller),
            )
            for at, code, state, incarnation, accuser, teller in _EVENT.iter_unpack(
                self._events.get(node, b"")
            )
        )

    def forget(self, node: NodeId) -> None:
        """Drop what is known of a member. Idempotent."""
        self._events.pop(node, None)


def reason_of(member: Member, before: Member | None, reason: str) -> str:
    """What really happened, where the two records tell more than `reason` does."""
    if before is None:
        return reason
    if before.epoch != member.epoch:
        return RESTARTED
    if is_live(member.state) < is_live(before.state):
        return GOODBYE if member.state is MemberState.LEFT else reason
    if member.incarnation > before.incarnation and member.state is MemberState.ALIVE:
        return _RISEN.get(before.state, REFUTED)
    return reason


def _id(packed: bytes) -> NodeId | None:
    return None if packed == _NOBODY else NodeId(packed)
