"""What the gossip machine wants done, or wants known."""

import msgspec

from meshd.model import Address, Epoch, Incarnation, Member, MemberState, NodeId


class SendDatagram(msgspec.Struct, frozen=True, gc=False):
    """Send `data` to `to`."""

    to: Address
    data: bytes


class MemberChanged(msgspec.Struct, frozen=True):
    """A member is now believed to be in another state, run or place. `before` is None if new.

    `accuser` is whose failed probe stands behind it, if anybody's does.
    """

    member: Member
    before: MemberState | None
    reason: str
    accuser: NodeId | None = None


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


class VersionRefused(msgspec.Struct, frozen=True):
    """A node at `address` speaks the protocol versions `oldest` .. `newest`, none of them ours."""

    address: Address
    oldest: int
    newest: int


class EventHeard(msgspec.Struct, frozen=True):
    """A user's event came, or was told here: once a node. `age_s` is the time since it was told."""

    time: int
    origin: NodeId
    name: str
    payload: bytes
    coalesce: bool
    age_s: float


class QueryHeard(msgspec.Struct, frozen=True):
    """A query that this node may answer by an AnswerGiven within `timeout_s`."""

    origin: NodeId
    query: int
    name: str
    payload: bytes
    timeout_s: float


class QueryAnswered(msgspec.Struct, frozen=True):
    """A node got this node's query (`payload` is None), or answers it, or says why it cannot."""

    query: int
    node: NodeId
    payload: bytes | None
    is_error: bool = False


class QueryEnded(msgspec.Struct, frozen=True):
    """The time for answers is over, or all who were asked have answered."""

    query: int


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
    | VersionRefused
    | EventHeard
    | QueryHeard
    | QueryAnswered
    | QueryEnded
    | ConflictOver
)
