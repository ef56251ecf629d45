"""What a profile comes to in a mesh of a given size, beside the formula of each number."""

import pytest

from meshd.gossip.config import PROFILES, profile
from meshd.gossip.figures import figures, first_probe_s


def value(name: str, members: int, of: str = "lan") -> float:
    return next(f.value for f in figures(profile(of), members) if f.name == name)


@pytest.mark.parametrize("name", PROFILES)
def test_every_number_has_a_formula_and_a_name_of_its_own(name):
    found = figures(profile(name), 50)
    assert all(figure.formula for figure in found)
    assert len({figure.name for figure in found}) == len(found)


@pytest.mark.parametrize(
    ("name", "members", "expected"),
    [
        ("doubt, shortest", 10_000, 3.0),
        ("doubt, longest", 10_000, 18.0),
        ("doubt in a crowd", 5, 4.0),
        ("doubt in a crowd", 1_000, 12.0),
        ("confirmations", 2, 0),
        ("confirmations", 3, 1),
        ("confirmations", 100, 3),
        ("nack after", 50, 0.9),
        ("rumour is passed on", 9, 4),
        ("rumour is passed on", 10, 8),
        ("stale, unrouted after", 3, 6.0),
        ("query waits", 1_000, 12.8),
        ("idle node sends", 50, 136.0),
    ],
)
def test_a_number_follows_from_the_size_of_the_mesh(name, members, expected):
    assert value(name, members) == pytest.approx(expected)


def test_a_death_is_known_in_the_time_that_the_simulator_measures():
    assert value("a death is known after", 50) == pytest.approx(4.76, abs=0.1)
    assert value("a death is known after", 50, "local") < 1.0


@pytest.mark.parametrize(("members", "expected"), [(1, 0.5), (2, 0.5), (3, 0.586), (10_000, 0.693)])
def test_the_first_probe_comes_within_an_interval_in_most_cases(members, expected):
    assert first_probe_s(1.0, members) == pytest.approx(expected, abs=0.001)
