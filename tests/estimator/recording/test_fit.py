"""Sizes are found from recordings with one size doubled at a time."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest

from lorabench.estimator.models.expressions import evaluated
from lorabench.estimator.recording.fit import Changed, Unlike, fit

SIZES = {"h": 4096, "f": 14336, "heads": 32, "kv": 8, "d": 128, "rope": 64}
OTHERS = {"h": 768, "f": 3072, "heads": 12, "kv": 4, "d": 96, "rope": 32}

Sizes = dict[str, int]


def _fitted(made: Callable[[Sizes], Any]) -> Any:
    halved = {name: Changed(made({**SIZES, name: size // 2}), Fraction(1, 2)) for name, size in SIZES.items()}
    doubled = {name: Changed(made({**SIZES, name: 2 * size})) for name, size in SIZES.items()}
    found = fit(made(SIZES), SIZES, doubled)
    assert evaluated(fit(made(SIZES), SIZES, halved), OTHERS) == evaluated(found, OTHERS)
    return found


@pytest.mark.parametrize(
    "made",
    [
        lambda s: [s["h"], s["f"], 7],
        lambda s: {"shape": [s["heads"] * s["d"], s["h"]]},
        lambda s: [(s["heads"] + 2 * s["kv"]) * s["d"]],
        lambda s: [s["h"] + 2 * s["kv"] * (s["h"] // s["heads"])],
        lambda s: [s["heads"] * (s["d"] + s["rope"]), s["rope"] // 2],
        lambda s: [3 * s["h"] // 2, -1, True, None, "text", 1.5],
    ],
)
def test_a_fitted_tree_says_the_sizes_of_other_models(made: Callable[[Sizes], Any]) -> None:
    assert evaluated(_fitted(made), OTHERS) == made(OTHERS)


def test_trees_that_differ_in_more_than_sizes_are_refused() -> None:
    with pytest.raises(Unlike):
        _fitted(lambda s: [1] * (2 if s["h"] > 5000 else 1))
    with pytest.raises(Unlike):
        _fitted(lambda s: ["flash" if s["d"] > 128 else "math"])


def test_a_size_that_is_no_product_is_refused() -> None:
    with pytest.raises(Unlike, match="no sum of products"):
        _fitted(lambda s: [s["h"].bit_length() * 1000 + s["f"] % 37])
