"""Failure detection: probe rounds, help by others, and help for others (SWIM section 3)."""

import random
from collections.abc import Sequence

from meshd.clock import Instant, Seconds
from meshd.gossip.beliefs import Beliefs
from meshd.gossip.config import GossipConfig
from meshd.gossip.dialects import Dialects
from meshd.gossip.distances import Distances
from meshd.gossip.doors import Doors
from meshd.gossip.effects import PingAnswered, ProbeCompleted, StreamPing
from meshd.gossip.explanation import ANSWERED, FAILED, HELPED, LATE, Probed
from meshd.gossip.health import LocalHealth
from meshd.gossip.inputs import StreamPinged
from meshd.gossip.lag import lag_s
from meshd.gossip.members import is_live
from meshd.gossip.messages import Ack, Nack, Ping, PingReq
from meshd.gossip.outbox import Outbox
from meshd.gossip.probe import ProbeRing, ProbeRound, Relay
from meshd.gossip.timers import Timers
from meshd.model import Member, MemberState, NodeId

RELAYS_MAX = 256
ASKED_MAX = 1_024
"""Pings under way that somebody here asked for; the oldest is forgotten first."""
SLOW_MAX = 16
"""Rounds with slow targets that go on beside the usual one; further ones get no extra time."""
MISSED_MAX = 16
"""Failed rounds that are remembered, so that a late answer takes the verdict back."""
_FIELD_BYTES = 16  # of a ping, but for what rides along
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
        doors: Doors,
        dialects: Dialects,
        distances: Distances,
        rng: random.Random,
        now: Instant,
    ) -> None:
        self._config = config
        self._beliefs = beliefs
        self._timers = timers
        self._outbox = outbox
        self._health = health
        self._doors = doors
        self._dialects = dialects
        self._distances = distances
        self._rng = rng
        self._ring = ProbeRing(rng)
        self._round: ProbeRound | None = None
        self._slow: dict[int, ProbeRound] = {}
        self._relays: dict[int, Relay] = {}
        self._asked: dict[int, tuple[NodeId, Instant]] = {}
        self._missed: dict[int, Member] = {}
        self._sequence = rng.randrange(_SEQUENCES)
        # Nodes that start together must not probe together.
        timers.set("probe", now + rng.random() * config.probe_interval_s)

    # Own rounds

    def on_tick(self, now: Instant) -> None:
        """The interval is over: judge the round that was, begin the next.

        A round with somebody who reads its mail late goes on meanwhile: nobody waits for it.
        """
        current, self._round = self._round, None
        if current is not None:
            self._judge(current, now)
        self._dialects.forget_silent(now)
        factor, late_here_s = self._health.factor, self._beliefs.lag.at(now)
        interval_s = self._config.probe_interval_s * factor + late_here_s
        self._timers.set("probe", now + interval_s)
        target = None if self._beliefs.leaving else self._next_target(now)
        if target is None:
            return
        late_there_s = lag_s(target.lag)
        sequence = self._next_sequence()
        current = ProbeRound(target, sequence, now, Instant(now + interval_s + late_there_s))
        timeout_s = self._config.probe_timeout_s * factor + late_here_s
        if late_there_s and len(self._slow) < SLOW_MAX:
            self._slow[sequence] = current
            self._timers.set(("slow", sequence), now + timeout_s + late_there_s)
        else:
            self._round = current
            self._timers.set("probe_timeout", now + timeout_s)
        self._ping(target, sequence, wanted=self._distances.wanted())

    def on_slow_due(self, sequence: int, now: Instant) -> None:
        """A round with a slow target has come to its timeout, then to its end."""
        current = self._slow[sequence]
        if now < current.until:
            self._ask_helpers(current, now)
            self._timers.set(("slow", sequence), current.until)
        else:
            del self._slow[sequence]
            self._judge(current, now)

    def put_off(self, delay_s: Seconds) -> None:
        """We were away for so long: rounds under way are judged later, as their timers are."""
        for current in (self._round, *self._slow.values()):
            if current is not None:
                current.until = Instant(current.until + delay_s)

    def patience_s(self, target: Member, now: Instant) -> Seconds:
        """How much longer an answer may take, for mail is read late there or here."""
        return self._beliefs.lag.at(now) + lag_s(target.lag)

    def _next_target(self, now: Instant) -> Member | None:
        table = self._beliefs.table
        # What is left of one cycle may lack the only one to ask; a whole one follows within this.
        for _ in range(2 * table.row_count):
            member = table.at(self._ring.next_row(table.row_count))
            if member is not None and self._may_ask(member) and self._is_worth_a_ping(member, now):
                return member
        return None

    def _is_worth_a_ping(self, member: Member, now: Instant) -> bool:
        """Whether to write to its address: to one that was never heard from, but seldom."""
        return member.node in self._beliefs.heard_at or self._doors.may_probe(now)

    def _may_ask(self, member: Member) -> bool:
        beliefs = self._beliefs
        return (
            is_live(member.state)
            and member.node != beliefs.me.node
            and beliefs.families.can_reach(member)
            and not self._dialects.is_foreign(member.node)
        )

    def ask(self, target: Member) -> int:
        """Ping a member for another reason than the own round; returns the sequence."""
        sequence = self._next_sequence()
        self._ping(target, sequence)
        return sequence

    def ask_about(self, target: Member, suspects: Sequence[NodeId]) -> None:
        """Ping a member with what is believed of some others: if it knows better, it says so."""
        fields, free = (self._next_sequence(),), self._outbox.room - _FIELD_BYTES
        accusations = []
        for accusation in self._beliefs.accusations(suspects):
            free -= len(accusation)
            if free >= 0:
                accusations.append(accusation)
        self._outbox.send_with(target.node, target.address, Ping, fields, accusations)

    def ask_again(self, target: Member, sequence: int) -> None:
        """The same once more: any of the two answers will do."""
        self._ping(target, sequence)

    def _ping(self, target: Member, sequence: int, wanted: int = 0) -> None:
        self._outbox.send_full(
            target.node,
            target.address,
            Ping,
            (sequence,),
            first=self._beliefs.accusation(target.node),
            last=wanted,
        )

    def on_timeout(self, now: Instant) -> None:
        """No direct ack in time: ask helpers to ping the target, and the target over a stream."""
        # An ack, like the round's end, cancels the timer.
        assert self._round is not None
        self._ask_helpers(self._round, now)

    def _ask_helpers(self, current: ProbeRound, now: Instant) -> None:
        if not self._may_ask(current.asked):
            return  # it has turned out to be one that understands us not
        self.ask_by_stream(current.asked, current.sequence, current.until - now)
        heard = self._beliefs.heard_at
        helpers = self._beliefs.table.pick(
            self._config.indirect_probes,
            self._rng,
            lambda m: m.node in heard and m.node != current.target and self._may_ask(m),
        )
        current.helpers = tuple(helper.node for helper in helpers)
        for helper in helpers:
            self._outbox.send_full(
                helper.node, helper.address, PingReq, (current.sequence, current.target)
            )

    def ask_by_stream(self, target: Member, sequence: int, timeout_s: Seconds) -> None:
        """Ask over the call port as well, where datagrams may not get through."""
        self._outbox.add(StreamPing(target.node, target.address, sequence, timeout_s))

    def on_stream_pinged(self, event: StreamPinged, now: Instant) -> None:
        """The target answers calls: it lives. Of our own health that says nothing."""
        current = self._round_of(event.sequence)
        if event.ok and current is not None and not current.acked and current.target == event.node:
            current.acked = True
            self._beliefs.heard_from(current.target, now)
            self._outbox.add(ProbeCompleted(current.target, succeeded=True, rtt_s=None))

    def _judge(self, current: ProbeRound, now: Instant) -> None:
        if current.acked:
            return
        member = self._beliefs.table.get(current.target)
        if member is None or not self._may_ask(member):
            return
        self._health.probe_failed(len(current.helpers), len(current.nacks))
        self._outbox.add(ProbeCompleted(current.target, succeeded=False, rtt_s=None))
        self.failed(current.sequence, current.asked, now)

    def failed(self, sequence: int, asked: Member, now: Instant) -> None:
        """Nobody answered: doubt the target, and remember the question, should an answer come."""
        if len(self._missed) == MISSED_MAX:
            del self._missed[next(iter(self._missed))]
        self._missed[sequence] = asked
        self._beliefs.probed[asked.node] = Probed(now, FAILED)
        self._beliefs.probe_failed(asked, now)

    def on_ack(self, ack: Ack, source: NodeId, now: Instant) -> None:
        """Somebody lives: the target of our round, or one whom we asked for somebody else."""
        current = self._round_of(ack.sequence)
        if current is not None:
            direct = source == current.target
            if not current.acked and (direct or source in current.helpers):
                current.acked = True
                if self._slow.pop(ack.sequence, None) is None:
                    self._timers.cancel("probe_timeout")
                else:
                    self._timers.cancel(("slow", ack.sequence))
                self._recover(current, now)
                waited_s = self._beliefs.waited_s
                rtt_s = max(0.0, now - current.started - waited_s) if direct else None
                how = ANSWERED if direct else HELPED
                self._beliefs.probed[current.target] = Probed(now, how, rtt_s)
                if rtt_s is not None:
                    self._measured(source, rtt_s)
                    self._distances.measured(source, rtt_s, ack.coordinates)
                else:
                    self._beliefs.heard_from(current.target, now)
                self._outbox.add(ProbeCompleted(current.target, succeeded=True, rtt_s=rtt_s))
            return
        self._on_other_ack(ack, source, now)

    def _recover(self, current: ProbeRound, now: Instant) -> None:
        """An ack: the better we are, the sooner the next round."""
        before = self._health.factor
        self._health.probe_succeeded(quickly=now - current.started <= self._config.probe_timeout_s)
        gained_s = (before - self._health.factor) * self._config.probe_interval_s
        if gained_s and current is self._round:
            current.until = Instant(max(now, current.until - gained_s))
            self._timers.set_earlier("probe", current.until)

    def _round_of(self, sequence: int) -> ProbeRound | None:
        current = self._round
        if current is not None and current.sequence == sequence:
            return current
        return self._slow.get(sequence)

    def _on_other_ack(self, ack: Ack, source: NodeId, now: Instant) -> None:
        """An ack to a ping that was asked for, here or by a peer."""
        asked = self._asked.get(ack.sequence)
        if asked is not None and asked[0] == source:
            del self._asked[ack.sequence]
            self._outbox.add(PingAnswered(source, now - asked[1]))
            return
        missed = self._missed.get(ack.sequence)
        if missed is not None and missed.node == source:
            del self._missed[ack.sequence]
            self._beliefs.probed[source] = Probed(now, LATE)
            self._beliefs.doubts.answered_late(missed, now)
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
        current = self._round_of(nack.sequence)
        if current is not None and source in current.helpers:
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
            also=self._beliefs.corrections(),
            last=self._distances.for_ack(member.node, ping.wanted),
        )

    def on_ping_req(self, request: PingReq, requester: Member, now: Instant) -> None:
        """Ping a member on behalf of another, within the window that the requester has left.

        Where that cannot be, a nack at once says so much: the requester's own packets get through.
        If the target is gone, the nack carries what became of it, for the requester is behind.
        """
        target = self._beliefs.table.get(request.target)
        if target is None or not self._may_relay(target, now):
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

    def _may_relay(self, target: Member, now: Instant) -> bool:
        may_ask = len(self._relays) < RELAYS_MAX and self._may_ask(target)
        return may_ask and self._is_worth_a_ping(target, now)

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
        # Not whom this node never heard: a forged address must not be written to by all for a day.
        heard = self._beliefs.heard_at
        dead = [
            n for n in gone if n in heard and (m := table.get(n)) and m.state is MemberState.DEAD
        ]
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
