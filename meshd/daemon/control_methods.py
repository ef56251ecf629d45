"""The methods of the control socket alone: they steer the daemon, and never leave the machine."""

import asyncio
import os
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from meshd.daemon.doctor import diagnose, only_by_stream
from meshd.daemon.explaining import explain_shape
from meshd.daemon.naming import clash_notes, the_one
from meshd.daemon.params import Nothing
from meshd.daemon.shapes import circuits_shape
from meshd.discovery.address import parse_seed
from meshd.discovery.base import SourceState
from meshd.errors import MeshError, NoCandidateError, UsageError
from meshd.model import Address, MemberState, NodeId
from meshd.routing.decisions import DECISIONS_KEPT
from meshd.routing.spend import spend_shape
from meshd.rpc.methods import CallContext, Registry
from meshd.version import __version__
from meshd.view import ClusterView, Peer

if TYPE_CHECKING:
    from meshd.daemon.node import Node

PROBES_MAX = 1_000
PROBE_TIMEOUT_S = 2.0
JOIN_WAIT_S = 2.0
LAG_PROBLEM_S = 1.0


class ExplainParams(msgspec.Struct, forbid_unknown_fields=True):
    """`explain`: why `node` (name or id) is believed to be what it is."""

    node: str


class DecisionsParams(msgspec.Struct, forbid_unknown_fields=True):
    """`decisions`: the newest `last`, of one capability if it is named."""

    last: Annotated[int, msgspec.Meta(ge=1, le=DECISIONS_KEPT)] = 10
    capability: str = ""


class JoinParams(msgspec.Struct, forbid_unknown_fields=True):
    """`join`: seeds, `host[:port]` each."""

    addresses: list[str]


class LeaveParams(msgspec.Struct, forbid_unknown_fields=True):
    """`leave`: how long running tasks may take."""

    drain_s: float | None = None


class StopParams(msgspec.Struct, forbid_unknown_fields=True):
    """`stop`: as `leave`, or `now`."""

    drain_s: float | None = None
    now: bool = False


class DoctorParams(msgspec.Struct, forbid_unknown_fields=True):
    """`doctor`: `deep` runs the slower checks too."""

    deep: bool = False


class ProbeParams(msgspec.Struct, forbid_unknown_fields=True):
    """`probe`: ask a node `count` times, `interval_s` seconds apart."""

    node: str
    count: int = 1
    interval_s: float = 0.2
    via: str = "rpc"


