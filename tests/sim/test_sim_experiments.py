"""The experiments measure what they say, see what differs, and can miss their targets."""

import json
import math
import random
from dataclasses import dataclass, replace

import pytest

from meshd.gossip.prober import Prober
from sim.__main__ import main
from sim.experiments import (
    EXPERIMENTS,
    Options,
    Outcome,
    Verdict,
    cell,
    coordinates,
    dissemination,
    first_suspicion,
)
from sim.experiments import lifeguard as lifeguard_experiment
from sim.experiments import load as load_experiment
from sim.experiments.arms import (
    AS_SHIPPED,
    BUDDY,
    FREE,
    IN_STEP,
    LHA_PROBE,
    LHA_SUSPICION,
    LIFEGUARD,
    LIFEGUARD_ARMS,
    MESHD,
    PURE_GOSSIP,
    SWIM,
    Arm,
)
from sim.experiments.model import judged, quiet, within
from sim.experiments.runs import each
from sim.experiments.statistics import (
    count_interval,
    mean,
    mean_interval,
    quantile,
    ratio_interval,
    resampled,
)
from sim.mutations import MUTATIONS

SMALL = cell.Cell(nodes=20, ill=2, duration_s=40.0)


def found(arm, task_cell=SMALL, seeds=2):
    return [cell.run((arm, task_cell, seed)) for seed in range(seeds)]


def total(runs, what):
    return sum(getattr(run, what) for run in runs)


# Statistics


def test_the_interval_of_a_count_is_the_exact_one():
    assert count_interval(0) == pytest.approx((0.0, 3.689), abs=0.001)
    assert count_interval(10) == pytest.approx((4.795, 18.391), abs=0.001)


def test_nothing_counted_bounds_a_ratio_instead_of_making_it_infinite():
    low, high = ratio_interval(140, 0)
    assert low == pytest.approx(1.0 / (0.025 ** (-1 / 140) - 1.0), rel=1e-6)
    assert math.isinf(high)
    assert ratio_interval(0, 0) == (0.0, math.inf)


def test_the_interval_of_a_ratio_turns_over_with_the_ratio():
    low, high = ratio_interval(80, 4)
    assert low < 20.0 < high
    assert ratio_interval(4, 80) == pytest.approx((1.0 / high, 1.0 / low))


def test_intervals_hold_the_mean_of_most_samples():
    rng = random.Random(1)
    samples = [[rng.expovariate(1.0) for _ in range(100)] for _ in range(200)]
    held = [low <= 1.0 <= high for low, high in map(mean_interval, samples)]
    assert 0.90 < mean(held) < 0.99
    low, high = resampled([sample[:5] for sample in samples], lambda v: quantile(v, 0.5))
    assert low < math.log(2.0) < high
    assert mean_interval([1.0]) == (-math.inf, math.inf)


def test_a_target_is_missed_by_many_runs_and_undecided_by_few():
    assert within("x", 1.1, 1.0, 0.2).verdict is Verdict.MET
    assert within("x", 1.3, 1.0, 0.2).verdict is Verdict.MISSED
    assert within("x", 1.3, 1.0, 0.2, enough=False).verdict is Verdict.UNDECIDED


def test_false_deaths_must_be_seen_before_they_can_be_cut():
    assert lifeguard_experiment.fold("x", 160, 4, 40.0, enough=True).verdict is Verdict.MET
    assert lifeguard_experiment.fold("x", 159, 4, 40.0, enough=True).verdict is Verdict.MISSED
    assert lifeguard_experiment.fold("x", 40, 0, 40.0, enough=True).verdict is Verdict.MET
    for before in (0, 39):
        few = lifeguard_experiment.fold("x", before, 0, 40.0, enough=True)
        assert few.verdict is Verdict.UNDECIDED


# Arms


@pytest.mark.parametrize("arm", [*LIFEGUARD_ARMS, PURE_GOSSIP, IN_STEP], ids=lambda arm: arm.name)
def test_an_arm_leaves_the_protocol_as_it_was(arm):
    def methods():
        return [getattr(owner, name) for owner, name, _ in arm.patches]

    def fail_within():
        with arm.applied():
            changed.append(methods())
            raise KeyError

    changed = []
    before = methods()
    with pytest.raises(KeyError):
        fail_within()
    assert all(one is not other for one, other in zip(before, changed[0], strict=True))
    assert before == methods()


