"""What may happen to the gossip machine."""

import msgspec

from meshd.model import Address, Load, NodeId


class DatagramReceived(msgspec.Struct, frozen=True, gc=False):
    """A datagram came from `source`, and lay at the socket for `waited_s` before it was read."""

    data: bytes
    source: Address
    waited_s: float = 0.0


class DeadlineReached(msgspec.Struct, frozen=True):
    """The time that `next_deadline()` named has come. The mail has been read before."""


class JoinRequested(msgspec.Struct, frozen=True):
    """Addresses where meshd may answer: seeds, mDNS, the cache. Hints, not beliefs."""

    addresses: tuple[Address, ...]


class LeaveRequested(msgspec.Struct, frozen=True):
    """Say goodbye; the node goes on answering until it is closed."""


class RejoinRequested(msgspec.Struct, frozen=True):
    """Come back after a leave."""


class StateSet(msgspec.Struct, frozen=True):
    """This node's own state changes: key -> value, None to delete."""

    entries: dict[str, bytes | None]


class LoadSampled(msgspec.Struct, frozen=True):
    """A fresh sample of this node's load. Its sequence is set by the machine."""

    load: Load


class PingRequested(msgspec.Struct, frozen=True):
    """Somebody wants to know now how far a member is. Answered by a PingAnswered, or never."""

    node: NodeId


class Resumed(msgspec.Struct, frozen=True):
    """The machine was suspended for `slept_s` seconds, of which `now` may know nothing."""

    slept_s: float


class StreamPinged(msgspec.Struct, frozen=True):
    """A StreamPing ended: whether `node` itself answered over the call port."""

    node: NodeId
    sequence: int
    ok: bool


class AddressChanged(msgspec.Struct, frozen=True):
    """This node is reachable elsewhere from now on: by both IP versions if `other` is given."""

    address: Address
    other: Address | None = None


class EventFired(msgspec.Struct, frozen=True):
    """Tell all nodes this. With `coalesce` only the newest of the name need arrive."""

    name: str
    payload: bytes = b""
    coalesce: bool = False


class QueryFired(msgspec.Struct, frozen=True):
    """Ask all nodes this, or those in `nodes`, or those that offer `capability`.

    `query` is a number that nobody can guess; `timeout_s` of None is the usual time.
    """

    query: int
    name: str
    payload: bytes = b""
    timeout_s: float | None = None
    nodes: tuple[NodeId, ...] = ()
    capability: str = ""
    wants_acks: bool = True


class AnswerGiven(msgspec.Struct, frozen=True):
    """This node's answer to a query that was heard, or in words why there is none."""

    origin: NodeId
    query: int
    payload: bytes
    is_error: bool = False


Input = (
    DatagramReceived
    | DeadlineReached
    | JoinRequested
    | LeaveRequested
    | RejoinRequested
    | StateSet
    | LoadSampled
    | AddressChanged
    | PingRequested
    | EventFired
    | QueryFired
    | AnswerGiven
    | StreamPinged
    | Resumed
)