class ControlMethods:
    """What a node answers to people and programs of its own machine."""

    def __init__(self, node: "Node") -> None:
        self._node = node

    def register(self, registry: Registry) -> None:
        """Serve all of them, on the control socket alone."""
        for name, params, handler in (
            ("status", Nothing, self._status),
            ("explain", ExplainParams, self._explain),
            ("decisions", DecisionsParams, self._decisions),
            ("join", JoinParams, self._join),
            ("leave", LeaveParams, self._leave),
            ("stop", StopParams, self._stop),
            ("reload", Nothing, self._reload),
            ("doctor", DoctorParams, self._doctor),
            ("probe", ProbeParams, self._probe),
            ("spend", Nothing, self._spend),
        ):
            registry.add(name, params, handler, control=True)

    async def _status(self, params: Nothing, context: CallContext) -> dict[str, Any]:
        del params, context
        node = self._node
        view, work, counters = node.view(), node.worker.load(), node.worker.counters
        members = {state.name.lower(): 0 for state in MemberState}
        for peer in view.peers:
            members[peer.state.name.lower()] += 1
        problems = self._problems()
        breakers = node.dispatcher.breakers
        return {
            "schema": "meshd.status/1",
            "healthy": not problems,
            "name": node.name,
            "id": view.me.hex(),
            "mesh": node.mesh,
            "version": __version__,
            "pid": os.getpid(),
            "address": str(node.address),
            "socket": node.control_path,
            "state_dir": str(node.state.path),
            "uptime_s": round(node.clock.now() - node.started_at, 3),
            "profile": node.config.node.profile,
            "drain_s": node.config.node.drain_s,
            "members": members,
            "tasks": {
                "in_flight": work.in_flight,
                "queue": work.queue,
                "done": counters.done,
                "failed": counters.failed,
                "refused": counters.refused,
            },
            "circuits": circuits_shape(
                breakers.shown(view, node.clock.now()), view, opened=breakers.opened
            ),
            "gossip": dict(node.gossip.counters()),
            "discovery": [
                {"source": s.source, "state": s.state.value, "detail": s.detail}
                for s in node.finding.statuses()
            ],
            "loop_lag_s": round(node.own_load.lag_s, 3),
            "problems": problems,
        }

    def _problems(self) -> list[str]:
        node = self._node
        problems = list(node.problems.values())
        if node.is_leaving:
            done = "is leaving" if node.worker.load().in_flight else "has left"
            problems.append(f"this node {done} the mesh; come back with: meshd join HOST")
        if node.state.problem:
            problems.append(node.state.problem)
        if node.own_load.lag_s > LAG_PROBLEM_S:
            problems.append(f"the main loop was blocked for {node.own_load.lag_s:.1f} s")
        problems += clash_notes(node.view())
        blocked = only_by_stream(node)
        if blocked:
            names = ", ".join(blocked[:5])
            problems.append(f"one-way or blocked UDP: {names} answer calls but no datagrams")
        statuses = node.finding.statuses()
        finding = [s for s in statuses if s.state is SourceState.OK]
        problems += [
            f"{s.source}: {s.detail}"
            for s in statuses
            if s.state is SourceState.FAILED and not finding
        ]
        return problems

    async def _explain(self, params: ExplainParams, context: CallContext) -> dict[str, Any]:
        del context
        node = self._node
        peer = the_one(node.view(), params.node)
        found = await node.gossip.explain(peer.node)
        if found is None:
            hint = "its record was just dropped; see meshd peers"
            raise NoCandidateError(f"no node {params.node!r} is known any more", hint=hint)
        return explain_shape(found, node.view(), node.clock.now(), node.clock.wall_ms())

    async def _decisions(self, params: DecisionsParams, context: CallContext) -> dict[str, Any]:
        del context
        decisions = self._node.dispatcher.decisions
        newest = decisions.last(params.last, params.capability)
        return {
            "schema": "meshd.decisions/1",
            "count": decisions.count,
            "decisions": [each.told() for each in newest],
        }

    async def _join(self, params: JoinParams, context: CallContext) -> dict[str, Any]:
        """Join through these seeds, and wait a little for the first of them."""
        del context
        node = self._node
        seeds = [parse_seed(text) for text in params.addresses]
        if not seeds:
            raise UsageError("join: name at least one address", hint="meshd join HOST[:PORT]")
        addresses: list[Address] = []
        faults: list[str] = []
        for seed in seeds:
            try:
                addresses += await node.platform.resolve(seed.host, seed.port)
            except OSError as error:
                faults.append(f"{seed}: {error.strerror or error}")
        if not addresses:
            hint = "check the spelling, or give an IP address"
            raise UsageError("no seed can be resolved: " + "; ".join(faults), hint=hint)
        own = {*node.gossip.addresses, node.gossip.bound}
        others = [a for a in addresses if a not in own]
        if not others:
            hint = "give the address of another node; see it there: meshd status"
            raise UsageError(f"{addresses[0]} is this node itself", hint=hint)
        before = _alive(node.view()).keys()
        await node.rejoin()
        node.gossip.join(*others)

        def joined(view: ClusterView) -> int:
            """Seeds that are members now; one that tells another address than ours is news."""
            alive = _alive(view)
            known = sum(1 for a in others if any(p.is_at(a) for p in alive.values()))
            return known or min(len(others), len(alive.keys() - before))

        view = await node.wait_view(lambda v: joined(v) > 0, JOIN_WAIT_S)
        return {"joined": joined(view), "contacted": len(addresses)}

    async def _leave(self, params: LeaveParams, context: CallContext) -> dict[str, Any]:
        del context
        drain_s = self._node.config.node.drain_s if params.drain_s is None else params.drain_s
        return {"left": True, "heard_by": await self._node.leave(drain_s)}

    async def _stop(self, params: StopParams, context: CallContext) -> dict[str, Any]:
        del context
        if params.now:
            self._node.hurried.set()
        usual_s = self._node.config.node.drain_s
        drain_s = 0.0 if params.now else usual_s if params.drain_s is None else params.drain_s
        self._node.stopping.ask(drain_s)
        return {"stopping": True, "drain_s": drain_s}

    async def _reload(self, params: Nothing, context: CallContext) -> dict[str, Any]:
        del params, context
        changed, routing = self._node.reload()
        names = [manifest.name for manifest in self._node.worker.manifests()]
        return {"capabilities": names, "changed": list(changed), "routing": list(routing)}

    async def _doctor(self, params: DoctorParams, context: CallContext) -> dict[str, Any]:
        del context
        checks = await diagnose(self._node, deep=params.deep)
        return {"schema": "meshd.doctor/1", "checks": checks}

    async def _spend(self, params: Nothing, context: CallContext) -> dict[str, Any]:
        del params, context
        return spend_shape(self._node.dispatcher.ledger, self._node.clock.now())

    async def _probe(self, params: ProbeParams, context: CallContext) -> dict[str, Any]:
        del context
        if params.via not in {"rpc", "udp"}:
            raise UsageError(f"probe: no way {params.via!r}", hint="via is rpc or udp")
        if not 1 <= params.count <= PROBES_MAX or not 0 <= params.interval_s <= 3_600:
            raise UsageError(f"probe: count 1 .. {PROBES_MAX}, interval_s 0 .. 3600")
        peer = the_one(self._node.view(), params.node)
        if params.via == "udp" and peer.node == self._node.node_id:
            hint = "ask it by a call: meshd ping --via rpc"
            raise UsageError(f"{peer.name} is this node: it sends itself no datagrams", hint=hint)
        replies = []
        for sequence in range(1, params.count + 1):
            replies.append({"seq": sequence, **await self._probe_once(peer, params.via)})
            if sequence < params.count:
                await asyncio.sleep(params.interval_s)
        return {"node": peer.node.hex(), "name": peer.name, "replies": replies}

    async def _probe_once(self, peer: Peer, via: str) -> dict[str, Any]:
        node = self._node
        began = node.clock.now()
        try:
            if via == "udp":
                rtt_s = await node.gossip.ping(peer.node, PROBE_TIMEOUT_S)
            else:
                await node.client.invoke(peer.address, "ping", {}, timeout_s=PROBE_TIMEOUT_S)
                rtt_s = node.clock.now() - began
        except MeshError as error:
            return {"rtt_ms": None, "error": error.message}
        if rtt_s is None:
            return {"rtt_ms": None, "error": f"no answer within {PROBE_TIMEOUT_S:g} s"}
        return {"rtt_ms": round(rtt_s * 1_000, 3)}


def _alive(view: ClusterView) -> dict[NodeId, Peer]:
    """The other members that live."""
    return {p.node: p for p in view.in_state(MemberState.ALIVE) if p.node != view.me}
