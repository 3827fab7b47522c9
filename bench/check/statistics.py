"""The tests that the check goes by, as pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

from lorabench.estimator.errors import UserError

SIGNIFICANCE = 0.005
"""Chance that chance alone makes the check call any recipe of a suite worse in one metric. Two metrics are tested, step
time and loss, so that an unchanged suite raises an alarm in one check of a hundred at most."""
CONFIDENCE = 0.95
"""Of the intervals that are shown."""
MOST_EXACT_STEPS = 50
"""Samples up to this are tested by the exact distribution of U; beyond it the normal one is as good."""


class Spread(NamedTuple):
    """What runs of the same work differ by, as the logarithm of a quantity."""

    deviation: float
    """Standard deviation of one run."""
    degrees_of_freedom: int


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values, in their order, corrected for being a family of tests.

    Sorted ascending, the k-th of m (from 0) is multiplied by m − k, and none is less than the one before it.
    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979), 65–70.
    """
    corrected = [1.0] * len(p_values)
    floor = 0.0
    for k, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        floor = max(floor, min(1.0, p_values[index] * (len(p_values) - k)))
        corrected[index] = floor
    return corrected


def p_greater(these: Sequence[float], those: Sequence[float]) -> float:
    """Return the one-sided Mann–Whitney p-value for ``these`` tending to be greater than ``those``.

    Source: H. B. Mann, D. R. Whitney, Ann. Math. Statist. 18 (1947), 50–60. Exact where no two values are equal.

    Raises:
        UserError: scipy is not installed.
    """
    together = [*these, *those]
    exact = len(set(together)) == len(together) and max(len(these), len(those)) <= MOST_EXACT_STEPS
    return float(
        _scipy_stats()
        .mannwhitneyu(these, those, alternative="greater", method="exact" if exact else "asymptotic")
        .pvalue
    )


def shift_interval(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Return the interval, at `CONFIDENCE`, of how far the logarithms of ``after`` lie above those of ``before``.

    The shifts that a two-sided Mann–Whitney test does not refuse: from one order statistic of all differences to the
    one as far from the other end, its place by the normal approximation.
    Source: J. L. Hodges, E. L. Lehmann, Ann. Math. Statist. 34 (1963), 598–611.
    """
    differences = sorted(math.log(new) - math.log(old) for new in after for old in before)
    sizes = len(before), len(after)
    pairs = sizes[0] * sizes[1]
    place = int(pairs / 2 - _normal_quantile() * math.sqrt(pairs * (sum(sizes) + 1) / 12))
    place = max(0, min(place, (pairs - 1) // 2))
    return differences[place], differences[pairs - 1 - place]


def pooled_spread(groups: Sequence[Sequence[float]]) -> Spread | None:
    """Return what the logarithms of each group scatter by about its mean, pooled; None where no group has two."""
    squares, degrees = 0.0, 0
    for group in groups:
        logarithms = [math.log(value) for value in group]
        mean = math.fsum(logarithms) / len(logarithms)
        squares += math.fsum((one - mean) ** 2 for one in logarithms)
        degrees += len(group) - 1
    return Spread(math.sqrt(squares / degrees), degrees) if degrees else None


def mean_log(values: Sequence[float]) -> float:
    """Return the mean of the logarithms of ``values``."""
    return math.fsum(map(math.log, values)) / len(values)


def p_mean_greater(shift: float, runs: tuple[int, int], spread: Spread) -> float:
    """Return the one-sided p-value of Student's t-test for a ``shift`` between the means of ``runs``."""
    error = _standard_error(runs, spread)
    if error == 0:
        return 0.0 if shift > 0 else 1.0
    return float(_scipy_stats().t.sf(shift / error, spread.degrees_of_freedom))


def mean_interval(shift: float, runs: tuple[int, int], spread: Spread) -> tuple[float, float]:
    """Return Student's interval, at `CONFIDENCE`, of a ``shift`` between the means of ``runs``."""
    reach = float(_scipy_stats().t.ppf((1 + CONFIDENCE) / 2, spread.degrees_of_freedom)) * _standard_error(runs, spread)
    return shift - reach, shift + reach


def _standard_error(runs: tuple[int, int], spread: Spread) -> float:
    return spread.deviation * math.sqrt(1 / runs[0] + 1 / runs[1])


def _normal_quantile() -> float:
    return NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


def _scipy_stats() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise UserError("check needs scipy, which is missing: pip install 'lorabench[check]'") from error
    return stats
