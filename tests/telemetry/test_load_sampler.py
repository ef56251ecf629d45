"""The machine's load."""

from collections import namedtuple

import psutil
import pytest

from meshd import load
from meshd.load import LoadSampler, busy_and_total, cpu_quota, default_slots

Times = namedtuple("Times", "user nice system idle iowait guest guest_nice")  # noqa: PYI024  # as psutil's


def test_waiting_is_idle_and_guests_count_once():
    busy, total = busy_and_total(Times(10, 1, 5, 70, 4, 3, 1))
    assert total == 90
    assert busy == 16


def test_cpu_is_the_busy_share_since_the_last_sample(monkeypatch):
    readings = iter([Times(0, 0, 0, 0, 0, 0, 0), Times(1, 0, 0, 3, 0, 0, 0)])
    monkeypatch.setattr(psutil, "cpu_times", lambda: next(readings))
    cpu, mem = LoadSampler().sample()
    assert cpu == 0.25
    assert 0 < mem < 1


def test_a_swing_of_a_second_moves_the_cpu_figure_by_a_fifth(monkeypatch):
    idle, swing = Times(0, 0, 0, 10, 0, 0, 0), Times(10, 0, 0, 10, 0, 0, 0)
    readings = iter([Times(0, 0, 0, 0, 0, 0, 0), idle, swing])
    monkeypatch.setattr(psutil, "cpu_times", lambda: next(readings))
    sampler = LoadSampler()
    assert sampler.sample()[0] == 0.0
    assert sampler.sample()[0] == pytest.approx(0.2)


def test_two_samples_at_once_repeat_the_last_value(monkeypatch):
    first, second = Times(0, 0, 0, 0, 0, 0, 0), Times(1, 0, 0, 1, 0, 0, 0)
    readings = iter([first, second, second])
    monkeypatch.setattr(psutil, "cpu_times", lambda: next(readings))
    sampler = LoadSampler()
    assert sampler.sample()[0] == 0.5
    assert sampler.sample()[0] == 0.5


def test_a_system_that_refuses_to_say_costs_one_warning(monkeypatch, caplog):
    def refuse():
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "cpu_times", refuse)
    monkeypatch.setattr(psutil, "virtual_memory", refuse)
    sampler = LoadSampler()
    assert sampler.sample() == (0.0, 0.0)
    assert caplog.text.count("load_unreadable") == 1


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("max 100000\n", None), ("50000 100000\n", 0.5), ("", None), ("1 0", None), ("x y z", None)],
)
def test_cpu_quota_of_a_cgroup(text, cpus):
    assert cpu_quota(text) == cpus


def test_slots_follow_the_container_quota(tmp_path, monkeypatch):
    path = tmp_path / "cpu.max"
    monkeypatch.setattr(load, "_CGROUP_CPU_MAX", path)
    monkeypatch.setattr(load.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert default_slots() == 4
    path.write_text("150000 100000\n")
    assert default_slots() == 2
    path.write_text("1000 100000\n")
    assert default_slots() == 1


def test_slots_without_affinity_are_the_cpus(tmp_path, monkeypatch):
    def absent(_):
        raise AttributeError

    monkeypatch.setattr(load, "_CGROUP_CPU_MAX", tmp_path / "absent")
    monkeypatch.setattr(load.os, "sched_getaffinity", absent, raising=False)
    monkeypatch.setattr(load.os, "cpu_count", lambda: None)
    assert default_slots() == 1
