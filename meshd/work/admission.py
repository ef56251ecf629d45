"""Which tasks a node takes: c slots, a short queue, and a refusal that says when to come back."""

from collections import Counter, deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec

from meshd.clock import Seconds
from meshd.errors import UsageError

SLOTS_MAX = 1_024
QUEUE_MAX = 4_096

SERVICE_SAMPLES_PLAIN = 20
SERVICE_ALPHA = 0.02
"""The service time is a plain mean of 20 samples, then a slow moving average.

Source: the routing simulation in the design notes; at 0.1 noise turned into herding.
"""

OUTCOMES_KEPT = 50
"""The error fraction is that of so many last outcomes."""


class Reason(StrEnum):
    """Why a task was refused."""

    DRAINING = "draining"
    QUEUE_FULL = "the queue is full"
    TOO_LATE = "it could not end before its deadline"


class Outcome(StrEnum):
    """How a run ended, as far as the averages care."""

    DONE = "done"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class Ticket:
    """A request to run: its id, its capability, and that capability's own bound (0: none)."""

    id: str
    capability: str
    concurrency: int = 0


@dataclass(frozen=True, slots=True)
class Accept:
    """It may run now; by estimate it ends in `eta_s` seconds."""

    eta_s: Seconds


@dataclass(frozen=True, slots=True)
class Queue:
    """It has to wait behind `position` others; by estimate it ends in `eta_s` seconds."""

    eta_s: Seconds
    position: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """Not now: the counter-offer is to end in `eta_s` seconds if it were taken after all."""

    reason: Reason
    eta_s: Seconds
    queue: int


Decision = Accept | Queue | Refuse


