"""Statistics of step times: spread, interval of the median, and reliability."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 2000
"""Bootstrap resamples: 50 of them are beyond each end of an interval."""
STEADY = 0.1
"""Two successive steps are equally long if neither takes longer than the other by this share. Warm-up effects
(compiling or choosing kernels, requesting device memory) cost far more."""
WIDE = 0.05
"""An interval that spans more than this share of the median is wide: a 5 % change could then be chance."""


def median_interval(seconds: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the median of ``seconds``; deterministic.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    import numpy as np

    medians = np.sort(np.asarray(seconds, np.float64))[_middle_ranks(len(seconds))].mean(axis=0)
    low, high = np.quantile(medians, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


@lru_cache(32)
def _middle_ranks(size: int) -> NDArray[np.intp]:
    """Return the two middle ranks of each resample of ``size`` values, of shape (2, RESAMPLES).

    A resample draws its ranks as size · u, rounded down, where u is uniform on (0, 1). Only the middle ones are drawn
    here, so that many values cost no more than few. The k-th least of n uniform numbers has the distribution
    Beta(k, n - k + 1); above it, the next one is the least of n - k uniform numbers on the rest.
    Source: L. Devroye 1986, Non-Uniform Random Variate Generation, chapter V.
    """
    import numpy as np

    generator = np.random.default_rng(0)
    lower = (size + 1) // 2
    u = generator.beta(lower, size - lower + 1, RESAMPLES)
    middle = [u, u if size % 2 else u + (1 - u) * generator.beta(1, size - lower, RESAMPLES)]
    return np.minimum((size * np.array(middle)).astype(np.intp), size - 1)


def interquartile_range(seconds: Sequence[float]) -> float:
    """Return the interquartile range of ``seconds``."""
    import numpy as np

    low, high = np.quantile(np.asarray(seconds, np.float64), [0.25, 0.75])
    return float(high - low)


def is_warm(seconds: Sequence[float]) -> bool:
    """Return whether the last two steps took equally long."""
    if len(seconds) < 2:
        return False
    short, long = sorted(seconds[-2:])
    return long <= (1 + STEADY) * short


def steps_missing(seconds: Sequence[float], least_seconds: float) -> int:
    """Return the number of further steps until the total reaches ``least_seconds``."""
    missing = least_seconds - sum(seconds)
    return math.ceil(missing / median(seconds)) if missing > 0 else 0


def complaints_about(seconds: Sequence[float]) -> list[str]:
    """Return why ``seconds`` are unreliable, one line each; empty if they are not."""
    if len(seconds) < 2:
        return ["only one step was timed, so its spread is unknown"]
    low, high = median_interval(seconds)
    share = (high - low) / median(seconds)
    if share <= WIDE:
        return []
    return [f"the {CONFIDENCE:.0%} interval of the median step spans {share:.0%} of it over {len(seconds)} steps"]