def test_the_parts_of_lifeguard_make_up_the_whole():
    assert not MESHD.changes
    assert not MESHD.patches
    for part in (SWIM, LHA_PROBE, LHA_SUSPICION, BUDDY):
        assert set(LIFEGUARD.changes) <= set(part.changes)
        assert set(LIFEGUARD.patches) <= set(part.patches)
    for part in (LHA_PROBE, LHA_SUSPICION, BUDDY):
        left_out = set(SWIM.changes) - set(part.changes), set(SWIM.patches) - set(part.patches)
        assert any(left_out)
    kept = [set(SWIM.patches) - set(part.patches) for part in (LHA_PROBE, LHA_SUSPICION, BUDDY)]
    assert set().union(*kept) == set(SWIM.patches) - set(LIFEGUARD.patches)


def test_nobody_nacks_and_nobody_is_told_first_in_plain_swim():
    nacks = []

    def counting(original):
        def on_nack_due(self, sequence):
            nacks.append(sequence)
            return original(self, sequence)

        return on_nack_due

    patch = (Prober, "on_nack_due", counting)
    found(Arm("counted", "", LIFEGUARD.changes, (*LIFEGUARD.patches, patch)), seeds=1)
    assert nacks
    nacks.clear()
    # Innermost first: what SWIM puts in place of the method replaces the counter, too.
    found(Arm("counted", "", SWIM.changes, (patch, *SWIM.patches)), seeds=1)
    assert not nacks


# The experiments, small


@pytest.mark.slow
def test_pure_gossip_follows_the_formula_and_what_is_shipped_is_faster():
    def pooled(arm):
        runs = [dissemination.run((arm, 30, seed)) for seed in range(40)]
        return [value for run in runs for value in run.after_s]

    for share in dissemination.SHARES:
        wanted = dissemination.formula_s(30, share)
        assert quantile(pooled(PURE_GOSSIP), share) == pytest.approx(wanted, rel=0.25)
        assert quantile(pooled(AS_SHIPPED), share) < 0.6 * wanted
    narrow = Arm("narrow", "", {"gossip_fanout": 1}, PURE_GOSSIP.patches)
    assert quantile(pooled(narrow), 0.5) > 2.0 * dissemination.formula_s(30, 0.5)


def test_the_formula_gives_serf_s_published_figures():
    figures = {30: (0.23, 0.54), 100: (0.31, 0.62), 1_000: (0.46, 0.77)}
    for nodes, published in figures.items():
        ours = [dissemination.formula_s(nodes, share) for share in dissemination.SHARES]
        assert ours == pytest.approx(published, abs=0.01)


def test_periods_in_step_tend_to_swim_s_figure():
    expected = [first_suspicion.in_step_periods(nodes) for nodes in (10, 100, 10_000)]
    assert expected == sorted(expected)
    assert expected[-1] == pytest.approx(first_suspicion.SWIM_PERIODS, abs=1e-3)


@pytest.mark.slow
def test_a_crash_is_suspected_after_about_two_periods_or_e_of_them_in_step():
    free = [first_suspicion.run((FREE, 30, seed)).after_s for seed in range(80)]
    assert mean(free) == pytest.approx(first_suspicion.free_s(30), abs=0.3)
    step = [float(first_suspicion.run((IN_STEP, 30, seed)).periods) for seed in range(80)]
    assert mean(step) == pytest.approx(first_suspicion.in_step_periods(30), abs=0.25)
    assert min(step) == 1.0
    late = Arm("late", "", {"probe_interval_s": 2.0})
    slow = [first_suspicion.run((late, 30, seed)).after_s for seed in range(20)]
    assert mean(slow) > 1.5 * mean(free)


def test_a_quiet_node_sends_two_messages_a_period_unless_each_probe_is_sent_twice():
    assert mean(load_experiment.run((8, 1)).probes) == pytest.approx(2.0, abs=0.01)
    twice = next(each for each in MUTATIONS if each.name == "twice")
    with twice.planted():
        outcome = load_experiment.experiment(Options(quick=True), quiet)
    assert not outcome.ok


