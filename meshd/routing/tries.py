"""One try of a call at one peer: entered in circuits, accounts and signals; ended if it is lost."""

from collections.abc import Callable
from typing import Any

import msgspec

from meshd.clock import Clock, Instant
from meshd.errors import MeshError
from meshd.model import MemberState, NodeId
from meshd.routing.breakers import Breakers
from meshd.routing.call import Invoker, LocalWork, Running, Won
from meshd.routing.filters import eligible
from meshd.routing.need import Need
from meshd.routing.request import PeerResult, peer_result
from meshd.routing.signals import OK, Outstanding, Rate
from meshd.routing.spend import Ledger
from meshd.scope import Scope
from meshd.view import ClusterView, Peer

TURNS_MAX = 1024
"""Capabilities of which it is known who had the previous call."""


class Tries:
    """All tries of one node's calls. All methods belong to one event loop.

    Attributes:
        running: those under way, by peer.
        turns: who had the previous call, by capability.
        count: how many there were.
        handed_out: how often one begins.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        view: Callable[[], ClusterView],
        invoker: Invoker,
        local: LocalWork,
        outstanding: Outstanding,
        breakers: Breakers,
        ledger: Ledger,
    ) -> None:
        self.running: dict[NodeId, dict[Running, None]] = {}
        self.turns: dict[str, NodeId] = {}
        self.count = 0
        self.handed_out = Rate()
        self._clock = clock
        self._view = view
        self._invoker = invoker
        self._local = local
        self._outstanding = outstanding
        self._breakers = breakers
        self._ledger = ledger

    async def run(self, running: Running, me: NodeId) -> Won:
        """The peer's reply, whole and checked.

        Raises:
            MeshError: it failed, refused, was lost, or time ran out.
        """
        self.enter(running, self._clock.now())
        try:
            if running.call.trying is not None:
                await self._announce(running)
            self.sent(running, self._clock.now())
            return await self._answer(running, me)
        finally:
            self.leave(running, self._clock.now())

    def enter(self, running: Running, now: Instant) -> None:
        """A try is about to begin; it must `leave`.

        Nothing may be awaited since the plan: a half-open circuit lets one pass, and the plan has
        just seen that it does. So is what the caller may spend: what this is expected to cost is
        kept for it from here.
        """
        request, peer = running.call.request, running.peer
        capability, is_pinned = request.capability, bool(request.to)
        running.crossing = self._breakers.begin(peer, capability, now, is_pinned=is_pinned)
        running.purchase = self._ledger.begin(request.caller, peer.node, running.offered, now)

    def leave(self, running: Running, now: Instant) -> None:
        """It has ended, or never began."""
        assert running.crossing is not None, "it has entered"
        self._breakers.end(
            running.crossing, running.outcome, now, self._view,
            is_repeat=running.call.failures > 0,
        )  # fmt: skip

    def sent(self, running: Running, now: Instant) -> None:
        """It begins now; it must be `answered`, have `failed`, or be `dropped`."""
        peer = running.peer
        running.started = now
        self._take_turn(running.call.request.capability, peer.node)
        self._outstanding.begin(peer, now)
        self.handed_out.count(now)
        self.count += 1

    def answered(self, running: Running, reply: Any, answer: PeerResult, now: Instant) -> Won:
        """It was answered with this, which is a valid `answer`."""
        running.outcome = OK
        self._settle(running, reply, reply.get("load"), now, is_charged=True)
        return Won(running.peer, reply, answer, running.purchase)

    def failed(self, running: Running, error: MeshError, now: Instant) -> None:
        """It came to this."""
        running.outcome = running.verdict(error)
        self._settle(running, None, error.data.get("load"), now, is_charged=not error.definite)

    def dropped(self, running: Running, now: Instant) -> None:
        """Nobody waits for it any more, and nobody knows what it came to."""
        self._settle(running, None, None, now, is_charged=True)

    def enlist(self, running: Running) -> None:
        """From now on it is abandoned if its peer is lost."""
        at_peer = self.running.get(running.peer.node)
        if at_peer is None:
            at_peer = self.running[running.peer.node] = {}
        at_peer[running] = None

    def strike(self, running: Running) -> None:
        """Not any more."""
        node = running.peer.node
        at_peer = self.running.get(node)
        if at_peer is not None:
            at_peer.pop(running, None)
            if not at_peer:
                del self.running[node]

    def on_view_change(self, view: ClusterView) -> None:
        """Abandon those at peers that the new view says are gone."""
        for node in list(self.running):
            if node == view.me:
                continue
            peer = view.get(node)
            if peer is None or peer.state in {MemberState.DEAD, MemberState.LEFT}:
                self.peer_lost(node, "it is dead or has left")
            elif peer.state is MemberState.SUSPECT or not peer.reachable:
                self.peer_lost(node, "it stopped answering", is_certain=False)
            else:
                self._restarted(node, peer)

    def peer_lost(self, node: NodeId, why: str = "it is gone", *, is_certain: bool = True) -> None:
        """Abandon the tries at `node`; their calls move on or end with an indefinite error.

        Mere doubt (`is_certain` false, as after one missed probe) ends only idempotent calls, and
        only where someone else could take them: the peer may well be about to answer.
        """
        view, now = self._view(), self._clock.now()
        known: dict[Need, bool] = {}
        for running in list(self.running.get(node, ())):
            if not is_certain:
                need = running.call.need()
                need = msgspec.structs.replace(need, tried=need.tried | {node}, is_idempotent=True)
                if running.is_idempotent and need not in known:
                    found, _ = eligible(view, need, now, reports=self._outstanding.reports)
                    known[need] = bool(found)
                if not known.get(need):
                    continue
            running.abandon(why)

    def _restarted(self, node: NodeId, peer: Peer) -> None:
        for running in list(self.running[node]):
            if running.peer.epoch != peer.epoch:
                running.abandon("it was started anew")

    async def _announce(self, running: Running) -> None:
        """Say who is about to be sent the work; if that fails, nothing is, and it is free."""
        trying, purchase = running.call.trying, running.purchase
        assert trying is not None, "somebody wants to know"
        try:
            await trying(running.peer)
        except BaseException:
            if purchase is not None:
                self._ledger.end(purchase, None, self._clock.now(), is_charged=False)
            raise

    async def _answer(self, running: Running, me: NodeId) -> Won:
        try:
            reply = await self._invoke(running, me)
            answer = peer_result(reply)
        except MeshError as error:
            self.failed(running, error, self._clock.now())
            raise
        except BaseException:
            self.dropped(running, self._clock.now())
            raise
        return self.answered(running, reply, answer, self._clock.now())

    def _settle(
        self, running: Running, told: Any, load: Any, now: Instant, *, is_charged: bool
    ) -> None:
        node, purchase = running.peer.node, running.purchase
        try:
            self._outstanding.on_told(node, load, now)
            if purchase is not None:
                self._ledger.end(purchase, told, now, is_charged=is_charged)
        finally:
            self._outstanding.end(node, running.outcome, now, took_s=now - running.started)

    async def _invoke(self, running: Running, me: NodeId) -> Any:
        """The peer's reply, unless time runs out or the peer is lost first."""
        peer, sink = running.peer, running.call.sink
        params = running.call.work_params(me, running.budget_s)
        timeout_s = running.remaining_s
        scope = running.scope = Scope(timeout_s)
        try:
            with scope:
                self.enlist(running)
                if peer.node == me:
                    return await self._local(params, timeout_s=timeout_s, sink=sink)
                return await self._invoker.invoke(
                    peer.address, "work", params, timeout_s=timeout_s, sink=sink
                )
        except TimeoutError as error:
            raise running.ended_early() from error
        finally:
            self.strike(running)

    def _take_turn(self, capability: str, node: NodeId) -> None:
        turns = self.turns
        if len(turns) * 2 > TURNS_MAX:  # else nobody asks which was called last
            turns.pop(capability, None)
        turns[capability] = node
        if len(turns) > TURNS_MAX:
            del turns[next(iter(turns))]
