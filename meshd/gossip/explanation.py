"""Values that say why a member is believed to be what it is."""

import msgspec

from meshd.clock import Instant, Seconds
from meshd.model import Epoch, Incarnation, MemberState, NodeId
from meshd.view import Doubt

ANSWERED = "answered"
HELPED = "answered a helper"
LATE = "answered late"
FAILED = "no answer"


class PastEvent(msgspec.Struct, frozen=True):
    """One change of what was believed of a member, or of who doubts it.

    `state` and `incarnation` are what was believed from then on; `reason` is a constant of
    `history`; `accuser` the node whose failed probe stands behind it, or that took its word back,
    and of somebody alive the sponsor that answers for it; `teller` whose datagram brought it: None
    if this node found out itself.
    """

    at: Instant
    state: MemberState
    incarnation: Incarnation
    reason: str
    accuser: NodeId | None = None
    teller: NodeId | None = None


class Probed(msgspec.Struct, frozen=True):
    """How this node's last probe of a member ended: one of the constants above.

    `rtt_s` is the round trip where it answered this node itself in time, without what lay at the
    socket.
    """

    at: Instant
    result: str
    rtt_s: Seconds | None = None


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """All that the belief about one member rests on, in this node's eyes.

    Attributes:
        node: whom it is about.
        state: what is believed, with `epoch` and `incarnation`.
        events: what happened, oldest first.
        doubt: who doubts it and for how long, if it is suspected.
        heard_at: when a packet last came from it.
        probed: the last probe of this node's own.
        is_reachable: false from an own failed probe on, until it is heard; routing avoids it.
        lag_s: how late it reads its mail by its own word.
        gone_at: since when it is dead or has left.
        forgotten_at: when that ends its record.
        sponsor: who shook hands with it and answers for it, if it is no old acquaintance.
        health: this node's own local health score, 0 is well .. `health_max`.
        own_lag_s: how late this node reads its mail: is it rather this node that is ill?
    """

    node: NodeId
    state: MemberState
    epoch: Epoch
    incarnation: Incarnation
    events: tuple[PastEvent, ...]
    doubt: Doubt | None
    heard_at: Instant | None
    probed: Probed | None
    is_reachable: bool
    lag_s: Seconds
    gone_at: Instant | None
    forgotten_at: Instant | None
    sponsor: NodeId | None
    health: int
    health_max: int
    own_lag_s: Seconds
