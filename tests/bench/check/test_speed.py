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
from tests.bench.check.records import record, repeats, runs, steady, times


def speeds_of(comparison: Comparison) -> list[Finding]:
    return [one for recipe in comparison.recipes for one in recipe.findings if one.metric == "step_seconds"]


def speed(before: Sequence[RunRecord], after: Sequence[RunRecord], tolerance: float = 0.03) -> Finding:
    [finding] = speeds_of(compare(after, before, Thresholds(speed=tolerance)))
    return finding


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [(1.02, "same"), (1.05, "regression"), (0.98, "same"), (0.95, "improvement"), (1 / 1.031, "improvement")],
)
def test_step_times_change_beyond_three_percent(factor: float, verdict: str) -> None:
    finding = speed(steady(), steady(factor))
    assert finding.verdict == verdict
    assert finding.before == pytest.approx(0.4085)  # the median of STEP_SECONDS
    assert finding.change == pytest.approx(factor - 1)
    assert finding.interval is not None
    assert finding.interval[0] < factor - 1 < finding.interval[1]


def test_a_slow_median_within_the_scatter_is_suspicious_not_a_regression() -> None:
    wide, wider = (0.30, 0.35, 0.40, 0.45, 0.50, 0.55), (0.29, 0.34, 0.46, 0.47, 0.51, 0.56)
    finding = speed(repeats(2, step_seconds=wide), repeats(2, step_seconds=wider))
    assert finding.change is not None
    assert finding.change > 0.05
    assert finding.verdict == "suspicious"
    assert "within the noise of steps and runs" in (finding.reason or "")


def test_no_change_in_wide_scatter_is_not_called_the_same() -> None:
    wide = [0.30, 0.35, 0.40, 0.45, 0.50, 0.55]
    finding = speed(repeats(2, step_seconds=wide), repeats(2, step_seconds=[1.001 * one for one in wide]))
    assert finding.verdict == "insufficient"
    assert "noise could hide a change of 3%" in (finding.reason or "")
    assert speed(repeats(2, step_seconds=wide), repeats(2, step_seconds=wide[::-1]), tolerance=0.5).verdict == "same"


def test_fewer_than_five_timed_steps_say_nothing() -> None:
    finding = speed(repeats(2), repeats(2, step_seconds=(4.0, 4.0, 4.0, 4.0)))
    assert (finding.verdict, finding.reason) == (
        "insufficient",
        "10 timed steps before, 4 after: at least 5 are needed on each side",
    )


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
    assert "within the noise of steps and runs" in (finding.reason or "")


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

    def noisy(rank: int, count: int, seconds: float = 0.4) -> list[RunRecord]:
        return [
            record(
                rank=rank, repeat=repeat, step_seconds=[seconds * generator.lognormvariate(0, 0.01) for _ in range(10)]
            )
            for repeat in range(count)
        ]

    found = false = 0
    for _ in range(50):
        before = [one for rank in (4, 8, 16) for one in noisy(rank, 3)]
        after = [*noisy(4, 3), *noisy(8, 3), *noisy(16, 3, 0.4 * 1.05)]
        wrong = {one.recipe.rank for one in compare(after, before).recipes if one.verdict == "regression"}
        found += 16 in wrong
        false += bool(wrong - {16})
    assert found >= 48
    assert false <= 1


def test_every_recipe_is_judged_once_whatever_the_mixture_of_runs() -> None:
    kinds = [[record()], [record(unstable=("x",))], runs(0.4, 0.41), [record(step_seconds=(1.0,))]]
    for before, after in itertools.product(kinds, kinds):
        assert len(speeds_of(compare(after, before))) == 1


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.0001, "insufficient"), (1.1, "suspicious"), (0.9, "suspicious"), (9.0, "suspicious")]
)
def test_one_run_a_side_is_never_called_worse_nor_the_same(factor: float, verdict: str) -> None:
    """However steady the steps, and however many recipes: what runs differ by is not known."""
    before = [record(rank=rank) for rank in range(1, 9)]
    comparison = compare([record(rank=rank, step_seconds=times(factor)) for rank in range(1, 9)], before)
    assert {one.verdict for one in speeds_of(comparison)} == {verdict}
    assert {one.reason for one in speeds_of(comparison)} == {
        "one run per side does not show run-to-run variance: run with --repeats 3"
    }
    assert comparison.run_to_run is None


@pytest.mark.parametrize(("change", "verdict"), [(1.06, "suspicious"), (1.001, "same"), (0.94, "suspicious")])
def test_repeats_of_one_side_are_enough_to_pass_but_not_to_alarm(change: float, verdict: str) -> None:
    repeated, single_run = runs(1.0, 1.002, 0.998), runs(change)
    for finding in (speed(repeated, single_run), speed(single_run, repeated)):
        assert finding.verdict == verdict
        assert finding.p_value is not None
        assert (finding.p_value <= 0.005) == (verdict == "suspicious")


def test_repeats_that_agree_by_chance_are_held_to_what_other_recipes_differ_by() -> None:
    before, after = runs(1.0, 1.001, 0.999), runs(1.05, 1.051, 1.049)
    assert speed(before, after).verdict == "regression"
    others = runs(1.0, 1.1, 0.9, rank=4)
    findings = speeds_of(compare([*after, *runs(1.01, 1.11, 0.91, rank=4)], [*before, *others]))
    assert {one.verdict for one in findings} == {"suspicious", "insufficient"}


def test_a_recipe_less_steady_than_the_others_is_held_to_itself() -> None:
    before, after = runs(1.00, 1.06, 1.12), runs(1.12, 1.19, 1.25)
    for rank in range(1, 10):
        before += runs(1.0, 1.001, 0.999, rank=rank)
        after += runs(1.001, 1.0, 1.002, rank=rank)
    verdicts = [one.verdict for one in speeds_of(compare(after, before))]
    assert verdicts.count("suspicious") == 1
    assert "regression" not in verdicts


def test_what_runs_differ_by_is_told_as_a_share() -> None:
    """Logarithms of -0.01, 0 and 0.01 about their mean, on each side: a deviation of 0.01."""
    side = runs(*(math.exp(one) for one in (-0.01, 0.0, 0.01)))
    again = runs(*(1.001 * math.exp(one) for one in (-0.01, 0.0, 0.01)))
    assert compare(again, side).run_to_run == pytest.approx(math.expm1(0.01))
