"""How many units calls usually take at each node, for the price that is expected of the next."""

from collections import deque
from collections.abc import Mapping
from statistics import median_low

from meshd.clock import Instant, Seconds
from meshd.model import NodeId

CAPABILITIES_MAX = 256
"""Capabilities whose usual units are kept; the one that was longest not called is forgotten."""

NODES_MAX = 128
"""Nodes of one capability whose units are kept; who was longest not called is forgotten."""

SAMPLES_MAX = 9
"""Answers of one node that are looked at, the newest."""

KEPT_S: Seconds = 3_600.0
"""So long after its last answer a node's units hold: who is too dear is not asked, and so would
never show that it takes fewer now."""


class _Samples:
    """What one node's answers said."""

    __slots__ = ("at", "units", "usual")

    def __init__(self) -> None:
        self.units: deque[float] = deque(maxlen=SAMPLES_MAX)
        self.at = Instant(0.0)
        self.usual = 1.0

    def add(self, units: float, now: Instant) -> None:
        # The median, and one unit among them: no single answer makes a node too dear.
        self.units.append(units)
        self.at = now
        self.usual = median_low((1.0, *self.units))


class UsualUnits:
    """Learned by node: what one asks for does not make the others too dear."""

    def __init__(self) -> None:
        self._known: dict[str, dict[NodeId, _Samples]] = {}

    def __bool__(self) -> bool:
        """Whether anything was learned."""
        return bool(self._known)

    def learn(self, capability: str, node: NodeId, units: float, now: Instant) -> None:
        """An answer said so many."""
        nodes = self._known.pop(capability, {})
        self._known[capability] = nodes
        samples = nodes.pop(node, None) or _Samples()
        nodes[node] = samples
        samples.add(units, now)
        if len(nodes) > NODES_MAX:
            del nodes[next(iter(nodes))]
        if len(self._known) > CAPABILITIES_MAX:
            del self._known[next(iter(self._known))]

    def by_node(self, capability: str, now: Instant) -> Mapping[NodeId, float]:
        """How many to expect of each node; of those left out, 1."""
        nodes = self._known.get(capability, {})
        return {node: each.usual for node, each in nodes.items() if now - each.at < KEPT_S}

    def expected(self, capability: str, node: NodeId, now: Instant) -> float:
        """How many to expect of this node."""
        samples = self._known.get(capability, {}).get(node)
        return samples.usual if samples is not None and now - samples.at < KEPT_S else 1.0
