from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

import pytest

from lorabench.bench.check.baseline import compare
from lorabench.bench.check.findings import Comparison, Finding
from lorabench.bench.check.thresholds import Thresholds
from lorabench.bench.records.record import RunRecord
from tests.bench.check.records import record, times
from tests.sample_records import STEP_SECONDS


def speeds_of(comparison: Comparison) -> list[Finding]:
    return [one for recipe in comparison.recipes for one in recipe.findings if one.metric == "step_seconds"]


def speed(before: Sequence[RunRecord], after: Sequence[RunRecord], tolerance: float = 0.03) -> Finding:
    [finding] = speeds_of(compare(after, before, Thresholds(speed=tolerance)))
    return finding


def single(before: Sequence[float], after: Sequence[float]) -> Finding:
    return speed([record(step_seconds=before)], [record(step_seconds=after)])


def runs(*medians: float) -> list[RunRecord]:
    """Runs whose steps scatter by half a percent about each of ``medians``."""
    shares = [1 + 0.001 * place for place in range(-5, 6)]
    return [record(repeat=i, step_seconds=[one * share for share in shares]) for i, one in enumerate(medians)]


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [(1.02, "same"), (1.05, "regression"), (0.98, "same"), (0.95, "improvement"), (1 / 1.031, "improvement")],
)
def test_step_times_change_beyond_three_percent(factor: float, verdict: str) -> None:
    finding = single(STEP_SECONDS, times(factor))
    assert finding.verdict == verdict
    assert finding.before == pytest.approx(0.4085)  # the median of STEP_SECONDS
    assert finding.change == pytest.approx(factor - 1)
    assert finding.interval is not None
    assert finding.interval[0] < factor - 1 < finding.interval[1]


def test_a_slow_median_within_the_scatter_is_suspicious_not_a_regression() -> None:
    finding = single((0.30, 0.35, 0.40, 0.45, 0.50, 0.55), (0.29, 0.34, 0.46, 0.47, 0.51, 0.56))
    assert finding.change is not None
    assert finding.change > 0.05
    assert finding.verdict == "suspicious"
    assert "within the scatter of the steps" in (finding.reason or "")


def test_no_change_in_wide_scatter_is_not_called_the_same() -> None:
    wide = [0.30, 0.35, 0.40, 0.45, 0.50, 0.55]
    finding = single(wide, [1.001 * one for one in wide])
    assert finding.verdict == "insufficient"
    assert "the scatter hides changes of 3%" in (finding.reason or "")
    assert speed([record(step_seconds=wide)], [record(step_seconds=wide[::-1])], tolerance=0.5).verdict == "same"


def test_the_p_value_of_five_slower_steps_is_one_in_252() -> None:
    """C(10, 5) = 252 ways to draw five of ten step times, one of which draws the five slowest."""
    finding = single((1.0, 1.1, 1.2, 1.3, 1.4), (2.0, 2.1, 2.2, 2.3, 2.4))
    assert finding.p_value == pytest.approx(1 / 252)
    assert finding.verdict == "regression"


def test_fewer_than_five_timed_steps_say_nothing() -> None:
    finding = single(STEP_SECONDS, (4.0, 4.0, 4.0, 4.0))
    assert (finding.verdict, finding.reason) == (
        "insufficient",
        "10 timed steps before and 4 after: 5 of each are needed",
    )


@pytest.mark.parametrize(("recipes", "verdict"), [(1, "regression"), (2, "insufficient")])
def test_steps_too_few_for_the_size_of_the_suite_are_called_so(recipes: int, verdict: str) -> None:
    """Of five steps each the least p-value is 1/252; twice that is over 0.005, so nothing could be found."""
    before = [record(rank=rank, step_seconds=(1.0, 1.1, 1.2, 1.3, 1.4)) for rank in range(1, recipes + 1)]
    after = [record(rank=rank, step_seconds=(2.0, 2.1, 2.2, 2.3, 2.4)) for rank in range(1, recipes + 1)]
    assert {one.verdict for one in speeds_of(compare(after, before))} == {verdict}


def test_the_same_runs_on_both_sides_are_the_same_however_unsteady() -> None:
    unsteady = record(step_seconds=(0.1, 0.9, 0.1), unstable=("too wide",))
    assert speed([unsteady], [unsteady]).verdict == "same"


@pytest.mark.parametrize("side", ["before", "after"])
def test_unstable_runs_are_insufficient_whatever_their_times(side: str) -> None:
    unstable, stable = [record(step_seconds=times(2), unstable=("GPU throttled",))], [record()]
    finding = speed(unstable, stable) if side == "before" else speed(stable, unstable)
    assert (finding.verdict, finding.reason) == ("insufficient", f"unstable {side}: GPU throttled")


def test_of_repeated_runs_the_unstable_ones_are_left_out() -> None:
    after = [*runs(0.4, 0.401, 0.402), record(repeat=3, step_seconds=times(9), unstable=("GPU shared",))]
    assert speed(runs(0.4, 0.401, 0.402), after).change == pytest.approx(0)


