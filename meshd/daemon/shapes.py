"""The JSON that a node answers with: rows and documents, made from frozen values."""

from collections.abc import Sequence
from typing import Any

import msgspec

from meshd.capability.manifest import CapabilitySummary, Manifest
from meshd.clock import Instant, Seconds
from meshd.model import Load
from meshd.routing.breaker import BreakerState, Circuit
from meshd.view import ClusterView, Doubt, Peer

CIRCUITS_SHOWN_MAX = 64
"""Rows of circuits in `status`; the counts are of all."""


def url_of(peer: Peer) -> str:
    """Where a peer takes calls."""
    return f"http://{peer.address}"


def load_shape(load: Load | None) -> dict[str, Any] | None:
    """A load record; fractions 0..1."""
    if load is None:
        return None
    return {
        "cpu": round(load.cpu_fraction, 3),
        "mem": round(load.mem_fraction, 3),
        "in_flight": load.in_flight,
        "queue": load.queue,
        "slots": load.slots,
        "service_s": load.service_s,
        "error": round(load.error_fraction, 3),
        "lag_s": load.lag_s,
        "ready": load.ready,
        "full": load.full,
        "draining": load.draining,
    }


def _ms(seconds: Seconds | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def percent(fraction: float | None) -> float | None:
    """0..1 to 0..100."""
    return None if fraction is None else round(fraction * 100, 1)


def summary_shape(summary: CapabilitySummary) -> dict[str, Any]:
    """What is known of a capability elsewhere."""
    return {
        "name": summary.name,
        "version": summary.version,
        "idempotent": summary.idempotent,
        "agent": summary.agent,
        "description": summary.description,
        "tags": list(summary.tags),
        "cost_usd_per_call": summary.cost_usd_per_call,
        "cost_usd_per_unit": summary.cost_usd_per_unit,
        "proficiency": summary.proficiency,
        "attributes": {name: list(values) for name, values in summary.attributes},
    }


def peer_row(peer: Peer, view: ClusterView, now: Instant) -> dict[str, Any]:
    """One row of `peers`."""
    is_self = peer.node == view.me
    age_s = 0.0 if is_self else peer.age(now)
    error = peer.rtt_estimate_error
    return {
        "id": peer.node.hex(),
        "name": peer.name,
        "name_shared": peer.name in view.clashes,
        "state": peer.state.name.lower(),
        "self": is_self,
        "address": peer.address.host,
        "port": peer.address.port,
        "url": url_of(peer),
        "epoch": peer.epoch,
        "incarnation": peer.incarnation,
        "version": peer.version,
        "region": peer.region,
        "labels": dict(peer.labels),
        "load": load_shape(peer.load),
        "rtt_ms": _ms(peer.rtt_s),
        "rtt_estimate_ms": _ms(peer.rtt_estimate_s),
        "rtt_estimate_error": None if error is None else round(error, 3),
        "age_s": None if age_s is None else round(age_s, 3),
        "stale": view.stale(peer, now),
        "reachable": peer.reachable,
        "doubt": doubt_shape(peer.doubt, now),
        "capabilities": [summary_shape(c) for c in peer.capabilities],
    }


def doubt_shape(doubt: Doubt | None, now: Instant) -> dict[str, Any] | None:
    """How far a doubt has come; None where there is none."""
    if doubt is None:
        return None
    return {
        "confirmations": doubt.confirmations,
        "needed": doubt.needed,
        "since_s": round(max(0.0, now - doubt.since), 3),
        "dead_in_s": round(max(0.0, doubt.deadline - now), 3),
    }


def circuits_shape(
    circuits: Sequence[Circuit], view: ClusterView, *, opened: int
) -> dict[str, Any]:
    """The circuits that are not closed; `opened` is how often any did since the node started."""
    is_open = sum(circuit.state is BreakerState.OPEN for circuit in circuits)
    return {
        "open": is_open,
        "half_open": len(circuits) - is_open,
        "opened": opened,
        "rows": [_circuit(circuit, view) for circuit in circuits[:CIRCUITS_SHOWN_MAX]],
    }


def _circuit(circuit: Circuit, view: ClusterView) -> dict[str, Any]:
    peer = None if circuit.node is None else view.get(circuit.node)
    return {
        "capability": circuit.capability,
        "node": None if circuit.node is None else circuit.node.hex(),
        "name": None if peer is None else peer.name,
        "state": circuit.state.value,
        "why": circuit.why,
        "left_s": round(circuit.left_s, 3),
        "repeats": circuit.repeats,
    }


def holder(peer: Peer, view: ClusterView) -> dict[str, Any]:
    """Who offers a capability."""
    return {
        "node": peer.node.hex(),
        "name": peer.name,
        "state": peer.state.name.lower(),
        "local": peer.node == view.me,
    }


def manifest_shape(manifest: Manifest) -> dict[str, Any]:
    """A manifest as JSON."""
    shape: dict[str, Any] = msgspec.to_builtins(manifest)
    return shape
