"""Slots, the queue and the estimates by which work is taken or refused."""

from typing import assert_never

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.errors import UsageError
from meshd.work.admission import (
    OUTCOMES_KEPT,
    OVERTAKEN_MAX,
    QUEUE_DEFAULT,
    SERVICE_ALPHA,
    SERVICE_SAMPLES_PLAIN,
    Accept,
    Admission,
    Outcome,
    Queue,
    Reason,
    Refuse,
    ServiceTime,
    Ticket,
)

LONG_S = 1e6


def filled(slots: int = 2, queue_max: int = QUEUE_DEFAULT, service_s: float = 0.0) -> Admission:
    """All slots taken by r0, r1, ...; the mean service time as given."""
    admission = Admission(slots=slots, queue_max=queue_max)
    admission.submit(Ticket("warm", "echo"), LONG_S)
    admission.finish("warm", service_s, Outcome.DONE)
    for number in range(slots):
        admission.submit(Ticket(f"r{number}", "echo"), LONG_S)
    return admission


def test_slots_fill_first_then_the_queue_then_it_refuses():
    admission = filled(slots=2, queue_max=3)
    decisions = [admission.submit(Ticket(f"q{i}", "echo"), LONG_S) for i in range(4)]
    assert decisions[:3] == [Queue(0.0, 0), Queue(0.0, 1), Queue(0.0, 2)]
    assert decisions[3] == Refuse(Reason.QUEUE_FULL, 0.0, 3)
    assert admission.load().full
    assert admission.waiting == ("q0", "q1", "q2")


def test_a_free_slot_goes_to_the_first_in_the_queue():
    admission = filled(slots=2)
    for name in ("a", "b"):
        admission.submit(Ticket(name, "echo"), LONG_S)
    assert admission.finish("r1", 1.0, Outcome.DONE) == ("a",)
    assert admission.running == ("r0", "a")
    assert admission.finish("r0", 1.0, Outcome.FAILED) == ("b",)
    assert admission.finish("a", 1.0, Outcome.DROPPED) == ()


def test_a_withdrawn_ticket_leaves_the_order_of_the_others():
    admission = filled(slots=1, queue_max=3)
    for name in ("a", "b", "c"):
        admission.submit(Ticket(name, "echo", 5), LONG_S)
    admission.withdraw("b")
    assert admission.waiting == ("a", "c")
    assert isinstance(admission.submit(Ticket("d", "echo", 5), LONG_S), Queue)


def test_a_capability_at_its_own_bound_waits_and_lets_others_pass():
    admission = Admission(slots=2)
    assert isinstance(admission.submit(Ticket("a", "gpu", 1), LONG_S), Accept)
    assert isinstance(admission.submit(Ticket("b", "gpu", 1), LONG_S), Queue)
    assert isinstance(admission.submit(Ticket("c", "echo"), LONG_S), Accept)
    assert isinstance(admission.submit(Ticket("d", "echo"), LONG_S), Queue)
    assert admission.finish("c", 1.0, Outcome.DONE) == ("d",)
    assert admission.finish("a", 1.0, Outcome.DONE) == ("b",)


def test_what_would_end_after_its_deadline_is_refused_with_the_estimate():
    admission = filled(slots=2, service_s=4.0)
    assert admission.decide(Ticket("q", "echo"), 5.9) == Refuse(Reason.TOO_LATE, 6.0, 0)
    assert admission.decide(Ticket("q", "echo"), 6.0) == Queue(6.0, 0)


def test_a_free_slot_is_never_refused_on_an_estimate():
    admission = Admission(slots=1)
    admission.submit(Ticket("slow", "echo"), LONG_S)
    admission.finish("slow", 100.0, Outcome.DONE)
    assert admission.decide(Ticket("a", "echo"), 1.0) == Accept(100.0)


def test_a_deadline_that_has_passed_is_refused_even_with_a_free_slot():
    decision = Admission(slots=1).decide(Ticket("a", "echo"), 0.0)
    assert decision == Refuse(Reason.TOO_LATE, 0.0, 0)


@pytest.mark.parametrize(
    ("concurrency", "remaining_s", "is_draining", "enters"),
    [
        (0, LONG_S, False, True),
        (1, LONG_S, False, False),
        (2, LONG_S, False, True),
        (0, 0.0, False, False),
        (0, LONG_S, True, False),
    ],
)
def test_a_ticket_enters_where_it_would_be_accepted(concurrency, remaining_s, is_draining, enters):
    admission = filled(slots=2)
    admission.finish("r1", 0.0, Outcome.DONE)
    admission.is_draining = is_draining
    ticket = Ticket("a", "echo", concurrency)
    assert isinstance(admission.decide(ticket, remaining_s), Accept) is enters
    before = admission.running
    assert admission.enter(ticket, remaining_s) is enters
    assert admission.running == before + (("a",) if enters else ())
    assert admission.waiting == ()


