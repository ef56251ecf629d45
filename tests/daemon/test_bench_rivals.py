"""What the benches take from a rival's output, and what they say where there is no rival."""

import sys
from pathlib import Path

import pytest
import repository


@pytest.fixture(autouse=True)
def _bench(monkeypatch):
    monkeypatch.syspath_prepend(str(repository.ROOT / "bench"))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "rivals"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def kinds(_bench):
    import rivals.kinds

    return rivals.kinds


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"                      Node name: 'n7'", ("ready", "n7")),
        (b"    2026/11/21 09:46:02 [INFO] serf: EventMemberJoin: a 127.0.0.1", ("alive", "a")),
        (b"    2026/11/21 09:46:02 [INFO] serf: EventMemberFailed: a 127.0.0.1", ("dead", "a")),
        (b"    2026/11/21 09:46:02 [INFO] serf: EventMemberLeave: a 127.0.0.1", ("left", "a")),
        (b"    2026/11/21 09:46:04 [INFO] serf: EventMemberUpdate: a", ("updated", "a")),
        (b"    2026/11/21 09:46:03 [INFO] agent: Received event: member-join", None),
        (b"", None),
    ],
)
def test_serf_says_in_its_log_what_it_believes(kinds, line, expected):
    assert kinds.Serf(Path("serf"), "lan").parse(line) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"ready n7", ("ready", "n7")),
        (b"dead n3", ("dead", "n3")),
        (b"EventsLost(4)", None),
        (b"2026/11/21 10:18:29 [DEBUG] memberlist: Stream connection from=10.77.0.3", None),
        (b"kinship  WARN _kinship::config: running without encryption", None),
    ],
)
def test_our_small_programs_say_two_words_a_line(kinds, line, expected):
    assert kinds.Kinship(Path("python"), "lan").parse(line) == expected
    assert kinds.Memberlist(Path("node"), "lan").parse(line) == expected


def test_meshd_is_heard_by_its_events(kinds, tmp_path):
    ours = kinds.Meshd(tmp_path, "lan")
    assert ours.parse(b'{"event": "started", "id": "ab"}') == ("ready", "ab")
    assert ours.parse(b'{"event": "member_dead", "id": "cd"}') == ("dead", "cd")
    assert ours.parse(b'{"event": "ages", "id": "12,3"}') == ("ages", "12,3")
    assert ours.parse(b'{"event": "joined", "id": "cd"}') is None
    assert ours.parse(b"Traceback") is None


def test_a_missing_rival_is_named_with_what_to_do(kinds, tmp_path, monkeypatch):
    from rivals.install import find

    monkeypatch.setenv("PATH", str(tmp_path))
    found, missing = kinds.available(find(tmp_path), "lan")
    assert list(found) == ["meshd"]
    assert missing.keys() == {"serf", "kinship", "memberlist"}
    assert all("python bench/install_rivals.py" in reason for reason in missing.values())


@pytest.mark.parametrize(
    ("value", "bound", "factor", "is_met"),
    [
        (1.0, 1.0, 1.0, True),
        (1.1, 1.0, 1.0, False),
        (0.65, 1.0, 0.65, True),
        (0.66, 1.0, 0.65, False),
        ("not in 120", 2.0, 1.0, False),
        (60.0, "not in 120", 1.0, True),
        ("not in 120", "not in 120", 1.0, None),
        (None, 1.0, 1.0, None),
        (1.0, None, 1.0, None),
    ],
)
def test_a_goal_is_met_missed_or_not_measured(value, bound, factor, is_met):
    from rivals.goals import at_most

    goal = at_most("until all see all", value, bound, factor)
    assert goal.is_met is is_met
    assert goal.row()["goal"] == "until all see all"


@pytest.mark.parametrize(
    ("values", "passed"),
    [
        ([1.0, 2.0], False),
        ([1.0, 1.0], True),
        ([1.0, None], None),
        ([2.0, None], False),
        ([], None),
    ],
)
def test_one_missed_goal_decides_and_one_unmeasured_leaves_it_open(values, passed):
    from rivals.goals import at_most, verdict

    assert verdict(at_most("x", value, 1.0) for value in values) is passed


def test_results_outlive_a_run_that_was_cut_off(tmp_path):
    from rivals.kept import Kept

    path = tmp_path / "results.jsonl"
    case = {"N": 3, "test": "stopped"}
    Kept(path, "versus_pause", "lan").put(case, "meshd", 1, {"back_s": 0.1})
    with path.open("a") as file:
        file.write('{"bench": "versus_pa')
    again = Kept(path, "versus_pause", "lan")
    assert again.get({"test": "stopped", "N": 3}, "meshd", 1) == {"back_s": 0.1}
    assert again.get(case, "meshd", 2) is None
    assert again.get(case, "serf", 1) is None
    assert Kept(path, "versus_pause", "local").get(case, "meshd", 1) is None
    assert Kept(path, "versus_kill", "lan").get(case, "meshd", 1) is None


def test_a_line_after_one_that_was_cut_off_is_read(tmp_path):
    from rivals.kept import Kept

    path = tmp_path / "results.jsonl"
    path.write_text('{"bench": "versus_pa')
    Kept(path, "versus_kill", "lan").put({"N": 3}, "meshd", 1, {"back_s": 0.1})
    assert Kept(path, "versus_kill", "lan").get({"N": 3}, "meshd", 1) == {"back_s": 0.1}


def test_medians_leave_failed_rounds_out_and_keep_words():
    from rivals.side_by_side import medians

    rounds = [{"age_s": 1.0, "back_s": 2}, {"failed": "why"}, {"age_s": 3.0, "back_s": "not in 9"}]
    assert medians({"meshd": rounds, "serf": []}) == {
        "meshd": {"age_s": 2.0, "back_s": "not in 9", "failed": 1},
        "serf": {"failed": 0},
    }
