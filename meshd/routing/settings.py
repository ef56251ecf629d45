"""What an operator may set about routing, with its bounds."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, get_args, get_type_hints

import msgspec
from msgspec import Meta

from meshd.clock import Seconds
from meshd.errors import UsageError
from meshd.model import is_name
from meshd.routing.limits import DEADLINE_S, DEADLINE_UNNAMED_S_MAX, RETRIES_MAX

SAMPLE_MIN = 2
FALLBACKS_MAX = 4

HOPS_MAX = 16
"""Nodes that one piece of work may come through; it also bounds the list on the wire."""

WEIGHT_NAMES = ("cpu", "latency", "mem")

TIERS: Mapping[str, float] = {"preferred": 0.95, "fallback": 0.9, "least": 0.7}
"""Shares of calls that succeed, for the policy `quality`; the tiers come in this order."""

SHARES: Mapping[str, float] = {"match": 0.35, "trust": 0.35, "availability": 0.15, "cost": 0.15}
"""What the policy `composite` weighs."""

SPEND_CAPS = (
    "caller_usd_per_hour", "caller_usd_per_day", "node_usd_per_hour", "node_usd_per_day",
)  # fmt: skip
SPEND_MAX_USD = 1e9
WINDOW_MAX = 64
"""Results that a circuit can remember."""
FAILURES_MAX = 1_000
OPEN_S_MIN: Seconds = 0.1
OPEN_S_MAX: Seconds = 86_400.0


def _count(text: str, most: int) -> Meta:
    return Meta(description=f"{text}, 1..{most}.", ge=1, le=most)


def _time(text: str) -> Meta:
    bounds = f"{OPEN_S_MIN:g}..{OPEN_S_MAX:g}"
    return Meta(description=f"{text}, {bounds}.", ge=OPEN_S_MIN, le=OPEN_S_MAX)


class BreakerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`[routing.breaker]`: when circuits open, and for how long.

    There is a circuit for each capability at each node, and one for each capability wherever it
    is offered. The n-th opening in short succession lasts n times as long.
    Source: ROUTING notes (3 in a row, 60 s; under 80 %, 30 s). `capability_open_s` is shorter: an
    open capability has nobody else to go to, so each second of it costs calls.

    Raises:
        UsageError: a value is outside its range; the message names every such value.
    """

    failures: Annotated[
        int, _count("Failures in a row that open the circuit of a capability at a node", WINDOW_MAX)
    ] = 3
    failures_open_s: Annotated[
        float, _time("Seconds that it then stays open, before one call tries it")
    ] = 60.0
    success_min: Annotated[
        float, Meta(description="Share of successes below which it opens too, 0..1.", ge=0, le=1)
    ] = 0.8
    window: Annotated[int, _count("Of so many last results", WINDOW_MAX)] = 20
    samples_min: Annotated[
        int, _count("Results that there must be before the share counts", WINDOW_MAX)
    ] = 10
    rate_open_s: Annotated[float, _time("Seconds that it then stays open")] = 30.0
    capability_failures: Annotated[
        int, _count("Failures in a row, at all its nodes, that open a capability", FAILURES_MAX)
    ] = 10
    capability_open_s: Annotated[
        float, _time("Seconds for which calls of it then fail at once, before one call tries it")
    ] = 10.0
    open_s_max: Annotated[
        float, _time("Seconds that a circuit is open at most, however often it opened")
    ] = 600.0

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        faults = [f"{key} {fault}" for key, fault in breaker_faults(msgspec.structs.asdict(self))]
        if faults:
            raise UsageError("breaker: " + "; ".join(faults), hint="correct these settings")


_BOUNDS: Mapping[str, Meta] = {
    name: get_args(hint)[1]
    for name, hint in get_type_hints(BreakerSettings, include_extras=True).items()
}


