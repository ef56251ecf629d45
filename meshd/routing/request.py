"""What `delegate` takes and gives, as values and as JSON."""

import math
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

import msgspec

from meshd.errors import PeerError, UsageError
from meshd.model import check_name, is_name
from meshd.priority import PRIORITY_DEFAULT, PRIORITY_MAX, PRIORITY_MIN
from meshd.routing.limits import RETRIES_MAX
from meshd.routing.settings import HOPS_MAX

ID_DIGITS = 16
TAGS_MAX = 16
KEY_CHARS_MAX = 128
FALLBACKS_MAX = 4
DEADLINE_MS_MAX = 86_400_000
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
    is_patient: bool = True
    is_repeat: bool = False
    only_joins: bool = False


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
    """The answer of `delegate`."""

    delegated_to: DelegatedTo
    peer_result: PeerResult
    rpc_latency_ms: float
    attempts: list[Attempt]
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


class _NeedParams(msgspec.Struct, forbid_unknown_fields=True):
    capability: str
    version: str = ""
    tags: tuple[str, ...] = ()


def request_from_params(params: Any) -> DelegateRequest:
    """Check the params of a `delegate` call. The plain `{text}` form is the caller's to expand.

    Raises:
        UsageError: they are not valid; the message says which and why.
    """
    try:
        given = msgspec.convert(params, _Params)
        if isinstance(given.need, dict):
            wanted = msgspec.convert(given.need, _NeedParams)
        else:
            wanted = _NeedParams(given.capability or given.need, given.version, given.tags)
    except msgspec.ValidationError as error:
        raise UsageError(f"delegate: {error}", hint="see the params of delegate") from error
    _check(given, wanted)
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
    )


def _check(given: _Params, wanted: _NeedParams) -> None:
    check_name(wanted.capability, "capability")
    if given.to:
        check_name(given.to, "node")
    faults = []
    if given.capability and given.need:
        faults.append("give either capability or need, not both")
    ms = given.deadline_ms
    if ms is not None and not (math.isfinite(ms) and 0.0 < ms <= DEADLINE_MS_MAX):
        faults.append(f"deadline_ms must be above 0 and at most {DEADLINE_MS_MAX}")
    if len(given.hops) > HOPS_MAX or not all(_is_id(hop) for hop in given.hops):
        faults.append(f"hops must be at most {HOPS_MAX} ids of {ID_DIGITS} hex digits")
    if len(wanted.tags) > TAGS_MAX:
        faults.append(f"at most {TAGS_MAX} tags")
    if len(given.idempotency_key) > KEY_CHARS_MAX:
        faults.append(f"idempotency_key is longer than {KEY_CHARS_MAX} characters")
    if not PRIORITY_MIN <= given.priority <= PRIORITY_MAX:
        faults.append(f"priority must be {PRIORITY_MIN} to {PRIORITY_MAX}, the most urgent")
    if len(given.fallback) > FALLBACKS_MAX or not all(is_name(name) for name in given.fallback):
        faults.append(f"fallback must be at most {FALLBACKS_MAX} names of capabilities")
    if not 0 <= given.offers <= 1 + RETRIES_MAX:
        faults.append(f"offers must be 0 to {1 + RETRIES_MAX}")
    if faults:
        raise UsageError("delegate: " + "; ".join(faults), hint="correct these params")


def _is_id(text: str) -> bool:
    return len(text) == ID_DIGITS and _HEX.issuperset(text)


def peer_result(reply: Any) -> PeerResult:
    """The four known fields of a `work` reply.

    Raises:
        PeerError: it is no such reply. The work may have been done: indefinite.
    """
    if isinstance(reply, Mapping) and "result" in reply:
        agent, node, took = reply.get("agent"), reply.get("node"), reply.get("rpc_latency_ms")
        if isinstance(agent, str) and isinstance(node, str) and isinstance(took, int | float):
            return PeerResult(
                agent=agent, node=node, result=reply["result"], rpc_latency_ms=float(took)
            )
    raise PeerError(
        "the peer's answer to work is not a valid result",
        hint="it may run another version of meshd; compare `meshd peers`",
        definite=False,
    )