class WorkLoad(msgspec.Struct, frozen=True):
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
    """The slots and the queue of one node. First come, first served.

    A task whose capability is at its own bound waits without holding up the others behind it:
    order is kept among those that could run.
    """

    def __init__(self, *, slots: int, queue_max: int | None = None) -> None:
        """`queue_max` defaults to slots + 1.

        Raises:
            UsageError: a number is out of its range.
        """
        if not 1 <= slots <= SLOTS_MAX:
            raise UsageError(f"slots must be 1 to {SLOTS_MAX}, not {slots}")
        limit = slots + 1 if queue_max is None else queue_max
        if not 0 <= limit <= QUEUE_MAX:
            raise UsageError(f"queue_max must be 0 to {QUEUE_MAX}, not {limit}")
        self.slots: Final = slots
        self.queue_max: Final = limit
        self.is_draining = False
        self._running: dict[str, Ticket] = {}
        self._waiting: dict[str, Ticket] = {}
        self._running_of: Counter[str] = Counter()
        self._waiting_of: Counter[str] = Counter()
        self._overall = ServiceTime()
        self._services: dict[str, ServiceTime] = {}
        self._outcomes: deque[bool] = deque(maxlen=OUTCOMES_KEPT)

    @property
    def running(self) -> tuple[str, ...]:
        """Ids of the tickets that hold a slot, in the order in which they got it."""
        return tuple(self._running)

    @property
    def waiting(self) -> tuple[str, ...]:
        """Ids of the tickets in the queue, first come first."""
        return tuple(self._waiting)

    def decide(self, ticket: Ticket, remaining_s: Seconds) -> Decision:
        """What `submit` would answer; nothing changes.

        `remaining_s` are the seconds until the deadline. A free slot is never refused on an
        estimate: a slow first run would else lock the door, as nothing could correct it.
        """
        eta_s = self.eta_s(ticket)
        if self.is_draining:
            return Refuse(Reason.DRAINING, eta_s, len(self._waiting))
        if remaining_s <= 0:
            return Refuse(Reason.TOO_LATE, eta_s, len(self._waiting))
        if self._may_run(ticket):
            return Accept(eta_s)
        if len(self._waiting) >= self.queue_max:
            return Refuse(Reason.QUEUE_FULL, eta_s, len(self._waiting))
        if eta_s > remaining_s:
            return Refuse(Reason.TOO_LATE, eta_s, len(self._waiting))
        return Queue(eta_s, len(self._waiting))

    def submit(self, ticket: Ticket, remaining_s: Seconds) -> Decision:
        """Decide, and take the ticket into a slot or the queue unless it is refused."""
        assert ticket.id not in self._running, "a ticket comes once"
        assert ticket.id not in self._waiting, "a ticket comes once"
        decision = self.decide(ticket, remaining_s)
        if isinstance(decision, Accept):
            self._run(ticket)
        elif isinstance(decision, Queue):
            self._waiting[ticket.id] = ticket
            self._waiting_of[ticket.capability] += 1
        return decision

    def finish(self, ticket_id: str, service_s: Seconds, outcome: Outcome) -> tuple[str, ...]:
        """Free the slot of a ticket; return the ids that may run now, in order.

        Runs that ended well count in the service time, and so do those that ran out of time (they
        took at least as long). Failures do not: a node that fails fast must not look fast.
        """
        ticket = self._running.pop(ticket_id)
        _subtract(self._running_of, ticket)
        if outcome in {Outcome.DONE, Outcome.TIMED_OUT}:
            self._overall.add(service_s)
            self._services.setdefault(ticket.capability, ServiceTime()).add(service_s)
        if outcome is not Outcome.DROPPED:
            self._outcomes.append(outcome is not Outcome.DONE)
        return self._promote()

    def withdraw(self, ticket_id: str) -> None:
        """Take a waiting ticket out of the queue. The others keep their order."""
        _subtract(self._waiting_of, self._waiting.pop(ticket_id))

    def forget(self, capability: str) -> None:
        """Drop the average of a capability that is no longer offered."""
        self._services.pop(capability, None)

    def eta_s(self, ticket: Ticket) -> Seconds:
        """Seconds until the ticket would end if it came now: its wait and its own run.

        Everyone ahead leaves at the rate slots / service time; the capability's own bound is a
        second, narrower door of the same kind. The longer wait of the two counts.
        """
        service = self._service_s(ticket.capability)
        taken = len(self._running) + len(self._waiting)
        wait = max(0, taken + 1 - self.slots) * self._overall.mean_s / self.slots
        if ticket.concurrency > 0:
            ahead = self._running_of[ticket.capability] + self._waiting_of[ticket.capability]
            own = max(0, ahead + 1 - ticket.concurrency) * service / ticket.concurrency
            wait = max(wait, own)
        return wait + service

    def load(self) -> WorkLoad:
        """The figures that gossip tells the others."""
        outcomes = self._outcomes
        return WorkLoad(
            in_flight=len(self._running),
            queue=len(self._waiting),
            slots=self.slots,
            service_s=self._overall.mean_s,
            error_fraction=sum(outcomes) / len(outcomes) if outcomes else 0.0,
            full=len(self._running) >= self.slots and len(self._waiting) >= self.queue_max,
            draining=self.is_draining,
        )

    def _service_s(self, capability: str) -> Seconds:
        own = self._services.get(capability)
        return self._overall.mean_s if own is None else own.mean_s

    def _may_run(self, ticket: Ticket) -> bool:
        if len(self._running) >= self.slots:
            return False
        return not ticket.concurrency or self._running_of[ticket.capability] < ticket.concurrency

    def _run(self, ticket: Ticket) -> None:
        self._running[ticket.id] = ticket
        self._running_of[ticket.capability] += 1

    def _promote(self) -> tuple[str, ...]:
        started = []
        for ticket_id, ticket in tuple(self._waiting.items()):
            if len(self._running) >= self.slots:
                break
            if self._may_run(ticket):
                self.withdraw(ticket_id)
                self._run(ticket)
                started.append(ticket_id)
        return tuple(started)


def _subtract(counts: Counter[str], ticket: Ticket) -> None:
    counts[ticket.capability] -= 1
    if not counts[ticket.capability]:
        # Names come from definitions that come and go: no entry stays for one that is gone.
        del counts[ticket.capability]
