"""Small worlds for routing tests: peers, views, a clock and an invoker under the test's control."""

import asyncio
from collections.abc import Callable
from typing import Any

from meshd.capability.manifest import CapabilitySummary
from meshd.clock import Instant
from meshd.model import Address, Epoch, Incarnation, Load, MemberState, NodeId
from meshd.routing.breakers import Breakers
from meshd.routing.signals import Outcome
from meshd.view import ClusterView, Peer

NOW = Instant(100.0)


def node_id(n: int) -> NodeId:
    return NodeId(n.to_bytes(8))


def offer(name="echo", *, version="1.0.0", idempotent=False, tags=(), **worth: Any):
    return CapabilitySummary(name, version, idempotent, "agent", "", tuple(tags), b"", **worth)


def peer(n: int, **changes: Any) -> Peer:
    fields = {
        "node": node_id(n),
        "name": f"n{n}",
        "address": Address("127.0.0.1", 1000 + n),
        "state": MemberState.ALIVE,
        "epoch": Epoch(1),
        "incarnation": Incarnation(0),
        "capabilities": (offer(),),
        "load": Load(slots=4, service_s=0.1),
        "load_at": NOW,
        "heard_at": NOW,
        "rtt_s": 0.001,
    }
    return Peer(**{**fields, **changes})


def busy_load(requests: int) -> Load:
    return Load(in_flight=requests, slots=4, service_s=0.2)


def view(*peers: Peer, me: int = 1) -> ClusterView:
    by_node = {p.node: p for p in peers}
    return ClusterView(version=1, me=node_id(me), by_node=by_node, stale_after_s=5.0)


def begin(breakers: Breakers, to: Peer, *, now=NOW, capability="echo", is_pinned=False):
    return breakers.begin(to, capability, now, is_pinned=is_pinned)


def end(breakers: Breakers, crossing, outcome, *, now=NOW, seen: ClusterView | None = None):
    breakers.end(crossing, outcome, now, lambda: view() if seen is None else seen)


def ask(breakers: Breakers, to: Peer, outcome: Outcome, *, now=NOW, seen=None, **asked: Any):
    """A call to a node, begun and ended in this moment. `seen` None: more nodes offer it."""
    others = view(*(peer(n) for n in range(101, 105)), me=101) if seen is None else seen
    end(breakers, begin(breakers, to, now=now, **asked), outcome, now=now, seen=others)


def fail_there(breakers: Breakers, to: Peer, *, times=3, now=NOW, seen=None, **asked: Any):
    """So many failures in a row at one node; by default its circuit opens."""
    for _ in range(times):
        ask(breakers, to, Outcome.FAILED, now=now, seen=seen, **asked)


def fail_everywhere(breakers: Breakers, seen: ClusterView, *, times=10, now=NOW):
    """So many failures in a row, in turn at all nodes; by default the whole capability opens."""
    for n in range(times):
        ask(breakers, seen.peers[n % len(seen.peers)], Outcome.FAILED, now=now, seen=seen)


class FakeClock:
    def __init__(self) -> None:
        self.time = NOW

    def now(self) -> Instant:
        return self.time

    def wall_ms(self) -> int:
        return 0

    def pass_s(self, seconds: float) -> None:
        self.time = Instant(self.time + seconds)

    async def sleep(self, seconds: float) -> None:
        self.pass_s(seconds)
        await asyncio.sleep(0)


Answer = Callable[[dict[str, Any], float], Any]


class FakeInvoker:
    """Answers by port: a callable that returns or raises, or an event that is waited for."""

    def __init__(self) -> None:
        self.answers: dict[int, Any] = {}
        self.asked: list[tuple[int, dict[str, Any], float]] = []
        self.started = asyncio.Event()
        self.bids: list[int] = []
        self.offers: dict[int, Any] = {}

    async def invoke(self, target, method, params, *, timeout_s, sink=None):
        n = target.port - 1000
        if method == "offer":
            self.bids.append(n)
            return self.offers[n](params)
        assert method == "work"
        self.asked.append((n, params, timeout_s))
        self.started.set()
        answer = self.answers.get(n)
        if isinstance(answer, asyncio.Event):
            await answer.wait()
            answer = None
        return done(n) if answer is None else answer(params, timeout_s)

    @property
    def order(self) -> list[int]:
        return [n for n, _, _ in self.asked]


def done(n: int, result: Any = "ok", load: Any = None) -> dict[str, Any]:
    reply = {"agent": "agent", "node": f"n{n}", "result": result, "rpc_latency_ms": 1.0}
    return reply if load is None else {**reply, "load": load}


def failing(error: Exception) -> Answer:
    def answer(params, timeout_s):
        raise error

    return answer
