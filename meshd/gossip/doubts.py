"""The doubts about members: whose opinions they rest on, when they end, and who looks into them."""

from collections.abc import Callable

from meshd.clock import Instant, Seconds
from meshd.gossip.broadcast import BroadcastQueue
from meshd.gossip.codec import encode_update, ids_of
from meshd.gossip.config import GossipConfig
from meshd.gossip.history import CONFIRMED, RETRACTED, History
from meshd.gossip.lag import lag_s
from meshd.gossip.members import MemberTable, in_state, is_live, precedence
from meshd.gossip.messages import Update
from meshd.gossip.suspicion import Suspicion
from meshd.gossip.timers import Timers
from meshd.model import Member, MemberState, NodeId

LAST_CALL_FRACTION = 0.25
"""Of the probe interval: so long before the end of a doubt two others are asked once more."""


class Doubts:
    """Exactly one suspicion for each suspect of the table. What follows from one, `Beliefs` does.

    Args:
        me: this node's id.
        config: the protocol's numbers.
        table: all members.
        rumours: where a rumour of a suspect that waits is told the newest opinions.
        timers: "suspicion" and "verify" of each suspect, and an earlier "gossip".
        history: where opinions are noted.
        touch: called with whose row in the view changed.
    """

    def __init__(
        self,
        *,
        me: NodeId,
        config: GossipConfig,
        table: MemberTable,
        rumours: BroadcastQueue,
        timers: Timers,
        history: History,
        touch: Callable[[NodeId], None],
    ) -> None:
        self.open: dict[NodeId, Suspicion] = {}
        self._me = me
        self._config = config
        self._table = table
        self._rumours = rumours
        self._timers = timers
        self._history = history
        self._touch = touch

    # Opinions

    def hear(self, update: Update, current: Member, teller: NodeId, now: Instant) -> None:
        """Count the opinions on a doubt that is known, as far as they are new; `teller` told."""
        suspicion = self.open.get(current.node)
        if suspicion is None:
            return
        is_news = False
        for accuser in ids_of(update.accusers):
            if suspicion.is_news(accuser):
                known = self.counted(accuser, current.node)
                if known is not None and suspicion.confirm(known):
                    self._history.note(current, CONFIRMED, known, teller, now)
                    is_news = True
        for accuser in ids_of(update.retracted):
            if accuser not in suspicion.retracted:
                known = self.counted(accuser, current.node)
                if known is not None and suspicion.retract(known):
                    self._history.note(current, RETRACTED, known, teller, now)
                    is_news = True
        if is_news:
            self._changed(current, suspicion, now)

    def counted(self, accuser: NodeId, subject: NodeId) -> NodeId | None:
        """The table's own copy of an accuser's id: only members count, and not the subject.

        What others say in this node's name does not count either: it knows best.
        """
        if accuser in {subject, self._me}:
            return None
        member = self._table.get(accuser)
        return None if member is None or not is_live(member.state) else member.node

    def confirm(self, member: Member, now: Instant) -> None:
        """The own probe of a suspect failed, too."""
        suspicion = self.open.get(member.node)
        if suspicion is not None and suspicion.confirm(self._me):
            self._history.note(member, CONFIRMED, self._me, None, now)
            self._changed(member, suspicion, now)

    def answered_late(self, asked: Member, now: Instant) -> None:
        """An answer came after the verdict: take back the own opinion, if it was about this life.

        The doubt itself stays until its subject refutes it, for beliefs only rise; it lasts longer.
        """
        member, suspicion = self._table.get(asked.node), self.open.get(asked.node)
        if suspicion is None or member is None or self._me not in suspicion.accusers:
            return
        if precedence(in_state(member, asked.state)) == precedence(asked) and suspicion.retract(
            self._me
        ):
            self._history.note(member, RETRACTED, self._me, None, now)
            self._changed(member, suspicion, now)

    def _changed(self, member: Member, suspicion: Suspicion, now: Instant) -> None:
        """Opinions came or went. They wait for a round of gossip: a doubt lasts for many."""
        self.await_end(member.node, suspicion)
        self._rumours.amend(member.node, self.encoded(member))
        self._timers.set_earlier("gossip", now + self._config.gossip_interval_s)

    def encoded(self, member: Member) -> bytes:
        """A rumour of a member, with who doubts it, and without its state's digest."""
        suspicion = self.open.get(member.node)
        if suspicion is None:
            return encode_update(member, with_digest=False)
        return encode_update(member, b"".join(suspicion.accusers), b"".join(suspicion.retracted))

    # Beginning and end

    def follow(
        self, member: Member, before: Member | None, accusers: tuple[NodeId, ...], now: Instant
    ) -> None:
        """Keep exactly one suspicion for each suspect, started anew at each incarnation."""
        node = member.node
        if member.state is not MemberState.SUSPECT:
            if self.open.pop(node, None) is not None:
                self._timers.cancel(("suspicion", node))
            return
        if before is not None and precedence(before) == precedence(member):
            return
        suspicion = Suspicion(self._config, self._table.live, now, lag_s=lag_s(member.lag))
        for accuser in accusers:
            suspicion.confirm(accuser)
        self.open[node] = suspicion
        self.await_end(node, suspicion)
        if self._me not in accusers and self._is_verifier(member):
            self._timers.set(("verify", node), now)

    def put_off(self, delay_s: Seconds) -> None:
        """We were away for so long, and heard nobody refute; the timers are put off already."""
        for suspicion in self.open.values():
            suspicion.started = Instant(suspicion.started + delay_s)
            suspicion.not_before = Instant(suspicion.not_before + delay_s)

    def await_end(self, node: NodeId, suspicion: Suspicion) -> None:
        """Wake up when something has to be done about a doubt: at its end, or the last call."""
        self._touch(node)
        at: float = suspicion.deadline()
        if not suspicion.is_last_called:
            at -= self._config.probe_interval_s * LAST_CALL_FRACTION
        self._timers.set(("suspicion", node), at)

    def _is_verifier(self, suspect: Member) -> bool:
        """Whether this node is among those who shall probe a suspect at once.

        A node that leaves is not alive in its own table, and so never chosen.
        """
        chosen = self._table.verifiers(suspect, self._config.verifiers)
        return any(member.node == self._me for member in chosen)
