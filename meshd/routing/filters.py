"""The first stage of routing: who may be asked at all, and why the others may not."""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

import msgspec

from meshd.capability.manifest import CapabilitySummary
from meshd.clock import Instant
from meshd.model import Load, MemberState, NodeId
from meshd.routing.need import Need
from meshd.routing.terms import (
    Terms,
    fails_condition,
    is_too_expensive,
    lacks_label,
    lacks_region,
)
from meshd.routing.versions import version_matches
from meshd.view import ClusterView, Peer


class Reason(StrEnum):
    """Why a peer is left out, as people read it after its name."""

    NOT_PINNED = "is not the node asked for"
    NOT_OFFERED = "does not offer it"
    VERSION = "offers another version"
    TAGS = "lacks a wanted tag"
    REGION = "is in another region"
    LABELS = "lacks a wanted label"
    SCOPE = "does not meet a condition"
    TOO_HARD = "is not proficient enough"
    TOO_EXPENSIVE = "is too expensive"
    UNRELIABLE = "fails too often"
    NOT_IDEMPOTENT = "does not say that the work may run twice"
    TRIED = "was already tried in this call"
    VISITED = "already passed this work on"
    SUSPECT = "is suspected dead"
    DEAD = "is dead"
    LEFT = "has left"
    UNREACHABLE = "did not answer the last probe"
    STALE = "was not heard of for too long"
    DRAINING = "is draining"
    NOT_READY = "is not ready"
    FULL = "is full"
    EJECTED = "is ejected"
    CIRCUIT = "is not asked while it fails everywhere"


class Rejection(msgspec.Struct, frozen=True):
    """A peer that was left out; `detail`, by its `str()`, says more where the reason is not all."""

    node: NodeId
    name: str
    reason: Reason
    detail: Any = ""

    @property
    def why(self) -> str:
        """The reason with its detail."""
        return f"{self.reason}: {self.detail}" if self.detail else str(self.reason)


IsWanted = Callable[[Peer], bool]

Reports = Mapping[NodeId, tuple[Load, Instant]]
"""Load that arrived with replies, and when; the view's own record counts where it is newer."""

_BY_STATE = {
    MemberState.SUSPECT: Reason.SUSPECT,
    MemberState.DEAD: Reason.DEAD,
    MemberState.LEFT: Reason.LEFT,
}


def eligible(
    view: ClusterView, need: Need, now: Instant, *, reports: Reports | None = None
) -> tuple[list[Peer], list[Rejection]]:
    """Split the view into peers that may serve `need` and those that may not.

    Every peer of the view is in exactly one of the two, in the view's order of arrival. This node
    itself is a candidate like any other, whatever the mesh believes about it.
    """
    candidates: list[Peer] = []
    rejected: list[Rejection] = []
    known = reports or {}
    for peer in view.by_node.values():
        reason = _unsuitable(view, need, peer) or _unavailable(view, peer, now, known)
        if reason is None:
            candidates.append(peer)
        else:
            detail = _detail(reason, need, peer)
            rejected.append(Rejection(peer.node, peer.name, reason, detail))
    return candidates, rejected


def why_not_now(
    view: ClusterView, need: Need, peer: Peer, now: Instant, reports: Reports
) -> Reason | None:
    """Why a peer of an earlier view may not serve the need by what is believed now, if so.

    Who was started anew meanwhile is another run, with another address and other circuits.
    """
    held = view.get(peer.node)
    if held is None or held.epoch != peer.epoch:
        return Reason.STALE
    return reason_against(view, need, held, now, reports)


def may_serve(view: ClusterView, need: Need, now: Instant, reports: Reports) -> IsWanted:
    """Whether a peer that offers the capability may serve the need now, as `eligible` has it."""
    if need.is_bare:
        return lambda peer: _unavailable(view, peer, now, reports) is None
    return lambda peer: reason_against(view, need, peer, now, reports) is None


def reason_against(
    view: ClusterView, need: Need, peer: Peer, now: Instant, reports: Reports
) -> Reason | None:
    """Why one peer may not serve `need` now, as `eligible` has it; None if it may."""
    return _unsuitable(view, need, peer) or _unavailable(view, peer, now, reports)


def _unsuitable(view: ClusterView, need: Need, peer: Peer) -> Reason | None:
    """Why this peer cannot serve the need at any time."""
    node = peer.node
    if need.pinned and peer.name != need.pinned and node.hex() != need.pinned:
        return Reason.NOT_PINNED
    for offered in peer.capabilities:
        if offered.name == need.capability:
            break
    else:
        return Reason.NOT_OFFERED
    if need.version or need.tags or need.is_idempotent:
        reason = _mismatch(offered, need)
        if reason is not None:
            return reason
    if need.terms is not None:
        reason = _refused(need.terms, peer, offered)
        if reason is not None:
            return reason
    if need.tried and node in need.tried:
        return Reason.TRIED
    if need.hops and node.hex() in need.hops:
        here = node == view.me and need.hops[-1] == node.hex()
        return None if here else Reason.VISITED
    return None


def _mismatch(offered: CapabilitySummary, need: Need) -> Reason | None:
    if not version_matches(offered.version, need.version):
        return Reason.VERSION
    if not set(need.tags) <= set(offered.tags):
        return Reason.TAGS
    return Reason.NOT_IDEMPOTENT if need.is_idempotent and not offered.idempotent else None


def _refused(terms: Terms, peer: Peer, offered: CapabilitySummary) -> Reason | None:
    """Which of the terms the peer or its offer does not meet."""
    # What is not asked for is not looked at: this runs for every peer in every plan.
    if terms.region and lacks_region(terms, peer):
        return Reason.REGION
    if terms.labels and lacks_label(terms, peer):
        return Reason.LABELS
    if terms.matchers and fails_condition(terms, peer, offered):
        return Reason.SCOPE
    if terms.difficulty is not None and offered.proficiency < terms.difficulty:
        return Reason.TOO_HARD
    if terms.cost_usd_max is not None and is_too_expensive(terms, peer, offered):
        return Reason.TOO_EXPENSIVE
    return None


def _detail(reason: Reason, need: Need, peer: Peer) -> str:
    """What was asked for and is lacking, in the words of who asked."""
    if reason is Reason.VERSION:
        return f"not {need.version}"
    terms = need.terms
    offered = None if terms is None else peer.offers(need.capability)
    if terms is None or offered is None:
        return ""
    match reason:
        case Reason.REGION:
            return f"not {terms.region}"
        case Reason.LABELS:
            return lacks_label(terms, peer)
        case Reason.SCOPE:
            return fails_condition(terms, peer, offered)
        case Reason.TOO_HARD:
            return f"less than {terms.difficulty:g}"
        case Reason.TOO_EXPENSIVE:
            return f"more than ${terms.cost_usd_max:g}"
        case _:
            return ""


def _unavailable(view: ClusterView, peer: Peer, now: Instant, reports: Reports) -> Reason | None:
    """Why this peer cannot serve anything just now."""
    node = peer.node
    if node != view.me:
        if peer.state is not MemberState.ALIVE:
            return _BY_STATE[peer.state]
        if not peer.reachable:
            return Reason.UNREACHABLE
        heard_at = peer.heard_at
        if heard_at is None or now - heard_at > view.stale_after_s:
            return Reason.STALE
    load = peer.load
    report = reports.get(node)
    if report is not None and (peer.load_at is None or report[1] >= peer.load_at):
        load = report[0]
    if load is None:
        return None
    if load.draining:
        return Reason.DRAINING
    if not load.ready:
        return Reason.NOT_READY
    return Reason.FULL if load.full else None
