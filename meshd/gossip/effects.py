"""What the gossip machine wants done, or wants known."""

import msgspec

from meshd.model import Address, Epoch, Incarnation, Member, MemberState, NodeId


class SendDatagram(msgspec.Struct, frozen=True, gc=False):
    """Send `data` to `to`."""

    to: Address
    data: bytes


class MemberChanged(msgspec.Struct, frozen=True):
    """A member is now believed to be in another state, run or place. `before` is None if new."""

    member: Member
    before: MemberState | None
    reason: str


class StateChanged(msgspec.Struct, frozen=True):
    """More of a node's state is known."""

    node: NodeId


class ProbeCompleted(msgspec.Struct, frozen=True):
    """A probe round ended: `rtt_s` of a direct ack, None where it was indirect or failed."""

    node: NodeId
    succeeded: bool
    rtt_s: float | None


class PingAnswered(msgspec.Struct, frozen=True):
    """A ping that was asked for came back."""

    node: NodeId
    rtt_s: float


class StreamPing(msgspec.Struct, frozen=True):
    """No direct ack in time: ask over the call port (TCP) as well, within `timeout_s`.

    `address` is the member's own; `sequence` names the round in the StreamPinged that answers.
    """

    node: NodeId
    address: Address
    sequence: int
    timeout_s: float


class DatagramRejected(msgspec.Struct, frozen=True):
    """A datagram was dropped; `reason` is one of a fixed set of words, fit for a metric label."""

    reason: str
    source: Address


class Joined(msgspec.Struct, frozen=True):
    """A handshake with `node` is complete: there is a mesh."""

    node: NodeId


class IdentityRaised(msgspec.Struct, frozen=True):
    """Own epoch or incarnation rose: keep them on disk, so that a restart outranks this run."""

    epoch: Epoch
    incarnation: Incarnation


class Woken(msgspec.Struct, frozen=True):
    """The machine was suspended, and goes on: who was known is worth looking for again."""

    slept_s: float


class ConflictSeen(msgspec.Struct, frozen=True):
    """Somebody else runs with this node's identity, at `address`.

    If it began first, this node stands `aside`: it takes no part while the other does.
    """

    address: Address
    aside: bool = False


class ConflictOver(msgspec.Struct, frozen=True):
    """The one for whom this node stood aside is gone: it takes part again."""


Effect = (
    SendDatagram
    | MemberChanged
    | StateChanged
    | ProbeCompleted
    | PingAnswered
    | StreamPing
    | DatagramRejected
    | Joined
    | IdentityRaised
    | Woken
    | ConflictSeen
    | ConflictOver
)
