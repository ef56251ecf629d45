"""The one seam by which later rooms attach: methods, signals and member events, by name."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from meshd.clock import Clock
from meshd.view import ClusterView, Peer

Method = Callable[[Any], Awaitable[Any]]


class Context(Protocol):
    """What a node lends to its extensions."""

    clock: Clock

    def view(self) -> ClusterView:
        """The newest snapshot."""
        ...


class Extension:
    """A no-op base: an extension overrides what it needs and imports no other room."""

    name = "extension"

    def methods(self) -> Mapping[str, Method]:
        """Further RPC methods, by name."""
        return {}

    def signals(self, peer: Peer) -> Mapping[str, float]:
        """Values in [0, 1] about a peer, which a routing policy may weigh by name."""
        del peer
        return {}

    async def start(self, context: Context) -> None:
        """Begin; the node is serving."""

    async def stop(self) -> None:
        """End; the node is about to close."""
