"""What this node believes of each member, and how a rumour changes that."""

from collections.abc import Mapping, Sequence

import msgspec

from meshd.clock import Instant, Seconds
from meshd.errors import DecodeError
from meshd.gossip.broadcast import RICH_RUMOURS_MAX, BroadcastQueue
from meshd.gossip.codec import encode_update, ids_of, member_from, states
from meshd.gossip.config import GossipConfig
from meshd.gossip.dialects import Dialects
from meshd.gossip.doors import Doors
from meshd.gossip.doubts import Doubts
from meshd.gossip.effects import ConflictSeen, IdentityRaised, MemberChanged, StateChanged
from meshd.gossip.entry import INCARNATION_JUMP_MAX, Entry
from meshd.gossip.explanation import PastEvent, Probed
from meshd.gossip.families import Families
from meshd.gossip.health import LocalHealth
from meshd.gossip.history import (
    HEARD_OF,
    RAN_OUT,
    TOLD,
    UNANSWERED,
    History,
    reason_of,
)
from meshd.gossip.lag import MailLag, lag_code, lag_s
from meshd.gossip.loads import LoadPlane
from meshd.gossip.members import (
    MemberTable,
    in_state,
    is_live,
    is_overtaken,
    join,
    precedence,
)
from meshd.gossip.messages import Update
from meshd.gossip.outbox import Outbox
from meshd.gossip.sponsors import Sponsors
from meshd.gossip.state import STATE_VERSION_JUMP_MAX, StateStore
from meshd.gossip.timers import Timers
from meshd.gossip.wall import WallClock
from meshd.model import Address, Epoch, Incarnation, Member, MemberState, NodeId

INCARNATION_MAX = 2**32 - 1
_CONFLICT_REPORT_S = 10.0
_OUTRANK_PAUSE_S = 1.0
_OUTRANK_PAUSE_MAX_S = 64.0
OUTDATED_MAX = 16
"""Rumours with which one datagram that tells old news is answered."""
UNHEARD_GONE_S: Seconds = 300.0
"""How long a tombstone lasts of somebody whom this node never heard."""
_LAG_BORNE_FRACTION = 0.25  # of the probe interval: what is less fits into the usual timeouts
_LAG_TOLD_PAUSE_S = 5.0


