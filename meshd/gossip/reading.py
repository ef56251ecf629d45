"""What the gossip machine tells those who look at it: beliefs, measurements, and what waits."""

from collections.abc import Mapping

from meshd.clock import Instant
from meshd.gossip.beliefs import Beliefs
from meshd.gossip.broadcast import BroadcastQueue
from meshd.gossip.config import GossipConfig
from meshd.gossip.distances import Distances, Expected
from meshd.gossip.documents import Documents
from meshd.gossip.events import EventPlane
from meshd.gossip.explain import doubt_of, explain
from meshd.gossip.explanation import Explanation
from meshd.gossip.health import LocalHealth
from meshd.gossip.loads import LoadPlane
from meshd.gossip.members import MemberTable, is_live, record_hash
from meshd.gossip.prober import Prober
from meshd.gossip.pulls import Pulls
from meshd.gossip.state import NodeState, StateStore
from meshd.gossip.timers import Timers
from meshd.gossip.trust import Trust
from meshd.gossip.verifier import Verifier
from meshd.model import Load, Member, MemberState, NodeId
from meshd.view import Doubt


class Reading:
    """The readers of `Swim`, which holds these parts. Nothing here changes anything."""

    _beliefs: Beliefs
    _config: GossipConfig
    _distances: Distances
    _documents: Documents
    _events: EventPlane
    _health: LocalHealth
    _loads: LoadPlane
    _prober: Prober
    _pulls: Pulls
    _rumours: BroadcastQueue
    _states: StateStore
    _timers: Timers
    _trust: Trust
    _verifier: Verifier

    @property
    def me(self) -> Member:
        """The own record."""
        return self._beliefs.me

    @property
    def health(self) -> int:
        """Lifeguard's local health score: 0 is well."""
        return self._health.score

    @property
    def members(self) -> MemberTable:
        """All records. To be read, not written."""
        return self._beliefs.table

    def state_of(self, node: NodeId) -> NodeState | None:
        """What is held of a node's state."""
        return self._states.get(node)

    def value_of(self, node: NodeId, key: str) -> bytes | None:
        """What a node says under a key; None if nothing, or a document that is not here yet."""
        return self._states.value(node, key)

    def load_of(self, node: NodeId) -> tuple[Load, Instant] | None:
        """A node's newest load record and when it came."""
        return self._loads.get(node)

    @property
    def load_told(self) -> tuple[Load, Instant] | None:
        """The own load that last became a rumour, and when."""
        return self._loads.told

    def heard_at(self, node: NodeId) -> Instant | None:
        """When a packet last came from a member itself."""
        return self._beliefs.heard_at.get(node)

    def rtt_s(self, node: NodeId) -> float | None:
        """Moving average of direct probes' round trips."""
        return self._beliefs.rtt_s.get(node)

    def rtt_expected(self, node: NodeId) -> Expected | None:
        """The round trip by network coordinates, and how far off that may be."""
        return self._distances.expected(node)

    def is_reachable(self, node: NodeId) -> bool:
        """False from an own failed probe round until the member is heard again.

        And of whom this node reaches by no IP version that it speaks.
        """
        member = self._beliefs.table.get(node)
        speaks = member is None or self._beliefs.families.can_reach(member)
        return speaks and node not in self._beliefs.unreachable

    def take_touched(self) -> Mapping[NodeId, None]:
        """Members whose row in the view may have changed since the last call."""
        self._distances.touch_estimates()
        return self._beliefs.take_touched()

    def drop_touched(self) -> None:
        """Nobody makes views of this one: let what piled up go."""
        self._beliefs.take_touched()

    def goodbyes_sent(self) -> int | None:
        """How often the own record was passed on; None once it needs no more."""
        return self._rumours.sent(self._beliefs.me.node)

    def doubt_of(self, node: NodeId) -> Doubt | None:
        """Why a member is suspected and how much longer; None if it is not."""
        return doubt_of(self._beliefs, node)

    def explain(self, node: NodeId, now: Instant) -> Explanation | None:
        """Why a member is believed to be what it is; None if it is unknown."""
        return explain(self._beliefs, self._health, self._config, node, now)

    @property
    def event_clock(self) -> int:
        """The highest Lamport time of a user's event heard or told: what the next run skips."""
        return self._events.clock

    @property
    def events_dropped(self) -> int:
        """Users' events that were not passed on as often as they should: too many waited."""
        return self._events.dropped

    @property
    def documents_refused(self) -> int:
        """Times that no room could be made for a document of another node."""
        return self._states.library.refused

    def pending(self) -> Mapping[str, int]:
        """What waits, for metrics and for resource checks."""
        return {
            "rumours": len(self._rumours),
            "timers": len(self._timers),
            "suspicions": len(self._beliefs.suspicions),
            "relays": self._prober.relays,
            "verifications": len(self._verifier),
            "pulls": len(self._pulls) + len(self._documents),
            "documents": len(self._states.library),
            "gone": len(self._beliefs.gone),
            "hearsay": self._trust.waiting,
            **self._events.pending(),
        }

    def validate(self) -> None:
        """Check what must always hold; the simulator runs it after each step.

        Raises:
            AssertionError: a bug of ours.
        """
        beliefs = self._beliefs
        live = [m for m in beliefs.table if is_live(m.state)]
        assert beliefs.table.live == len(live)
        view_hash = 0
        for member in live:
            view_hash ^= record_hash(member)
        assert beliefs.table.view_hash == view_hash
        assert beliefs.table.get(beliefs.me.node) == beliefs.me
        assert beliefs.me.state is (MemberState.LEFT if beliefs.leaving else MemberState.ALIVE)
        suspects = {m.node for m in live if m.state is MemberState.SUSPECT}
        assert suspects == set(beliefs.suspicions)
        for node in suspects:
            assert self._timers.pending(("suspicion", node))
        gone = {m.node for m in beliefs.table if not is_live(m.state)} - {beliefs.me.node}
        assert gone == set(beliefs.gone)
