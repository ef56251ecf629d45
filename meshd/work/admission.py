"""Which tasks a node takes: c slots, a short queue, and a refusal that says when to come back."""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from meshd.clock import Seconds
from meshd.errors import UsageError
from meshd.priority import PRIORITY_DEFAULT, PRIORITY_MAX, PRIORITY_MIN
from meshd.structs import Flat, Frozen

SLOTS_MAX = 1_024
QUEUE_MAX = 100_000
QUEUE_DEFAULT = 64
"""Places to wait. With few more than slots, refused calls come back in any order: among few nodes
near their limit the slowest hundredth then takes half as long again (see `bench/routing.py`)."""

SERVICE_SAMPLES_PLAIN = 20
SERVICE_ALPHA = 0.02
"""The service time is a plain mean of 20 samples, then a slow moving average.

Source: the routing simulation in the design notes; at 0.1 noise turned into herding.
"""

OVERTAKEN_MAX = 8
"""So often in a row more urgent work may start before a class that waits: then it has a turn."""

OUTCOMES_KEPT = 50
"""The error fraction is that of so many last outcomes."""


class Reason(StrEnum):
    """Why a task was refused."""

    DRAINING = "draining"
    QUEUE_FULL = "the queue is full"
    TOO_LATE = "it could not end before its deadline"
    DISPLACED = "more urgent work took its place in the queue"
    RATE = "it is called more often than it may be"


class Outcome(StrEnum):
    """How a run ended, as far as the averages care."""

    DONE = "done"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    DROPPED = "dropped"


# A member of an enumeration is looked up anew each time it is named in full.
_DONE, _TIMED_OUT, _DROPPED = Outcome.DONE, Outcome.TIMED_OUT, Outcome.DROPPED


class Ticket(Flat, frozen=True, gc=False):
    """A request to run.

    Attributes:
        id: of its own.
        capability: what is to run.
        concurrency: that capability's own bound; 0 is none.
        priority: 1 .. 5, the most urgent.
    """

    id: str
    capability: str
    concurrency: int = 0
    priority: int = PRIORITY_DEFAULT


class Accept(Frozen, frozen=True):
    """It may run now; by estimate it ends in `eta_s` seconds."""

    eta_s: Seconds


class Queue(Frozen, frozen=True):
    """It has to wait behind `position` others; by estimate it ends in `eta_s` seconds.

    `displaced` is the id of the ticket that lost its place to it, if the queue was full.
    """

    eta_s: Seconds
    position: int
    displaced: str = ""


class Refuse(Frozen, frozen=True):
    """Not now: the counter-offer is to end in `eta_s` seconds if it were taken after all."""

    reason: Reason
    eta_s: Seconds
    queue: int


Decision = Accept | Queue | Refuse


class WorkLoad(Flat, frozen=True, gc=False):
    """What a node's work says of its load: the middle part of `meshd.model.Load`."""

    in_flight: int
    queue: int
    slots: int
    service_s: Seconds
    error_fraction: float
    full: bool
    draining: bool


@dataclass(slots=True)
class ServiceTime:
    """How long a run takes: a mean that settles into a slow moving average."""

    mean_s: Seconds = 0.0
    samples: int = 0

    def add(self, sample_s: Seconds) -> None:
        """Count one run."""
        self.samples += 1
        is_plain = self.samples <= SERVICE_SAMPLES_PLAIN
        weight = 1.0 / self.samples if is_plain else SERVICE_ALPHA
        self.mean_s += weight * (sample_s - self.mean_s)


