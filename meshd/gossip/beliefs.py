"""What this node believes of each member, and how a rumour changes that."""

from collections.abc import Mapping

import msgspec

from meshd.clock import Instant, Seconds
from meshd.errors import DecodeError
from meshd.gossip.broadcast import BroadcastQueue
from meshd.gossip.codec import encode_update, ids_of, member_from, states
from meshd.gossip.config import GossipConfig
from meshd.gossip.effects import ConflictSeen, IdentityRaised, MemberChanged
from meshd.gossip.families import Families
from meshd.gossip.health import LocalHealth
from meshd.gossip.history import (
    CONFIRMED,
    GOODBYE,
    HEARD_OF,
    RAN_OUT,
    REFUTED,
    RESTARTED,
    RETRACTED,
    TOLD,
    UNANSWERED,
    History,
)
from meshd.gossip.lag import MailLag, lag_code, lag_s
from meshd.gossip.loads import LoadPlane
from meshd.gossip.members import (
    MemberTable,
    doubt_point,
    in_state,
    is_live,
    join,
    precedence,
)
from meshd.gossip.messages import Update
from meshd.gossip.outbox import Outbox
from meshd.gossip.state import StateStore
from meshd.gossip.suspicion import Suspicion
from meshd.gossip.timers import Timers
from meshd.model import Address, Epoch, Incarnation, Member, MemberState, NodeId

INCARNATION_JUMP_MAX = 1_000
EPOCH_AHEAD_MAX_MS = 86_400_000
INCARNATION_MAX = 2**32 - 1
_CONFLICT_REPORT_S = 10.0
_OUTRANK_PAUSE_S = 1.0
_OUTRANK_PAUSE_MAX_S = 64.0
LAST_CALL_FRACTION = 0.25
"""Of the probe interval: so long before the end of a doubt two others are asked once more."""
_LAG_TOLD_FRACTION = 0.25  # of the probe interval: what is less fits into the usual timeouts
_LAG_TOLD_PAUSE_S = 5.0


