"""Every number of a profile beside its meaning, and what follows from them at a mesh's size.

The meanings are those of the docstring of `GossipConfig`: nothing is told twice.
"""

import inspect
import re

import msgspec

from meshd.gossip.broadcast import transmit_limit
from meshd.gossip.codec import LOAD_ENTRY_BYTES
from meshd.gossip.config import GossipConfig
from meshd.gossip.loads import load_period_s
from meshd.gossip.queries import query_timeout_s
from meshd.gossip.rows import stale_after_s
from meshd.gossip.suspicion import crowded_bounds_s, suspicion_bounds_s
from meshd.gossip.verifier import CROWD

_ATTRIBUTE = re.compile(r"^    (\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)


class Number(msgspec.Struct, frozen=True):
    """One number: its value in `unit` (empty: it is a count or a factor), and what it means."""

    name: str
    value: float
    unit: str
    meaning: str


def numbers(config: GossipConfig) -> tuple[Number, ...]:
    """Every field of a profile, in its order, with its meaning and formula."""
    # Without docstrings (python -OO) the numbers are told all the same.
    text = inspect.cleandoc(GossipConfig.__doc__ or "")
    told = {name: " ".join(meaning.split()) for name, meaning in _ATTRIBUTE.findall(text)}
    return tuple(
        Number(name, getattr(config, name), unit_of(name), told.get(name, ""))
        for name in GossipConfig.__struct_fields__
    )


def unit_of(name: str) -> str:
    """The unit that a name says its value is in."""
    for end, unit in (
        ("_bytes_per_s", "B/s"), ("_s", "s"), ("_bytes_max", "B"), ("_fraction", "share"),
    ):  # fmt: skip
        if name.endswith(end):
            return unit
    return ""


def consequences(config: GossipConfig, members: int) -> tuple[Number, ...]:
    """What follows in a mesh of n live members, with the formula as the meaning."""
    interval_s = config.probe_interval_s
    shortest_s, longest_s = suspicion_bounds_s(config, members)
    crowded_s = crowded_bounds_s(config, members)[0]
    alpha = "alpha" if config.verifiers else "alpha * max(1, log10 n)"
    return (
        Number("cycle_s", max(0, members - 1) * interval_s, "s", "(n - 1) * T: within it each node"
               " probes every other one once"),
        Number("worst_interval_s", (config.health_max + 1) * interval_s, "s", "(health_max + 1) *"
               " T: between the probes of a node whose own health is worst"),
        Number("confirmations", min(config.suspicion_confirmations, max(0, members - 2)), "",
               "min(K, n - 2): so many shorten a doubt to T_min"),
        Number("t_min_s", shortest_s, "s", f"T_min = {alpha} * T"),
        Number("t_max_s", longest_s, "s", "T_max = beta * T_min; after c confirmations"
               " T_max - (T_max - T_min) * ln(c + 1) / ln(K + 1)"),
        Number("crowded_t_min_s", max(shortest_s, crowded_s), "s", "at least 4 * max(1, log10 n) *"
               f" T, while more than {CROWD} are suspected"),
        Number("detection_s", 2 * interval_s + shortest_s, "s", "2 * T + T_min: until somebody"
               " probes the dead one, the round itself, the doubt; without loss"),
        Number("transmit_limit", transmit_limit(config.transmit_mult, members), "", "lambda *"
               " ceil(log10(n + 1)): so often a node passes on one rumour"),
        Number("load_period_s", load_period_s(config, members), "s", "max(load_interval_s, n *"
               f" load_transmit_limit * {LOAD_ENTRY_BYTES} B / load_bytes_per_s)"),
        Number("stale_after_s", stale_after_s(config, members), "s", "3 * max((n - 1) * T, 2 * T,"
               " load_interval_s): after such silence no work is sent"),
        Number("query_timeout_s", query_timeout_s(config, members), "s", "16 * ceil(log10(n + 1))"
               " gossip intervals: until a query stops waiting"),
    )  # fmt: skip
