"""What successive step times say: their spread, an interval of their median, and whether they may be trusted."""

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
"""Of the bootstrap: the ends of an interval then rest on 50 resamples each."""
ALIKE = 0.1
"""Two successive steps are alike where neither takes this much longer than the other. What warm-up is for (kernels
that are compiled or chosen, memory that is taken from the device) costs a step far more."""
WIDE = 0.05
"""An interval is wide where it spans this share of the median: comparisons at 5 % then rest on chance."""


def median_interval(seconds: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the median of ``seconds`` by a percentile bootstrap, the same at each call.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    import numpy as np

    medians = np.sort(np.asarray(seconds, np.float64))[_middle_ranks(len(seconds))].mean(axis=0)
    low, high = np.quantile(medians, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


@lru_cache(32)
def _middle_ranks(size: int) -> NDArray[np.intp]:
    """Return the two ranks between which the median of each resample of ``size`` values lies, as (2, RESAMPLES)."""
    import numpy as np

    drawn = np.random.default_rng(0).integers(size, size=(RESAMPLES, size))
    drawn.sort(axis=1)
    return drawn.T[[(size - 1) // 2, size // 2]]


def interquartile_range(seconds: Sequence[float]) -> float:
    """Return the span of the middle half of ``seconds``."""
    import numpy as np

    low, high = np.quantile(np.asarray(seconds, np.float64), [0.25, 0.75])
    return float(high - low)


def is_warm(seconds: Sequence[float]) -> bool:
    """Tell whether the last two steps took alike long."""
    if len(seconds) < 2:
        return False
    short, long = sorted(seconds[-2:])
    return long <= (1 + ALIKE) * short


def steps_missing(seconds: Sequence[float], least_seconds: float) -> int:
    """Return how many more steps like ``seconds`` it takes until they add up to ``least_seconds``."""
    missing = least_seconds - sum(seconds)
    return math.ceil(missing / median(seconds)) if missing > 0 else 0


def complaints_about(seconds: Sequence[float]) -> list[str]:
    """Return why ``seconds`` are not to be trusted, each in one line; nothing where they are."""
    if len(seconds) < 2:
        return ["one step was timed, which says nothing of the spread"]
    low, high = median_interval(seconds)
    share = (high - low) / median(seconds)
    if share <= WIDE:
        return []
    return [f"the {CONFIDENCE:.0%} interval of the median step spans {share:.0%} of it over {len(seconds)} steps"]
