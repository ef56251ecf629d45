"""What the methods for everybody take."""

from typing import Annotated, Any

import msgspec

from meshd.priority import PRIORITY_DEFAULT
from meshd.routing.request import ID_DIGITS
from meshd.routing.settings import HOPS_MAX

DEADLINE_DEFAULT_S = 300.0
"""Of `work` and `offer`, where the caller says none; the connection's limit holds besides."""

Hops = Annotated[
    tuple[Annotated[str, msgspec.Meta(pattern=f"^[0-9a-f]{{{ID_DIGITS}}}$")], ...],
    msgspec.Meta(max_length=HOPS_MAX),
]
"""Ids of nodes in hex, oldest first."""


class PeersParams(msgspec.Struct, forbid_unknown_fields=True):
    """`peers`: only members in these states."""

    state: tuple[str, ...] = ()


class CapabilitiesParams(msgspec.Struct, forbid_unknown_fields=True):
    """`capabilities`: of one node (`self`, a name or an id), or of one name."""

    node: str = ""
    name: str = ""


class DiscoverParams(msgspec.Struct, forbid_unknown_fields=True):
    """`discover`: what fits a text. It is answered from what gossip brought, and calls nobody."""

    query: str
    tags: tuple[str, ...] = ()
    min_score: float = 0.1
    limit: int = 5


class WorkParams(msgspec.Struct, forbid_unknown_fields=True):
    """`work`: do this here. `hops` are ids of nodes that it came through.

    With `only_joins` nothing begins: it is answered where a run under its key is known.
    """

    capability: str = ""
    input: Any = None
    text: str | None = None
    deadline_ms: float | None = None
    idempotency_key: str = ""
    priority: int = PRIORITY_DEFAULT
    hops: Hops = ()
    trace: Any = None
    only_joins: bool = False


class OfferParams(msgspec.Struct, forbid_unknown_fields=True):
    """`offer`: when would this be done, if it came now?"""

    capability: str
    deadline_ms: float = DEADLINE_DEFAULT_S * 1_000
    priority: int = PRIORITY_DEFAULT


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """No parameters."""
