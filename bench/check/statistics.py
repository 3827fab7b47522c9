"""The statistical tests of the check, as pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, NamedTuple

from lorabench.estimator.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIGNIFICANCE = 0.005
"""Significance level of one metric over all recipes of a suite. Two metrics are tested, step time and loss, so an
unchanged suite raises a false alarm in at most one check of a hundred."""
CONFIDENCE = 0.95
"""Confidence level of the displayed intervals."""
MOST_EXACT_STEPS = 50
"""Largest sample for the exact distribution of U; the normal approximation is as good beyond it."""


class Spread(NamedTuple):
    """Run-to-run spread of the logarithm of a quantity."""

    deviation: float
    """Standard deviation between runs."""
    degrees_of_freedom: int


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values, in their order, corrected for multiple tests.

    The k-th of m sorted values (from 0) is multiplied by m − k. No corrected value is below the previous one.
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

    Source: H. B. Mann, D. R. Whitney, Ann. Math. Statist. 18 (1947), 50–60. Exact if no two values are equal.

    Raises:
        UserError: scipy is not installed.
    """
    stats = _scipy_stats()
    import numpy as np

    distinct = np.unique(np.concatenate([these, those])).size == len(these) + len(those)
    exact = distinct and max(len(these), len(those)) <= MOST_EXACT_STEPS
    return float(
        stats.mannwhitneyu(these, those, alternative="greater", method="exact" if exact else "asymptotic").pvalue
    )


def shift_interval(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Return the confidence interval (`CONFIDENCE`) of the shift between the logarithms of ``before`` and ``after``.

    It holds all shifts that a two-sided Mann–Whitney test does not reject: the differences of all pairs between two
    symmetric order statistics, whose rank comes from the normal approximation.
    Source: J. L. Hodges, E. L. Lehmann, Ann. Math. Statist. 34 (1963), 598–611.
    """
    import numpy as np

    old, new = (np.sort(np.log(np.asarray(side, np.float64))) for side in (before, after))
    pairs = old.size * new.size
    place = int(pairs / 2 - _normal_quantile() * math.sqrt(pairs * (old.size + new.size + 1) / 12))
    place = max(0, min(place, (pairs - 1) // 2))
    return _ordered_difference(old, new, place), _ordered_difference(old, new, pairs - 1 - place)


def _ordered_difference(old: NDArray[np.float64], new: NDArray[np.float64], place: int) -> float:
    """Return the difference new - old of rank ``place``, from 0, among those of all pairs; both sides are sorted.

    There are too many pairs to list them. Bisection finds the rank's difference between floats that are neighbours: of
    a candidate, a search in the sorted values counts the pairs that differ by no more.
    """
    import numpy as np

    low, high = float(new[0] - old[-1]), float(new[-1] - old[0])
    while low < (middle := low + (high - low) / 2) < high:
        if int(np.searchsorted(new, old + middle, side="right").sum()) > place:
            high = middle
        else:
            low = middle
    return high


def pooled_spread(groups: Sequence[Sequence[float]]) -> Spread | None:
    """Return the pooled spread of logarithms within groups; None if no group has two values."""
    squares, degrees = 0.0, 0
    for group in groups:
        logarithms = [math.log(value) for value in group]
        mean = math.fsum(logarithms) / len(logarithms)
        squares += math.fsum((one - mean) ** 2 for one in logarithms)
        degrees += len(group) - 1
    return Spread(math.sqrt(squares / degrees), degrees) if degrees else None


def change_of(logarithm: float) -> float:
    """Return the relative change whose ``logarithm`` of after / before this is; infinite beyond floats."""
    try:
        return math.expm1(logarithm)
    except OverflowError:
        return math.inf


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
    """Return Student's confidence interval (`CONFIDENCE`) of a ``shift`` between the means of ``runs``."""
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
        raise UserError("check needs scipy, which is not installed: pip install 'lorabench[check]'") from error
    return stats