def test_what_finds_no_free_slot_does_not_enter():
    assert not filled(slots=1).enter(Ticket("a", "echo"), LONG_S)


def test_a_draining_node_refuses_and_still_starts_what_waits():
    admission = filled(slots=1)
    admission.submit(Ticket("a", "echo"), LONG_S)
    admission.is_draining = True
    assert admission.submit(Ticket("b", "echo"), LONG_S) == Refuse(Reason.DRAINING, 0.0, 1)
    assert admission.load().draining
    assert admission.finish("r0", 1.0, Outcome.DONE) == ("a",)


def test_the_narrower_door_sets_the_estimate():
    admission = Admission(slots=4)
    admission.submit(Ticket("warm", "gpu", 1), LONG_S)
    admission.finish("warm", 10.0, Outcome.DONE)
    admission.submit(Ticket("a", "gpu", 1), LONG_S)
    assert admission.eta_s(Ticket("b", "gpu", 1)) == 20.0
    assert admission.eta_s(Ticket("b", "echo")) == 10.0


def test_a_capability_without_runs_of_its_own_is_judged_by_all():
    admission = filled(slots=1, service_s=3.0)
    assert admission.eta_s(Ticket("x", "new")) == 6.0
    admission.forget("echo")
    admission.forget("never")
    assert admission.load().service_s == 3.0


def test_the_service_time_is_a_mean_that_becomes_slow():
    service = ServiceTime()
    for sample in range(SERVICE_SAMPLES_PLAIN):
        service.add(float(sample))
    mean = (SERVICE_SAMPLES_PLAIN - 1) / 2
    assert service.mean_s == pytest.approx(mean)
    service.add(mean + 100.0)
    assert service.mean_s == pytest.approx(mean + 100.0 * SERVICE_ALPHA)


def test_failures_do_not_make_a_node_look_fast():
    admission = filled(slots=1, service_s=2.0)
    admission.finish("r0", 0.001, Outcome.FAILED)
    assert admission.load().service_s == 2.0
    assert admission.load().error_fraction == 0.5


def test_runs_that_ran_out_of_time_count_as_slow_and_as_errors():
    admission = filled(slots=1, service_s=2.0)
    admission.finish("r0", 4.0, Outcome.TIMED_OUT)
    assert admission.load().service_s == 3.0
    assert admission.load().error_fraction == 0.5


def test_dropped_runs_count_for_nothing_and_old_outcomes_fade():
    admission = Admission(slots=1)
    for number in range(OUTCOMES_KEPT + 1):
        admission.submit(Ticket(str(number), "echo"), LONG_S)
        admission.finish(str(number), 1.0, Outcome.DONE if number else Outcome.FAILED)
    admission.submit(Ticket("x", "echo"), LONG_S)
    admission.finish("x", 9.0, Outcome.DROPPED)
    assert admission.load().error_fraction == 0.0
    assert admission.load().service_s == 1.0


def test_who_waits_for_its_own_bound_takes_no_slot_that_others_free():
    admission = Admission(slots=2, queue_max=4)
    admission.submit(Ticket("a1", "a", concurrency=1), LONG_S)
    admission.submit(Ticket("b1", "b"), LONG_S)
    admission.submit(Ticket("a2", "a", concurrency=1), LONG_S)
    assert admission.finish("b1", 1.0, Outcome.DONE) == ()
    assert admission.finish("a1", 1.0, Outcome.DONE) == ("a2",)


@pytest.mark.parametrize(("slots", "queue_max"), [(0, 8), (2_000, 8), (1, -1), (1, 100_001)])
def test_numbers_out_of_range_are_refused(slots, queue_max):
    with pytest.raises(UsageError):
        Admission(slots=slots, queue_max=queue_max)


def test_a_ticket_comes_once():
    admission = filled(slots=1)
    admission.submit(Ticket("q", "echo"), LONG_S)
    for name in ("r0", "q"):
        with pytest.raises(AssertionError):
            admission.submit(Ticket(name, "echo"), LONG_S)


CAPS = {"free": 0, "one": 1, "two": 2}
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.sampled_from(sorted(CAPS)), st.floats(0.0, 50.0)),
        st.tuples(st.just("finish"), st.integers(0, 9), st.floats(0.0, 10.0)),
        st.tuples(st.just("withdraw"), st.integers(0, 9), st.none()),
    ),
    max_size=60,
)