@pytest.mark.slow
def test_each_part_of_lifeguard_does_its_part():
    runs = {arm.name: found(arm) for arm in (*LIFEGUARD_ARMS, MESHD)}
    suspicions = {name: total(each, "false_suspicions") for name, each in runs.items()}
    assert suspicions["LHA-Probe"] < 0.5 * suspicions["SWIM"]
    assert suspicions["Lifeguard"] < 0.5 * suspicions["SWIM"]
    sent = {name: total(each, "sent_bytes") for name, each in runs.items()}
    assert sent["LHA-Suspicion"] > 1.03 * sent["SWIM"]
    assert all(not total(each, "missed") for each in runs.values())
    assert suspicions["meshd"] < 0.5 * suspicions["Lifeguard"]
    assert sent["meshd"] < 0.6 * sent["Lifeguard"]
    detected = {
        name: quantile([value for run in each for value in run.detected_s], 0.5)
        for name, each in runs.items()
    }
    assert detected["meshd"] < 0.9 * detected["Lifeguard"]


@pytest.mark.slow
def test_nodes_whose_packets_are_held_back_accuse_the_healthy_in_swim_alone():
    blocked = replace(cell.BLOCKED, nodes=24, ill=2, duration_s=40.0)
    runs = {arm.name: cell.run((arm, blocked, 1)) for arm in (SWIM, LHA_SUSPICION, LIFEGUARD)}
    assert runs["SWIM"].false_deaths_healthy > 5
    assert runs["SWIM"].death_events > runs["SWIM"].death_events_healthy
    assert not runs["LHA-Suspicion"].false_deaths_healthy
    assert not runs["Lifeguard"].false_deaths_healthy
    assert runs["Lifeguard"].sent_bytes < runs["LHA-Suspicion"].sent_bytes


# The command


def test_the_command_ends_with_one_json_object(capsys):
    assert main(["experiment", "load", "--quick", "--json"]) == 0
    out = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (out["schema"], out["experiment"], out["ok"]) == (
        "meshd.sim.experiment/1", "load", True,
    )  # fmt: skip
    assert {row["nodes"] for row in out["rows"]} == {8, 32, 128}
    assert all(check["verdict"] == "met" for check in out["checks"])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*EXPERIMENTS} - {"coordinates"}))  # run once, below
def test_every_experiment_gives_people_its_tables_and_targets(name, capsys):
    assert main(["experiment", name, "--quick", "--seeds", "1"]) == 0
    out = capsys.readouterr().out
    assert "| target" in out
    assert EXPERIMENTS[name].text


