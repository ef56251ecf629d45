"""One daemon a directory, and an epoch that only grows."""

import errno
import fcntl
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.errors import UsageError
from meshd.model import Epoch, Incarnation
from meshd.security import statedir
from meshd.security.files import DamagedError, read_checked, write_checked
from meshd.security.statedir import Run, StateDir, next_epoch


@pytest.fixture
def state(tmp_path):
    directory = StateDir(tmp_path / "a" / "b")
    directory.open()
    yield directory
    directory.close()


def test_the_directory_is_private(state):
    assert state.path.stat().st_mode & 0o777 == 0o700


def test_a_second_daemon_is_told_the_pid_of_the_first(state):
    with pytest.raises(UsageError, match=f"pid {os.getpid()}"):
        StateDir(state.path).open()


def test_a_closed_directory_can_be_opened_again(state):
    state.close()
    state.close()
    again = StateDir(state.path)
    again.open()
    again.close()


def test_what_was_written_is_read(state):
    assert state.read_run() == Run(0, 0)
    assert state.write_run(Epoch(1_700_000_000_000), Incarnation(7))
    assert state.read_run() == Run(1_700_000_000_000, 7)


@given(st.integers(0, 2**60), st.integers(0, 2**60))
def test_an_epoch_is_later_than_the_last_whatever_the_clock_says(last, wall_ms):
    epoch = next_epoch(Run(last, 0), wall_ms)
    assert epoch > last
    assert epoch >= wall_ms


def test_a_run_begins_past_the_last_one_even_if_the_clock_went_back(state):
    assert state.begin_run(5_000) == 5_000
    assert state.begin_run(1_000) == 5_001
    assert state.read_run() == Run(5_001, 0)


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_a_cut_run_record_is_kept_aside_and_begins_afresh(state, caplog, keep):
    state.write_run(Epoch(9), Incarnation(1))
    path = state.path / "run"
    path.write_bytes(path.read_bytes()[:keep])
    assert state.read_run() == Run(0, 0)
    assert (state.path / "run.damaged-1").exists()
    assert "run_record_damaged" in caplog.text


def test_an_altered_run_record_is_noticed(state):
    state.write_run(Epoch(1234), Incarnation(1))
    path = state.path / "run"
    path.write_bytes(path.read_bytes().replace(b"1234", b"9234"))
    assert state.read_run() == Run(0, 0)


def test_a_whole_record_of_another_shape_is_damaged(state):
    write_checked(state.path / "run", b'{"epoch": "soon"}')
    assert state.read_run() == Run(0, 0)
    assert (state.path / "run.damaged-1").exists()


@given(st.binary(max_size=200))
def test_checked_files_never_accept_random_bytes(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "random"
    path.write_bytes(data)
    with pytest.raises(DamagedError):
        read_checked(path)


def _fail(number):
    def failing(*_, **__):
        raise OSError(number, os.strerror(number))

    return failing


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_refuses_costs_one_warning_and_keeps_the_old_record(
    state, caplog, monkeypatch, number
):
    state.write_run(Epoch(1), Incarnation(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _fail(number))
        assert not state.write_run(Epoch(2), Incarnation(1))
        assert not state.write_run(Epoch(3), Incarnation(1))
    assert caplog.text.count("state_dir_failed") == 1
    assert os.strerror(number) in state.problem
    assert state.read_run() == Run(1, 1)
    assert state.write_run(Epoch(4), Incarnation(1))
    assert state.problem == ""


def test_a_file_in_the_place_of_the_directory_is_a_usage_error(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(UsageError, match="not a directory"):
        StateDir(tmp_path / "f").open()
    with pytest.raises(UsageError, match="not a directory"):
        StateDir(tmp_path / "f" / "below").open()


def test_a_directory_that_cannot_be_made_costs_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(statedir.Path, "mkdir", _fail(errno.EROFS))
    state = StateDir(tmp_path / "x")
    state.open()
    assert "state_dir_failed" in caplog.text
    assert state.problem
    assert state.read_run() == Run(0, 0)
    state.close()


def test_a_lock_file_that_is_readable_only_still_locks(state, monkeypatch):
    real = os.open

    def read_only(path, flags, *mode):
        if flags & os.O_RDWR:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(UsageError, match="another meshd daemon"):
        StateDir(state.path).open()


def test_without_any_lock_file_the_node_starts_unprotected(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(os, "open", _fail(errno.EACCES))
    state = StateDir(tmp_path)
    state.open()
    assert "state_dir_failed" in caplog.text
    state.close()


def test_a_file_system_without_locks_is_used_unprotected(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(fcntl, "flock", _fail(errno.ENOLCK))
    state = StateDir(tmp_path)
    state.open()
    assert "state_dir_failed" in caplog.text
    state.close()


def test_an_unreadable_run_record_costs_a_warning(state, caplog):
    (state.path / "run").mkdir()
    assert state.read_run() == Run(0, 0)
    assert "state_dir_failed" in caplog.text


def test_the_clock_of_events_is_kept_and_a_damaged_one_counts_as_none(tmp_path):
    state = StateDir(tmp_path / "state")
    state.open()
    assert state.read_event_clock() == 0
    assert state.write_event_clock(77)
    assert state.read_event_clock() == 77
    (tmp_path / "state" / "events").write_text("nonsense")
    assert state.read_event_clock() == 0
    assert list((tmp_path / "state").glob("events.damaged-*"))
    state.close()
