"""Every number of a profile has its meaning, and what follows from them is what the core does."""

import pytest

from meshd.gossip.config import PROFILES, GossipConfig, profile
from meshd.gossip.numbers import consequences, numbers, unit_of


@pytest.mark.parametrize("name", PROFILES)
def test_every_field_is_told_with_its_value_and_meaning(name):
    config = profile(name)
    told = numbers(config)
    assert [n.name for n in told] == list(GossipConfig.__struct_fields__)
    assert all(n.value == getattr(config, n.name) for n in told)
    assert all(n.meaning for n in told), [n.name for n in told if not n.meaning]


def test_without_docstrings_the_numbers_are_told_all_the_same(monkeypatch):
    monkeypatch.setattr(GossipConfig, "__doc__", None)
    told = numbers(GossipConfig())
    assert {n.meaning for n in told} == {""}
    assert told[0].value == 1.0


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("probe_interval_s", "s"), ("load_bytes_per_s", "B/s"), ("datagram_bytes_max", "B"),
        ("nack_fraction", "share"), ("verifiers", ""),
    ],
)  # fmt: skip
def test_a_name_says_its_unit(name, unit):
    assert unit_of(name) == unit


def _following(config, members):
    return {n.name: n.value for n in consequences(config, members)}


def test_with_verifiers_the_shortest_doubt_does_not_grow_with_the_mesh():
    lan = profile("lan")
    small, large = _following(lan, 10), _following(lan, 1_000)
    assert (small["t_min_s"], small["t_max_s"], small["detection_s"]) == (3.0, 18.0, 5.0)
    assert large["t_min_s"] == 3.0
    assert (small["crowded_t_min_s"], large["crowded_t_min_s"]) == (4.0, pytest.approx(12.0))
    assert (small["transmit_limit"], large["transmit_limit"]) == (8, 16)
    assert large["load_period_s"] == pytest.approx(1_000 * 3 * 19 / 8_192)
    assert large["stale_after_s"] == 3 * 999


def test_without_verifiers_the_formula_is_lifeguards():
    found = consequences(GossipConfig(verifiers=0), 100)
    (shortest,) = (n for n in found if n.name == "t_min_s")
    assert shortest.value == pytest.approx(6.0)
    assert "log10 n" in shortest.meaning


def test_alone_nobody_can_confirm():
    found = _following(profile("lan"), 1)
    assert (found["confirmations"], found["cycle_s"]) == (0, 0)
