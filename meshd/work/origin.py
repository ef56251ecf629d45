"""Where the work that runs now came from: what it hands on goes on from there, in its time."""

from contextvars import ContextVar

import msgspec

from meshd.deadline import Deadline


class Origin(msgspec.Struct, frozen=True, gc=False):
    """The nodes that a piece of work came through (ids in hex, oldest first), and its deadline."""

    hops: tuple[str, ...] = ()
    deadline: Deadline | None = None


_NOWHERE = Origin()
ORIGIN: ContextVar[Origin] = ContextVar("meshd_origin", default=_NOWHERE)
"""Set around each run of a handler; handlers' own calls into the mesh read it."""
