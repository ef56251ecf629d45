"""The simulator's commands print what people and programs need."""

import json

import pytest

from sim.__main__ import main
from sim.mutations import MUTATIONS
from sim.scenarios import SCENARIOS

SMALL = ("--nodes", "8", "--duration", "10s")


def last_json(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_list_names_every_scenario(capsys):
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in SCENARIOS)
    assert main(["list", "--json"]) == 0
    assert last_json(capsys)["scenarios"].keys() == SCENARIOS.keys()


def test_run_ends_with_one_json_object(capsys):
    assert main(["run", "crash", *SMALL, "--seed", "4", "--loss", "0.01", "--json"]) == 0
    out = last_json(capsys)
    assert (out["scenario"], out["seed"], out["nodes"], out["violations"]) == ("crash", 4, 8, [])
    assert out["metrics"]["crashes"] == 1


def test_the_printed_command_replays_the_run(capsys):
    main(["run", "churn", *SMALL, "--seed", "9", "--json"])
    once = last_json(capsys)
    main([*once["replay"].split()[3:], "--json"])
    assert last_json(capsys)["digest"] == once["digest"]


def test_a_summary_says_how_it_went(capsys):
    assert main(["run", "isolate_one", *SMALL]) == 0
    out = capsys.readouterr().out
    assert "suspected" in out
    assert "every invariant held" in out


def test_a_failed_run_says_what_broke_and_how_to_see_it_again(capsys):
    mutation = next(m for m in MUTATIONS if m.name == "left_is_dead")
    with mutation.planted():
        code = main(["run", "goodbyes", "--nodes", "9", "--duration", "20s"])
    out = capsys.readouterr().out
    assert code == 1
    assert "VIOLATED S5" in out
    assert "Leave(node=" in out
    assert "replay: meshd sim replay goodbyes --seed 0 --nodes 9" in out


def test_sweep_counts_seeds_and_names_those_that_failed(capsys):
    assert main(["sweep", "goodbyes", *SMALL, "--seeds", "3", "--json"]) == 0
    assert last_json(capsys)["failed"] == []
    mutation = next(m for m in MUTATIONS if m.name == "left_is_dead")
    with mutation.planted():
        assert main(["sweep", "goodbyes", *SMALL, "--seeds", "2"]) == 1
    assert "goodbyes: 2 seeds, 2 failed" in capsys.readouterr().out


@pytest.mark.slow
def test_a_sweep_may_use_several_processes(capsys):
    assert main(["sweep", "crash", *SMALL, "--seeds", "5", "--jobs", "2", "--json"]) == 0
    assert last_json(capsys)["seeds"] == 5


@pytest.mark.parametrize("wrong", [["run", "no_such"], ["run", "crash", "--duration", "soon"], []])
def test_wrong_usage_exits_with_two(wrong):
    with pytest.raises(SystemExit) as caught:
        main(wrong)
    assert caught.value.code == 2
