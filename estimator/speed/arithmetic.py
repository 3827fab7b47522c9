"""Arithmetic on numbers, or element by element on numpy's arrays: numpy is imported for these alone.

So one formula serves a recipe and a grid of them, and a recipe alone needs no numpy.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any


def _elementwise(of_numbers: Callable[..., Any], of_arrays: str) -> Callable[..., Any]:
    """Return a function that is ``of_numbers``, and numpy's function ``of_arrays`` where any value is an array."""

    def apply(*values: Any) -> Any:
        if _are_numbers(*values):
            return of_numbers(*values)
        import numpy as np

        return getattr(np, of_arrays)(*values)

    return apply


larger = _elementwise(max, "maximum")
smaller = _elementwise(min, "minimum")
ceil = _elementwise(math.ceil, "ceil")
floor = _elementwise(math.floor, "floor")
log = _elementwise(math.log, "log")
exp = _elementwise(math.exp, "exp")


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
