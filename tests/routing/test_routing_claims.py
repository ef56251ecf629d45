"""What is claimed of the named policies holds in small simulations."""

import pytest

from sim.claims import MIXED_PRICE, MIXED_SPEED, claims, simulate

CALLS = 400


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_fast_workers_first_cut_the_mean_threefold_where_half_are_ten_times_slower(seed):
    assert claims(seed, CALLS)["mean_ratio"] >= 3.0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_cheap_workers_first_save_two_fifths_of_the_spend_at_equal_success(seed):
    figures = claims(seed, CALLS)
    assert figures["spend_saved"] >= 0.4
    assert figures["success_difference"] <= 0.02


def test_a_crowd_that_the_fast_or_the_cheap_cannot_take_goes_to_the_others_too():
    for kinds, policy in ((MIXED_SPEED, "fastest"), (MIXED_PRICE, "cheapest")):
        few = simulate(kinds, policy, calls_per_s=5.0, calls=CALLS)
        crowd = simulate(kinds, policy, calls_per_s=120.0, calls=CALLS)
        assert crowd.success >= 0.95
        assert crowd.cost_usd >= few.cost_usd
        assert crowd.mean_s < 10 * few.mean_s


def test_a_run_follows_from_its_seed():
    one, other = (simulate(MIXED_SPEED, "fastest", calls_per_s=12.0, calls=50) for _ in range(2))
    assert one == other
