"""What `delegate` takes and gives, as values and as JSON."""

import math
from typing import Any, NotRequired, TypedDict

import msgspec

from meshd.errors import PeerError, UsageError
from meshd.model import check_name, is_name
from meshd.priority import PRIORITY_DEFAULT, PRIORITY_MAX, PRIORITY_MIN
from meshd.routing.limits import RETRIES_MAX
from meshd.routing.settings import FALLBACKS_MAX, HOPS_MAX
from meshd.routing.terms import NO_TERMS, Terms, parse_terms
from meshd.routing.versions import version_fault

ID_DIGITS = 16
TAGS_MAX = 16
KEY_CHARS_MAX = 128
DEADLINE_MS_MAX = 86_400_000
TOOK_MS_MAX = 1e12
"""What a peer says that work took is no more; JSON has integers that no float holds."""
_HEX = frozenset("0123456789abcdef")


class DelegateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of work to be done by whoever does it best.

    `deadline_s` is the time left, None for the node's default; `to` pins a node by name or id;
    `hops` are the ids of nodes that passed this work on before, oldest first. `fallback` names
    capabilities to try with the same input where nobody can do the first, can be reached or has
    room in time; `is_queued` waits, until the deadline, for somebody who does; `offers` asks so
    many candidates for a bid first.

    The last three are this node's own affair and come from no caller. Not `is_patient`, it hears at
    once that all are busy; `is_repeat` is a later try of work that was counted as a call before;
    `only_joins` begins nothing: who knows no run under its key refuses.
    """

    capability: str
    input: Any = None
    version: str = ""
    tags: tuple[str, ...] = ()
    policy: str = ""
    to: str = ""
    deadline_s: float | None = None
    explain: bool = False
    hops: tuple[str, ...] = ()
    idempotency_key: str = ""
    priority: int = PRIORITY_DEFAULT
    fallback: tuple[str, ...] = ()
    is_queued: bool = False
    offers: int = 0
    trace: Any = None
    terms: Terms | None = None
    affinity: str = ""
    caller: str = ""
    is_patient: bool = True
    is_repeat: bool = False
    only_joins: bool = False

    @property
    def policy_asked(self) -> str:
        """The policy that the caller names or means; empty for the node's default."""
        if self.to:
            return "pinned"
        is_graded = self.terms is not None and self.terms.difficulty is not None
        return self.policy or ("sticky" if self.affinity else "skill" if is_graded else "")


class DelegatedTo(TypedDict):
    """Who did it. `cpu` and `mem` in percent, `latency_ms` the round trip; None if unknown."""

    agent: str
    node: str
    cpu: float | None
    mem: float | None
    latency_ms: float | None
    url: str


class PeerResult(TypedDict):
    """What it answered."""

    agent: str
    node: str
    result: Any
    rpc_latency_ms: float


class Attempt(TypedDict):
    """One try. `outcome`: ok, busy, error, deadline or lost."""

    node: str
    name: str
    outcome: str
    latency_ms: float
    error: NotRequired[str]


class DelegateResult(TypedDict):
    """The answer of `delegate`; with what it cost if it is not free, and units if told."""

    delegated_to: DelegatedTo
    peer_result: PeerResult
    rpc_latency_ms: float
    attempts: list[Attempt]
    cost_usd: NotRequired[float]
    units: NotRequired[float]
    explain: NotRequired[dict[str, Any]]


class _Params(msgspec.Struct, forbid_unknown_fields=True):
    capability: str = ""
    need: str | dict[str, Any] = ""
    input: Any = None
    version: str = ""
    tags: tuple[str, ...] = ()
    policy: str = ""
    to: str = ""
    deadline_ms: float | None = None
    explain: bool = False
    hops: tuple[str, ...] = ()
    idempotency_key: str = ""
    priority: int = PRIORITY_DEFAULT
    fallback: tuple[str, ...] = ()
    wait: bool = False
    offers: int = 0
    trace: Any = None
    region: str = ""
    labels: dict[str, str] = {}
    where: str | tuple[str, ...] = ()
    difficulty: float | None = None
    cost_usd_max: float | None = None
    affinity: str = ""


class _NeedParams(msgspec.Struct, forbid_unknown_fields=True):
    """The parameters that may stand within `need`, too."""

    capability: str
    version: str = ""
    tags: tuple[str, ...] = ()
    region: str = ""
    labels: dict[str, str] = {}
    where: str | tuple[str, ...] = ()
    difficulty: float | None = None


