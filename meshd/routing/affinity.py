"""One node for all calls of one key, and never more for a node than its share allows.

Sources: rendezvous hashing (Thaler and Ravishankar 1998): each key orders all nodes by a hash of
both, so that a node that comes or goes moves only the keys that are its own. Bounded loads
(Mirrokni, Thorup and Zadimoghaddam 2016): the first node in that order whose load stays within
`SPREAD` times the average takes the call. The hash's last step is splitmix64 (Steele et al. 2014).
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from meshd.model import NodeId

SPREAD = 1.25
"""How much above the average a node's load may be. Closer to 1, fewer calls stay with their key."""

KEYS_KEPT = 1_024
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Share:
    """What a node has to do: calls in flight there, and how many may be at a time (1 or more)."""

    node: NodeId
    load: float
    slots: int


def order_of(key: str, nodes: Sequence[NodeId]) -> list[NodeId]:
    """All nodes in the order in which they are asked for calls of this key."""
    seed = _seed(key)
    return sorted(nodes, key=lambda node: (-_mixed(seed ^ int.from_bytes(node)), node))


def bounds(shares: Sequence[Share]) -> dict[NodeId, int]:
    """How many calls each node may have, with one more to place: its part of the total by slots.

    Somebody has room always: together these are more than there is.
    """
    total = 1.0 + sum(share.load for share in shares)
    slots = sum(share.slots for share in shares)
    return {s.node: max(1, math.ceil(SPREAD * total * s.slots / slots)) for s in shares}


def placed(key: str, shares: Sequence[Share]) -> list[NodeId]:
    """Whom to ask for a call of this key: first who has room, both in the key's own order."""
    loads = {share.node: share.load for share in shares}
    most = bounds(shares) if shares else {}
    order = order_of(key, [share.node for share in shares])
    with_room = [node for node in order if loads[node] + 1.0 <= most[node]]
    has_room = set(with_room)
    return with_room + [node for node in order if node not in has_room]


def ranks(key: str, shares: Sequence[Share]) -> Mapping[NodeId, int]:
    """The same as numbers, 0 for the first."""
    return {node: rank for rank, node in enumerate(placed(key, shares))}


@lru_cache(maxsize=KEYS_KEPT)
def _seed(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(errors="replace"), digest_size=8).digest())


def _mixed(number: int) -> int:
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB & _MASK
    return number ^ (number >> 31)
