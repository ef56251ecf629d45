"""Failure detection: probe rounds, help by others, and help for others (SWIM section 3)."""

import random

from meshd.clock import Instant
from meshd.gossip.beliefs import Beliefs
from meshd.gossip.config import GossipConfig
from meshd.gossip.effects import PingAnswered, ProbeCompleted, StreamPing
from meshd.gossip.health import LocalHealth
from meshd.gossip.inputs import StreamPinged
from meshd.gossip.members import is_live
from meshd.gossip.messages import Ack, Nack, Ping, PingReq
from meshd.gossip.outbox import Outbox
from meshd.gossip.probe import ProbeRing, ProbeRound, Relay
from meshd.gossip.timers import Timers
from meshd.model import Member, MemberState, NodeId

RELAYS_MAX = 256
ASKED_MAX = 64
_SEQUENCES = 2**16
_RECONNECTS_SHARED = 3  # nodes of a mesh that ping each of the dead in one reconnect interval
_RTT_WEIGHT = 0.2  # of a new sample in the moving average


class Prober:
    """One own round at a time, and up to RELAYS_MAX on behalf of others."""

    def __init__(
        self,
        *,
        config: GossipConfig,
        beliefs: Beliefs,
        timers: Timers,
        outbox: Outbox,
        health: LocalHealth,
        rng: random.Random,
        now: Instant,
    ) -> None:
        self._config = config
        self._beliefs = beliefs
        self._timers = timers
        self._outbox = outbox
        self._health = health
        self._rng = rng
        self._ring = ProbeRing(rng)
        self._round: ProbeRound | None = None
        self._relays: dict[int, Relay] = {}
        self._asked: dict[int, tuple[NodeId, Instant]] = {}
        self._sequence = rng.randrange(_SEQUENCES)
        # Nodes that start together must not probe together.
        timers.set("probe", now + rng.random() * config.probe_interval_s)

    # Own rounds

    def on_tick(self, now: Instant) -> None:
        """The interval is over: judge the round that was, begin the next."""
        self._judge(now)
        target = None if self._beliefs.leaving else self._next_target()
        interval_s = self._config.probe_interval_s * self._health.factor
        self._timers.set("probe", now + interval_s)
        if target is None:
            return
        self._round = ProbeRound(target, self._next_sequence(), now)
        self._timers.set("probe_timeout", now + self._config.probe_timeout_s * self._health.factor)
        self._ping(target, self._round.sequence)

    def _next_target(self) -> Member | None:
        table = self._beliefs.table
        # What is left of one cycle may lack the only one to ask; a whole one follows within this.
        for _ in range(2 * table.row_count):
            member = table.at(self._ring.next_row(table.row_count))
            if member is not None and self._may_ask(member):
                return member
        return None

    def _may_ask(self, member: Member) -> bool:
        beliefs = self._beliefs
        live = is_live(member.state) and member.node != beliefs.me.node
        return live and beliefs.families.can_reach(member)

    def _ping(self, target: Member, sequence: int) -> None:
        self._outbox.send_full(
            target.node,
            target.address,
            Ping,
            (sequence,),
            first=self._beliefs.accusation(target.node),
        )

    def on_timeout(self, now: Instant) -> None:
        """No direct ack in time: ask helpers to ping the target, and the target over a stream."""
        del now
        current = self._round
        # An ack, like the round's end, cancels the timer.
        assert current is not None
        config = self._config
        window_s = (config.probe_interval_s - config.probe_timeout_s) * self._health.factor
        asked = current.asked
        self._outbox.add(StreamPing(asked.node, asked.address, current.sequence, window_s))
        helpers = self._beliefs.table.pick(
            self._config.indirect_probes,
            self._rng,
            lambda m: self._may_ask(m) and m.node != current.target,
        )
        current.helpers = tuple(helper.node for helper in helpers)
        for helper in helpers:
            self._outbox.send_full(
                helper.node, helper.address, PingReq, (current.sequence, current.target)
            )

    def on_stream_pinged(self, event: StreamPinged, now: Instant) -> None:
        """The target answers calls: it lives. Of our own health that says nothing."""
        current = self._round
        if not event.ok or current is None or current.acked:
            return
        if (event.node, event.sequence) == (current.target, current.sequence):
            current.acked = True
            self._beliefs.heard_from(current.target, now)
            self._outbox.add(ProbeCompleted(current.target, succeeded=True, rtt_s=None))

    def _judge(self, now: Instant) -> None:
        current, self._round = self._round, None
        self._timers.cancel("probe_timeout")
        if current is None or current.acked:
            return
        member = self._beliefs.table.get(current.target)
        if member is None or not is_live(member.state):
            return
        self._health.probe_failed(len(current.helpers), len(current.nacks))
        self._outbox.add(ProbeCompleted(current.target, succeeded=False, rtt_s=None))
        self._beliefs.probe_failed(current.asked, now)

    def on_ack(self, ack: Ack, source: NodeId, now: Instant) -> None:
        """Somebody lives: the target of our round, or one whom we asked for somebody else."""
        current = self._round
        if current is not None and ack.sequence == current.sequence:
            direct = source == current.target
            if not current.acked and (direct or source in current.helpers):
                current.acked = True
                self._timers.cancel("probe_timeout")
                self._health.probe_succeeded()
                rtt_s = now - current.started if direct else None
                if rtt_s is not None:
                    self._measured(source, rtt_s)
                else:
                    self._beliefs.heard_from(current.target, now)
                self._outbox.add(ProbeCompleted(current.target, succeeded=True, rtt_s=rtt_s))
            return
        self._on_other_ack(ack, source, now)

    def _on_other_ack(self, ack: Ack, source: NodeId, now: Instant) -> None:
        """An ack to a ping that was asked for, here or by a peer."""
        asked = self._asked.get(ack.sequence)
        if asked is not None and asked[0] == source:
            del self._asked[ack.sequence]
            self._outbox.add(PingAnswered(source, now - asked[1]))
            return
        relay = self._relays.get(ack.sequence)
        if relay is not None and relay.target == source and not relay.acked:
            relay.acked = True
            requester = self._beliefs.table.get(relay.requester)
            if requester is not None:
                self._outbox.send_full(requester.node, requester.address, Ack, (relay.sequence, 0))

    def _measured(self, node: NodeId, rtt_s: float) -> None:
        held = self._beliefs.rtt_s.get(node)
        self._beliefs.rtt_s[node] = rtt_s if held is None else held + _RTT_WEIGHT * (rtt_s - held)

    def ping_now(self, node: NodeId, now: Instant) -> None:
        """Ping a member because somebody here wants to know; no verdict follows from it."""
        target = self._beliefs.table.get(node)
        if target is None or node == self._beliefs.me.node:
            return
        if len(self._asked) >= ASKED_MAX:
            del self._asked[next(iter(self._asked))]
        sequence = self._next_sequence()
        self._asked[sequence] = (node, now)
        self._ping(target, sequence)

    def on_nack(self, nack: Nack, source: NodeId) -> None:
        """A helper heard us but not the target: our own side works."""
        current = self._round
        if current is not None and nack.sequence == current.sequence and source in current.helpers:
            current.nacks[source] = None

    # For others

    def on_ping(self, ping: Ping, member: Member, view_hash: int) -> None:
        """Answer. Whoever is doubted, or still believes in us, hears of it in the same datagram."""
        me = self._beliefs.me.node
        self._outbox.send_full(
            member.node,
            member.address,
            Ack,
            (ping.sequence, view_hash),
            first=self._beliefs.accusation(me if self._beliefs.leaving else member.node),
        )

    def on_ping_req(self, request: PingReq, requester: Member, now: Instant) -> None:
        """Ping a member on behalf of another, within the window that the requester has left.

        Where that cannot be, a nack at once says so much: the requester's own packets get through.
        If the target is gone, the nack carries what became of it, for the requester is behind.
        """
        target = self._beliefs.table.get(request.target)
        if target is None or len(self._relays) >= RELAYS_MAX or not self._may_ask(target):
            self._outbox.send_full(
                requester.node,
                requester.address,
                Nack,
                (request.sequence,),
                first=None if target is None else self._beliefs.accusation(target.node),
            )
            return
        sequence = self._next_sequence()
        self._relays[sequence] = Relay(requester.node, request.sequence, target.node)
        window_s = self._config.probe_interval_s - self._config.probe_timeout_s
        self._timers.set(("nack", sequence), now + window_s * self._config.nack_fraction)
        self._timers.set(("relay", sequence), now + self._config.probe_interval_s)
        self._ping(target, sequence)

    def on_nack_due(self, sequence: int) -> None:
        """The window is nearly over: tell the requester if there is no ack yet."""
        relay = self._relays.get(sequence)
        if relay is None or relay.acked:
            return
        requester = self._beliefs.table.get(relay.requester)
        if requester is not None:
            self._outbox.send_full(requester.node, requester.address, Nack, (relay.sequence,))

    def on_relay_over(self, sequence: int) -> None:
        """Forget a ping made for somebody else."""
        self._relays.pop(sequence, None)

    def on_reconnect(self, now: Instant) -> None:
        """Ping one of the dead: a healed network shows itself by an answer.

        In a large mesh each node does so only now and then (Serf: with the chance dead / alive), so
        that not all of them call at the few who are gone.
        """
        gone = self._beliefs.gone
        table = self._beliefs.table
        dead = [n for n in gone if (m := table.get(n)) and m.state is MemberState.DEAD]
        if gone:
            self._timers.set("reconnect", now + self._config.reconnect_interval_s)
        if not dead or self._beliefs.leaving:
            return
        share = _RECONNECTS_SHARED * len(dead) / table.live
        if share >= 1 or self._rng.random() < share:
            target = table.get(self._rng.choice(dead))
            assert target is not None
            accusation = self._beliefs.accusation(target.node)
            assert accusation is not None
            # Nothing else rides along: most likely nobody is there to hear it.
            self._outbox.send_with(
                target.node, target.address, Ping, (self._next_sequence(),), (accusation[1],)
            )

    def _next_sequence(self) -> int:
        self._sequence = (self._sequence + 1) % _SEQUENCES
        return self._sequence

    @property
    def relays(self) -> int:
        """Pings under way for others."""
        return len(self._relays)
