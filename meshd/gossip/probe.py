"""Whom to probe next, and the round that is under way."""

import random
from functools import lru_cache

from meshd.clock import Instant
from meshd.model import Member, NodeId


@lru_cache(maxsize=1_024)
def _prime_from(number: int) -> int:
    candidate = max(2, number)
    while any(candidate % factor == 0 for factor in range(2, int(candidate**0.5) + 1)):
        candidate += 1
    return candidate


class ProbeRing:
    """Walks all rows of the table in a random order, each once a cycle, in O(1) memory.

    The order is the affine permutation i -> (a * i + b) mod p with p the first prime at or above
    the row count, redrawn at each cycle. SWIM section 4.3: round-robin over a shuffled list bounds
    the time until a member is probed; here no list is kept.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._prime = 0
        self._factor = 1
        self._offset = 0
        self._step = 0

    def next_row(self, rows: int) -> int:
        """The next row out of `rows` (at least 1). Rows beyond the prime wait for a new cycle."""
        while True:
            if self._step >= self._prime or rows > self._prime:
                self._draw(rows)
            row = (self._factor * self._step + self._offset) % self._prime
            self._step += 1
            if row < rows:
                return row

    def _draw(self, rows: int) -> None:
        # A quarter of slack, so that not each newcomer starts a new cycle: within a cycle a
        # newcomer's place in the order is as random as everybody's.
        self._prime = _prime_from(rows + rows // 4 + 1)
        self._factor = self._rng.randrange(1, self._prime)
        self._offset = self._rng.randrange(self._prime)
        self._step = 0


class ProbeRound:
    """One target, from ping to verdict."""

    __slots__ = ("acked", "asked", "helpers", "nacks", "sequence", "started", "target", "until")

    def __init__(self, asked: Member, sequence: int, now: Instant, until: Instant) -> None:
        """Begin with the ping.

        Args:
            asked: the target's record as it was when asked: a verdict holds for that life alone.
            sequence: of the ping, and of all that others do for this round.
            now: when the ping left.
            until: when it is judged.
        """
        self.asked = asked
        self.target = asked.node
        self.sequence = sequence
        self.started = now
        self.until = until
        self.helpers: tuple[NodeId, ...] = ()
        self.nacks: dict[NodeId, None] = {}
        self.acked = False


class Relay:
    """A ping on behalf of a peer whose ack is to be passed on."""

    __slots__ = ("acked", "requester", "sequence", "target")

    def __init__(self, requester: NodeId, sequence: int, target: NodeId) -> None:
        self.requester = requester
        self.sequence = sequence
        self.target = target
        self.acked = False
