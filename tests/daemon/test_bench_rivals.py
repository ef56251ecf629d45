"""What the benches take from a rival's output, and what they say where there is no rival."""

import sys
from pathlib import Path

import pytest
import repository


@pytest.fixture
def kinds(monkeypatch):
    monkeypatch.syspath_prepend(str(repository.ROOT / "bench"))
    import rivals.kinds

    yield rivals.kinds
    for name in [name for name in sys.modules if name.partition(".")[0] == "rivals"]:
        monkeypatch.delitem(sys.modules, name)


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
    assert ours.parse(b'{"event": "joined", "id": "cd"}') is None
    assert ours.parse(b"Traceback") is None


def test_a_missing_rival_is_named_with_what_to_do(kinds, tmp_path, monkeypatch):
    from rivals.install import find

    monkeypatch.setenv("PATH", str(tmp_path))
    found, missing = kinds.available(find(tmp_path), "lan")
    assert list(found) == ["meshd"]
    assert missing.keys() == {"serf", "kinship", "memberlist"}
    assert all("python bench/install_rivals.py" in reason for reason in missing.values())