class Admission:
    """The slots and the queue of one node: the most urgent first, and first come, first served.

    A task whose capability is at its own bound waits without holding up the others behind it:
    order is kept among those that could run. Of a full queue the last of the least urgent gives
    way to what is more urgent. A class that waits is overtaken `OVERTAKEN_MAX` times in a row at
    most, so that nothing waits for ever.
    """

    def __init__(self, *, slots: int, queue_max: int = QUEUE_DEFAULT) -> None:
        """`queue_max` tasks may wait.

        Raises:
            UsageError: a number is out of its range.
        """
        if not 1 <= slots <= SLOTS_MAX:
            raise UsageError(f"slots must be 1 to {SLOTS_MAX}, not {slots}")
        if not 0 <= queue_max <= QUEUE_MAX:
            raise UsageError(f"queue_max must be 0 to {QUEUE_MAX}, not {queue_max}")
        self.slots: Final = slots
        self.queue_max: Final = queue_max
        self.is_draining = False
        self._running: dict[str, Ticket] = {}
        self._waiting: dict[int, dict[str, Ticket]] = {
            priority: {} for priority in range(PRIORITY_MAX, PRIORITY_MIN - 1, -1)
        }
        self._queued = 0
        self._overtaken: Counter[int] = Counter()
        self._running_of: Counter[str] = Counter()
        self._waiting_of: Counter[str] = Counter()
        self._overall = ServiceTime()
        self._services: dict[str, ServiceTime] = {}
        self._outcomes: deque[bool] = deque(maxlen=OUTCOMES_KEPT)
        self._bad_outcomes = 0

    @property
    def running(self) -> tuple[str, ...]:
        """Ids of the tickets that hold a slot, in the order in which they got it."""
        return tuple(self._running)

    @property
    def waiting(self) -> tuple[str, ...]:
        """Ids of the tickets in the queue: the most urgent first, then first come first."""
        return tuple(ticket_id for tickets in self._waiting.values() for ticket_id in tickets)

    def decide(self, ticket: Ticket, remaining_s: Seconds) -> Decision:
        """What `submit` would answer; nothing changes.

        `remaining_s` are the seconds until the deadline. A free slot is never refused on an
        estimate: a slow first run would else lock the door, as nothing could correct it.
        """
        eta_s = self.eta_s(ticket)
        if self.is_draining:
            return Refuse(Reason.DRAINING, eta_s, self._queued)
        if remaining_s <= 0:
            return Refuse(Reason.TOO_LATE, eta_s, self._queued)
        if self._may_run(ticket):
            return Accept(eta_s)
        displaced = ""
        if self._queued >= self.queue_max:
            displaced = self._least_urgent(ticket.priority)
            if not displaced:
                return Refuse(Reason.QUEUE_FULL, eta_s, self._queued)
        if eta_s > remaining_s:
            return Refuse(Reason.TOO_LATE, eta_s, self._queued)
        return Queue(eta_s, self._ahead(ticket.priority), displaced)

    def submit(self, ticket: Ticket, remaining_s: Seconds) -> Decision:
        """Decide, and take the ticket into a slot or the queue unless it is refused.

        Whoever it displaces is withdrawn.
        """
        assert ticket.id not in self._running, "a ticket comes once"
        decision = self.decide(ticket, remaining_s)
        if isinstance(decision, Accept):
            self._run(ticket)
        elif isinstance(decision, Queue):
            if decision.displaced:
                self.withdraw(decision.displaced)
            tickets = self._waiting[ticket.priority]
            assert ticket.id not in tickets, "a ticket comes once"
            tickets[ticket.id] = ticket
            self._queued += 1
            self._waiting_of[ticket.capability] += 1
        return decision

    def enter(self, ticket: Ticket, remaining_s: Seconds) -> bool:
        """Take the ticket into a slot if `submit` would accept it, else do nothing.

        Most are taken so, and nobody asks when those will end.
        """
        assert ticket.id not in self._running, "a ticket comes once"
        if self.is_draining or remaining_s <= 0 or not self._may_run(ticket):
            return False
        self._run(ticket)
        return True

    def finish(self, ticket_id: str, service_s: Seconds, outcome: Outcome) -> tuple[str, ...]:
        """Free the slot of a ticket; return the ids that may run now, in order.

        Runs that ended well count in the service time, and so do those that ran out of time (they
        took at least as long). Failures do not: a node that fails fast must not look fast.
        """
        ticket = self._running.pop(ticket_id)
        _subtract(self._running_of, ticket)
        if outcome is _DONE or outcome is _TIMED_OUT:
            self._overall.add(service_s)
            own = self._services.get(ticket.capability)
            if own is None:
                own = self._services[ticket.capability] = ServiceTime()
            own.add(service_s)
        if outcome is not _DROPPED:
            self._count_outcome(is_bad=outcome is not _DONE)
        return self._promote() if self._queued else ()

    def withdraw(self, ticket_id: str) -> None:
        """Take a waiting ticket out of the queue. The others keep their order."""
        tickets = next(each for each in self._waiting.values() if ticket_id in each)
        _subtract(self._waiting_of, tickets.pop(ticket_id))
        self._queued -= 1

    def forget(self, capability: str) -> None:
        """Drop the average of a capability that is no longer offered."""
        self._services.pop(capability, None)

    def eta_s(self, ticket: Ticket) -> Seconds:
        """Seconds until the ticket would end if it came now: its wait and its own run.

        Everyone ahead leaves at the rate slots / service time; the capability's own bound is a
        second, narrower door of the same kind. The longer wait of the two counts.
        """
        own_service = self._services.get(ticket.capability)
        service = self._overall.mean_s if own_service is None else own_service.mean_s
        taken = len(self._running) + (self._ahead(ticket.priority) if self._queued else 0)
        free = self.slots - taken
        wait = 0.0 if free > 0 else (1 - free) * self._overall.mean_s / self.slots
        if ticket.concurrency > 0:
            ahead = self._running_of[ticket.capability] + self._waiting_of[ticket.capability]
            own = max(0, ahead + 1 - ticket.concurrency) * service / ticket.concurrency
            wait = max(wait, own)
        return wait + service

    def load(self) -> WorkLoad:
        """The figures that gossip tells the others.

        For any thread: it reads a few numbers, of which one may be a change older than another.
        """
        outcomes = len(self._outcomes)
        return WorkLoad(
            len(self._running),
            self._queued,
            self.slots,
            self._overall.mean_s,
            min(1.0, self._bad_outcomes / outcomes) if outcomes else 0.0,
            len(self._running) >= self.slots and self._queued >= self.queue_max,
            self.is_draining,
        )

    def _count_outcome(self, *, is_bad: bool) -> None:
        outcomes = self._outcomes
        if len(outcomes) == OUTCOMES_KEPT:
            self._bad_outcomes -= outcomes.popleft()
        outcomes.append(is_bad)
        self._bad_outcomes += is_bad

    def _may_run(self, ticket: Ticket) -> bool:
        if len(self._running) >= self.slots:
            return False
        return not ticket.concurrency or self._running_of[ticket.capability] < ticket.concurrency

    def _run(self, ticket: Ticket) -> None:
        self._running[ticket.id] = ticket
        self._running_of[ticket.capability] += 1

    def _ahead(self, priority: int) -> int:
        """How many wait that go before a newcomer of this class."""
        return sum(len(each) for level, each in self._waiting.items() if level >= priority)

    def _least_urgent(self, than: int) -> str:
        """The last of the least urgent that wait, if less urgent than this class; else nothing."""
        for priority in range(PRIORITY_MIN, than):
            if self._waiting[priority]:
                return next(reversed(self._waiting[priority]))
        return ""

    def _promote(self) -> tuple[str, ...]:
        started = []
        while self._queued and len(self._running) < self.slots:
            ticket = next(self._runnable(), None)
            if ticket is None:
                break
            self.withdraw(ticket.id)
            self._run(ticket)
            self._count_turn(ticket.priority)
            started.append(ticket.id)
        return tuple(started)

    def _runnable(self) -> Iterator[Ticket]:
        """Who could start now, in the order of their turns."""
        late = [level for level in self._waiting if self._overtaken[level] >= OVERTAKEN_MAX]
        for priority in (*reversed(late), *self._waiting):
            yield from (t for t in self._waiting[priority].values() if self._may_run(t))

    def _count_turn(self, started: int) -> None:
        self._overtaken[started] = 0
        for priority in range(PRIORITY_MIN, started):
            self._overtaken[priority] += bool(self._waiting[priority])


def _subtract(counts: Counter[str], ticket: Ticket) -> None:
    left = counts[ticket.capability] - 1
    if left:
        counts[ticket.capability] = left
    else:
        # Names come from definitions that come and go: no entry stays for one that is gone.
        counts.pop(ticket.capability)  # a counter's own `del` is a function in Python


def check_priority(priority: int) -> int:
    """The same, if there is such a class of work.

    Raises:
        UsageError: there is not.
    """
    if not PRIORITY_MIN <= priority <= PRIORITY_MAX:
        raise UsageError(
            f"priority must be {PRIORITY_MIN} to {PRIORITY_MAX} (the most urgent), not {priority}"
        )
    return priority
