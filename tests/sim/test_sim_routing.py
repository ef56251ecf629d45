"""The simulated mesh of callers and workers: the ideal is near, and herds are seen."""

import pytest

from sim.routing import table
from sim.routing.calls import Run
from sim.routing.cells import SPEED_RATIO, Cell, Kind
from sim.routing.ways import WAYS

pytestmark = pytest.mark.no_cover


def found(way, kind=Kind.HOMOGENEOUS, *, calls=300, seed=1, is_retrying=True, **shape):
    cell = Cell(kind, **{"nodes": 5, **shape})
    return Run(cell, WAYS[way](), seed, calls, is_retrying=is_retrying).found()


def test_a_run_repeats_itself_to_the_last_digit():
    assert found("adaptive", Kind.LOSSY) == found("adaptive", Kind.LOSSY)
    assert found("adaptive") != found("adaptive", seed=2)


@pytest.mark.parametrize("way", sorted(WAYS))
def test_every_way_gets_its_calls_done(way):
    one = found(way, calls=50)
    assert 0 < one.p50_s < one.p99_s
    assert one.failures == 0


def test_adaptive_is_near_to_asking_everyone_for_few_messages():
    ours, ideal = found("adaptive", nodes=8), found("everyone", nodes=8)
    assert ours.mean_s < 1.1 * ideal.mean_s
    assert ours.messages < 6 < ideal.messages == 14


def test_old_news_makes_all_run_to_the_same_node():
    ours, theirs = (found(way, nodes=10, period=10.0) for way in ("adaptive", "gossip_least"))
    assert ours.mean_s < 0.3 * theirs.mean_s


def test_a_node_that_fails_at_once_draws_no_work():
    assert found("adaptive", Kind.SINKHOLE).failures == 0
    once = found("adaptive", Kind.SINKHOLE, is_retrying=False).failures
    assert once < 0.3 * found("gossip_cpu", Kind.SINKHOLE, is_retrying=False).failures


@pytest.mark.parametrize("kind", [Kind.HEAVY_TAILED, Kind.ANTAGONIST, Kind.HETEROGENEOUS])
def test_other_kinds_of_work_and_nodes_run_too(kind):
    assert found("adaptive", kind, load=0.95, calls=100).mean_s > 0


def test_speeds_differ_as_told():
    from random import Random

    speeds = Cell(Kind.HETEROGENEOUS, nodes=9).speeds(Random(1))
    assert max(speeds) / min(speeds) == pytest.approx(SPEED_RATIO)
    assert set(Cell(Kind.LOSSY, nodes=9).speeds(Random(1))) == {1.0}


def test_the_table_has_baselines_at_one_size_and_bounds_for_what_was_run():
    options = {
        "kinds": [Kind.HOMOGENEOUS, Kind.SINKHOLE], "nodes": [5, 50], "loads": [0.7],
        "periods": [1.0, 10.0], "ways": ["adaptive", "everyone", "gossip_least"],
        "seeds": 2, "calls": 40,
    }  # fmt: skip
    tasks = table.tasks(**options)
    assert len(tasks) == 2 * (2 + 3 + 3 + 3 * 2)
    small = table.tasks(**{**options, "nodes": [3], "seeds": 1})
    results = [table.work(task) for task in small]
    rows = table.rows(small, results)
    assert {row.way for row in rows} == {"adaptive", "everyone", "gossip_least"}
    bounds = {bound.text: bound for bound in table.bounds(rows)}
    assert bounds["sinkhole: failed with retry"].at_most == 0
    assert bounds["messages a call, worst cell"].value < 6
    assert len(bounds) == 6
    assert rows[0].told()["way"] == "adaptive"
    assert table.bounds([])[0].value is None
