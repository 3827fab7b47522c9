from __future__ import annotations

import math
import tracemalloc
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorabench.bench.check.statistics import (
    Spread,
    _ordered_difference,
    change_of,
    holm,
    p_greater,
    p_mean_greater,
    pooled_spread,
    shift_interval,
)


def test_holm_multiplies_the_least_p_value_most() -> None:
    assert holm([0.04, 0.01, 0.03, 0.9]) == pytest.approx([0.09, 0.04, 0.09, 0.9])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_mann_whitney_p_value_counts_the_arrangements() -> None:
    """Of all ways to deal the ranks 1…7 to samples of 3 and 4, the share with as large a rank sum or a larger one."""
    these, those = (3.0, 6.0, 7.0), (1.0, 2.0, 4.0, 5.0)
    sums = [sum(ranks) for ranks in combinations(range(1, 8), 3)]
    assert p_greater(these, those) == pytest.approx(sum(one >= 16 for one in sums) / len(sums))


def test_the_interval_of_a_shift_is_between_order_statistics_of_the_differences() -> None:
    """Five against five: 12.5 − 1.96·√(25·11/12) = 3.1, so the fourth difference from each end."""
    before = [1.0, 1.1, 1.2, 1.3, 1.4]
    after = [2.0, 2.3, 2.5, 2.8, 3.0]
    differences = sorted(math.log(new / old) for new in after for old in before)
    assert shift_interval(before, after) == pytest.approx((differences[3], differences[-4]))


SECONDS = st.lists(st.sampled_from([1e-9, 0.5, 1.0, 1.0, 1.25, 1e9]) | st.floats(0.1, 10), min_size=1, max_size=12)


@given(SECONDS, SECONDS, st.data())
def test_the_differences_of_all_pairs_are_found_without_listing_them(
    before: list[float], after: list[float], data: st.DataObject
) -> None:
    differences = sorted(math.log(new) - math.log(old) for new in after for old in before)
    place = data.draw(st.integers(0, len(differences) - 1))
    old, new = (np.sort(np.log(side)) for side in (before, after))
    assert _ordered_difference(old, new, place) == pytest.approx(differences[place], rel=1e-12, abs=1e-14)


def test_many_steps_take_memory_for_each_and_not_for_each_pair() -> None:
    """All pairs of 20,000 steps a side would take 3.2 GB."""
    draw = np.random.default_rng(0)
    before, after = draw.lognormal(0, 0.1, (2, 20_000))
    tracemalloc.start()
    low, high = shift_interval(before.tolist(), (1.1 * after).tolist())
    assert p_greater((1.1 * after).tolist(), before.tolist()) < 1e-9
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert low < math.log(1.1) < high
    assert taken < 32 * 2**20


def test_a_change_beyond_floats_is_infinite() -> None:
    assert change_of(math.log(1.5)) == pytest.approx(0.5)
    assert change_of(1e3) == math.inf
    assert change_of(-1e3) == -1


def test_the_pooled_spread_weighs_squares_by_degrees_of_freedom() -> None:
    """Logarithms (0, 2) and (1, 1, 4): squares 2 and 6, over 1 + 2 degrees of freedom."""
    groups = [[1.0, math.exp(2)], [math.e, math.e, math.exp(4)], [5.0]]
    spread = pooled_spread(groups)
    assert spread is not None
    assert spread == pytest.approx(Spread(math.sqrt(8 / 3), 3))
    assert pooled_spread([[1.0], [2.0]]) is None


def test_student_s_p_value_of_a_tabulated_quantile() -> None:
    """t of 4 degrees of freedom is above 3.7469 with a chance of 1 %."""
    spread = Spread(0.01, 4)
    assert p_mean_greater(3.7469 * 0.01 * math.sqrt(2 / 3), (3, 3), spread) == pytest.approx(0.01, rel=1e-4)
    assert p_mean_greater(0.1, (2, 2), Spread(0.0, 2)) == 0.0
