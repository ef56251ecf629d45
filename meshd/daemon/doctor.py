"""`meshd doctor`: looks at everything that commonly goes wrong, and says how to mend it."""

import asyncio
import shutil
from typing import TYPE_CHECKING, Any

from meshd.daemon.naming import clash_notes
from meshd.discovery.address import is_loopback
from meshd.discovery.base import SourceState
from meshd.errors import MeshError
from meshd.gossip.dialects import Versions
from meshd.model import MemberState
from meshd.view import Peer

if TYPE_CHECKING:
    from meshd.daemon.node import Node

PEERS_CHECKED_MAX = 32
CALL_TIMEOUT_S = 2.0
SKEW_WARNING_S = 5.0
LAG_WARNING_S = 0.5
FOREIGN_TOLD_S = 300.0
"""How long a node of another protocol version is worth a warning after it was last noticed."""
DISK_FREE_BYTES_MIN = 16 * 1024 * 1024

Check = dict[str, Any]


def _check(name: str, status: str, detail: str, fix: str = "") -> Check:
    return {"name": name, "status": status, "detail": detail, "fix": fix}


async def diagnose(node: "Node", *, deep: bool) -> list[Check]:
    """All checks in their order; `deep` also calls every peer (up to 32)."""
    checks = [
        _loop(node),
        *_sources(node),
        _members(node),
        *_datagrams(node),
        *_names(node),
        _address(node),
        _versions(node),
        _disk(node),
        _key(),
        *_capabilities(node),
    ]
    if deep:
        checks += await _peers(node)
    return checks


def _loop(node: "Node") -> Check:
    lag_s = max(node.own_load.lag_s, node.gossip.lag_s)
    if lag_s > LAG_WARNING_S:
        fix = "find what blocks: a handler that computes in async def, or too little CPU"
        return _check("loop", "warning", f"timers run {lag_s:.2f} s late", fix)
    return _check("loop", "ok", f"timers run {lag_s * 1000:.0f} ms late")


def _sources(node: "Node") -> list[Check]:
    statuses = node.finding.statuses()
    finding = any(s.state is SourceState.OK for s in statuses)
    fix = "nodes can also be named: meshd start --join HOST, or a --peers-file"
    checks = []
    for status in statuses:
        if status.state is SourceState.FAILED:
            bad = "warning" if finding else "error"
            checks.append(_check(status.source, bad, status.detail, fix))
        elif status.state is SourceState.LIMITED:
            checks.append(_check(status.source, "warning", status.detail, fix))
        else:
            detail = status.detail or status.state.value
            checks.append(_check(status.source, "ok", detail))
    return checks


def _members(node: "Node") -> Check:
    view = node.view()
    others = [p for p in view.peers if p.node != view.me]
    alive = [p for p in others if p.state is MemberState.ALIVE]
    if node.is_leaving:
        return _check("members", "warning", "this node has left the mesh", "meshd join HOST")
    if not others:
        fix = "start meshd elsewhere with the same --mesh, or join one: meshd join HOST"
        return _check("members", "warning", "no other node is known", fix)
    silent = [p.name for p in others if p.state in {MemberState.SUSPECT, MemberState.DEAD}]
    detail = f"{len(alive)} of {len(others)} others are alive"
    if silent:
        fix = f"why: meshd info {silent[0]}; is UDP {node.address.port} open there and here?"
        return _check("members", "warning", f"{detail}; silent: {', '.join(silent[:5])}", fix)
    return _check("members", "ok", detail)


def _datagrams(node: "Node") -> list[Check]:
    """Peers that take calls while no datagram comes back from them."""
    blocked = only_by_stream(node)
    if not blocked:
        return []
    detail = f"one-way or blocked UDP: {', '.join(blocked[:5])} answer calls but no datagrams"
    fix = f"open UDP {node.address.port} in both directions, there and here"
    return [_check("udp", "warning", detail, fix)]


def _names(node: "Node") -> list[Check]:
    """Names that several nodes bear."""
    fix = "give each its own: meshd start --name; until then say the id"
    return [_check("names", "warning", note, fix) for note in clash_notes(node.view())]


