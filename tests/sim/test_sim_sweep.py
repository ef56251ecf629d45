"""Many plans at a time: in order, the same for any number of processes, and nothing is left."""

import multiprocessing
from dataclasses import replace
from itertools import count

import pytest
from dying import CannotBeSent, EndsTheProcess

from meshd.errors import MeshError
from sim.faults import At
from sim.mutations import MUTATIONS
from sim.scenarios import SCENARIOS
from sim.sweep import outcomes


def plan(seed, nodes=4):
    return SCENARIOS["crash"].make(nodes, seed, 10.0, 0.0)


@pytest.mark.slow
def test_outcomes_come_in_the_order_of_the_plans_however_long_each_takes():
    sizes = (30, 3, 3, 3, 25, 3, 3)
    plans = [plan(seed, nodes) for seed, nodes in enumerate(sizes)]
    alone = list(outcomes(plans))
    assert [each.seed for each in alone] == list(range(len(sizes)))
    assert list(outcomes(plans, jobs=3)) == alone
    assert not multiprocessing.active_children()


def test_no_plans_need_no_process():
    assert not list(outcomes([], jobs=4))


@pytest.mark.slow
def test_plans_without_end_can_be_left_in_the_middle():
    running = outcomes((plan(seed) for seed in count()), jobs=2)
    assert [next(running).seed for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(multiprocessing.active_children()) == 2
    running.close()
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_process_that_dies_is_an_error_that_names_the_seed():
    deadly = replace(plan(7), faults=(At(1.0, EndsTheProcess(0)),))
    with pytest.raises(MeshError, match=r"the process that ran seed 7 died \(exit code 9\)"):
        list(outcomes([plan(5), plan(6), deadly], jobs=2))
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_plan_that_cannot_be_sent_is_an_error():
    odd = replace(plan(7), faults=(At(1.0, CannotBeSent(0)),))
    with pytest.raises(TypeError, match="stays here"):
        list(outcomes([odd], jobs=2))
    assert not multiprocessing.active_children()


def test_an_outcome_keeps_the_first_violation():
    with next(each for each in MUTATIONS if each.name == "left_is_dead").planted():
        (found,) = outcomes([SCENARIOS["goodbyes"].make(9, 0, 20.0, 0.0)])
    assert (found.seed, found.invariant) == (0, "S5")
    assert found.violation.startswith("S5 at ")
    assert found.events > 10
