"""Gathers why a member is believed to be what it is: reads the core's parts, and changes none."""

from meshd.clock import Instant
from meshd.gossip.beliefs import Beliefs
from meshd.gossip.config import GossipConfig
from meshd.gossip.explanation import Explanation
from meshd.gossip.health import LocalHealth
from meshd.gossip.lag import lag_s
from meshd.model import NodeId
from meshd.view import Doubt


def doubt_of(beliefs: Beliefs, node: NodeId) -> Doubt | None:
    """Who doubts a member and for how long; None if it is not suspected."""
    suspicion = beliefs.suspicions.get(node)
    if suspicion is None:
        return None
    shortest_s, longest_s = suspicion.bounds_s
    return Doubt(
        accusers=suspicion.accusers,
        retracted=suspicion.retracted,
        confirmations=suspicion.confirmations,
        needed=suspicion.needed,
        since=suspicion.started,
        deadline=suspicion.deadline(),
        shortest_s=shortest_s,
        longest_s=longest_s,
        lag_s=suspicion.lag_s,
        is_crowd=suspicion.is_lengthened,
        is_last_called=suspicion.is_last_called,
    )


def explain(
    beliefs: Beliefs, health: LocalHealth, config: GossipConfig, node: NodeId, now: Instant
) -> Explanation | None:
    """All that the belief about a member rests on; None if it is unknown."""
    member = beliefs.table.get(node)
    if member is None:
        return None
    gone_at = beliefs.gone.get(node)
    return Explanation(
        node=node,
        state=member.state,
        epoch=member.epoch,
        incarnation=member.incarnation,
        events=beliefs.history(node),
        doubt=doubt_of(beliefs, node),
        heard_at=beliefs.heard_at.get(node),
        probed=beliefs.probed.get(node),
        is_reachable=node not in beliefs.unreachable,
        lag_s=lag_s(member.lag),
        gone_at=gone_at,
        forgotten_at=None if gone_at is None else beliefs.forgotten_at(node),
        sponsor=beliefs.sponsors.sponsor_of(member),
        health=health.score,
        health_max=config.health_max,
        own_lag_s=beliefs.lag.at(now),
    )
