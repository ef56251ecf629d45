"""Who has met a newcomer and answers for it: the first link of the chain that others believe.

Whoever shook hands with a newcomer is its sponsor, and the newcomer's rumours name it while it is
news. A node that believes in a newcomer without a sponsor's name answers for it itself. Whoever is
named, but never heard of the newcomer, denies it to all; if it does live, it refutes that.
"""

from meshd.clock import Instant, Seconds
from meshd.gossip.doors import Budget
from meshd.gossip.members import MemberTable, is_live
from meshd.gossip.messages import Update
from meshd.model import Member, MemberState, NodeId

SPONSORED_MAX = 1_024
"""Newcomers of whom the sponsor is known; the oldest gives way."""
SPONSOR_TOLD_S: Seconds = 10.0
"""How long a newcomer is news: until then its rumours name its sponsor."""
VETOES_PER_S = 16
"""Newcomers named as our guests who are not, that are denied a second, and at once."""


class Sponsors:
    """What one node knows of sponsors, itself included."""

    def __init__(self, me: NodeId, table: MemberTable, now: Instant) -> None:
        self._me = me
        self._table = table
        self._sponsors: dict[NodeId, tuple[NodeId, int, Instant]] = {}
        self._vetoes = Budget(VETOES_PER_S, VETOES_PER_S, now)

    def of(self, update: Update) -> NodeId | None:
        """The live member that a rumour of somebody alive names as sponsor; None if none."""
        if update.state != MemberState.ALIVE or not update.accusers:
            return None
        named = NodeId(update.accusers[:8])
        if named == self._me:
            return self._me if self._is_guest(update.node, update.epoch) else None
        sponsor = self._table.get(named)
        if sponsor is None or not is_live(sponsor.state) or named == update.node:
            return None
        return sponsor.node

    def answer_for(self, newcomer: Member, sponsor: NodeId | None, now: Instant) -> None:
        """Remember who has met a newcomer; where that is unknown, this node answers for it."""
        self._sponsors.pop(newcomer.node, None)
        if len(self._sponsors) >= SPONSORED_MAX:
            del self._sponsors[next(iter(self._sponsors))]
        self._sponsors[newcomer.node] = (sponsor or self._me, newcomer.epoch, now)

    def named(self, member: Member, now: Instant) -> bytes:
        """Whom a member's rumour is to name as its sponsor; empty once it is no newcomer."""
        held = self._sponsors.get(member.node)
        if held is None or held[1] != member.epoch or now - held[2] >= SPONSOR_TOLD_S:
            return b""
        return held[0]

    def sponsor_of(self, member: Member) -> NodeId | None:
        """Who answers for a member of this run, as long as that is remembered."""
        held = self._sponsors.get(member.node)
        return held[0] if held is not None and held[1] == member.epoch else None

    def is_false_claim(self, update: Update) -> bool:
        """Whether somebody unknown here is told of as this node's own guest."""
        named = update.state == MemberState.ALIVE and update.accusers[:8] == self._me
        return named and not self._is_guest(update.node, update.epoch)

    def may_deny(self, now: Instant) -> bool:
        """Whether to tell everybody of a false claim; counts as done if so."""
        return self._vetoes.take(now)

    def _is_guest(self, node: NodeId, epoch: int) -> bool:
        held = self._sponsors.get(node)
        return held is not None and held[:2] == (self._me, epoch)
