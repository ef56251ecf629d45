"""Each planted protocol fault breaks an invariant within a few seeds that nobody chose."""

import json

import pytest

from sim.__main__ import main
from sim.mutations import MUTATIONS
from sim.power import Power, seeds_to_kill, table

SEEDS_TO_KILL = {"no_verifiers": 8, "old_run_wins": 6, "state_ignored": 6}
"""Within how many seeds each planted fault is caught: 3 where nothing else is said."""
FIRST_SEED = 910_000
MEASURE = ("mutations", "--runs", "2", "--seeds", "3", "--base", "5")


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_planted_fault_is_caught(mutation):
    limit = SEEDS_TO_KILL.get(mutation.name, 3)
    number, invariant = seeds_to_kill(mutation, FIRST_SEED, limit)
    assert number is not None
    assert invariant


def test_planting_a_fault_leaves_nothing_behind():
    for mutation in MUTATIONS:
        before = getattr(mutation.owner, mutation.attribute)
        with mutation.planted():
            assert getattr(mutation.owner, mutation.attribute) is not before
        assert getattr(mutation.owner, mutation.attribute) is before


def test_median_and_worst_count_a_survivor_as_worse_than_any_number():
    some = Power("m", "text", "crash", (1, None, 2, 3, 1), ("L1",))
    assert (some.median, some.worst) == (2, None)
    assert "| 2 | survived | L1 |" in list(table([some]))[-1]
    most = Power("m", "text", "crash", (None, None, 2), ())
    assert (most.median, most.worst) == (None, None)
    assert Power("m", "text", "crash", (1, 2), ("S1",)).median == 1.5


def test_the_command_tells_how_many_seeds_it_took(capsys):
    assert main([*MEASURE, "left_is_dead", "--json"]) == 0
    out = json.loads(capsys.readouterr().out.splitlines()[-1])
    (row,) = out["mutations"]
    assert out["survived"] == []
    assert (row["mutation"], row["scenario"]) == ("left_is_dead", "goodbyes")
    assert row["worst"] <= 3


def test_a_survivor_makes_the_command_fail(capsys, monkeypatch):
    monkeypatch.setattr("sim.power.run", lambda _plan: type("Clean", (), {"violations": ()}))
    assert main([*MEASURE, "twice"]) == 1
    assert "survived" in capsys.readouterr().out


def test_an_unknown_mutation_is_wrong_usage(capsys):
    assert main([*MEASURE, "no_such"]) == 2
    assert "no_such" in capsys.readouterr().err
