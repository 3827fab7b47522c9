"""What is said of step times: intervals that cover, warm-up that ends, runs that are not to be trusted."""

from __future__ import annotations

import math
import random
import tracemalloc
from statistics import median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorabench.bench.records.step_times import (
    _middle_ranks,
    complaints_about,
    interquartile_range,
    is_warm,
    median_interval,
    steps_missing,
)

TIMES = st.lists(st.floats(1e-3, 100), min_size=1, max_size=30)


@given(TIMES)
def test_the_interval_holds_the_median_and_nothing_that_was_not_seen(seconds: list[float]) -> None:
    low, high = median_interval(seconds)
    assert min(seconds) <= low <= median(seconds) <= high <= max(seconds)
    assert median_interval(seconds) == (low, high)


def test_the_interval_covers_the_true_median_as_often_as_it_says() -> None:
    """95 %, of 300 samples of 15 from a skewed distribution of median 1; binomial noise is 1.3 % either way."""
    draw = random.Random(7)
    samples = [[draw.lognormvariate(0, 0.2) for _ in range(15)] for _ in range(300)]
    covered = sum(low <= 1 <= high for low, high in map(median_interval, samples))
    assert 0.91 < covered / 300 < 0.99


@pytest.mark.parametrize("size", [1, 2, 5, 6, 21])
def test_the_middle_ranks_are_distributed_as_those_of_whole_resamples(size: int) -> None:
    """Both have 2,000 samples, so the means of their ranks differ by less than 6 standard errors of the larger one."""
    whole = np.sort(np.random.default_rng(1).integers(size, size=(2000, size)), axis=1)
    for drawn, place in zip(_middle_ranks(size), ((size - 1) // 2, size // 2), strict=True):
        assert set(drawn) <= set(range(size))
        error = whole[:, place].std() * math.sqrt(2 / 2000)
        assert abs(drawn.mean() - whole[:, place].mean()) <= 6 * error
        assert drawn.std() == pytest.approx(whole[:, place].std(), rel=0.1)
    lower, upper = _middle_ranks(size)
    assert (lower <= upper).all()


def test_the_interval_of_many_steps_takes_no_memory_for_each_resample() -> None:
    """2,000 resamples of 50,000 steps would take 800 MB."""
    tracemalloc.start()
    low, high = median_interval([1 + step / 50_000 for step in range(50_000)])
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The median's standard error is 1 / (2 · √n · density), and the density is 1.
    assert low == pytest.approx(1.5 - 1.96 / (2 * math.sqrt(50_000)), rel=1e-3)
    assert high == pytest.approx(1.5 + 1.96 / (2 * math.sqrt(50_000)), rel=1e-3)
    assert taken < 8 * 2**20


def test_the_middle_half_of_known_times() -> None:
    assert interquartile_range([1, 2, 3, 4, 5]) == 2
    assert interquartile_range([3, 3, 3]) == 0


@pytest.mark.parametrize(
    ("seconds", "warm"),
    [
        ([], False),
        ([1.0], False),
        ([9.0, 1.0], False),
        ([9.0, 1.0, 1.09], True),
        ([1.0, 1.2], False),
        ([1.2, 1.1], True),
    ],
)
def test_warm_up_is_over_when_two_steps_are_alike(seconds: list[float], warm: bool) -> None:
    assert is_warm(seconds) is warm


@pytest.mark.parametrize(
    ("seconds", "least", "missing"),
    [([0.5, 0.5], 1.0, 0), ([0.25, 0.25], 1.0, 2), ([0.2, 0.2, 0.2], 1.0, 2), ([0.001], 1.0, 999), ([5.0], 0.0, 0)],
)
def test_steps_go_on_until_the_least_duration(seconds: list[float], least: float, missing: int) -> None:
    assert steps_missing(seconds, least) == missing


def test_a_wide_interval_is_complained_about_and_a_narrow_one_is_not() -> None:
    draw = random.Random(1)
    assert complaints_about([1 + draw.uniform(-0.01, 0.01) for _ in range(20)]) == []
    [complaint] = complaints_about([0.5, 1.5] * 5)
    assert complaint.startswith("the 95% interval of the median step spans ")
    assert complaint.endswith(" of it over 10 steps")
    assert complaints_about([1.0]) == ["only one step was timed, so its spread is unknown"]
