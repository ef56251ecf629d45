"""Second opinions without delay: a few chosen members probe a suspect as soon as they hear of it.

In SWIM a doubt is confirmed by whoever comes by, which takes longer the larger the mesh is. Here
its verifiers are known by rank (`Doubts`), ping at once, with the accusation in the ping, and only
their own failed probes confirm. So the shortest doubt need not grow with the mesh, and one starved
accuser alone never shortens anything.
"""

import random

from meshd.clock import Instant
from meshd.gossip.beliefs import Beliefs
from meshd.gossip.config import GossipConfig
from meshd.gossip.doubts import LAST_CALL_FRACTION
from meshd.gossip.health import LocalHealth
from meshd.gossip.inputs import StreamPinged
from meshd.gossip.messages import Ack
from meshd.gossip.prober import Prober
from meshd.gossip.suspicion import crowded_bounds_s
from meshd.gossip.timers import Timers
from meshd.model import Member, MemberState, NodeId

LAST_CALLS = 2
"""Others who are asked whether a suspect has refuted, before it is held dead."""
ASKED_ABOUT_MAX = 12
"""Suspects that one question is about, as far as they fit into a datagram with all who doubt."""
CROWD = 8
"""More suspects than this at once are no lost rumour, but a storm or a split."""
VERIFICATIONS_MAX = 16
"""Suspects that are probed at a time; further doubts are left to the others."""


class Verification:
    """One suspect, asked at once, and once more if no answer comes."""

    __slots__ = ("accuser", "asked", "was_repeated")

    def __init__(self, asked: Member, accuser: NodeId | None) -> None:
        self.asked = asked
        self.accuser = accuser
        self.was_repeated = False


class Verifier:
    """The verifications under way: one for each accuser at a time, VERIFICATIONS_MAX in all.

    Whoever accuses many at once is rather ill itself; its word is worth one probe.
    """

    def __init__(
        self,
        *,
        config: GossipConfig,
        beliefs: Beliefs,
        prober: Prober,
        timers: Timers,
        health: LocalHealth,
        rng: random.Random,
    ) -> None:
        self._config = config
        self._beliefs = beliefs
        self._prober = prober
        self._timers = timers
        self._health = health
        self._rng = rng
        self._open: dict[int, Verification] = {}

    def __len__(self) -> int:
        return len(self._open)

    def on_doubt(self, node: NodeId, now: Instant) -> None:
        """A member is suspected, and this node is to find out."""
        member, suspicion = self._beliefs.table.get(node), self._beliefs.suspicions.get(node)
        if member is None or suspicion is None or len(self._open) == VERIFICATIONS_MAX:
            return
        if not self._beliefs.families.can_reach(member):
            return
        accuser = suspicion.accusers[0] if suspicion.accusers else None
        if any(v.accuser == accuser or v.asked.node == node for v in self._open.values()):
            return
        sequence = self._prober.ask(member)
        self._open[sequence] = Verification(member, accuser)
        self._timers.set(("verdict", sequence), now + self._wait_s(member, now))

    def _wait_s(self, member: Member, now: Instant) -> float:
        """Half of what a verification may take."""
        return self._config.probe_interval_s / 2 + self._prober.patience_s(member, now) / 2

    def on_ack(self, ack: Ack, source: NodeId) -> None:
        """It answers: nothing is confirmed, and it has been told what to refute."""
        self._answered(ack.sequence, source)

    def on_stream_pinged(self, event: StreamPinged) -> None:
        """It answers calls, if no datagrams: nothing is confirmed."""
        if event.ok:
            self._answered(event.sequence, event.node)

    def _answered(self, sequence: int, source: NodeId) -> None:
        verification = self._open.get(sequence)
        if verification is not None and verification.asked.node == source:
            del self._open[sequence]
            self._timers.cancel(("verdict", sequence))

    def on_verdict_due(self, sequence: int, now: Instant) -> None:
        """No answer yet: ask once more, then confirm the doubt if it still is the same one."""
        verification = self._open[sequence]
        member = self._beliefs.table.get(verification.asked.node)
        if member != verification.asked or member.state is not MemberState.SUSPECT:
            del self._open[sequence]
        elif verification.was_repeated:
            del self._open[sequence]
            self._prober.failed(sequence, member, now)
        else:
            verification.was_repeated = True
            wait_s = self._wait_s(member, now)
            self._prober.ask_again(member, sequence)
            self._prober.ask_by_stream(member, sequence, wait_s)
            self._timers.set(("verdict", sequence), now + wait_s)

    def on_suspicion_due(self, node: NodeId, now: Instant) -> None:
        """A doubt is about to end, or over.

        One node in a few thousand misses a rumour. Before a suspect is held dead, two others are
        told what is believed here: who has heard it refute answers with that. Where many are
        suspected at once, doubts last as long as in Lifeguard, too.
        """
        beliefs = self._beliefs
        suspicion = beliefs.suspicions[node]
        is_crowd = len(beliefs.suspicions) > CROWD
        if is_crowd and suspicion.lengthen(crowded_bounds_s(self._config, beliefs.table.live)):
            beliefs.doubts.await_end(node, suspicion)
            return
        if suspicion.is_last_called or suspicion.deadline() <= now:
            beliefs.suspicion_ran_out(node, now)
            return
        suspects = [node, *self._soon_over(node, now)]
        # Whose own packets get lost or come late waits longer for what others have to say.
        patience_s = LAST_CALL_FRACTION * self._config.probe_interval_s * self._health.factor
        for each in suspects:
            beliefs.suspicions[each].is_last_called = True
            beliefs.suspicions[each].not_before = Instant(now + patience_s)
            beliefs.doubts.await_end(each, beliefs.suspicions[each])
        me, can_reach = beliefs.me.node, beliefs.families.can_reach
        for member in beliefs.table.pick(
            LAST_CALLS,
            self._rng,
            lambda m: m.state is MemberState.ALIVE and m.node != me and can_reach(m),
        ):
            self._prober.ask_about(member, suspects)

    def _soon_over(self, but: NodeId, now: Instant) -> list[NodeId]:
        """Other suspects whose doubt is about to end, too: one datagram asks about them all."""
        soon = now + 2 * LAST_CALL_FRACTION * self._config.probe_interval_s
        found = (
            (suspicion.deadline(), node)
            for node, suspicion in self._beliefs.suspicions.items()
            if node != but and not suspicion.is_last_called and suspicion.deadline() <= soon
        )
        return [node for _, node in sorted(found)[: ASKED_ABOUT_MAX - 1]]
