"""From the configuration to what each room is given of it."""

import msgspec

from meshd.config import Config, RoutingConfig
from meshd.gossip.config import GossipConfig, profile
from meshd.routing.settings import RoutingSettings
from meshd.rpc.limits import ServerLimits


def gossip_config(config: Config) -> GossipConfig:
    """The protocol's numbers: the profile's, with the configured limits."""
    return msgspec.structs.replace(
        profile(config.node.profile),
        datagram_bytes_max=config.limits.datagram_bytes_max,
        members_max=config.limits.members_max,
    )


def routing_settings(routing: RoutingConfig) -> RoutingSettings:
    """Routing's settings from the configuration."""
    return RoutingSettings(
        policy=routing.policy,
        weights=routing.weights,
        hops_max=routing.hops_max,
        is_hedging=routing.hedge,
        tiers=routing.tiers,
        shares=routing.shares,
        spend=routing.spend,
        breaker=routing.breaker,
        sample=routing.sample,
        retries=routing.retries,
        deadline_s=routing.deadline_s,
        fallback=routing.fallback,
        cost_usd_max=routing.cost_usd_max,
        by_capability=routing.capability,
    )


def server_limits(config: Config) -> ServerLimits:
    """The server's limits from the configuration."""
    limits = config.limits
    return ServerLimits(
        body_bytes_max=limits.body_bytes_max,
        batch_max=limits.batch_max,
        depth_max=limits.depth_max,
        calls_max=limits.calls_max,
    )
