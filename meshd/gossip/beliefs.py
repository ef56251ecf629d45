"""What this node believes of each member, and how a rumour changes that."""

from collections import deque
from collections.abc import Mapping

import msgspec

from meshd.clock import Instant
from meshd.errors import DecodeError
from meshd.gossip.broadcast import BroadcastQueue
from meshd.gossip.codec import encode_update, member_from, pack_address
from meshd.gossip.config import GossipConfig
from meshd.gossip.effects import ConflictSeen, IdentityRaised, MemberChanged
from meshd.gossip.health import LocalHealth
from meshd.gossip.loads import LoadPlane
from meshd.gossip.members import MemberTable, is_live, join, precedence
from meshd.gossip.messages import Update
from meshd.gossip.outbox import Outbox
from meshd.gossip.state import StateStore
from meshd.gossip.suspicion import Suspicion
from meshd.gossip.timers import Timers
from meshd.model import Address, Epoch, Incarnation, Member, MemberState, NodeId

INCARNATION_JUMP_MAX = 1_000
EPOCH_AHEAD_MAX_MS = 86_400_000
HISTORY_LINES_MAX = 32


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
        self.changed_at = now
        self.leaving = False
        self._config = config
        self._loads = loads
        self._states = states
        self._timers = timers
        self._outbox = outbox
        self._health = health
        self._started = now
        self._first_epoch = me.epoch
        self._touched: dict[NodeId, None] = {}
        self._history: dict[NodeId, deque[tuple[Instant, str]]] = {}
        table.put(me)
        self._outbox.members = table.live

    # What was heard

    def heard_from(self, node: NodeId, now: Instant) -> None:
        """A packet came from a member itself."""
        self.heard_at[node] = now
        self.unreachable.pop(node, None)
        self._touched[node] = None

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
            member = member_from(update)
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
        accuser = NodeId(update.source) if len(update.source) == 8 and not synced else None
        if synced and member.state is MemberState.DEAD:
            member = msgspec.structs.replace(member, state=MemberState.SUSPECT)
        if current is None:
            # Of somebody unknown only life is news.
            if is_live(member.state):
                self._store(member, None, accuser, now, reason="heard of", spread=spread)
            return
        merged = join(current, member)
        if merged != current:
            self._store(merged, current, accuser, now, reason="told by a peer", spread=spread)
        elif accuser is not None and precedence(member) == precedence(current):
            self._confirm(current, accuser, now)

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
                self._raise_self(Epoch(member.epoch + 1), Incarnation(0), now)
            return
        if member.epoch < mine.epoch or self.leaving:
            return
        if member.state is MemberState.ALIVE:
            if member.address != mine.address and member.incarnation >= mine.incarnation:
                self._outbox.add(ConflictSeen(member.address))
            if mine.incarnation < member.incarnation <= mine.incarnation + INCARNATION_JUMP_MAX:
                self._raise_self(mine.epoch, Incarnation(member.incarnation + 1), now)
            return
        if member.incarnation < mine.incarnation:
            # Refuted before; the news has not got round.
            self.spread_self(now)
        elif member.incarnation <= mine.incarnation + INCARNATION_JUMP_MAX:
            self._health.refuted()
            self._raise_self(mine.epoch, Incarnation(member.incarnation + 1), now)

    # Own record

    def _raise_self(self, epoch: Epoch, incarnation: Incarnation, now: Instant) -> None:
        self.replace_self(
            msgspec.structs.replace(self.me, epoch=epoch, incarnation=incarnation), now
        )
        self._outbox.add(IdentityRaised(epoch, incarnation))

    def replace_self(self, me: Member, now: Instant) -> None:
        """Change the own record and tell everybody."""
        if me.epoch != self.me.epoch:
            self._states.own.epoch = me.epoch
        self.me = me
        self.table.put(me)
        self.changed_at = now
        self._outbox.members = self.table.live
        self._touched[me.node] = None
        self.spread_self(now)

    def raise_incarnation(self, now: Instant, **changes: object) -> None:
        """Change the own record in a way that must outrank what is believed now."""
        me = msgspec.structs.replace(
            self.me, incarnation=Incarnation(self.me.incarnation + 1), **changes
        )
        self.replace_self(me, now)
        self._outbox.add(IdentityRaised(me.epoch, me.incarnation))

    def spread_self(self, now: Instant) -> None:
        """Queue the own record as a fresh rumour."""
        self._spread(self.me, None, now)

    # Doubt and death

    def probe_failed(self, node: NodeId, incarnation: Incarnation, now: Instant) -> None:
        """An own probe round ended without an ack: doubt the member, or confirm the doubt."""
        member = self.table.get(node)
        if member is None or member.incarnation != incarnation:
            return
        self.unreachable[node] = None
        self._touched[node] = None
        if member.state is MemberState.ALIVE:
            suspect = msgspec.structs.replace(member, state=MemberState.SUSPECT)
            self._store(suspect, member, self.me.node, now, reason="no answer to a probe")
        elif member.state is MemberState.SUSPECT:
            self._confirm(member, self.me.node, now)

    def suspicion_ran_out(self, node: NodeId, now: Instant) -> None:
        """Nobody refuted in time: the member is dead."""
        member = self.table.get(node)
        suspicion = self.suspicions.get(node)
        if member is None or suspicion is None:
            return
        dead = msgspec.structs.replace(member, state=MemberState.DEAD)
        reason = f"not refuted in {now - suspicion.started:.1f} s"
        self._store(dead, member, self.me.node, now, reason=reason)

    def _confirm(self, member: Member, accuser: NodeId, now: Instant) -> None:
        suspicion = self.suspicions.get(member.node)
        if suspicion is None or not suspicion.confirm(accuser):
            return
        self._note(member.node, now, f"suspicion confirmed by {accuser.hex()}")
        self._touched[member.node] = None
        self._timers.set(("suspicion", member.node), suspicion.deadline())
        self._spread(member, accuser, now)

    # The one door to the table

    def _store(
        self, member: Member, before: Member | None, accuser: NodeId | None, now: Instant, *,
        reason: str, spread: bool = True,
    ) -> None:  # fmt: skip
        node = member.node
        self.table.put(member)
        self._outbox.members = self.table.live
        self.changed_at = now
        self._touched[node] = None
        if before is not None and before.epoch != member.epoch:
            self._loads.forget(node)
            self.rtt_s.pop(node, None)
        self._follow_suspicion(member, before, accuser, now)
        if is_live(member.state):
            self.gone.pop(node, None)
            self._states.heard_version(node, member.epoch, member.state_version)
        else:
            self.gone.setdefault(node, now)
            self._loads.forget(node)
            self._timers.set("reconnect", now + self._config.reconnect_interval_s)
        if spread:
            self._spread(member, accuser if member.state is MemberState.SUSPECT else None, now)
        if before is None or (before.state, before.epoch, before.address) != (
            member.state,
            member.epoch,
            member.address,
        ):
            self._report(member, before, accuser, reason, now)

    def _report(
        self, member: Member, before: Member | None, accuser: NodeId | None, reason: str,
        now: Instant,
    ) -> None:  # fmt: skip
        if before is not None and before.epoch != member.epoch:
            reason = "restarted"
        elif before is not None and is_live(member.state) < is_live(before.state):
            reason = "said goodbye" if member.state is MemberState.LEFT else reason
        elif before is not None and member.incarnation > before.incarnation:
            reason = "refuted" if member.state is MemberState.ALIVE else reason
        by = f" (accuser {accuser.hex()})" if accuser is not None else ""
        text = f"{member.state.name.lower()} @{member.incarnation}: {reason}{by}"
        self._note(member.node, now, text)
        self._outbox.add(MemberChanged(member, before.state if before else None, reason))

    def _follow_suspicion(
        self, member: Member, before: Member | None, accuser: NodeId | None, now: Instant
    ) -> None:
        """Keep exactly one suspicion for each suspect, started anew at each incarnation."""
        node = member.node
        if member.state is not MemberState.SUSPECT:
            if self.suspicions.pop(node, None) is not None:
                self._timers.cancel(("suspicion", node))
            return
        if before is not None and precedence(before) == precedence(member):
            return
        suspicion = Suspicion(self._config, self.table.live, accuser, now)
        self.suspicions[node] = suspicion
        self._timers.set(("suspicion", node), suspicion.deadline())

    def _spread(self, member: Member, accuser: NodeId | None, now: Instant) -> None:
        self.rumours.add(member.node, encode_update(member, accuser))
        self._timers.set_earlier("gossip", now)

    # For others

    def accusation(self, node: NodeId) -> tuple[NodeId, bytes] | None:
        """The rumour that a member must hear to defend itself; None if it is alive."""
        member = self.table.get(node)
        if member is None or member.state is MemberState.ALIVE:
            return None
        waiting = self.rumours.peek(node)
        return node, waiting if waiting is not None else encode_update(member)

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
        for table in (self.gone, self.heard_at, self.rtt_s, self.unreachable, self._history):
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

    def _note(self, node: NodeId, now: Instant, text: str) -> None:
        lines = self._history.get(node)
        if lines is None:
            lines = self._history[node] = deque(maxlen=HISTORY_LINES_MAX)
        lines.append((now, text))

    def history(self, node: NodeId) -> tuple[tuple[Instant, str], ...]:
        """The last events of a member, oldest first: why it is believed to be what it is."""
        return tuple(self._history.get(node, ()))

    def is_at(self, address: Address) -> bool:
        """Whether an alive, reachable member, or this node itself, is at `address`."""
        if address == self.me.address:
            return True
        packed = pack_address(address)
        return any(
            m.state is MemberState.ALIVE
            and m.node not in self.unreachable
            and pack_address(m.address) == packed
            for m in self.table
        )
