"""All the ways in which one node finds others, and the memory of whom it knew."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from meshd.clock import Instant
from meshd.discovery.address import parse_seed
from meshd.discovery.base import Hint, PeerSource, SourceStatus
from meshd.discovery.cache import CACHE_FILE, CacheSource, PeerCache
from meshd.discovery.static import PeersFileSource, StaticSource
from meshd.model import Address, MemberState, NodeId
from meshd.security.identity import mesh_id
from meshd.view import Peer

REMEMBER_INTERVAL_S = 10.0
"""How often those who are remembered are looked at again: for their names, and as seen."""

TRIES_SHARED = 3
"""How many nodes of a mesh try somebody who is missing, each time that this is due ..."""
SHARE_MIN = 0.05
"""... and the least share of its chances that each takes: it may be the only one that knows him.
Serf does alike (`dead / alive` a turn, one of the dead at random), without a least."""

if TYPE_CHECKING:
    from meshd.daemon.node import Node


class Finding:
    """Runs the sources; every hint becomes a join attempt, and nothing more."""

    def __init__(self, node: "Node") -> None:
        """Prepare what the configuration asks for.

        Raises:
            UsageError: a seed is no address.
        """
        self._node = node
        self._seeds = [parse_seed(text) for text in node.config.node.join]
        self._sources: list[PeerSource] = []
        self._cache: PeerCache | None = None
        self._remembered = ""
        self._remember_at = Instant(0.0)

    async def start(self) -> None:
        """Begin to look; the node's sockets are bound."""
        self._cache = PeerCache(self._node.state.path / CACHE_FILE)
        self._sources = self._make(self._cache)
        for source in self._sources:
            await source.start(self._found)

    async def stop(self) -> None:
        """End, the last started first. Idempotent."""
        while self._sources:
            await self._sources.pop().stop()

    def hurry(self) -> None:
        """Try everybody who was ever known again now: the network is another, or we slept."""
        for source in self._sources:
            source.retry()

    def statuses(self) -> list[SourceStatus]:
        """How each of them goes."""
        return [source.status() for source in self._sources]

    def remember(self) -> None:
        """Keep on disk who is alive now; costs next to nothing while nobody comes or goes."""
        if self._cache is None:
            return
        view, now = self._node.view(), self._node.clock.now()
        if view.view_hash == self._remembered and now < self._remember_at:
            return
        self._remembered, self._remember_at = view.view_hash, Instant(now + REMEMBER_INTERVAL_S)
        wall_ms = self._node.clock.wall_ms()
        for peer in view.by_node.values():  # each second, of all: not worth an order
            # Where somebody is who was never heard is but hearsay.
            is_heard = peer.node != view.me and self._node.gossip.is_heard(peer.node)
            if peer.state is MemberState.ALIVE and is_heard:
                self._cache.remember(peer.node, peer.address, peer.name, wall_ms, other=peer.other)

    def _make(self, cache: PeerCache) -> list[PeerSource]:
        node, settings = self._node, self._node.config.node
        rng, resolve = node.platform.random("discovery"), node.platform.resolve
        alone, alive, alive_at = self._is_alone, self._is_alive, self._is_alive_at
        sources: list[PeerSource] = []
        if self._seeds:
            sources.append(
                StaticSource(self._seeds, resolve, is_alone=alone, is_alive=alive_at, rng=rng)
            )
        if settings.peers_file:
            path = Path(settings.peers_file)
            sources.append(
                PeersFileSource(path, resolve, is_alone=alone, is_alive=alive_at, rng=rng)
            )
        sources.append(
            CacheSource(
                cache, clock=node.clock, is_alone=alone, is_alive=alive, rng=rng, share=self._share
            )
        )
        if settings.mdns:
            # Imported here: half a megabyte that a node without it need not hold.
            from meshd.discovery.mdns import MdnsSettings, MdnsSource

            told = MdnsSettings(
                node=node.node_id,
                mesh=mesh_id(node.mesh),
                name=node.name,
                bound=node.gossip.bound,
                advertise=node.gossip.addresses if settings.advertise else (),
                interfaces=settings.iface,
            )
            mdns = MdnsSource(
                told, clock=node.clock, is_alone=alone, is_alive=alive, rng=rng, share=self._share
            )
            sources.append(mdns)
        return sources

    def _found(self, hint: Hint) -> None:
        if not self._node.is_leaving:
            self._node.gossip.join(hint.address)

    def _is_alone(self) -> bool:
        me = self._node.node_id
        return not any(p.node != me for p in self._alive())

    def _alive(self) -> Iterator[Peer]:
        """All that live, in no order: it is asked each second, of views that nobody has sorted."""
        view = self._node.view()
        return (p for p in view.by_node.values() if p.state is MemberState.ALIVE)

    def _share(self) -> float:
        alive = sum(1 for _ in self._alive())
        return max(SHARE_MIN, min(1.0, TRIES_SHARED / max(1, alive)))

    def _is_alive(self, node: NodeId) -> bool:
        """Whether it need not be looked for. Who left comes back by itself, if at all."""
        peer = self._node.view().get(node)
        if peer is None:
            return False
        if peer.state is MemberState.LEFT:
            return not self._is_alone()
        return peer.state is MemberState.ALIVE or node == self._node.node_id

    def _is_alive_at(self, address: Address) -> bool:
        if address in {*self._node.gossip.addresses, self._node.gossip.bound}:
            return True
        return any(p.is_at(address) for p in self._alive())
