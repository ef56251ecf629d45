"""How much is let in: budgets that an honest crowd never uses up, and a flood soon does."""

from meshd.clock import Instant, Seconds
from meshd.gossip.members import MemberTable
from meshd.model import Address

FREE_DATAGRAMS_PER_S = 1_024
"""Datagrams that are taken in each second without a look at who sent them."""
MEMBER_DATAGRAMS_PER_S = 1_024
"""Further ones from each address of a member, a second and at once."""
STRANGER_DATAGRAMS_PER_S = 1_024
"""Further ones from all other addresses together."""
DATAGRAMS_PER_S = 16_384
"""Further ones from anywhere: addresses of members can be forged."""
JOINS_PER_S = 256
JOINS_BURST = 512
"""Joins that are welcomed a second, and at once; the others hear that this node is busy."""
HOST_JOINS_PER_S = 128
HOST_JOINS_BURST = 256
"""Of those, from one IP: a hundred processes of one machine may start together."""
NEW_MEMBERS_PER_S = 1_024
NEW_MEMBERS_BURST = 4_096
"""Members nobody here knew of that are taken in a second, and at once."""
INTRODUCTIONS_PER_S = 128
INTRODUCTIONS_BURST = 512
"""Of those, told unasked by one address."""
STRANGERS_PROBED_PER_S = 3
"""Addresses that proved nothing, which this node writes to because somebody else named them."""
SOURCES_MAX = 1_024
"""Budgets kept by source; the oldest gives way, and that source starts anew."""


class Budget:
    """A token bucket: `per_s` a second, saved up to `burst`."""

    __slots__ = ("_at", "_burst", "_left", "_per_s")

    def __init__(self, per_s: float, burst: float, now: Instant) -> None:
        self._per_s = per_s
        self._burst = burst
        self._left = burst
        self._at = now

    def take(self, now: Instant) -> bool:
        """Spend one; false if there is none."""
        # A clock never falls, but `now` may be that of a step which began earlier.
        saved = self._left + max(0.0, now - self._at) * self._per_s
        self._left = min(self._burst, saved)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class SourceBudgets:
    """A budget for each source, of a bounded number of sources."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._budgets: dict[object, Budget] = {}

    def __len__(self) -> int:
        return len(self._budgets)

    def take(self, source: object, now: Instant) -> bool:
        """Spend one of a source's own; false if there is none."""
        budget = self._budgets.get(source)
        if budget is None:
            if len(self._budgets) >= SOURCES_MAX:
                del self._budgets[next(iter(self._budgets))]
            self._budgets[source] = budget = Budget(self._per_s, self._burst, now)
        return budget.take(now)


class Window:
    """At most `count` in any span of `span_s` seconds."""

    def __init__(self, count: int, span_s: Seconds) -> None:
        self._count = count
        self._span_s = span_s
        self._taken: list[Instant] = []

    def take(self, now: Instant) -> bool:
        """Use one; false if there were as many within the span."""
        if len(self._taken) == self._count:
            if now - self._taken[0] < self._span_s:
                return False
            del self._taken[0]
        self._taken.append(now)
        return True


class Doors:
    """One node's budgets for what others ask of it."""

    def __init__(self, now: Instant) -> None:
        self._second_at = now
        self._free = FREE_DATAGRAMS_PER_S
        self._datagrams = Budget(DATAGRAMS_PER_S, DATAGRAMS_PER_S, now)
        self._of_strangers = Budget(STRANGER_DATAGRAMS_PER_S, STRANGER_DATAGRAMS_PER_S, now)
        self._of_members = SourceBudgets(MEMBER_DATAGRAMS_PER_S, MEMBER_DATAGRAMS_PER_S)
        self._joins = Budget(JOINS_PER_S, JOINS_BURST, now)
        self._host_joins = SourceBudgets(HOST_JOINS_PER_S, HOST_JOINS_BURST)
        self._new_members = Budget(NEW_MEMBERS_PER_S, NEW_MEMBERS_BURST, now)
        self._introductions = SourceBudgets(INTRODUCTIONS_PER_S, INTRODUCTIONS_BURST)
        self._strangers = Window(STRANGERS_PROBED_PER_S, 1.0)

    def lets_in(self, source: Address, table: MemberTable, now: Instant) -> bool:
        """Whether a datagram is worth decoding; asked of each, so it mostly is one comparison."""
        if now - self._second_at >= 1.0:
            self._second_at = now
            self._free = FREE_DATAGRAMS_PER_S
        if self._free:
            self._free -= 1
            return True
        if table.at_address(source):
            return self._of_members.take(source, now) and self._datagrams.take(now)
        return self._of_strangers.take(now)

    def may_join(self, source: Address, now: Instant) -> bool:
        """Whether one more join is answered by a welcome."""
        return self._host_joins.take(source.host, now) and self._joins.take(now)

    def may_enter(self, teller: Address, now: Instant, *, asked: bool) -> bool:
        """Whether somebody new is taken in, whom `teller` told of, and whether we `asked` it to."""
        if not asked and not self._introductions.take(teller, now):
            return False
        return self._new_members.take(now)

    def may_probe(self, now: Instant) -> bool:
        """Whether a datagram may go to an address that proved nothing, on another's word."""
        return self._strangers.take(now)
