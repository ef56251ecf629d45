"""Whether somebody unknown may enter the table on another's word, or on its own."""

from meshd.clock import Instant
from meshd.gossip.config import GossipConfig
from meshd.gossip.doors import Doors
from meshd.gossip.members import MemberTable
from meshd.gossip.messages import Update
from meshd.gossip.sponsors import Sponsors
from meshd.gossip.state import STATE_VERSION_JUMP_MAX
from meshd.gossip.wall import WallClock
from meshd.model import Address, Member, NodeId

EPOCH_AHEAD_MAX_MS = 86_400_000
"""How far ahead of the own clock another's run may have begun: a day."""
INCARNATION_JUMP_MAX = 1_000
"""How far above the known one an incarnation may be; above none, where nothing is known."""
BURIED_MAX = 4_096
"""Expired tombstones of which run and incarnation stay known; the oldest gives way."""


class Entry:
    """The rules of the door to one node's table."""

    def __init__(
        self, *, config: GossipConfig, table: MemberTable, doors: Doors, sponsors: Sponsors,
        wall: WallClock,
    ) -> None:  # fmt: skip
        self._wall = wall
        self._config = config
        self._table = table
        self._doors = doors
        self._sponsors = sponsors
        self._buried: dict[NodeId, tuple[int, int]] = {}

    def is_full(self) -> bool:
        """Whether the table has no row left."""
        return len(self._table) >= self._config.members_max

    def is_ahead(self, member: Member, now: Instant) -> bool:
        """Whether a run's epoch lies so far in the future that no clock can be that wrong."""
        return member.epoch > self._wall.at_ms(now) + EPOCH_AHEAD_MAX_MS

    def leap(self, member: Member, current: Member | None, now: Instant) -> str:
        """Why a rumour is not even looked at; empty if it is."""
        if self.is_ahead(member, now):
            return "epoch_ahead"
        if current is None or member.epoch != current.epoch:
            return ""
        if member.incarnation - current.incarnation > INCARNATION_JUMP_MAX:
            return "incarnation_jump"
        jump = member.state_version - current.state_version
        return "version_jump" if jump > STATE_VERSION_JUMP_MAX else ""

    def refusal(
        self, update: Update, newcomer: Member, teller: Address, now: Instant, *, own: bool,
        asked: bool,
    ) -> str:  # fmt: skip
        """Why a newcomer is not taken in; empty if it is.

        Args:
            update: the rumour.
            newcomer: what it states; nobody in the table.
            teller: where it came from.
            now: the present.
            own: it is the newcomer's own word, from an address that it has proven.
            asked: it is a row of a whole table that was asked for, which is not looked at so
                closely.
        """
        if self.is_full():
            return "table_full"
        if not (own or asked) and newcomer.incarnation > INCARNATION_JUMP_MAX:
            return "incarnation_jump"
        if not own and self._sponsors.is_false_claim(update):
            return "disowned"
        buried = self._buried.get(newcomer.node)
        if buried is not None and not own and (newcomer.epoch, newcomer.incarnation) <= buried:
            return "buried"
        if not self._doors.may_enter(teller, now, asked=own or asked):
            return "too_many_new"
        return ""

    def bury(self, member: Member) -> None:
        """A tombstone has expired. Old news of somebody who kept none must raise nobody."""
        self._buried.pop(member.node, None)
        if len(self._buried) >= BURIED_MAX:
            del self._buried[next(iter(self._buried))]
        self._buried[member.node] = (member.epoch, member.incarnation)
