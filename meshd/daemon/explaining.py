"""The JSON of `explain`: why a member is believed to be what it is, with names in place of ids."""

from typing import Any

from meshd.clock import Instant, Seconds
from meshd.daemon.shapes import doubt_shape
from meshd.gossip.explanation import Explanation, PastEvent, Probed
from meshd.model import MemberState, NodeId
from meshd.view import ClusterView, Doubt


def explain_shape(
    found: Explanation, view: ClusterView, now: Instant, wall_ms: int
) -> dict[str, Any]:
    """What `explain` answers.

    Args:
        found: what the core says.
        view: gives names to ids.
        now: the present, of which all ages are told.
        wall_ms: the same by the clock on the wall.
    """
    return {
        "schema": "meshd.explain/2",
        "node": found.node.hex(),
        "name": _name(found.node, view),
        "state": found.state.name.lower(),
        "epoch": found.epoch,
        "incarnation": found.incarnation,
        "history": [_event(event, view, now, wall_ms) for event in found.events],
        "doubt": None if found.doubt is None else _doubt(found.doubt, view, now),
        "evidence": {
            "heard_s": _since(found.heard_at, now),
            "probe": None if found.probed is None else _probe(found.probed, now),
            "reachable": found.is_reachable,
            "lag_s": round(found.lag_s, 3),
            "gone_s": _since(found.gone_at, now),
            "sponsor": _maybe_who(found.sponsor, view),
            "forgotten_in_s": _until(found.forgotten_at, now),
        },
        "observer": {
            **_who(view.me, view),
            "health_score": found.health,
            "health_max": found.health_max,
            "lag_s": round(found.own_lag_s, 3),
        },
    }


def _name(node: NodeId, view: ClusterView) -> str | None:
    """What a node is called, if that is known."""
    peer = view.get(node)
    return None if peer is None or peer.name == node.hex() else peer.name


def _who(node: NodeId, view: ClusterView) -> dict[str, Any]:
    return {"id": node.hex(), "name": _name(node, view)}


def _maybe_who(node: NodeId | None, view: ClusterView) -> dict[str, Any] | None:
    return None if node is None else _who(node, view)


def _since(at: Instant | None, now: Instant) -> Seconds | None:
    return None if at is None else round(max(0.0, now - at), 3)


def _until(at: Instant | None, now: Instant) -> Seconds | None:
    return None if at is None else round(max(0.0, at - now), 3)


def _event(event: PastEvent, view: ClusterView, now: Instant, wall_ms: int) -> dict[str, Any]:
    # Whoever is named with somebody alive answers for it; with a doubt, it is whose probe failed.
    is_alive = event.state is MemberState.ALIVE
    named = _maybe_who(event.accuser, view)
    return {
        "ago_s": _since(event.at, now),
        "wall_ms": wall_ms - round((now - event.at) * 1_000),
        "state": event.state.name.lower(),
        "incarnation": event.incarnation,
        "reason": event.reason,
        "accuser": None if is_alive else named,
        "sponsor": named if is_alive else None,
        "teller": _maybe_who(event.teller, view),
    }


def _doubt(doubt: Doubt, view: ClusterView, now: Instant) -> dict[str, Any]:
    return {
        **(doubt_shape(doubt, now) or {}),
        "accusers": [_who(node, view) for node in doubt.accusers],
        "retracted": [_who(node, view) for node in doubt.retracted],
        "t_min_s": round(doubt.shortest_s, 3),
        "t_max_s": round(doubt.longest_s, 3),
        "lag_s": round(doubt.lag_s, 3),
        "crowd": doubt.is_crowd,
        "last_call": doubt.is_last_called,
    }


def _probe(probed: Probed, now: Instant) -> dict[str, Any]:
    rtt_s = probed.rtt_s
    return {
        "ago_s": _since(probed.at, now),
        "result": probed.result,
        "rtt_ms": None if rtt_s is None else round(rtt_s * 1_000, 3),
    }
