"""Arithmetic on numbers, or element by element on numpy's arrays: numpy is imported for these alone.

So one formula serves a recipe and a grid of them, and a recipe alone needs no numpy.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any


def larger(first: Any, second: Any) -> Any:
    """Return the larger of two numbers, element by element of arrays."""
    if _are_numbers(first, second):
        return max(first, second)
    import numpy as np

    return np.maximum(first, second)


def smaller(first: Any, second: Any) -> Any:
    """Return the smaller of two numbers, element by element of arrays."""
    if _are_numbers(first, second):
        return min(first, second)
    import numpy as np

    return np.minimum(first, second)


def ceil(number: Any) -> Any:
    """Return the least whole number that is not below."""
    if _are_numbers(number):
        return math.ceil(number)
    import numpy as np

    return np.ceil(number)


def floor(number: Any) -> Any:
    """Return the largest whole number that is not above."""
    if _are_numbers(number):
        return math.floor(number)
    import numpy as np

    return np.floor(number)


def log(number: Any) -> Any:
    """Return the natural logarithm."""
    if _are_numbers(number):
        return math.log(number)
    import numpy as np

    return np.log(number)


def exp(number: Any) -> Any:
    """Return the exponential."""
    if _are_numbers(number):
        return math.exp(number)
    import numpy as np

    return np.exp(number)


def count_up_to(number: Any, rising: Sequence[float]) -> Any:
    """Return how many of ``rising`` numbers are not above ``number``."""
    if _are_numbers(number):
        return bisect_right(rising, number)
    import numpy as np

    return np.searchsorted(rising, number, side="right")


def at(index: Any, numbers: Sequence[float]) -> Any:
    """Return that one of ``numbers`` which ``index`` counts to, from 0."""
    if _are_numbers(index):
        return numbers[index]
    import numpy as np

    return np.take(numbers, index)


def _are_numbers(*values: Any) -> bool:
    return all(isinstance(value, int | float) for value in values)
