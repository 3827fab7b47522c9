"""Arithmetic on numbers, or elementwise on numpy arrays, so that one formula serves a recipe and a grid of recipes.

numpy is imported only for arrays: a single recipe does not need it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any


def _elementwise(of_numbers: Callable[..., Any], of_arrays: str) -> Callable[..., Any]:
    """Return a function that calls ``of_numbers``, or numpy's function ``of_arrays`` if any value is an array."""

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
    """Return how many of the sorted numbers ``rising`` are ≤ ``number``, a number or an array."""
    if _are_numbers(number):
        return bisect_right(rising, number)
    import numpy as np

    return np.searchsorted(rising, number, side="right")


def at(index: Any, numbers: Sequence[float]) -> Any:
    """Return ``numbers[index]`` for an index, or an array of them."""
    if _are_numbers(index):
        return numbers[index]
    import numpy as np

    return np.take(numbers, index)


def _are_numbers(*values: Any) -> bool:
    for value in values:  # noqa: SIM110 - called a thousand times for each estimate, and a generator is slow
        if not isinstance(value, (int, float)):
            return False
    return True