def only_by_stream(node: "Node") -> list[str]:
    """The names of peers that answer calls, but no datagrams."""
    peers = (node.view().get(each) for each in node.gossip.only_by_stream())
    return sorted(peer.name for peer in peers if peer is not None)


def _address(node: "Node") -> Check:
    others = [p for p in node.view().peers if p.node != node.node_id]
    if is_loopback(node.address.host) and any(not is_loopback(p.address.host) for p in others):
        fix = "start it with --advertise ADDR, an address of this machine that others reach"
        return _check("address", "error", f"others are told {node.address}", fix)
    bound = node.gossip.bound.host
    apart = [p for p in others if p.state is not MemberState.LEFT and not _hears(bound, p)]
    if apart:
        fix = f"bind all nodes to both families: --bind [::]:{node.address.port} (or --advertise)"
        detail = f"bound to {bound}, this node cannot reach {apart[0].name} at {apart[0].address}"
        return _check("address", "error", detail, fix)
    return _check("address", "ok", f"others are told {node.address}")


def _hears(bound: str, peer: Peer) -> bool:
    """Whether a socket bound there speaks the peer's IP version; the IPv6 wildcard speaks both."""
    return bound == "::" or (":" in bound) == (":" in peer.address.host)


def _versions(node: "Node") -> Check:
    for address, (speaks, at) in list(node.foreign.items()):
        if node.clock.now() - at >= FOREIGN_TOLD_S:
            continue
        detail = f"{address} speaks protocol version {speaks}, this node {Versions()}"
        fix = "upgrade the older of the two; neighbouring versions of meshd share one"
        return _check("versions", "warning", detail, fix)
    return _check("versions", "ok", f"protocol version {Versions()}")


def _disk(node: "Node") -> Check:
    if node.state.problem:
        return _check("state", "warning", node.state.problem, f"look at {node.state.path}")
    try:
        free = shutil.disk_usage(node.state.path).free
    except OSError as error:
        return _check("state", "warning", f"{node.state.path}: {error.strerror}")
    if free < DISK_FREE_BYTES_MIN:
        fix = "free some space: without it a restart forgets peers and must rejoin by seeds"
        return _check("state", "warning", f"{node.state.path} has {free >> 20} MiB left", fix)
    return _check("state", "ok", str(node.state.path))


def _key() -> Check:
    fix = "run it on networks that you trust"
    return _check("key", "warning", "the mesh is open: who reaches this port can join", fix)


def _capabilities(node: "Node") -> list[Check]:
    manifests = node.worker.manifests()
    if not manifests:
        fix = "meshd start --capability FILE.toml|module:object, or attach a program"
        return [_check("capabilities", "ok", "this node offers none; it can still delegate", fix)]
    return [_check("capabilities", "ok", ", ".join(m.name for m in manifests[:20]))]


async def _peers(node: "Node") -> list[Check]:
    view = node.view()
    alive = [p for p in view.in_state(MemberState.ALIVE) if p.node != view.me]
    return list(await asyncio.gather(*(_peer(node, p) for p in alive[:PEERS_CHECKED_MAX])))


async def _peer(node: "Node", peer: Peer) -> Check:
    began = node.clock.now()
    try:
        answer = await node.client.invoke(peer.address, "ping", {}, timeout_s=CALL_TIMEOUT_S)
    except MeshError as error:
        fix = f"open TCP {peer.address.port} there: sudo ufw allow {peer.address.port}"
        return _check(peer.name, "error", f"gossips, but takes no calls: {error.message}", fix)
    took_s = node.clock.now() - began
    wall_ms = answer.get("wall_ms") if isinstance(answer, dict) else None
    if not isinstance(wall_ms, int):
        return _check(peer.name, "warning", "answers, but not as meshd does")
    skew_s = abs(wall_ms - node.clock.wall_ms()) / 1_000
    if skew_s > SKEW_WARNING_S + took_s:
        fix = "let both clocks follow NTP: timedatectl set-ntp true"
        return _check(peer.name, "warning", f"its clock is {skew_s:.0f} s off", fix)
    return _check(peer.name, "ok", f"answers calls in {took_s * 1000:.1f} ms")
