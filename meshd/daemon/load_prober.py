"""What routing asks others' load through: gossip's probe; and this node's own load beside it."""

from collections.abc import Callable, Sequence

from meshd.clock import Seconds
from meshd.gossip.questions import IsEnough, LoadAnswers
from meshd.gossip.service import GossipService
from meshd.model import Load, NodeId


class LoadProber:
    """Satisfies `meshd.routing.probing.Prober`."""

    def __init__(self, gossip: GossipService, load_here: Callable[[], Load]) -> None:
        self.load_here = load_here
        self._gossip = gossip

    async def probe(
        self, nodes: Sequence[NodeId], wait_s: Seconds, is_enough: IsEnough
    ) -> LoadAnswers:
        """Ask these nodes how busy they are; who does not answer in time is missing."""
        return await self._gossip.probe(nodes, wait_s, is_enough)