class Beliefs:
    """The member table with its suspicions; every change of it goes through here."""

    def __init__(
        self,
        *,
        me: Member,
        config: GossipConfig,
        table: MemberTable,
        rumours: BroadcastQueue,
        loads: LoadPlane,
        states: StateStore,
        timers: Timers,
        outbox: Outbox,
        health: LocalHealth,
        now: Instant,
    ) -> None:
        self.me = me
        self.table = table
        self.rumours = rumours
        self.suspicions: dict[NodeId, Suspicion] = {}
        self.gone: dict[NodeId, Instant] = {}
        self.heard_at: dict[NodeId, Instant] = {}
        self.rtt_s: dict[NodeId, float] = {}
        self.unreachable: dict[NodeId, None] = {}
        self.families = Families(me)
        self.changed_at = now
        self.leaving = False
        self.lag = MailLag()
        self.outdated: Member | None = None
        """Of whom the last datagram said what is known better here, if of anybody."""
        self.waited_s: Seconds = 0.0
        """How long the datagram that is being read lay at the socket."""
        self._lag_told_at = now
        self._config = config
        self._loads = loads
        self._states = states
        self._timers = timers
        self._outbox = outbox
        self._health = health
        self._started = now
        self.began = self._first_epoch = me.epoch
        self.foreign: Address | None = None
        self._conflict_at = now
        self._outrank_at = now
        self._outrank_pause_s = 0.0
        self._touched: dict[NodeId, None] = {me.node: None}
        self._history = History()
        table.put(me)
        outbox.set_members(table.live)

    # What was heard

    def heard_from(self, node: NodeId, now: Instant) -> None:
        """A packet came from a member itself."""
        self.outdated = None
        self.heard_at[node] = now
        self.unreachable.pop(node, None)
        self._touched[node] = None

    def doubt_reach(self) -> None:
        """Nobody counts as reachable before it is heard again; no belief changes by that."""
        for member in self.table:
            if is_live(member.state) and member.node != self.me.node:
                self.unreachable[member.node] = None
                self._touched[member.node] = None

    def hear_all(self, updates: tuple[Update, ...], source: Address, now: Instant) -> None:
        """Take in the rumours of one datagram, each as `hear` does.

        Nearly all of them were heard before. That is seen at once: at most they are further
        opinions on a doubt, or worth passing on less often.
        """
        rumours, get, me = self.rumours, self.table.get, self.me.node
        for update in updates:
            node = update.node
            current = get(node)
            if current is None or node == me or not states(update, current):
                self.hear(update, source, now)
                continue
            # An older state version makes the own, newer rumour no better known.
            if rumours.is_crowded and update.state_version == current.state_version:
                rumours.heard(node, self._outbox.limit)
            if update.accusers or update.retracted:
                self._hear_opinion(update, current, now)

    def knows(self, update: Update) -> bool:
        """Whether a row of somebody's table tells nothing new: the same is believed here."""
        current = self.table.get(update.node)
        return current is not None and states(update, current) and current is not self.me

    def hear(
        self, update: Update, source: Address, now: Instant, *, synced: bool = False,
        spread: bool = True,
    ) -> None:  # fmt: skip
        """Take in one rumour, from whomever.

        Args:
            update: the rumour.
            source: where the datagram came from, for the report if it is refused.
            now: the present.
            synced: it is a row of somebody's table. A death there is only a reason to doubt (the
                subject may refute), and a doubt there is nobody's further opinion.
            spread: pass it on if it is news.
        """
        try:
            member = member_from(update, self.families.used)
        except DecodeError as error:
            self._outbox.reject(error.message, source)
            return
        if member.node == self.me.node:
            self._hear_of_self(member, now)
            return
        current = self.table.get(member.node)
        refusal = self._refusal(member, current, now)
        if refusal:
            self._outbox.reject(refusal, source)
            return
        if current is None and not is_live(member.state):
            # Of somebody unknown only life is news, or a table's tombstones would rise as suspects.
            return
        if synced and member.state is MemberState.DEAD:
            member = in_state(member, MemberState.SUSPECT)
        accusers: tuple[NodeId, ...] = ()
        if update.accusers and not synced:
            found = (self._counted(accuser, member.node) for accuser in ids_of(update.accusers))
            accusers = tuple(accuser for accuser in found if accuser is not None)
        if current is None:
            self._store(member, None, accusers, now, reason=HEARD_OF, spread=spread)
            return
        merged = join(current, member)
        if precedence(member) < precedence(current):
            self.outdated = current
        if merged != current:
            self._store(merged, current, accusers, now, reason=TOLD, spread=spread)
        if not synced and precedence(member) == precedence(merged):
            self._hear_opinion(update, merged, now)

    def _hear_opinion(self, update: Update, current: Member, now: Instant) -> None:
        """Count the opinions on a doubt that is known, as far as they are new."""
        suspicion = self.suspicions.get(current.node)
        if suspicion is None:
            return
        is_news = False
        for accuser in ids_of(update.accusers):
            if suspicion.is_news(accuser):
                known = self._counted(accuser, current.node)
                if known is not None and suspicion.confirm(known):
                    self._history.note(current, CONFIRMED, known, now)
                    is_news = True
        for accuser in ids_of(update.retracted):
            if accuser not in suspicion.retracted:
                known = self._counted(accuser, current.node)
                if known is not None and suspicion.retract(known):
                    self._history.note(current, RETRACTED, known, now)
                    is_news = True
        if is_news:
            self._doubt_changed(current, suspicion, now)

    def _counted(self, accuser: NodeId, subject: NodeId) -> NodeId | None:
        """The table's own copy of an accuser's id: only members count, and not the subject.

        What others say in this node's name does not count either: it knows best.
        """
        if accuser in {subject, self.me.node}:
            return None
        member = self.table.get(accuser)
        return None if member is None or not is_live(member.state) else member.node

    def _refusal(self, member: Member, current: Member | None, now: Instant) -> str:
        """Why a rumour is not even looked at; empty if it is."""
        ahead_ms = (now - self._started) * 1_000 + EPOCH_AHEAD_MAX_MS
        if member.epoch > self._first_epoch + ahead_ms:
            return "epoch_ahead"
        if current is None:
            return "table_full" if len(self.table) >= self._config.members_max else ""
        jump = member.incarnation - current.incarnation
        if member.epoch == current.epoch and jump > INCARNATION_JUMP_MAX:
            return "incarnation_jump"
        return ""

    def _hear_of_self(self, member: Member, now: Instant) -> None:
        """Refute whatever is worse than, or newer than, the truth."""
        mine = self.me
        ahead_ms = (now - self._started) * 1_000 + EPOCH_AHEAD_MAX_MS
        if member.epoch > mine.epoch:
            # An earlier run, with its clock ahead, or somebody else with this key.
            if member.epoch <= self._first_epoch + ahead_ms:
                self._outrank(member, now)
            return
        if member.epoch < mine.epoch or self.leaving:
            return
        if member.incarnation > mine.incarnation + INCARNATION_JUMP_MAX:
            return
        if member.state is MemberState.ALIVE:
            news = member.incarnation > mine.incarnation or (
                member.incarnation == mine.incarnation
                and (member.address, member.other) != (mine.address, mine.other)
            )
            if news:
                self._outrank(member, now)
        elif member.incarnation < mine.incarnation:
            # Refuted before; the news has not got round.
            self.spread_self(now)
        else:
            self._health.refuted()
            self._raise_self(mine.epoch, member.incarnation + 1, now)

    def _outrank(self, member: Member, now: Instant) -> None:
        """Answer a record of this node that it did not write, in this run at least.

        The first time at once. If it goes on, another node runs with the same key and outranks us
        in turn: each raise then waits twice as long, so that the two do not flood the mesh.
        """
        self.foreign = member.address
        settled = now - self._outrank_at >= self._outrank_pause_s
        # A newer epoch seen once may be that of an earlier run, from before the clock was set back.
        foreign = member.epoch == self.me.epoch or not settled
        if foreign and member.address != self.me.address and now >= self._conflict_at:
            self._conflict_at = Instant(now + _CONFLICT_REPORT_S)
            self._outbox.add(ConflictSeen(member.address))
        if now < self._outrank_at:
            return
        pause_s = _OUTRANK_PAUSE_S if settled else 2 * self._outrank_pause_s
        self._outrank_pause_s = min(_OUTRANK_PAUSE_MAX_S, pause_s)
        self._outrank_at = Instant(now + self._outrank_pause_s)
        if member.epoch > self.me.epoch:
            self._raise_self(member.epoch + 1, 0, now)
        else:
            self._raise_self(self.me.epoch, member.incarnation + 1, now)

    # Own record

    def _raise_self(self, epoch: int, incarnation: int, now: Instant, **changes: object) -> None:
        if incarnation > INCARNATION_MAX:
            # There is none above: a new run outranks them all.
            epoch, incarnation = epoch + 1, 0
        lag = lag_code(self.lag.at(now))
        me = msgspec.structs.replace(
            self.me, epoch=Epoch(epoch), incarnation=Incarnation(incarnation), lag=lag, **changes
        )
        self.replace_self(me, now)
        self._outbox.add(IdentityRaised(me.epoch, me.incarnation))

    def replace_self(self, me: Member, now: Instant) -> None:
        """Change the own record and tell everybody."""
        if me.epoch != self.me.epoch:
            self._states.own.epoch = me.epoch
        self.me = me
        self.table.put(me)
        for node in self.families.follow(me, self.table):
            self._touched[node] = None
        self.changed_at = now
        self._outbox.set_members(self.table.live)
        self._touched[me.node] = None
        self.spread_self(now)

    def raise_incarnation(self, now: Instant, **changes: object) -> None:
        """Change the own record in a way that must outrank what is believed now."""
        self._raise_self(self.me.epoch, self.me.incarnation + 1, now, **changes)

    def outlive(self, epoch: int, now: Instant) -> None:
        """Another process with this node's key is gone, which told `epoch` last: outrank it."""
        self._raise_self(max(self.me.epoch, epoch) + 1, 0, now)

    def spread_self(self, now: Instant) -> None:
        """Queue the own record as a fresh rumour."""
        self._spread(self.me, now)

    def mail_waited(self, waited_s: Seconds, now: Instant) -> None:
        """A datagram lay at the socket for so long. Tell the others when that becomes much worse.

        They wait longer for this node then, instead of doubting it again and again.
        """
        self.waited_s = waited_s
        self.lag.read(waited_s, now)
        if waited_s < self._config.probe_interval_s * _LAG_TOLD_FRACTION or self.leaving:
            return
        if self.lag.at(now) > 2 * lag_s(self.me.lag) and now >= self._lag_told_at:
            self._lag_told_at = Instant(now + _LAG_TOLD_PAUSE_S)
            self.raise_incarnation(now)

    def lag_faded(self, now: Instant) -> None:
        """Tell the others, in time, that this node is well again."""
        if self.me.lag and self.lag.at(now) < lag_s(self.me.lag) / 4 and not self.leaving:
            self.raise_incarnation(now)

    # Doubt and death

    def probe_failed(self, asked: Member, now: Instant) -> None:
        """An own probe round ended without an ack: doubt the member, or confirm the doubt.

        Only if it still is the one that was asked: a newer life, or another address, was not.
        """
        node = asked.node
        member = self.table.get(node)
        if member is None or (member.epoch, member.incarnation, member.address) != (
            asked.epoch,
            asked.incarnation,
            asked.address,
        ):
            return
        self.unreachable[node] = None
        self._touched[node] = None
        if member.state is MemberState.ALIVE:
            suspect = in_state(member, MemberState.SUSPECT)
            self._store(suspect, member, (self.me.node,), now, reason=UNANSWERED)
            return
        suspicion = self.suspicions.get(node)
        if suspicion is not None and suspicion.confirm(self.me.node):
            self._history.note(member, CONFIRMED, self.me.node, now)
            self._doubt_changed(member, suspicion, now)

    def answered_late(self, asked: Member, now: Instant) -> None:
        """An answer came after the verdict: take back the own opinion, if it was about this life.

        The doubt itself stays until its subject refutes it, for beliefs only rise; it lasts longer.
        """
        member, suspicion = self.table.get(asked.node), self.suspicions.get(asked.node)
        if suspicion is None or member is None or self.me.node not in suspicion.accusers:
            return
        if precedence(in_state(member, asked.state)) == precedence(asked) and suspicion.retract(
            self.me.node
        ):
            self._history.note(member, RETRACTED, self.me.node, now)
            self._doubt_changed(member, suspicion, now)

    def suspicion_ran_out(self, node: NodeId, now: Instant) -> None:
        """Nobody refuted in time: the member is dead."""
        member = self.table.get(node)
        assert member is not None
        dead = in_state(member, MemberState.DEAD)
        self._store(dead, member, (self.me.node,), now, reason=RAN_OUT)

    def _doubt_changed(self, member: Member, suspicion: Suspicion, now: Instant) -> None:
        """Opinions came or went. They wait for a round of gossip: a doubt lasts for many."""
        self._touched[member.node] = None
        self._timers.set(("suspicion", member.node), self._due(suspicion))
        self.rumours.amend(member.node, self._encoded(member))
        self._timers.set_earlier("gossip", now + self._config.gossip_interval_s)

    def _encoded(self, member: Member) -> bytes:
        """A rumour of a member, with who doubts it."""
        suspicion = self.suspicions.get(member.node)
        if suspicion is None:
            return encode_update(member)
        return encode_update(member, b"".join(suspicion.accusers), b"".join(suspicion.retracted))

    # The one door to the table

    def _store(
        self, member: Member, before: Member | None, accusers: tuple[NodeId, ...], now: Instant,
        *, reason: str, spread: bool = True,
    ) -> None:  # fmt: skip
        node = member.node
        self.table.put(member)
        self._outbox.set_members(self.table.live)
        self.changed_at = now
        self._touched[node] = None
        if before is not None and before.epoch != member.epoch:
            self._loads.forget(node)
            self.rtt_s.pop(node, None)
        self._follow_suspicion(member, before, accusers, now)
        if is_live(member.state):
            self.gone.pop(node, None)
            self._states.heard_version(node, member.epoch, member.state_version)
        else:
            self.gone.setdefault(node, now)
            self._loads.forget(node)
            self._states.unwant(node)
            self._timers.set_earlier("reconnect", now + self._config.reconnect_interval_s)
        if spread:
            self._spread(member, now)
        if self.table.live == 1 and member.state is MemberState.DEAD:
            self._keep_deaths_quiet()
        if before is None or (before.state, before.epoch, before.address) != (
            member.state,
            member.epoch,
            member.address,
        ):
            self._report(member, before, accusers[0] if accusers else None, reason, now)

    def _report(
        self, member: Member, before: Member | None, accuser: NodeId | None, reason: str,
        now: Instant,
    ) -> None:  # fmt: skip
        if before is not None and before.epoch != member.epoch:
            reason = RESTARTED
        elif before is not None and is_live(member.state) < is_live(before.state):
            reason = GOODBYE if member.state is MemberState.LEFT else reason
        elif before is not None and member.incarnation > before.incarnation:
            reason = REFUTED if member.state is MemberState.ALIVE else reason
        self._history.note(member, reason, accuser, now)
        self._outbox.add(MemberChanged(member, before.state if before else None, reason))

    def _follow_suspicion(
        self, member: Member, before: Member | None, accusers: tuple[NodeId, ...], now: Instant
    ) -> None:
        """Keep exactly one suspicion for each suspect, started anew at each incarnation."""
        node = member.node
        if member.state is not MemberState.SUSPECT:
            if self.suspicions.pop(node, None) is not None:
                self._timers.cancel(("suspicion", node))
            return
        if before is not None and precedence(before) == precedence(member):
            return
        suspicion = Suspicion(self._config, self.table.live, now, lag_s=lag_s(member.lag))
        for accuser in accusers:
            suspicion.confirm(accuser)
        self.suspicions[node] = suspicion
        self._timers.set(("suspicion", node), self._due(suspicion))
        if self.me.node not in accusers and self._is_verifier(member):
            self._timers.set(("verify", node), now)

    def _due(self, suspicion: Suspicion) -> float:
        """When something has to be done about a doubt: its end, or the last call before it."""
        if suspicion.is_last_called:
            return suspicion.deadline()
        return suspicion.deadline() - self._config.probe_interval_s * LAST_CALL_FRACTION

    def _is_verifier(self, suspect: Member) -> bool:
        """Whether this node is among those who shall probe a suspect at once.

        They are the first on the ring of all ids from a point that the doubt itself gives, so that
        all choose the same without a word (the expander of observers of Rapid, ATC 2018, in small).
        """
        if self.leaving:
            return False
        chosen = self.table.first_from(
            doubt_point(suspect),
            self._config.verifiers,
            lambda m: m.state is MemberState.ALIVE and m.node != suspect.node,
        )
        return any(member is self.me for member in chosen)

    def _spread(self, member: Member, now: Instant) -> None:
        self.rumours.add(member.node, self._encoded(member))
        self._timers.set_earlier("gossip", now)

    def _keep_deaths_quiet(self) -> None:
        """Nobody is left to tell, so it is rather this node that was cut off.

        What waits now would be believed when the others come back, and kill the living among them;
        whom this node holds dead they hear in a sync, as a mere doubt.
        """
        for node in self.gone:
            member = self.table.get(node)
            assert member is not None
            if member.state is MemberState.DEAD:
                self.rumours.discard(node)

    # For others

    def accusation(self, node: NodeId) -> tuple[NodeId, bytes] | None:
        """The rumour that a member must hear to defend itself; None if it is alive."""
        member = self.table.get(node)
        if member is None or member.state is MemberState.ALIVE:
            return None
        waiting = self.rumours.peek(node)
        return node, waiting if waiting is not None else self._encoded(member)

    def correction(self) -> tuple[NodeId, bytes] | None:
        """The rumour that the sender of the last datagram lacks; None if it lacks none."""
        member = self.outdated
        return None if member is None else (member.node, self._encoded(member))

    def reap(self, now: Instant) -> None:
        """Forget those who are gone for longer than tombstones last."""
        for node, since in list(self.gone.items()):
            if now - since >= self._config.tombstone_s:
                self._forget(node)

    def _forget(self, node: NodeId) -> None:
        self.table.forget(node)
        self._states.forget(node)
        self._loads.forget(node)
        self.rumours.discard(node)
        self._history.forget(node)
        for table in (self.gone, self.heard_at, self.rtt_s, self.unreachable):
            assert isinstance(table, dict)
            table.pop(node, None)
        self._touched[node] = None

    def touch(self, node: NodeId) -> None:
        """Something about a member changed that its row in the view shows."""
        self._touched[node] = None

    def take_touched(self) -> Mapping[NodeId, None]:
        """Members whose row in the view may have changed since the last call."""
        touched, self._touched = self._touched, {}
        return touched

    def history(self, node: NodeId) -> tuple[tuple[Instant, str], ...]:
        """The last events of a member, oldest first: why it is believed to be what it is."""
        return self._history.lines(node)

    def is_at(self, address: Address) -> bool:
        """Whether an alive, reachable member, or this node itself, is at `address`."""
        return any(
            m.state is MemberState.ALIVE and m.node not in self.unreachable
            for m in self.table.at_address(address)
        )