def request_from_params(params: Any) -> DelegateRequest:
    """Check the params of a `delegate` call. The plain `{text}` form is the caller's to expand.

    Raises:
        UsageError: they are not valid; the message says which and why.
    """
    wanted: _Params | _NeedParams
    try:
        wanted = given = msgspec.convert(params, _Params)
        if isinstance(given.need, dict):
            wanted = msgspec.convert(given.need, _NeedParams)
        elif given.need and not given.capability:
            wanted = msgspec.structs.replace(given, capability=given.need)
    except msgspec.ValidationError as error:
        raise UsageError(f"delegate: {error}", hint="see the params of delegate") from error
    terms = NO_TERMS
    faults: list[str] = []
    asks_more = wanted.region or wanted.labels or wanted.where or wanted.difficulty is not None
    if asks_more or given.cost_usd_max is not None:
        terms, faults = parse_terms(
            region=wanted.region,
            labels=wanted.labels,
            where=_texts(wanted.where),
            difficulty=wanted.difficulty,
            cost_usd_max=given.cost_usd_max,
        )
    _check(given, wanted, faults)
    return DelegateRequest(
        capability=wanted.capability,
        input=given.input,
        version=wanted.version,
        tags=wanted.tags,
        policy=given.policy,
        to=given.to,
        deadline_s=None if given.deadline_ms is None else given.deadline_ms / 1000.0,
        explain=given.explain,
        hops=given.hops,
        idempotency_key=given.idempotency_key,
        priority=given.priority,
        fallback=given.fallback,
        is_queued=given.wait,
        offers=given.offers,
        trace=given.trace,
        terms=None if terms == NO_TERMS else terms,
        affinity=given.affinity,
    )


def choices_of(request: DelegateRequest) -> dict[str, Any]:
    """The parameters that this request came from, but for capability, input and deadline."""
    terms = request.terms or NO_TERMS
    optional = {
        "version": request.version, "tags": list(request.tags), "policy": request.policy,
        "to": request.to, "hops": list(request.hops), "trace": request.trace,
        "idempotency_key": request.idempotency_key, "fallback": list(request.fallback),
        "offers": request.offers, "region": terms.region, "labels": dict(terms.labels),
        "where": [matcher.text for matcher in terms.matchers], "affinity": request.affinity,
    }  # fmt: skip
    given = {name: value for name, value in optional.items() if value}
    bounds = {"difficulty": terms.difficulty, "cost_usd_max": terms.cost_usd_max}
    return {**given, **{name: value for name, value in bounds.items() if value is not None}}


def _check(given: _Params, wanted: _Params | _NeedParams, faults: list[str]) -> None:
    """See that all is within bounds; `faults` were found before.

    Raises:
        UsageError: it is not; the message lists every fault.
    """
    check_name(wanted.capability, "capability")
    if given.to:
        check_name(given.to, "node")
    if wanted.version and version_fault(wanted.version):
        faults.append(version_fault(wanted.version))
    if len(given.affinity) > KEY_CHARS_MAX:
        faults.append(f"affinity is longer than {KEY_CHARS_MAX} characters")
    if given.capability and given.need:
        faults.append("give either capability or need, not both")
    ms = given.deadline_ms
    if ms is not None and not (math.isfinite(ms) and 0.0 < ms <= DEADLINE_MS_MAX):
        faults.append(f"deadline_ms must be above 0 and at most {DEADLINE_MS_MAX}")
    if given.hops and not (len(given.hops) <= HOPS_MAX and all(map(_is_id, given.hops))):
        faults.append(f"hops must be at most {HOPS_MAX} ids of {ID_DIGITS} hex digits")
    if len(wanted.tags) > TAGS_MAX:
        faults.append(f"at most {TAGS_MAX} tags")
    if len(given.idempotency_key) > KEY_CHARS_MAX:
        faults.append(f"idempotency_key is longer than {KEY_CHARS_MAX} characters")
    if not PRIORITY_MIN <= given.priority <= PRIORITY_MAX:
        faults.append(f"priority must be {PRIORITY_MIN} to {PRIORITY_MAX}, the most urgent")
    names = given.fallback
    if names and not (len(names) <= FALLBACKS_MAX and all(map(is_name, names))):
        faults.append(f"fallback must be at most {FALLBACKS_MAX} names of capabilities")
    if not 0 <= given.offers <= 1 + RETRIES_MAX:
        faults.append(f"offers must be 0 to {1 + RETRIES_MAX}")
    if faults:
        raise UsageError("delegate: " + "; ".join(faults), hint="correct these params")


def _texts(given: str | tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(given, str):
        return (given,) if given else ()
    return given


def _is_id(text: str) -> bool:
    return len(text) == ID_DIGITS and _HEX.issuperset(text)


def peer_result(reply: Any) -> PeerResult:
    """The four known fields of a `work` reply.

    Raises:
        PeerError: it is no such reply. The work may have been done: indefinite.
    """
    if type(reply) is dict and "result" in reply:
        agent, node, took = reply.get("agent"), reply.get("node"), reply.get("rpc_latency_ms")
        took_ms = took if isinstance(took, (float, int)) and abs(took) <= TOOK_MS_MAX else None
        if type(agent) is str and type(node) is str and took_ms is not None:
            return {
                "agent": agent, "node": node, "result": reply["result"],
                "rpc_latency_ms": float(took_ms),
            }  # fmt: skip
    raise PeerError(
        "the peer's answer to work is not a valid result",
        hint="it may run another version of meshd; compare `meshd peers`",
        definite=False,
    )
