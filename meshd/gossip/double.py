"""Two processes with one key, as from a copied state directory: the one that began first stays.

Whoever hears a record of itself from elsewhere that it did not write asks that address who is
there. A welcome under the own id proves a double, and tells when its run began. The one that began
first goes on. The other stands aside: it sends nothing, but for asking from time to time whether
the first is still there; when that is gone, it takes part again.
"""

import random

from meshd.clock import Instant
from meshd.errors import UsageError
from meshd.gossip.beliefs import Beliefs
from meshd.gossip.codec import NOBODY, pack_addresses
from meshd.gossip.doors import Doors
from meshd.gossip.effects import ConflictOver, ConflictSeen
from meshd.gossip.messages import JOIN_PADDING_BYTES, Join, Welcome
from meshd.gossip.outbox import Outbox
from meshd.model import Address

ASK_INTERVAL_S = 1.0
"""The shortest time between two questions at where a double may be."""
STILL_THERE_S = 10.0
"""How often who stands aside asks whether the first is still there."""
SILENCE_S = 60.0
"""After so long without an answer the first is gone."""
VOUCHED_MAX = 64
"""Addresses where others than a stranger say that this node's id is; the oldest gives way."""
_PADDING = bytes(JOIN_PADDING_BYTES)


class Double:
    """What this node knows of another process under its id."""

    def __init__(
        self, *, beliefs: Beliefs, outbox: Outbox, doors: Doors, rng: random.Random, now: Instant
    ) -> None:
        self._beliefs = beliefs
        self._doors = doors
        self._outbox = outbox
        self._rng = rng
        self._asked: tuple[Address, int] | None = None
        self._vouched: dict[Address, None] = {}
        self._ask_at = now
        self._heard_at = now
        self._first_epoch = 0
        self.due_at = now
        """When to ask again, while this node stands aside."""
        self.first_at: Address | None = None
        """Where the first is, while this node stands aside for it."""

    @property
    def is_aside(self) -> bool:
        """Whether this node takes no part, because the first one does."""
        return self.first_at is not None

    def vouch(self, address: Address) -> None:
        """A member believes that this node's id is there, or a user named the address."""
        self._vouched.pop(address, None)
        if len(self._vouched) >= VOUCHED_MAX:
            del self._vouched[next(iter(self._vouched))]
        self._vouched[address] = None

    def on_foreign(self, address: Address, now: Instant) -> None:
        """Somebody may run with our key at this address: ask who is there, but not at any rate."""
        is_due = now >= self._ask_at and not self._beliefs.me.is_at(address)
        if is_due and self._doors.may_probe(now):
            self._ask(address, now)

    def _ask(self, address: Address, now: Instant) -> None:
        self._ask_at = Instant(now + ASK_INTERVAL_S)
        self._asked = (address, self._rng.randrange(2**16))
        self._outbox.send(NOBODY, address, Join, (self._asked[1], _PADDING))

    def on_welcome(self, welcome: Welcome, address: Address, now: Instant) -> None:
        """Our own id answers from elsewhere, to our question or to one of a join: who was first?"""
        me = self._beliefs.me
        mine = (self._beliefs.began, pack_addresses(me.address, me.other))
        theirs = (welcome.began, welcome.record.address)
        if theirs == mine:
            return  # an echo: we knocked at our own door
        if theirs > mine:
            self._outbox.add(ConflictSeen(address))
            if welcome.record.epoch > me.epoch:
                self._beliefs.outlive(welcome.record.epoch, now)
            return
        if address != self.first_at and address not in self._vouched:
            # Anybody may claim to have been first. Only who is believed elsewhere, too, silences.
            self._outbox.add(ConflictSeen(address))
            return
        self._heard_at = now
        self._first_epoch = welcome.record.epoch
        if self.first_at is None:
            self._outbox.add(ConflictSeen(address, aside=True))
        self.first_at = address
        self.due_at = Instant(now + STILL_THERE_S)

    def is_own(self, join: Join) -> bool:
        """Whether a join is an echo of our own question."""
        return self._asked is not None and self._asked[1] == join.sequence

    def is_asked(self, welcome: Welcome, address: Address) -> bool:
        """Whether a welcome answers our own question."""
        return self._asked == (address, welcome.sequence)

    def on_due(self, now: Instant) -> None:
        """Ask whether the first is still there; take part again when it is silent for long."""
        address = self.first_at
        assert address is not None
        if now - self._heard_at >= SILENCE_S:
            self.first_at = None
            self._outbox.add(ConflictOver())
            self._beliefs.outlive(self._first_epoch, now)
            return
        self._ask(address, now)
        self.due_at = Instant(now + STILL_THERE_S)


def refused_aside() -> UsageError:
    """Why a node that stands aside tells and asks nothing."""
    return UsageError(
        "another process runs with this node's key and began first, so this one takes no part",
        hint="meshd doctor says where it runs and how to give this one a key of its own",
    )
