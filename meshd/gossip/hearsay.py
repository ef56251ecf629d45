"""What unproven senders told: kept for a while, believed once they have proven who they are.

A node takes news from members at their own addresses. Each of those has met the newcomers that
it tells of, or heard of them from such a member, so every belief goes back to a sponsor that shook
hands with its subject. In a crowd, though, a newcomer's first news often comes before the news of
the newcomer. Where it names a member as the sponsor of whom it tells of, it is believed, for the
sponsor will deny what it does not know; the rest waits here, and nobody probes, routes to or
counts whom it is about.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from meshd.clock import Instant
from meshd.gossip.messages import Update
from meshd.model import Address, NodeId

TELLERS_MAX = 64
"""Senders whose news waits; the one that waits longest gives way."""
UPDATES_MAX = 64
"""Subjects that one of them may have told of; further ones are not kept."""
WAITS_S = 10.0
"""How long news is worth waiting for."""


class Tale(NamedTuple):
    """What one sender told: from where, since when, and its newest word on each subject."""

    address: Address
    since: Instant
    updates: dict[NodeId, Update]


class Hearsay:
    """News of unproven senders, by sender."""

    def __init__(self) -> None:
        self._tales: dict[NodeId, Tale] = {}
        self._count = 0

    def __len__(self) -> int:
        """How many updates wait. For any thread."""
        return self._count

    def keep(
        self, updates: Iterable[Update], teller: NodeId, address: Address, now: Instant
    ) -> None:
        """Put away what came with one datagram."""
        tale = self._tales.get(teller)
        if tale is None or tale.address != address:
            self._drop(teller)
            if len(self._tales) >= TELLERS_MAX:
                self._drop(next(iter(self._tales)))
            self._tales[teller] = tale = Tale(address, now, {})
        for update in updates:
            if update.node in tale.updates or len(tale.updates) < UPDATES_MAX:
                self._count += update.node not in tale.updates
                tale.updates[update.node] = update

    def _drop(self, teller: NodeId) -> None:
        tale = self._tales.pop(teller, None)
        self._count -= 0 if tale is None else len(tale.updates)

    def ripe(
        self,
        is_proven: Callable[[NodeId, Address], bool],
        is_sponsored: Callable[[Update], bool],
        now: Instant,
    ) -> list[tuple[NodeId, Address, tuple[Update, ...]]]:
        """Take out what may be believed by now: sender, its address, and what it told.

        All that a proven sender told, and of the others what a member is sponsor of. What is too
        old is dropped.
        """
        found: list[tuple[NodeId, Address, tuple[Update, ...]]] = []
        for teller, tale in list(self._tales.items()):
            if now - tale.since > WAITS_S:
                self._drop(teller)
            elif is_proven(teller, tale.address):
                self._drop(teller)
                found.append((teller, tale.address, tuple(tale.updates.values())))
            elif some := tuple(filter(is_sponsored, tale.updates.values())):
                for update in some:
                    del tale.updates[update.node]
                self._count -= len(some)
                found.append((teller, tale.address, some))
        return found
