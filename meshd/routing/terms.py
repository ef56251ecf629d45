"""What a caller asks of whoever takes a piece of work, beside the capability itself."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from meshd.capability.manifest import COST_USD_MAX, CapabilitySummary
from meshd.model import LABELS_MAX, NodeId, is_name
from meshd.routing.matchers import Matcher, parse_matchers
from meshd.view import Peer

GRAIN_USD = 1e-9
"""What costs more by less is not more: sums of floats are off by so much."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What the candidate's node and its offer must be like.

    Attributes:
        region: empty, or the node's region or its leading dashed parts (`eu` takes `eu-west`).
        labels: that the node must carry.
        matchers: conditions on the capability's attributes, or else the node's labels.
        difficulty: of the work, 0..1: who offers it must be at least as proficient. None: any is.
        cost_usd_max: more a call must not cost; None is no bound.
        units_at: how many the call is expected to take at each node, for the price; else 1.
    """

    region: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    matchers: tuple[Matcher, ...] = ()
    difficulty: float | None = None
    cost_usd_max: float | None = None
    units_at: Mapping[NodeId, float] = field(default_factory=dict, hash=False)

    def expected_usd(self, node: NodeId, offered: CapabilitySummary) -> float:
        """What the call is expected to cost there."""
        return offered.cost_usd(self.units_at.get(node, 1.0))


NO_TERMS = Terms()


def lacks_region(terms: Terms, peer: Peer) -> str:
    """The region asked for, if the peer is not there; else nothing."""
    region, its = terms.region, peer.region
    return "" if its == region or not region or its.startswith(region + "-") else region


def lacks_label(terms: Terms, peer: Peer) -> str:
    """The first label asked for that the peer does not carry; else nothing."""
    for name, value in terms.labels:
        if peer.labels.get(name) != value:
            return f"{name}={value}"
    return ""


def fails_condition(terms: Terms, peer: Peer, offered: CapabilitySummary) -> str:
    """The first condition that the offer does not meet; else nothing."""
    for matcher in terms.matchers:
        if not matcher.matches(offered.attributes, peer.labels):
            return matcher.text
    return ""


def is_too_expensive(terms: Terms, peer: Peer, offered: CapabilitySummary) -> bool:
    """Whether a call is expected to cost more than it may."""
    most_usd = terms.cost_usd_max
    return most_usd is not None and terms.expected_usd(peer.node, offered) - most_usd > GRAIN_USD


def parse_terms(
    *,
    region: str = "",
    labels: Mapping[str, str] | None = None,
    where: tuple[str, ...] = (),
    difficulty: float | None = None,
    cost_usd_max: float | None = None,
) -> tuple[Terms, list[str]]:
    """The terms that a request names, and everything that is wrong with them, in sentences."""
    matchers, faults = parse_matchers(where)
    wanted = labels or {}
    if region and not is_name(region):
        faults.append(f"region {region[:80]!r} is not a valid name")
    if len(wanted) > LABELS_MAX:
        faults.append(f"at most {LABELS_MAX} labels")
        wanted = {}  # of too many none is read: they come from anybody, and that takes time
    faults += [
        f"label {name[:80]}={value[:80]} is not two valid names"
        for name, value in wanted.items()
        if not (is_name(name) and is_name(value))
    ]
    if difficulty is not None and not 0.0 <= difficulty <= 1.0:
        faults.append("difficulty must be 0 to 1")
    if cost_usd_max is not None and not 0.0 <= cost_usd_max <= COST_USD_MAX:
        faults.append(f"cost_usd_max must be 0 to {COST_USD_MAX:g}")
    terms = Terms(region, tuple(sorted(wanted.items())), matchers, difficulty, cost_usd_max)
    return terms, faults


def within(terms: Terms, left_usd: float, units_at: Mapping[NodeId, float]) -> Terms:
    """The same terms for who has so much left to spend, and a call that takes so many units."""
    most_usd = terms.cost_usd_max
    if math.isfinite(left_usd):
        most_usd = left_usd if most_usd is None else min(most_usd, left_usd)
    if most_usd == terms.cost_usd_max and units_at == terms.units_at:
        return terms
    return Terms(terms.region, terms.labels, terms.matchers, terms.difficulty, most_usd, units_at)
