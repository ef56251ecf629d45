"""What a caller needs of a peer."""

import msgspec

from meshd.model import NodeId
from meshd.routing.terms import Terms


class Need(msgspec.Struct, frozen=True):
    """A capability, and who may not or alone may serve it.

    Attributes:
        capability: its name.
        version: empty for any; else a whole version, its leading parts (`1` takes `1.4.2`), or a
            range (`^1.2`, `>=1,<2`).
        tags: tags that the capability must all carry.
        pinned: empty, or the name or 16-digit id of the only node that may serve it.
        hops: ids (16 hex digits) of the nodes that passed this work on, oldest first. They are not
            asked again, except that work which runs here may go on here.
        tried: nodes that this call has already asked in vain.
        is_idempotent: whether it may run twice, so that only those who declare it idempotent may
            be asked.
        terms: what else is asked of whoever takes it; None where nothing is.
        affinity: calls of one key go to one node, by the policy `sticky`; empty for none.
    """

    capability: str
    version: str = ""
    tags: tuple[str, ...] = ()
    pinned: str = ""
    hops: tuple[str, ...] = ()
    tried: frozenset[NodeId] = frozenset()
    is_idempotent: bool = False
    terms: Terms | None = None
    affinity: str = ""

    @property
    def is_bare(self) -> bool:
        """Whether everybody who offers the capability can serve it, while available."""
        return not (
            self.version or self.tags or self.pinned or self.hops or self.tried
            or self.is_idempotent or self.terms is not None
        )  # fmt: skip
