"""The checker of loads asks about what was told, and sees what is told too seldom or too often."""

import msgspec
import pytest

from meshd.gossip.config import profile
from meshd.gossip.loads import LoadPlane
from sim.faults import At, Loads
from sim.invariants.bounds import load_period_s
from sim.plan import Plan
from sim.runner import run

OFTEN = Loads(0.4, 10.0)
"""Two or three samples in the period of a small mesh."""
POOR = msgspec.structs.replace(profile("lan"), load_bytes_per_s=100.0)
"""A small mesh with the budget of a large one."""


def violated(loads: Loads) -> list[tuple[str, str]]:
    faults = (At(0.0, loads),)
    plan = Plan(scenario="test", nodes=12, seed=1, duration_s=12.0, converged=12, faults=faults)
    return [(each.invariant, each.text) for each in run(plan).violations]


def test_the_period_of_loads_is_stretched_by_the_budget_in_large_meshes():
    assert load_period_s(profile("lan"), 12) == 1.0
    assert load_period_s(profile("lan"), 1_000) == pytest.approx(6.96, abs=0.01)
    assert load_period_s(POOR, 12) == pytest.approx(6.84)


def test_samples_that_the_period_keeps_back_need_not_arrive():
    assert violated(OFTEN) == []


def test_samples_that_the_budget_keeps_back_need_not_arrive(monkeypatch):
    monkeypatch.setattr("sim.runner.profile", lambda _name: POOR)
    assert violated(Loads(2.0, 10.0)) == []


def test_loads_told_before_the_period_is_over_are_seen(monkeypatch):
    monkeypatch.setattr(LoadPlane, "period_s", lambda _plane, _members: 0.0)
    assert violated(OFTEN) == [("L7", "told its load 0.60 s too early")]


def test_a_plain_change_that_is_not_told_is_seen(monkeypatch):
    monkeypatch.setattr("meshd.gossip.loads.is_significant", lambda _before, _after: False)
    assert violated(Loads(3.0, 10.0)) == [("L7", "its load changed; told 3.0 s ago")]


def test_a_node_that_never_tells_its_load_is_seen(monkeypatch):
    monkeypatch.setattr(LoadPlane, "told", None)
    assert violated(OFTEN) == [("L7", "it took a sample of its load and never told one")]
