"""What happened to each member in this node's eyes, kept small: a mesh that splits tells much."""

import struct

from meshd.clock import Instant
from meshd.model import Member, MemberState, NodeId

LINES_MAX = 32
"""Events kept of one member; older ones are forgotten."""
HEARD_OF = "heard of"
TOLD = "told by a peer"
UNANSWERED = "no answer to a probe"
RAN_OUT = "not refuted in time"
RESTARTED = "restarted"
GOODBYE = "said goodbye"
REFUTED = "refuted"
CONFIRMED = "suspicion confirmed"
RETRACTED = "suspicion taken back"
_REASONS = (HEARD_OF, TOLD, UNANSWERED, RAN_OUT, RESTARTED, GOODBYE, REFUTED, CONFIRMED, RETRACTED)
_CODES = {reason: code for code, reason in enumerate(_REASONS)}
_EVENT = struct.Struct("<dBBI8s")
_NOBODY = bytes(8)


class History:
    """The last events of each member, some 20 bytes each; text is made when somebody asks."""

    def __init__(self) -> None:
        self._events: dict[NodeId, bytes] = {}

    def note(self, member: Member, reason: str, accuser: NodeId | None, now: Instant) -> None:
        """Add what happened.

        Args:
            member: as it is believed to be from now on.
            reason: one of the constants above.
            accuser: whose failed probe stands behind it, if anybody's does.
            now: when.
        """
        event = _EVENT.pack(
            now, _CODES[reason], member.state, member.incarnation, accuser or _NOBODY
        )
        held = self._events.get(member.node, b"")
        self._events[member.node] = held[-(LINES_MAX - 1) * _EVENT.size :] + event

    def lines(self, node: NodeId) -> tuple[tuple[Instant, str], ...]:
        """When and what, oldest first."""
        return tuple(
            (Instant(now), _text(_REASONS[code], MemberState(state), incarnation, accuser))
            for now, code, state, incarnation, accuser in _EVENT.iter_unpack(
                self._events.get(node, b"")
            )
        )

    def forget(self, node: NodeId) -> None:
        """Drop what is known of a member. Idempotent."""
        self._events.pop(node, None)


def _text(reason: str, state: MemberState, incarnation: int, accuser: bytes) -> str:
    if reason in {CONFIRMED, RETRACTED}:
        return f"{reason} by {accuser.hex()}"
    by = "" if accuser == _NOBODY else f" (accuser {accuser.hex()})"
    return f"{state.name.lower()} @{incarnation}: {reason}{by}"