class Beliefs:
    """The member table; every change of it goes through here."""

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
        doors: Doors,
        dialects: Dialects,
        now: Instant,
    ) -> None:
        self.me = me
        self.table = table
        self.rumours = rumours
        self.gone: dict[NodeId, Instant] = {}
        self.heard_at: dict[NodeId, Instant] = {}
        self.rtt_s: dict[NodeId, float] = {}
        self.probed: dict[NodeId, Probed] = {}
        self.unreachable: dict[NodeId, None] = {}
        self.families = Families(me)
        self.changed_at = now
        self.leaving = False
        self.overtaken: list[NodeId] = []
        """Subjects of whom a rumour of the step under way told less than is believed here."""
        self._dialects = dialects
        self.sponsors = Sponsors(me.node, table, now)
        self.wall = WallClock(me.epoch, now)
        self._entry = Entry(
            config=config, table=table, doors=doors, sponsors=self.sponsors, wall=self.wall
        )
        self.lag = MailLag()
        self.outdated: list[Member] = []
        """Of whom the last datagram said what is known better here."""
        self.teller = me.node
        """Who sent the datagram that is being read."""
        self.waited_s: Seconds = 0.0
        """How long the datagram that is being read lay at the socket."""
        self._lag_told_at = now
        self._lag_borne_s = config.probe_interval_s * _LAG_BORNE_FRACTION
        self._config = config
        self._loads = loads
        self._states = states
        self._timers = timers
        self._outbox = outbox
        self._health = health
        self.began = me.epoch
        self.foreign: Address | None = None
        self._conflict_at = now
        self._outrank_at = now
        self._outrank_pause_s = 0.0
        self._touched: dict[NodeId, None] = {me.node: None}
        self._history = History()
        self.doubts = Doubts(
            me=me.node, config=config, table=table, rumours=rumours, timers=timers,
            history=self._history, touch=self.touch,
        )  # fmt: skip
        self.suspicions = self.doubts.open
        table.put(me)
        outbox.set_members(table.live)

    # What was heard

    def heard_from(self, node: NodeId, now: Instant) -> None:
        """A packet came from a member itself."""
        self.outdated.clear()
        self.overtaken.clear()
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
        for update in self.once_of_self(updates):
            node = update.node
            current = get(node)
            if current is None or node == me or not states(update, current):
                self.hear(update, source, now)
                continue
            # An older state version makes the own, newer rumour no better known.
            if rumours.is_crowded and update.state_version == current.state_version:
                rumours.heard(node, self._outbox.limit)
            if update.accusers or update.retracted:
                self.doubts.hear(update, current, self.teller, now)
            if update.delta is not None and self._states.offered_late(update, current):
                self._hear_state(current)

    def once_of_self(self, updates: tuple[Update, ...]) -> tuple[Update, ...]:
        """The rumours of one datagram, of those about this node the newest alone.

        Or one datagram could make it refute, and be written to disk, many times.
        """
        me = self.me.node
        if [update.node for update in updates].count(me) < 2:
            return updates
        newest = max(
            (update for update in updates if update.node == me),
            key=lambda update: (update.epoch, update.incarnation, update.state),
        )
        return tuple(each for each in updates if each.node != me or each is newest)

    def knows(self, update: Update) -> bool:
        """Whether a row of somebody's table tells nothing new: the same is believed here."""
        current = self.table.get(update.node)
        return current is not None and states(update, current) and current is not self.me

    def hear(
        self, update: Update, source: Address, now: Instant, *, synced: bool = False,
        spread: bool = True, own: bool = False, asked: bool = False,
    ) -> None:  # fmt: skip
        """Take in one rumour, from whomever.

        Args:
            update: the rumour.
            source: where the datagram came from, for the report if it is refused.
            now: the present.
            synced: it is a row of somebody's table. A death there is only a reason to doubt (the
                subject may refute), and a doubt there is nobody's further opinion.
            spread: pass it on if it is news.
            own: it is the subject's own word, from an address that it has proven.
            asked: it is a row of a table that we asked for.
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
        if current is None and not is_live(member.state):
            # Of somebody unknown only life is news, or a table's tombstones would rise as suspects.
            return
        refusal = self._entry.leap(member, current, now)
        if current is None and not refusal:
            if own and self._entry.is_full():
                self._make_room()
            refusal = self._entry.refusal(update, member, source, now, own=own, asked=asked)
            if refusal == "disowned" and self.sponsors.may_deny(now):
                self._spread(in_state(member, MemberState.DEAD), now)
        if refusal:
            self._outbox.reject(refusal, source)
            return
        if update.delta is not None:
            self._states.offered(member, update.delta)
        if synced and member.state is MemberState.DEAD:
            member = in_state(member, MemberState.SUSPECT)
        accusers: tuple[NodeId, ...] = ()
        if update.accusers and not synced:
            found = (
                self.doubts.counted(accuser, member.node) for accuser in ids_of(update.accusers)
            )
            accusers = tuple(accuser for accuser in found if accuser is not None)
        if member.state is MemberState.ALIVE:
            sponsor = None if own else self.sponsors.of(update)
            accusers = () if sponsor is None else (sponsor,)
            if spread and (current is None or member.epoch > current.epoch):
                self.sponsors.answer_for(member, sponsor, now)
        if current is None:
            self._store(member, None, accusers, now, reason=HEARD_OF, spread=spread)
            return
        merged = join(current, member)
        if precedence(member) < precedence(current):
            self._note_outdated(current)
        if merged != current:
            self._store(merged, current, accusers, now, reason=TOLD, spread=spread)
        elif is_live(member.state) and is_overtaken(member, current):
            self.overtaken.append(current.node)
        if not synced and precedence(member) == precedence(merged):
            self.doubts.hear(update, merged, self.teller, now)

    def _note_outdated(self, current: Member) -> None:
        if current.state in {MemberState.ALIVE, MemberState.LEFT}:
            if len(self.outdated) == OUTDATED_MAX:
                self.outdated.pop(0)
            self.outdated.append(current)

    def _hear_state(self, member: Member) -> bool:
        """See what a record means for what is held of its state; true if it tells of more."""
        if self._states.heard(member):
            self._outbox.add(StateChanged(member.node))
            self._touched[member.node] = None
            return True
        return self._states.want(member.node) is not None

    def _hear_of_self(self, member: Member, now: Instant) -> None:
        """Refute whatever is worse than, or newer than, the truth."""
        mine = self.me
        if member.epoch > mine.epoch:
            # An earlier run, with its clock ahead, or somebody else with this key.
            if not self._entry.is_ahead(member, now):
                self._outrank(member, now)
            return
        if member.epoch < mine.epoch or self.leaving:
            return
        if member.incarnation > mine.incarnation + INCARNATION_JUMP_MAX:
            return
        if member.state is MemberState.ALIVE:
            news = member.incarnation > mine.incarnation or (
                member.incarnation == mine.incarnation
                and (
                    (member.address, member.other) != (mine.address, mine.other)
                    or member.lag > mine.lag
                )
            )
            if news or self._claims_more(member):
                self._outrank(member, now)
        elif member.incarnation < mine.incarnation:
            # Refuted before; the news has not got round.
            self.spread_self(now)
        else:
            self._health.refuted()
            self._raise_self(mine.epoch, member.incarnation + 1, now, **self._above(member))

    def _claims_more(self, member: Member) -> bool:
        """Whether a record of this run tells of a state that this node never had."""
        return (member.state_version, member.digest) > (self.me.state_version, self.me.digest)

    def _above(self, member: Member) -> dict[str, object]:
        """What the own record needs so that its state outranks the one that another tells of.

        The digest stays: what others hold of the state is right for the new version, too.
        """
        if not self._claims_more(member):
            return {}
        self._states.outrank(member.state_version)
        return {"state_version": self._states.own.version}

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
        elif member.state_version > self.me.state_version + STATE_VERSION_JUMP_MAX:
            # Others refuse such a jump, those who know us: for the rest we begin anew.
            self._raise_self(self.me.epoch + 1, 0, now)
        else:
            incarnation = max(member.incarnation, self.me.incarnation) + 1
            self._raise_self(self.me.epoch, incarnation, now, **self._above(member))

    # Own record

    def _raise_self(self, epoch: int, incarnation: int, now: Instant, **changes: object) -> None:
        if incarnation > INCARNATION_MAX:
            # There is none above: a new run outranks them all.
            epoch, incarnation = epoch + 1, 0
        late_s = self.lag.at(now)
        lag = lag_code(late_s) if late_s >= self._lag_borne_s else 0
        me = msgspec.structs.replace(
            self.me, epoch=Epoch(epoch), incarnation=Incarnation(incarnation), lag=lag, **changes
        )
        self.replace_self(me, now)
        self._outbox.add(IdentityRaised(me.epoch, me.incarnation))

    def replace_self(self, me: Member, now: Instant) -> None:
        """Change the own record and tell everybody."""
        if me.epoch != self.me.epoch:
            self._states.own.epoch = me.epoch
        is_state_news = me.state_version != self.me.state_version
        self.me = me
        self.table.put(me)
        for node in self.families.follow(me, self.table):
            self._touched[node] = None
        self.changed_at = now
        self._outbox.set_members(self.table.live)
        self._touched[me.node] = None
        self._spread(me, now, is_state_news=is_state_news)

    def raise_incarnation(self, now: Instant, **changes: object) -> None:
        """Change the own record in a way that must outrank what is believed now."""
        self._raise_self(self.me.epoch, self.me.incarnation + 1, now, **changes)

    def begin_anew(self, now: Instant) -> None:
        """The own state has begun another run: tell of that one."""
        own = self._states.own
        self._raise_self(own.epoch, 0, now, state_version=own.version, digest=own.digest)

    def outlive(self, epoch: int, now: Instant) -> None:
        """Another process with this node's key is gone, which told `epoch` last: outrank it."""
        self._raise_self(max(self.me.epoch, epoch) + 1, 0, now)

    def spread_self(self, now: Instant, *, is_state_news: bool = False) -> None:
        """Queue the own record as a fresh rumour."""
        self._spread(self.me, now, is_state_news=is_state_news)

    def introduction(self) -> bytes:
        """The own record for somebody new, with the own state if it is small: nobody asks then."""
        return encode_update(self.me, change=self._states.change_of(self.me))

    def mail_waited(self, waited_s: Seconds, now: Instant) -> None:
        """A datagram lay at the socket for so long. Tell the others when that becomes much worse.

        They wait longer for this node then, instead of doubting it again and again.
        """
        self.waited_s = waited_s
        self.lag.read(waited_s, now)
        if waited_s < self._lag_borne_s or self.leaving:
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
        self.doubts.confirm(member, now)

    def suspicion_ran_out(self, node: NodeId, now: Instant) -> None:
        """Nobody refuted in time: the member is dead."""
        member = self.table.get(node)
        assert member is not None
        dead = in_state(member, MemberState.DEAD)
        self._store(dead, member, (self.me.node,), now, reason=RAN_OUT)

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
            self._dialects.restarted(node)
        self.doubts.follow(member, before, accusers, now)
        is_state_news = is_live(member.state) and self._hear_state(member)
        if is_live(member.state):
            self.gone.pop(node, None)
        else:
            self.gone.setdefault(node, now)
            self._loads.forget(node)
            self._states.unwant(node)
            self._timers.set_earlier("reconnect", now + self._config.reconnect_interval_s)
        if spread:
            self._spread(member, now, is_state_news=is_state_news)
        if self.table.live == 1 and member.state is MemberState.DEAD:
            self._keep_deaths_quiet()
        if before is None or (before.state, before.epoch, before.address) != (
            member.state,
            member.epoch,
            member.address,
        ):
            is_accused = bool(accusers) and member.state in {MemberState.SUSPECT, MemberState.DEAD}
            self._report(member, before, accusers[0] if is_accused else None, reason, now)

    def _report(
        self, member: Member, before: Member | None, accuser: NodeId | None, reason: str,
        now: Instant,
    ) -> None:  # fmt: skip
        teller = None if reason in {UNANSWERED, RAN_OUT} else self.teller
        reason = reason_of(member, before, reason)
        self._history.note(member, reason, accuser, teller, now)
        self._outbox.add(MemberChanged(member, before.state if before else None, reason, accuser))

    def _spread(self, member: Member, now: Instant, *, is_state_news: bool = False) -> None:
        """Queue a rumour. It tells of the state only if that is news: storms are not of that."""
        rich = None
        sponsor = self.sponsors.named(member, now) if member.state is MemberState.ALIVE else b""
        if is_state_news and member.state is MemberState.ALIVE:
            lean = encode_update(member, sponsor)
            change = self._states.change_of(member)
            if change is not None and len(self.rumours) < RICH_RUMOURS_MAX:
                rich = encode_update(member, sponsor, change=change)
        else:
            lean = encode_update(member, sponsor) if sponsor else self.doubts.encoded(member)
        self.rumours.add(member.node, lean, rich)
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

    def accusations(self, nodes: Sequence[NodeId]) -> list[bytes]:
        """What is believed of some suspects, each as a rumour."""
        found = (self.accusation(node) for node in nodes)
        return [each[1] for each in found if each is not None]

    def accusation(self, node: NodeId) -> tuple[NodeId, bytes] | None:
        """The rumour that a member must hear to defend itself; None if it is alive."""
        member = self.table.get(node)
        if member is None or member.state is MemberState.ALIVE:
            return None
        waiting = self.rumours.peek(node)
        return node, waiting if waiting is not None else self.doubts.encoded(member)

    def corrections(self) -> list[bytes]:
        """The rumours that the sender of the last datagram lacks.

        Deaths are none of these: in a heal they would be believed before their subjects can refute.
        """
        return [self.doubts.encoded(member) for member in self.outdated]

    def reap(self, now: Instant) -> None:
        """Forget those who are gone for longer than tombstones last.

        The tombstone of whom this node never heard may be of nobody: it does not last as long.
        """
        for node in list(self.gone):
            if now >= self.forgotten_at(node):
                self._forget(node)

    def forgotten_at(self, node: NodeId) -> Instant:
        """When the tombstone of somebody who is gone expires."""
        lasts_s = self._config.tombstone_s
        if node not in self.heard_at:
            lasts_s = min(lasts_s, UNHEARD_GONE_S)
        return Instant(self.gone[node] + lasts_s)

    def _make_room(self) -> None:
        """Somebody has proven that it lives: the oldest tombstone gives way.

        Rather that of somebody whom this node never heard; the living never do.
        """
        unheard = (node for node in self.gone if node not in self.heard_at)
        oldest = next(unheard, None) or next(iter(self.gone), None)
        if oldest is not None:
            self._forget(oldest)

    def _forget(self, node: NodeId) -> None:
        member = self.table.get(node)
        assert member is not None
        self._entry.bury(member)
        self.table.forget(node)
        self._dialects.restarted(node)
        self._states.forget(node)
        self._loads.forget(node)
        self.rumours.discard(node)
        self._history.forget(node)
        for table in (self.gone, self.heard_at, self.rtt_s, self.probed, self.unreachable):
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

    def history(self, node: NodeId) -> tuple[PastEvent, ...]:
        """The last events of a member, oldest first: why it is believed to be what it is."""
        return self._history.of(node)

    def is_at(self, address: Address) -> bool:
        """Whether an alive, reachable member, or this node itself, is at `address`."""
        return any(
            m.state is MemberState.ALIVE and m.node not in self.unreachable
            for m in self.table.at_address(address)
        )