def test_without_a_name_the_command_lists_them(capsys):
    assert main(["experiment"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in EXPERIMENTS)
    assert main(["experiment", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["experiments"].keys() == EXPERIMENTS.keys()


def test_a_missed_target_exits_with_one_and_endless_figures_are_null(capsys, monkeypatch):
    missed = judged("x", "1", "2", met=False)
    outcome = Outcome("load", ({"s": [math.inf, 1.0], "t": {"u": math.nan}},), (missed,), ())
    planted = replace(EXPERIMENTS["load"], run=lambda _options, _progress: outcome)
    monkeypatch.setitem(EXPERIMENTS, "load", planted)
    assert main(["experiment", "load", "--json"]) == 1
    out = json.loads(capsys.readouterr().out)
    assert out["rows"] == [{"s": [None, 1.0], "t": {"u": None}}]
    assert not out["ok"]


def test_an_unknown_name_is_wrong_usage_with_a_hint(capsys):
    assert main(["experiment", "loud"]) == 2
    assert "did you mean 'load'?" in capsys.readouterr().err
    assert main(["experiment", "load", "--seeds", "0"]) == 2


def test_progress_is_told_after_each_run():
    told = []
    tasks = [3, 1, 2]
    assert each(abs, tasks, jobs=1, progress=lambda *so_far: told.append(so_far)) == tasks
    assert told == [(1, 3), (2, 3), (3, 3)]


@dataclass(frozen=True)
class Doubled:
    value: float


@dataclass(frozen=True)
class Odd:
    name: str


worked: list[tuple[Arm, float]] = []


def work(task: tuple[Arm, float]) -> Doubled | Odd:
    worked.append(task)
    return Odd("three") if task[1] == 3 else Doubled(2 * task[1])


def test_what_is_kept_is_not_run_again(tmp_path):
    worked.clear()
    kept = tmp_path / "kept.jsonl"
    tasks = [(MESHD, 1.0), (SWIM, 1.0), (MESHD, 3.0), (MESHD, math.inf)]
    found = each(work, tasks, jobs=1, progress=quiet, kept=kept)
    assert found == [Doubled(2.0), Doubled(2.0), Odd("three"), Doubled(math.inf)]
    lines = kept.read_text("utf-8").splitlines()
    # One is missing, one was cut off while it was written, one is of another function.
    kept.write_text(
        "\n".join([lines[0].replace(".work", ".play"), *lines[2:], lines[1][:40]]), "utf-8"
    )
    told = []
    again = [*tasks, (MESHD, 5.0)]
    got = each(work, again, jobs=1, progress=lambda *so_far: told.append(so_far), kept=kept)
    assert got == [*found, Doubled(10.0)]
    assert worked == [*tasks, tasks[0], tasks[1], again[-1]]
    assert told == [(2, 5), (3, 5), (4, 5), (5, 5)]
    each(work, again, jobs=1, progress=quiet, kept=kept)
    assert len(worked) == 7


def test_an_experiment_that_was_cut_off_goes_on(tmp_path, capsys):
    kept = tmp_path / "kept.jsonl"
    command = ["experiment", "load", "--quick", "--seeds", "1", "--json", "--out", str(kept)]
    assert main(command) == 0
    first = capsys.readouterr().out
    assert main(command) == 0
    assert capsys.readouterr().out == first
    assert main([*command[:-1], str(tmp_path / "no" / "place")]) == 2
    assert "name another file with --out" in capsys.readouterr().err


@pytest.mark.slow
def test_several_processes_find_what_one_does():
    tasks = [(FREE, 10, seed) for seed in range(4)]
    alone = each(first_suspicion.run, tasks, jobs=1, progress=quiet)
    assert each(first_suspicion.run, tasks, jobs=2, progress=quiet) == alone


# Coordinates


def test_serfs_matrices_hold_true_round_trips():
    rng = random.Random(1)
    for name in coordinates.MATRICES:
        matrix = coordinates.truth(name, rng)
        size = range(len(matrix))
        assert all(matrix[i][j] == matrix[j][i] > 0.0 for i in size for j in size if i != j)
    line, split, circle = (coordinates.truth(n, rng) for n in ("line", "split", "circle"))
    assert line[0][9] == pytest.approx(0.09)
    assert (split[0][12], split[0][13]) == (0.001, 0.011)
    assert circle[0][1] == circle[0][20] == 0.2
    assert circle[1][2] == circle[23][24]


def test_locators_fit_a_line_as_well_as_serf_accepts():
    found = coordinates.run(("fit", "line", 0, 0))
    assert found.late <= coordinates.ACCEPTED["line"] < found.early


def test_a_newcomer_knows_the_nearest_of_five_before_it_has_measured_them():
    found = coordinates.run(("newcomer", "", 30, 1))
    last = found.seconds[14]
    assert last.error < 0.2
    assert last.near_of_five > last.near_of_five_measured
    assert found.extra_bytes_per_s[1] < 15.0


def test_a_median_error_that_rises_again_was_not_good_yet():
    seconds = [coordinates.Second(error, 0.0, 0.0, 0.0, 0.0) for error in (0.1, 0.5, 0.1, 0.1)]
    assert coordinates._good_after_s(coordinates.Seen("start", 2, tuple(seconds), (0.0, 0.0))) == 3
    never = coordinates.Seen("start", 2, (seconds[1],), (0.0, 0.0))
    assert math.isinf(coordinates._good_after_s(never))


@pytest.mark.slow
def test_the_coordinates_experiment_meets_its_targets_when_quick(capsys):
    assert main(["experiment", "coordinates", "--quick"]) == 0  # 1 if a target is missed
    assert "| target" in capsys.readouterr().out