def breaker_faults(values: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """What is wrong with these settings of breakers, each by its name."""
    for name, meta in _BOUNDS.items():
        if not float(meta.ge or 0) <= values[name] <= float(meta.le or 0):  # bars NaN as well
            yield name, f"must be {meta.ge:g}..{meta.le:g}"
    if values["samples_min"] > values["window"]:
        yield "samples_min", "must be at most window, or the share never counts"
    longest = ("failures_open_s", "rate_open_s", "capability_open_s")
    if values["open_s_max"] < max(values[name] for name in longest):
        yield "open_s_max", f"must be at least {', '.join(longest)}"


DEFAULT = "default"
"""The source of settings that are no capability's own."""

POLICY_NAMES = (
    "adaptive", "least_loaded", "nearest", "weighted", "round_robin", "random", "fastest",
    "cheapest", "quality", "composite", "skill", "sticky",
)  # fmt: skip
"""What a configuration may name, beside installed ones; `pinned` is what naming a node means."""


def _about(text: str, **bounds: Any) -> msgspec.Meta:
    return msgspec.Meta(description=text, **bounds)


PolicySetting = Annotated[
    str,
    _about(
        f"How to choose where the call does not say: {', '.join(POLICY_NAMES)},"
        " or an installed one."
    ),
]
SampleSetting = Annotated[
    int,
    _about(
        "Candidates that a policy which draws some ranks, of a dozen that it looks at,"
        f" {SAMPLE_MIN}..{1 + RETRIES_MAX}: more find fast ones sooner, fewer herd less.",
        ge=SAMPLE_MIN,
        le=1 + RETRIES_MAX,
    ),
]
WeightsSetting = Annotated[
    dict[str, float],
    _about("Of the policy `weighted`: cpu, mem and latency to numbers.", max_length=32),
]
TiersSetting = Annotated[
    dict[str, float],
    _about("Of the policy `quality`, least success of each tier: preferred, fallback, least."),
]
SharesSetting = Annotated[
    dict[str, float],
    _about("Of the policy `composite`: match, trust, availability and cost to numbers."),
]
FallbackSetting = Annotated[
    tuple[str, ...],
    _about(
        f"Capabilities, {FALLBACKS_MAX} at most, to try with the same input where nobody can do it"
        " and the call names none.",
        max_length=FALLBACKS_MAX,
    ),
]
RetriesSetting = Annotated[
    int,
    _about(f"Further candidates after the first, 0..{RETRIES_MAX}.", ge=0, le=RETRIES_MAX),
]
HedgeSetting = Annotated[
    bool,
    _about("Send idempotent work that takes long to a second peer, for 1 call in 20 at most."),
]
DeadlineSetting = Annotated[
    float,
    _about(
        f"Seconds for a call that names no deadline, at most {DEADLINE_UNNAMED_S_MAX:g}.",
        gt=0,
        le=DEADLINE_UNNAMED_S_MAX,
    ),
]
CostSetting = Annotated[
    float, _about("USD that a call may be expected to cost at most, also if it allows more.", ge=0)
]
BreakerSetting = Annotated[
    dict[str, float], _about("Keys of [routing.breaker]; those left out are as by default.")
]


class Overrides(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What calls of some capabilities have in place of the default; None is as by default."""

    policy: PolicySetting | None = None
    sample: SampleSetting | None = None
    weights: WeightsSetting | None = None
    tiers: TiersSetting | None = None
    shares: SharesSetting | None = None
    fallback: FallbackSetting | None = None
    retries: RetriesSetting | None = None
    hedge: HedgeSetting | None = None
    deadline_s: DeadlineSetting | None = None
    cost_usd_max: CostSetting | None = None
    breaker: BreakerSetting | None = None


@dataclass(frozen=True, slots=True)
class RoutingSettings:
    """Settings of one node's routing.

    Attributes:
        policy: the policy of calls that name none.
        sample: how many eligible peers a sampling policy draws, 2..4. More finds fast nodes
            sooner; fewer herds less on an old view.
        weights: what the policy `weighted` weighs; each 0 or more, one above 0.
        hops_max: how often one piece of work may be passed on before it is taken for a cycle.
        queue_max: calls that may wait at once, for a busy peer to have room or for any at all.
        deadline_s: the deadline of calls that name none, seconds, above 0, at most 600.
        reserve_fraction: share of the remaining time that a hop keeps for the way back, 0..0.5.
        reserve_s_max: upper bound of that reserve, seconds.
        is_hedging: whether idempotent work that takes long is sent to a second peer.
        tiers: success that the policy `quality` asks for: `preferred` over `fallback` over `least`,
            each 0..1; those left out are as in `TIERS`.
        shares: what the policy `composite` weighs; each 0 or more, one above 0.
        fallback: capabilities to try where nobody can do what is asked, and the call names none.
        retries: further candidates after the first, 0..3.
        cost_usd_max: what a call may be expected to cost, USD; infinity is no bound.
        by_capability: what capabilities have of their own, by name or by a beginning and `*`;
            see `meshd.routing.rules`.
        source: `default`, or the key of `by_capability` that these are laid over by.
        spend: what each caller, and the node, may spend in an hour and in a day, USD, by the names
            in `SPEND_CAPS`; what is left out is not bounded.
        breaker: when circuits open, and for how long.

    Raises:
        UsageError: a value is outside its range; the message names every such value.
    """

    policy: str = "adaptive"
    sample: int = 4
    weights: Mapping[str, float] = field(default_factory=lambda: {"cpu": 0.7, "latency": 0.3})
    hops_max: int = 8
    queue_max: int = 256
    deadline_s: Seconds = DEADLINE_S
    reserve_fraction: float = 0.1
    reserve_s_max: Seconds = 0.05
    is_hedging: bool = True
    tiers: Mapping[str, float] = field(default_factory=lambda: TIERS)
    shares: Mapping[str, float] = field(default_factory=lambda: SHARES)
    spend: Mapping[str, float] = field(default_factory=dict)
    breaker: BreakerSettings = field(default_factory=BreakerSettings)
    fallback: Sequence[str] = ()
    retries: int = RETRIES_MAX
    cost_usd_max: float = math.inf
    by_capability: Mapping[str, Overrides] = field(default_factory=dict)
    source: str = DEFAULT

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        faults = [
            text
            for bad, text in (
                (
                    not SAMPLE_MIN <= self.sample <= 1 + RETRIES_MAX,
                    f"sample must be {SAMPLE_MIN}..{1 + RETRIES_MAX}",
                ),
                (not 0 <= self.retries <= RETRIES_MAX, f"retries must be 0..{RETRIES_MAX}"),
                (not 1 <= self.hops_max <= HOPS_MAX, f"hops_max must be 1..{HOPS_MAX}"),
                (not 0 <= self.queue_max <= 65_536, "queue_max must be 0..65536"),
                (
                    not 0.0 < self.deadline_s <= DEADLINE_UNNAMED_S_MAX,
                    f"deadline_s must be above 0, at most {DEADLINE_UNNAMED_S_MAX:g}",
                ),
                (not 0.0 <= self.reserve_fraction <= 0.5, "reserve_fraction must be 0..0.5"),
                (not 0.0 <= self.reserve_s_max <= 10.0, "reserve_s_max must be 0..10"),
                (not self.cost_usd_max >= 0.0, "cost_usd_max must be 0 or more"),  # bars NaN too
            )
            if bad
        ]
        faults += weight_faults(self.weights)
        faults += [f"tiers: {fault}" for fault in tier_faults(self.tiers)]
        faults += [f"shares: {fault}" for fault in weight_faults(self.shares, tuple(SHARES))]
        faults += [f"spend: {fault}" for fault in spend_faults(self.spend)]
        faults += [f"fallback: {fault}" for fault in fallback_faults(self.fallback)]
        if faults:
            raise UsageError("routing: " + "; ".join(faults), hint="correct these settings")
        object.__setattr__(self, "tiers", {**TIERS, **self.tiers})

    def reserve_s(self, remaining_s: Seconds) -> Seconds:
        """What this hop keeps of the time that remains, so that its answer still arrives."""
        return min(self.reserve_fraction * remaining_s, self.reserve_s_max)


def weight_faults(weights: Mapping[str, float], known: tuple[str, ...] = WEIGHT_NAMES) -> list[str]:
    """What is wrong with these weights, in sentences; empty if nothing is."""
    unknown = sorted(set(weights) - set(known))
    if unknown:
        return [f"unknown weight {', '.join(unknown)} (known: {', '.join(known)})"]
    if any(not 0.0 <= value <= 1e6 for value in weights.values()):
        return ["a weight must be 0 to 1000000"]
    if not any(weights.values()):
        return ["at least one weight must be above 0"]
    return []


def tier_faults(tiers: Mapping[str, float]) -> list[str]:
    """What is wrong with these tiers, in sentences; empty if nothing is."""
    unknown = sorted(set(tiers) - set(TIERS))
    if unknown:
        return [f"unknown tier {', '.join(unknown)} (known: {', '.join(TIERS)})"]
    preferred, fallback, least = {**TIERS, **tiers}.values()
    if not 0.0 <= least <= fallback <= preferred <= 1.0:
        given = f"preferred ({preferred:g}), fallback ({fallback:g}) and least ({least:g})"
        return [f"{given} must go down within 0 to 1"]
    return []


def spend_faults(caps: Mapping[str, float]) -> list[str]:
    """What is wrong with these caps, in sentences; empty if nothing is."""
    unknown = sorted(set(caps) - set(SPEND_CAPS))
    if unknown:
        return [f"unknown cap {', '.join(unknown)} (known: {', '.join(SPEND_CAPS)})"]
    return [
        f"{name} must be 0 to {SPEND_MAX_USD:g} USD"
        for name, usd in caps.items()
        if not 0.0 <= usd <= SPEND_MAX_USD
    ]


def fallback_faults(names: Sequence[str]) -> list[str]:
    """What is wrong with these names of capabilities, in sentences; empty if nothing is."""
    wrong = [f"{name[:80]!r} is not a valid name" for name in names if not is_name(name)]
    too_many = [f"at most {FALLBACKS_MAX} capabilities"] if len(names) > FALLBACKS_MAX else []
    return wrong + too_many
