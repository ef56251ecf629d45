"""How sure a figure is: intervals that 95 of 100 repetitions would agree with."""

import math
import random
from collections.abc import Callable, Sequence

_TAIL = 0.025
_RESAMPLES = 1_000
_STEPS = 60


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean; 0 of nothing."""
    return sum(values) / len(values) if values else 0.0


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of all lie; not a number if there are none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def count_interval(count: int) -> tuple[float, float]:
    """Means under which a Poisson count is no surprise (Garwood's exact interval).

    Nothing seen is no proof of nothing: the upper end for a count of 0 is 3.69.
    """
    low = 0.0 if count == 0 else _solve(lambda m: 1.0 - _at_most(count - 1, m), _TAIL, count)
    high = _solve(lambda m: -_at_most(count, m), -_TAIL, count + 1)
    return low, high


def ratio_interval(more: int, fewer: int) -> tuple[float, float]:
    """How many times as high the first of two Poisson counts' means is (equal exposure).

    Given their sum, the first is binomial; its exact interval (Clopper and Pearson) carries over.
    Infinite above where nothing was counted in the second.
    """
    total = more + fewer
    if not total:
        return 0.0, math.inf
    low = 0.0 if more == 0 else _solve_share(lambda p: _from(more, total, p), _TAIL)
    high = 1.0 if fewer == 0 else _solve_share(lambda p: _from(more + 1, total, p), 1.0 - _TAIL)
    return low / (1.0 - low), math.inf if high >= 1.0 else high / (1.0 - high)


def resampled(
    runs: Sequence[Sequence[float]], figure: Callable[[Sequence[float]], float]
) -> tuple[float, float]:
    """Interval of a figure over whole runs drawn anew with replacement (percentile bootstrap).

    Values of one run hang together: all nodes learn of one crash at nearly one time.
    """
    rng = random.Random("resampled")
    found = sorted(
        figure([value for run in rng.choices(runs, k=len(runs)) for value in run])
        for _ in range(_RESAMPLES)
    )
    return found[int(_TAIL * _RESAMPLES)], found[int((1.0 - _TAIL) * _RESAMPLES)]


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Interval of a mean of many independent values, by the normal distribution."""
    if len(values) < 2:
        return -math.inf, math.inf
    centre = mean(values)
    spread = math.sqrt(sum((value - centre) ** 2 for value in values) / (len(values) - 1))
    half = 1.96 * spread / math.sqrt(len(values))
    return centre - half, centre + half


def _at_most(count: int, expected: float) -> float:
    """P(X <= count) of a Poisson variable."""
    if expected <= 0.0:
        return 1.0
    logs = (k * math.log(expected) - expected - math.lgamma(k + 1) for k in range(count + 1))
    return min(1.0, math.fsum(map(math.exp, logs)))


def _from(count: int, total: int, share: float) -> float:
    """P(X >= count) of a binomial variable."""
    if share <= 0.0:
        return 1.0 if count <= 0 else 0.0
    if share >= 1.0:
        return 1.0 if count <= total else 0.0
    yes, no = math.log(share), math.log1p(-share)
    logs = (
        math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1)
        + k * yes + (total - k) * no
        for k in range(count, total + 1)
    )  # fmt: skip
    return min(1.0, math.fsum(map(math.exp, logs)))


def _solve(rising: Callable[[float], float], wanted: float, count: int) -> float:
    return _bisect(rising, wanted, 0.0, 2.0 * count + 10.0)


def _solve_share(rising: Callable[[float], float], wanted: float) -> float:
    return _bisect(rising, wanted, 0.0, 1.0)


def _bisect(rising: Callable[[float], float], wanted: float, low: float, high: float) -> float:
    for _ in range(_STEPS):
        middle = (low + high) / 2.0
        if rising(middle) < wanted:
            low = middle
        else:
            high = middle
    return (low + high) / 2.0
