"""The errors of plans that have nobody to ask: who was considered, and what stands in the way."""

import difflib
import math
from typing import Any

from meshd.clock import Instant
from meshd.errors import BudgetError, Code, MeshError, NoCandidateError, PeerError
from meshd.routing.breaker import BreakerState, Circuit
from meshd.routing.filters import Reason
from meshd.routing.request import DelegateRequest
from meshd.routing.router import THE_CALL, Plan
from meshd.routing.settings import RoutingSettings
from meshd.routing.spend import Ledger
from meshd.routing.terms import Terms
from meshd.view import ClusterView

NAMES_SHOWN = 4
NAMES_COMPARED = 2_000


def why_nobody(
    made: Plan,
    view: ClusterView,
    request: DelegateRequest,
    settings: RoutingSettings,
    ledger: Ledger,
    now: Instant,
) -> MeshError:
    """The error for a plan without attempts; where a cap leaves too little, that says so."""
    error = nobody(made, view)
    if error.code != Code.OVER_BUDGET:
        return error
    if error.data["cost_usd_max"] < least_bound_usd(request.terms, settings):
        asked_usd = error.data["cheapest_usd"]
        refusal = ledger.refusal(request.caller, request.capability, asked_usd, now)
        return refusal or error
    return with_source(error, request.terms, settings)


def nobody(made: Plan, view: ClusterView) -> PeerError:
    """The error for a plan without attempts: whom we considered, and names that are near.

    Where only nodes that passed this work on could take it, that is a cycle: waiting is of no use.
    """
    need = made.need
    if made.circuit is not None:
        return _refused(made.circuit)
    by_reason: dict[Reason, list[str]] = {}
    by_why: dict[str, list[str]] = {}
    for rejection in made.rejected:
        by_reason.setdefault(rejection.reason, []).append(rejection.name)
        if rejection.reason is not Reason.NOT_OFFERED:
            by_why.setdefault(rejection.why, []).append(rejection.name)
    offering = [r for r in by_reason if r is not Reason.NOT_OFFERED]
    parts = [f"{_names(names)}: {why}" for why, names in by_why.items()]
    if not offering:
        parts.append(f"none of {len(made.rejected)} nodes offers it")
    near = _similar(need.capability, view)
    if near:
        parts.append(f"similar: {', '.join(near)}")
    data = {"left_out": {str(r): len(names) for r, names in by_reason.items()}}
    if set(offering) - {Reason.NOT_PINNED} == {Reason.VISITED}:
        message = f"{need.capability!r} would go in a circle"
        return PeerError(message, hint="; ".join(parts), code=Code.CYCLE, data=data)
    if set(by_reason) == {Reason.NOT_PINNED}:
        known = _names(by_reason[Reason.NOT_PINNED])
        message = f"no node is called {need.pinned!r}"
        return NoCandidateError(message, hint=f"known nodes: {known}", data=data)
    if Reason.TOO_EXPENSIVE in offering and set(offering) <= _LASTING:
        return _too_expensive(made, view, "; ".join(parts), data)
    return NoCandidateError(
        f"nobody can take {need.capability!r} now",
        hint="; ".join(parts),
        data=data,
    )


_LASTING = frozenset({
    Reason.NOT_PINNED, Reason.VERSION, Reason.TAGS, Reason.REGION, Reason.LABELS, Reason.SCOPE,
    Reason.TOO_HARD, Reason.TOO_EXPENSIVE, Reason.NOT_IDEMPOTENT, Reason.TRIED, Reason.VISITED,
    Reason.DEAD, Reason.LEFT,
})  # fmt: skip
"""Reasons that leave the price as what is in the way: waiting for the others is of no use."""


def _too_expensive(made: Plan, view: ClusterView, hint: str, data: dict[str, Any]) -> BudgetError:
    """The error where somebody would, for more than the call may cost."""
    need, terms = made.need, made.need.terms
    assert terms is not None, "the terms say what it may cost"
    left_out = (r.node for r in made.rejected if r.reason is Reason.TOO_EXPENSIVE)
    offers = ((node, view.by_node[node].offers(need.capability)) for node in left_out)
    cheapest_usd = min(terms.expected_usd(node, offer) for node, offer in offers if offer)
    return BudgetError(
        f"nobody takes {need.capability!r} for at most ${terms.cost_usd_max:g}",
        hint=f"the cheapest asks ${cheapest_usd:g}; {hint}",
        data={**data, "cost_usd_max": terms.cost_usd_max, "cheapest_usd": cheapest_usd},
    )


def least_bound_usd(terms: Terms | None, settings: RoutingSettings) -> float:
    """What a call may cost by its own terms and by settings, whatever is left to spend."""
    return min(_own_bound_usd(terms), settings.cost_usd_max)


def with_source(error: MeshError, terms: Terms | None, settings: RoutingSettings) -> MeshError:
    """An error about the price, that says whose bound it is: the call's own or that of settings.

    Args:
        error: is changed.
        terms: that the call itself asks for.
        settings: what holds for its capability.
    """
    is_own = _own_bound_usd(terms) <= settings.cost_usd_max
    error.data["bound_from"] = THE_CALL if is_own else settings.source
    if not is_own:
        error.message += f", the cost_usd_max of this node's settings ({settings.source})"
    return error


def _own_bound_usd(terms: Terms | None) -> float:
    return math.inf if terms is None or terms.cost_usd_max is None else terms.cost_usd_max


def _refused(circuit: Circuit) -> PeerError:
    left_s = circuit.left_s
    is_tried = circuit.state is BreakerState.HALF_OPEN
    when = f"{'by one call now, and else ' if is_tried else ''}again in {left_s:.3g} s"
    return PeerError(
        f"{circuit.capability!r} is not called while it fails everywhere: {circuit}",
        hint=f"it is tried {when}; till then give a fallback, name a node, or wait",
        code=Code.CIRCUIT_OPEN,
        data={"retry_after_s": round(left_s, 3)},
    )


def _names(names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:NAMES_SHOWN])
    more = len(names) - NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _similar(capability: str, view: ClusterView) -> list[str]:
    """Other capability names in the view that are spelt nearly like this one."""
    names: dict[str, None] = {}
    for peer in view.by_node.values():
        for offered in peer.capabilities:
            if offered.name != capability and len(names) < NAMES_COMPARED:
                names[offered.name] = None
    return difflib.get_close_matches(capability[:64], names, n=3)
