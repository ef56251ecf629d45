"""Rumours waiting to be passed on, each a limited number of times (SWIM section 5)."""

import math
from collections.abc import Hashable
from functools import lru_cache

CROWD = 32
"""Rumours that may wait before a rumour that is heard again counts as sent."""
RICH_RUMOURS_MAX = 16
"""While more rumours wait, a change of state does not travel with its own: it is pulled."""
RICH_SENDS = 6
"""So many first sends of a rumour carry what it brings along; by then most have it."""
_MISFITS_MAX = 4  # rumours are about equally long: past this many, the rest is not searched


@lru_cache(maxsize=1_024)
def transmit_limit(mult: int, members: int) -> int:
    """How often each node passes one rumour on: mult * ceil(log10(n + 1))."""
    return mult * math.ceil(math.log10(members + 1)) if members > 0 else mult


class BroadcastQueue:
    """Encoded rumours, one slot a subject: a newer rumour replaces the older one.

    Selection prefers the least sent, then the newest. One dict per send count makes it cost in
    proportion to what fits the datagram, not to what waits. The queue is bounded by the number of
    subjects, which the member table bounds.
    """

    def __init__(self, crowd: int = CROWD) -> None:
        """Start empty.

        Args:
            crowd: while more than this wait, a rumour that is heard again counts as sent.
        """
        self.tier_of: dict[Hashable, int] = {}
        """How often each rumour that waits was sent. To be read, not written."""
        self._tiers: list[dict[Hashable, bytes]] = []
        self._rich: dict[Hashable, bytes] = {}
        self._crowd = crowd

    def __len__(self) -> int:
        return len(self.tier_of)

    @property
    def is_crowded(self) -> bool:
        """Whether so many wait that what is heard again counts as sent."""
        return len(self.tier_of) > self._crowd

    @property
    def is_rich(self) -> bool:
        """Whether a rumour waits that brings something along and was hardly sent yet."""
        return bool(self._rich)

    def add(self, subject: Hashable, rumour: bytes, rich: bytes | None = None) -> None:
        """Queue a fresh rumour about `subject`, in place of an older one.

        Args:
            subject: whom it is about.
            rumour: what is said.
            rich: the same and more, which is said instead as long as hardly anybody has heard it.
        """
        self.discard(subject)
        self._put(0, subject, rumour)
        if rich is not None:
            self._rich[subject] = rich

    def amend(self, subject: Hashable, rumour: bytes) -> None:
        """Queue a further opinion: fresh, but in a crowd it takes the elder's place."""
        tier = self.tier_of.get(subject)
        if tier is None or not self.is_crowded:
            self.add(subject, rumour)
        else:
            self._tiers[tier][subject] = rumour
            self._rich.pop(subject, None)

    def discard(self, subject: Hashable) -> None:
        """Forget what waits about `subject`. Idempotent."""
        tier = self.tier_of.pop(subject, None)
        if tier is not None:
            del self._tiers[tier][subject]
            self._rich.pop(subject, None)

    def heard(self, subject: Hashable, limit: int) -> None:
        """Somebody told what waits here about `subject`: in a crowd that is as good as sending it.

        When much happens at once (a split, a heal), datagrams are full and rumours queue up. What
        others pass on anyway then makes room for what they do not know (Demers et al. 1987,
        rumour mongering with feedback). What waits alone is sent its full number of times.
        """
        tier = self.tier_of.get(subject)
        if tier is None or not self.is_crowded:
            return
        rumour = self._tiers[tier].pop(subject)
        self._rich.pop(subject, None)
        if tier + 1 < limit:
            self._put(tier + 1, subject, rumour)
        else:
            del self.tier_of[subject]

    def peek(self, subject: Hashable) -> bytes | None:
        """The rumour waiting about `subject`, without counting a transmission."""
        tier = self.tier_of.get(subject)
        return None if tier is None else self._tiers[tier][subject]

    def sent(self, subject: Hashable) -> int | None:
        """How often the waiting rumour was sent; None if none waits (any more)."""
        return self.tier_of.get(subject)

    def take(
        self, bytes_free: int, limit: int, *, exclude: Hashable = None, count: int = 64
    ) -> list[bytes]:
        """Rumours that fit into `bytes_free`, each counted as sent once more.

        Args:
            bytes_free: room in the datagram.
            limit: sends after which a rumour is dropped.
            exclude: a subject that already travels in this datagram by other means.
            count: how many at most.
        """
        moved: list[tuple[int, Hashable, bytes]] = []
        taken: list[bytes] = []
        misfits = 0
        for tier, waiting in enumerate(self._tiers):
            if not waiting:
                continue
            for subject, rumour in reversed(waiting.items()):
                if subject == exclude:
                    continue
                said = self._rich.get(subject, rumour) if self._rich else rumour
                if len(said) > bytes_free:
                    said = rumour
                if len(said) > bytes_free:
                    misfits += 1
                else:
                    bytes_free -= len(said)
                    taken.append(said)
                    moved.append((tier, subject, rumour))
                if len(moved) == count or misfits == _MISFITS_MAX:
                    break
            else:
                continue
            break
        # Moved after the choice, oldest first, so that the order within a tier stays by age.
        tiers, tier_of = self._tiers, self.tier_of
        for tier, subject, rumour in reversed(moved):
            del tiers[tier][subject]
            if tier + 1 >= min(limit, RICH_SENDS):
                self._rich.pop(subject, None)
            if tier + 1 >= limit:
                del tier_of[subject]
                continue
            if tier + 1 == len(tiers):
                tiers.append({})
            tiers[tier + 1][subject] = rumour
            tier_of[subject] = tier + 1
        return taken

    def _put(self, tier: int, subject: Hashable, rumour: bytes) -> None:
        if len(self._tiers) == tier:
            self._tiers.append({})
        self._tiers[tier][subject] = rumour
        self.tier_of[subject] = tier
