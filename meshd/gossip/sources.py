"""Whom to ask for what one lacks: who told of it, then its owner, then anybody."""

import random

from meshd.clock import Seconds
from meshd.gossip.beliefs import Beliefs
from meshd.gossip.config import GossipConfig
from meshd.model import Member, MemberState, NodeId

_OWNER_ASKERS = 64  # about so many nodes ask the owner itself; in a larger mesh the others spread
_GATHER_FRACTION = 0.25  # of the gossip interval: the teller may get the state meanwhile
_ANSWER_S = 0.5  # how long an answer is waited for, at least
_RETRY_MAX_S = 8.0
_DOUBLINGS_MAX = 10


class Sources:
    """Chooses sources, and says how long to wait for and between them."""

    def __init__(self, config: GossipConfig, beliefs: Beliefs, rng: random.Random) -> None:
        self.gather_s: Seconds = config.gossip_interval_s * _GATHER_FRACTION
        self.answer_s: Seconds = max(_ANSWER_S, config.probe_timeout_s)
        self._beliefs = beliefs
        self._rng = rng

    def of(
        self,
        owner: NodeId,
        teller: NodeId | None,
        anybody: NodeId | None,
        *,
        tries: int,
        is_doubted: bool,
    ) -> NodeId | None:
        """First the teller, then the owner as often as it can bear, else anybody.

        Args:
            owner: whose state or document it is.
            teller: who told of it.
            anybody: whom to ask else.
            tries: how many were asked in vain.
            is_doubted: somebody gave something wrong: ask the owner, if it is there.
        """
        if is_doubted and self.can_ask(owner):
            return owner
        if tries == 0 and teller is not None and self.can_ask(teller):
            return teller
        owners_share = _OWNER_ASKERS / max(1, self._beliefs.table.live)
        if self.can_ask(owner) and self._rng.random() < owners_share:
            return owner
        return anybody

    def can_ask(self, node: NodeId) -> bool:
        """Whether a node is believed to be there, and where this one can reach it."""
        member = self._beliefs.table.get(node)
        return member is not None and self._may_answer(member)

    def _may_answer(self, member: Member) -> bool:
        return member.state is MemberState.ALIVE and self._beliefs.families.can_reach(member)

    def anybody(self) -> NodeId | None:
        """An alive member at random, if there is any."""
        me = self._beliefs.me.node
        found = self._beliefs.table.pick(
            1, self._rng, lambda m: self._may_answer(m) and m.node != me
        )
        return found[0].node if found else None

    def pause_s(self, tries: int) -> Seconds:
        """How long to wait after so many asked in vain: twice as long each time, up to 8 s."""
        return min(_RETRY_MAX_S, self.gather_s * 2.0 ** min(tries - 1, _DOUBLINGS_MAX))