def test_a_difference_that_runs_have_among_themselves_is_no_regression() -> None:
    """Within each run the steps are steady, so that they alone would call the second side slower beyond doubt."""
    before, after = runs(1.00, 1.06, 1.12), runs(1.05, 1.11, 1.17)
    finding = speed(before, after)
    assert finding.verdict == "suspicious"
    assert "and of the runs" in (finding.reason or "")
    assert speed(before[:1], after[:1]).verdict == "regression"


def test_the_scatter_of_the_steps_counts_beside_runs_that_agree() -> None:
    """Both runs of a side have the same median, so that the runs alone would call the second side slower."""
    wide = (0.30, 0.35, 0.40, 0.45, 0.50, 0.55)
    wider = (0.29, 0.34, 0.46, 0.47, 0.51, 0.56)
    before = [record(repeat=repeat, step_seconds=wide) for repeat in range(2)]
    after = [record(repeat=repeat, step_seconds=wider) for repeat in range(2)]
    assert speed(before, after).verdict == "suspicious"


def test_the_interval_of_repeated_runs_is_student_s() -> None:
    """Logarithms 0, 0.01, 0.02 against 0.1 more: deviation 0.01, standard error 0.01·√(2/3), t₄ at 97.5 % 2.776."""
    before = runs(*(math.exp(one) for one in (0.00, 0.01, 0.02)))
    after = runs(*(math.exp(one) for one in (0.10, 0.11, 0.12)))
    finding = speed(before, after)
    reach = 2.776445 * 0.01 * math.sqrt(2 / 3)
    assert finding.interval == pytest.approx((math.expm1(0.1 - reach), math.expm1(0.1 + reach)), rel=1e-6)
    assert finding.verdict == "regression"
    assert finding.change == pytest.approx(math.expm1(0.1))


def test_one_recipe_s_repeats_tell_the_spread_of_all() -> None:
    """The spread between runs is the machine's: where one recipe shows it, single runs of another are held to it."""
    before = [*runs(1.00, 1.06, 1.12), record(rank=4, step_seconds=times(1))]
    after = [*runs(1.01, 1.05, 1.13), record(rank=4, step_seconds=times(1.05))]
    assert {one.verdict for one in speeds_of(compare(after, before))} == {"insufficient", "suspicious"}


def test_a_planted_slowdown_is_found_and_false_alarms_are_rare() -> None:
    generator = random.Random(20260314)

    def noisy(seconds: float = 0.4) -> list[float]:
        return [seconds * generator.lognormvariate(0, 0.01) for _ in range(10)]

    found = false = 0
    for _ in range(100):
        suite = [record(rank=rank, step_seconds=noisy()) for rank in (4, 8, 16)]
        again = [record(rank=rank, step_seconds=noisy()) for rank in (4, 8)]
        comparison = compare([*again, record(rank=16, step_seconds=noisy(0.4 * 1.05))], suite)
        wrong = {one.recipe.rank for one in comparison.recipes if one.verdict == "regression"}
        found += 16 in wrong
        false += bool(wrong - {16})
    assert found >= 95
    assert false <= 1


def test_every_recipe_is_judged_once_whatever_the_mixture_of_runs() -> None:
    kinds = [[record()], [record(unstable=("x",))], runs(0.4, 0.41), [record(step_seconds=(1.0,))]]
    for before, after in itertools.product(kinds, kinds):
        assert len(speeds_of(compare(after, before))) == 1


def suite(factors: Sequence[float]) -> list[RunRecord]:
    return [record(rank=place, step_seconds=times(factor)) for place, factor in enumerate(factors, 1)]


@pytest.mark.parametrize(
    ("changes", "verdicts"),
    [
        # One recipe is slower, the others repeat within half a percent.
        ((1.06, 1.001, 0.999, 1.002, 0.998, 1.0005), {"regression", "same"}),
        # All are slower alike: that is the change, not the machine.
        ((1.06, 1.061, 1.059, 1.062, 1.058, 1.06), {"regression"}),
        # Each is somewhere else: that is the machine.
        ((1.06, 0.93, 1.10, 0.90, 1.05, 0.95), {"suspicious"}),
    ],
)
def test_six_recipes_of_one_run_each_tell_what_runs_differ_by(changes: tuple[float, ...], verdicts: set[str]) -> None:
    comparison = compare(suite(changes), suite([1.0] * 6))
    assert {one.verdict for one in speeds_of(comparison)} == verdicts
    assert comparison.run_to_run is not None
    assert comparison.run_to_run.source == "suite"


def test_what_runs_differ_by_is_unknown_from_a_few_single_runs() -> None:
    comparison = compare(suite([1.06, 0.93, 1.1, 0.9, 1.05]), suite([1.0] * 5))
    assert {one.verdict for one in speeds_of(comparison)} == {"regression", "improvement"}
    assert comparison.run_to_run is not None
    assert (comparison.run_to_run.source, comparison.run_to_run.deviation) == ("unknown", None)
