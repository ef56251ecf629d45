"""What a profile's numbers come to in a mesh of n nodes, each with its formula, for people."""

import math
from typing import NamedTuple

from meshd.clock import Seconds
from meshd.gossip.broadcast import transmit_limit
from meshd.gossip.codec import LOAD_ENTRY_BYTES
from meshd.gossip.config import GossipConfig
from meshd.gossip.loads import period_s
from meshd.gossip.queries import query_timeout_s
from meshd.gossip.rows import stale_after_s
from meshd.gossip.suspicion import crowded_bounds_s, suspicion_bounds_s

IDLE_BYTES = 68
"""An idle ping, or its ack, with IP and UDP headers."""


class Figure(NamedTuple):
    """One number: what it is, how much, and how it is found. Times are in seconds."""

    name: str
    value: float
    unit: str
    formula: str


def figures(config: GossipConfig, members: int) -> tuple[Figure, ...]:
    """All that follows from `config` where `members` nodes, this one included, are alive."""
    return (*_detection(config, members), *_spreading(config, members))


def _detection(config: GossipConfig, members: int) -> tuple[Figure, ...]:
    interval_s = config.probe_interval_s
    shortest_s, longest_s = suspicion_bounds_s(config, members)
    crowded_s = crowded_bounds_s(config, members)[0]
    needed = min(config.suspicion_confirmations, max(0, members - 2))
    first_s = first_probe_s(interval_s, members)
    alpha, beta = f"{config.suspicion_mult:g}", f"{config.suspicion_max_mult:g}"
    return (
        Figure("probe interval", interval_s, "s", "T: each node probes one member in it"),
        Figure("probe timeout", config.probe_timeout_s, "s", "then helpers are asked"),
        Figure("helpers", config.indirect_probes, "", "k of SWIM"),
        Figure("nack after", _nack_s(config), "s", f"timeout + {config.nack_fraction:.0%} of what"
               " is left of T"),
        Figure("doubt, shortest", shortest_s, "s", f"T_min = {alpha} T"),
        Figure("doubt, longest", longest_s, "s", f"T_max = {beta} T_min"),
        Figure("confirmations", needed, "", f"K = min({config.suspicion_confirmations}, n - 2):"
               " those that bring T_max down to T_min"),
        Figure("doubt in a crowd", max(shortest_s, crowded_s), "s",
               "max(T_min, 4 max(1, log10 n) T), while over 8 are doubted"),
        Figure("a death is known after", first_s + interval_s + shortest_s, "s",
               "median: T (n - 1)(1 - 2^(-1/(n - 1))) until it is probed, + T + T_min"),
        Figure("stale, unrouted after", stale_after_s(config, members), "s",
               "3 max(T (n - 1), 2 T, load interval)"),
        Figure("dead are called", config.reconnect_interval_s, "s", "one of them each"),
    )  # fmt: skip


def _spreading(config: GossipConfig, members: int) -> tuple[Figure, ...]:
    mult = config.transmit_mult
    idle = 2 * IDLE_BYTES / config.probe_interval_s
    return (
        Figure("gossip interval", config.gossip_interval_s, "s",
               "a fresh rumour leaves at once, up to ten rounds ahead"),
        Figure("gossip fan-out", config.gossip_fanout, "", "members a round"),
        Figure("rumour is passed on", transmit_limit(mult, members), "times",
               f"{mult} ceil(log10(n + 1)), by each node"),
        Figure("load, at most every", period_s(config, members), "s",
               f"max(load interval, n * {config.load_transmit_limit} *"
               f" {LOAD_ENTRY_BYTES} B / {config.load_bytes_per_s:g} B/s)"),
        Figure("query waits", query_timeout_s(config, members), "s",
               "16 ceil(log10(n + 1)) gossip intervals"),
        Figure("idle node sends", idle, "B/s", f"2 packets of {IDLE_BYTES} B in T"),
    )  # fmt: skip


def first_probe_s(interval_s: Seconds, members: int) -> Seconds:
    """How long the dead wait for the first probe, in the median.

    Each of the n - 1 others comes by once in n - 1 intervals, at a time of its own: of so many
    evenly spread times the first is earlier than this in half of all cases.
    """
    others = max(1, members - 1)
    return interval_s * others * (1.0 - math.pow(2.0, -1.0 / others))


def _nack_s(config: GossipConfig) -> Seconds:
    left_s = config.probe_interval_s - config.probe_timeout_s
    return config.probe_timeout_s + config.nack_fraction * left_s