class Story:
    """An admission beside a plain record of who came when."""

    def __init__(self, slots: int, queue_max: int) -> None:
        self.admission = Admission(slots=slots, queue_max=queue_max)
        self.capability: dict[str, str] = {}
        self.started: list[str] = []

    def submit(self, capability: str, remaining_s: float) -> None:
        ticket = Ticket(f"t{len(self.capability):04}", capability, CAPS[capability])
        before = self.admission.running, self.admission.waiting
        decision = self.admission.submit(ticket, remaining_s)
        self.capability[ticket.id] = capability
        match decision:
            case Accept():
                self.started.append(ticket.id)
            case Queue(eta_s=eta_s):
                assert eta_s <= remaining_s
            case Refuse():
                assert (self.admission.running, self.admission.waiting) == before
            case _:
                assert_never(decision)

    def finish(self, index: int, service_s: float) -> None:
        running = self.admission.running
        if running:
            ticket = running[index % len(running)]
            self.started += self.admission.finish(ticket, service_s, Outcome.DONE)

    def withdraw(self, index: int) -> None:
        waiting = self.admission.waiting
        if waiting:
            self.admission.withdraw(waiting[index % len(waiting)])

    def check(self) -> None:
        running, waiting = self.admission.running, self.admission.waiting
        assert len(running) <= self.admission.slots
        assert len(waiting) <= self.admission.queue_max
        assert list(waiting) == sorted(waiting)
        for name, bound in CAPS.items():
            mine = [t for t in running if self.capability[t] == name]
            assert not bound or len(mine) <= bound
            # Nobody waits who could run.
            if len(running) < self.admission.slots and (not bound or len(mine) < bound):
                assert not any(self.capability[t] == name for t in waiting)
            # First come, first served within each capability.
            order = [t for t in self.started if self.capability[t] == name]
            assert order == sorted(order)


@given(st.integers(1, 3), st.integers(0, 4), STEPS)
def test_bounds_and_order_hold_whatever_happens(slots, queue_max, steps):
    story = Story(slots, queue_max)
    for kind, what, amount in steps:
        match kind:
            case "submit":
                story.submit(what, amount)
            case "finish":
                story.finish(what, amount)
            case _:
                story.withdraw(what)
        story.check()


def queued(admission: Admission, *priorities: int) -> list[str]:
    names = [f"p{priority}-{number}" for number, priority in enumerate(priorities)]
    for name, priority in zip(names, priorities, strict=True):
        admission.submit(Ticket(name, "echo", priority=priority), LONG_S)
    return names


def test_the_most_urgent_goes_first_and_among_equals_the_first():
    admission = filled(slots=1, queue_max=8)
    queued(admission, 1, 3, 5, 3, 5)
    assert admission.waiting == ("p5-2", "p5-4", "p3-1", "p3-3", "p1-0")
    order = []
    running = "r0"
    while admission.waiting:
        (running,) = admission.finish(running, 1.0, Outcome.DONE)
        order.append(running)
    assert order == ["p5-2", "p5-4", "p3-1", "p3-3", "p1-0"]


def test_of_a_full_queue_the_last_of_the_least_urgent_gives_way_to_the_more_urgent():
    admission = filled(slots=1, queue_max=3)
    queued(admission, 2, 1, 1)
    decision = admission.submit(Ticket("urgent", "echo", priority=4), LONG_S)
    assert isinstance(decision, Queue)
    assert decision.displaced == "p1-2"
    assert admission.waiting == ("urgent", "p2-0", "p1-1")
    refused = admission.submit(Ticket("equal", "echo", priority=1), LONG_S)
    assert isinstance(refused, Refuse)
    assert refused.reason is Reason.QUEUE_FULL


def test_what_waits_is_overtaken_only_so_often():
    admission = filled(slots=1, queue_max=64)
    admission.submit(Ticket("patient", "echo", priority=1), LONG_S)
    running, started = "r0", []
    for number in range(3 * OVERTAKEN_MAX):
        admission.submit(Ticket(f"u{number}", "echo", priority=5), LONG_S)
        (running,) = admission.finish(running, 1.0, Outcome.DONE)
        started.append(running)
    assert started.index("patient") == OVERTAKEN_MAX


def test_the_estimate_of_urgent_work_does_not_count_what_it_overtakes():
    admission = filled(slots=1, queue_max=8, service_s=1.0)
    queued(admission, 1, 1, 1)
    assert admission.eta_s(Ticket("u", "echo", priority=5)) == 2.0
    assert admission.eta_s(Ticket("l", "echo", priority=1)) == 5.0


@given(st.lists(st.tuples(st.sampled_from("sf"), st.integers(1, 5)), max_size=200))
def test_whatever_comes_each_ticket_is_in_one_place_and_bounds_hold(steps):
    admission = Admission(slots=2, queue_max=3)
    places: dict[str, str] = {}
    for number, (step, priority) in enumerate(steps):
        if step == "s":
            name = f"t{number}"
            decision = admission.submit(Ticket(name, "echo", priority=priority), LONG_S)
            if isinstance(decision, Queue) and decision.displaced:
                del places[decision.displaced]
            if not isinstance(decision, Refuse):
                places[name] = ""
        elif admission.running:
            del places[admission.running[0]]
            admission.finish(admission.running[0], 1.0, Outcome.DONE)
        assert sorted(places) == sorted((*admission.running, *admission.waiting))
        assert len(admission.running) <= 2
        assert len(admission.waiting) == admission.load().queue <= 3
        assert not admission.waiting or len(admission.running) == 2
