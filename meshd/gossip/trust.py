"""Whose word counts: members at their own addresses; others wait, are met, and are put right."""

from meshd.clock import Instant
from meshd.gossip.beliefs import Beliefs
from meshd.gossip.codec import encode_update, outline
from meshd.gossip.corrections import Corrections
from meshd.gossip.dialects import Dialects
from meshd.gossip.doors import Doors
from meshd.gossip.effects import VersionRefused
from meshd.gossip.hearsay import Hearsay
from meshd.gossip.messages import Ping, Records, Update
from meshd.gossip.outbox import Outbox
from meshd.gossip.pulls import Pulls
from meshd.gossip.sync import Exchange
from meshd.model import Address, Member, MeshId, NodeId

_NO_ANSWER = (bytes(8), False)


class Trust:
    """What is done with news by who tells it."""

    def __init__(
        self,
        *,
        mesh: MeshId,
        beliefs: Beliefs,
        exchange: Exchange,
        pulls: Pulls,
        doors: Doors,
        dialects: Dialects,
        outbox: Outbox,
        now: Instant,
    ) -> None:
        self._mesh = mesh
        self._beliefs = beliefs
        self._exchange = exchange
        self._pulls = pulls
        self._doors = doors
        self._dialects = dialects
        self._outbox = outbox
        self._hearsay = Hearsay()
        self._hearsay_at = now
        self._corrections = Corrections(now)

    @property
    def waiting(self) -> int:
        """Pieces of news whose tellers have yet to prove themselves."""
        return len(self._hearsay)

    # Members

    def on_news(
        self, updates: tuple[Update, ...], member: Member, address: Address, now: Instant
    ) -> None:
        """A member tells from its own address. What it missed itself, it is told."""
        self._beliefs.hear_all(updates, address, now)
        if self._beliefs.overtaken:
            self.correct(member.node, address, now)

    def correct(self, member: NodeId, address: Address, now: Instant) -> None:
        """Put a member right, but for what still is a rumour here: that it will hear anyway.

        The answer goes to where it spoke from, a proven address.
        """
        beliefs = self._beliefs
        subjects, beliefs.overtaken = beliefs.overtaken, []
        truths = []
        for subject in subjects:
            held = beliefs.table.get(subject)
            if (
                held is not None
                and beliefs.rumours.peek(subject) is None
                and self._corrections.may_tell(member, subject, now)
            ):
                truths.append(encode_update(held))
        if truths:
            # As rows of a table: a death among them is but a reason to doubt, and kills nobody.
            self._outbox.send_with(member, address, Records, _NO_ANSWER, truths)

    # Others

    def on_unproven_news(
        self, updates: tuple[Update, ...], source: NodeId, address: Address, now: Instant
    ) -> None:
        """News of somebody who proved nothing.

        What it says of us we deny; somebody new whom a member is named as sponsor of we believe in;
        the rest may wait until it has proven itself.
        """
        beliefs = self._beliefs
        others: list[Update] = []
        for update in beliefs.once_of_self(updates):
            if update.node == beliefs.me.node or self._is_sponsored(update):
                beliefs.hear(update, address, now)
            else:
                others.append(update)
        if others:
            self._hearsay.keep(others, source, address, now)
        beliefs.overtaken.clear()
        self._pulls.on_told(source, now)

    def hear_who_is_proven(self, now: Instant) -> None:
        """If the table has changed, those whose news waits may be members now, or their sponsors.

        Each round may let in the teller of the next.
        """
        if self._hearsay_at >= self._beliefs.changed_at:
            return
        self._hearsay_at = now
        while ripe := self._hearsay.ripe(self.is_proven, self._is_sponsored, now):
            for teller, address, updates in ripe:
                self._beliefs.hear_all(updates, address, now)
                self._pulls.on_told(teller, now)
        self._beliefs.overtaken.clear()

    def meet(self, stranger: NodeId, address: Address, now: Instant) -> None:
        """It knows us, so it is worth getting to know at this address, but not at any rate."""
        known = self.is_proven(stranger, address) or self._exchange.is_trying(address)
        if not known and self._doors.may_probe(now):
            self._exchange.join(address, now, tries=1)

    def is_proven(self, node: NodeId, address: Address) -> bool:
        """Whether a node is a member that may be taken to speak from `address`."""
        member = self._beliefs.table.get(node)
        return member is not None and self._exchange.is_at(member, address)

    def _is_sponsored(self, update: Update) -> bool:
        """Whether a member is named that answers for somebody new; for its own, nobody need."""
        beliefs = self._beliefs
        return beliefs.table.get(update.node) is None and beliefs.sponsors.of(update) is not None

    def on_other_version(self, data: bytes, address: Address, now: Instant) -> None:
        """Only the header is legible. If it is a member's, its silence must not be its death."""
        told = outline(data)
        if told is None or told.mesh != self._mesh or not self.is_proven(told.source, address):
            return
        self._beliefs.unreachable[told.source] = None
        self._beliefs.touch(told.source)
        if self._dialects.found_foreign(told.source, now):
            self._outbox.add(VersionRefused(address, told.version, told.newest))
            # It cannot read this either, but sees that we are here, and which versions we speak.
            self._outbox.send_with(told.source, address, Ping, (0,), ())
