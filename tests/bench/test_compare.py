from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorabench.bench.compare import Comparison, Finding, Tolerances, compare, final_loss, holm
from lorabench.estimator.errors import UserError
from tests.sample_records import LOSSES, STEP_SECONDS, sample_record


def finding_of(metric: str, before: dict[str, Any], after: dict[str, Any], **tolerances: float) -> Finding:
    comparison = compare([sample_record(**after)], [sample_record(**before)], Tolerances(**tolerances))
    [finding] = [one for one in comparison.recipes[0].findings if one.metric == metric]
    return finding


def noisy(generator: random.Random, steps: int, seconds: float = 0.4, noise: float = 0.02) -> list[float]:
    return [seconds * generator.lognormvariate(0, noise) for _ in range(steps)]


def times(factor: float) -> tuple[float, ...]:
    return tuple(factor * seconds for seconds in STEP_SECONDS)


def test_a_folder_against_itself_is_all_same() -> None:
    records = [sample_record(method=method) for method in ("full", "lora", "qlora")]
    comparison = compare(records, records)
    assert comparison.counts == {"regression": 0, "insufficient": 0, "improvement": 0, "same": 9}
    assert (comparison.verdict, comparison.exit_code) == ("same", 0)


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (100_000_000, 100_500_000, "same"),
        (100_000_000, 100_500_001, "regression"),
        (100_500_000, 100_000_000, "same"),
        (100_500_001, 100_000_000, "improvement"),
    ],
)
def test_memory_changes_beyond_half_a_percent(before: int, after: int, verdict: str) -> None:
    finding = finding_of("peak_allocated_bytes", {"peak_allocated_bytes": before}, {"peak_allocated_bytes": after})
    assert (finding.before, finding.after, finding.verdict) == (before, after, verdict)
    assert finding.change == pytest.approx(after / before - 1)


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [(1.0, "same"), (1.02, "same"), (1.05, "regression"), (0.98, "same"), (0.95, "improvement")],
)
def test_speed_changes_beyond_three_percent(factor: float, verdict: str) -> None:
    finding = finding_of("tokens_per_second", {}, {"step_seconds": times(factor)})
    assert finding.verdict == verdict
    assert finding.before == pytest.approx(256 / 0.4085)  # the median of STEP_SECONDS is 0.4085
    assert finding.change == pytest.approx(1 / factor - 1)


def test_a_slow_median_within_the_scatter_is_no_regression() -> None:
    before = {"step_seconds": (0.30, 0.35, 0.40, 0.45, 0.50, 0.55)}
    after = {"step_seconds": (0.29, 0.34, 0.46, 0.47, 0.51, 0.56)}
    finding = finding_of("tokens_per_second", before, after)
    assert finding.change is not None
    assert finding.change < -0.05
    assert finding.verdict == "same"
    assert finding.reason is not None
    assert "scatter" in finding.reason


def test_the_p_value_of_five_slower_steps_is_one_in_252() -> None:
    """C(10, 5) = 252 ways to draw five of ten step times, one of which draws the five slowest."""
    finding = finding_of(
        "tokens_per_second",
        {"step_seconds": (1.0, 1.1, 1.2, 1.3, 1.4)},
        {"step_seconds": (2.0, 2.1, 2.2, 2.3, 2.4)},
    )
    assert finding.p_value == pytest.approx(1 / 252)
    assert finding.verdict == "regression"


def test_fewer_than_five_timed_steps_say_nothing_about_speed() -> None:
    finding = finding_of("tokens_per_second", {}, {"step_seconds": (4.0, 4.0, 4.0, 4.0)})
    assert finding.verdict == "insufficient"
    assert finding.reason == "10 timed steps before and 4 after: 5 of each are needed"


def test_steps_too_few_for_the_size_of_the_suite_are_called_so() -> None:
    """With 13 recipes the least p-value, 1/252, times 13 is over 0.05: nothing could ever be found."""
    before = [sample_record(rank=rank, step_seconds=times(1)[:5]) for rank in range(1, 14)]
    after = [sample_record(rank=rank, step_seconds=times(2)[:5]) for rank in range(1, 14)]
    comparison = compare(after, before)
    speeds = [one for recipe in comparison.recipes for one in recipe.findings if one.metric == "tokens_per_second"]
    assert {one.verdict for one in speeds} == {"insufficient"}
    assert compare(after[:12], before[:12]).verdict == "regression"


def test_a_planted_slowdown_is_found_and_false_alarms_are_rare() -> None:
    generator = random.Random(20260314)
    found = false = 0
    for _ in range(100):
        suite = [sample_record(rank=rank, step_seconds=noisy(generator, 20)) for rank in (4, 8, 16)]
        again = [sample_record(rank=rank, step_seconds=noisy(generator, 20)) for rank in (4, 8)]
        slow = sample_record(rank=16, step_seconds=noisy(generator, 20, seconds=0.4 * 1.05))
        comparison = compare([*again, slow], suite)
        wrong = {one.recipe.rank for one in comparison.recipes if one.verdict == "regression"}
        found += 16 in wrong
        false += bool(wrong - {16})
    assert found >= 95
    assert false <= 5


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (2.0, 2.09, "same"),
        (2.0, 2.125, "regression"),
        (2.125, 2.0, "improvement"),
        (2.0, None, "regression"),
        (None, 2.0, "improvement"),
        (None, None, "same"),
    ],
)
def test_loss_is_judged_by_its_last_quarter(before: float | None, after: float | None, verdict: str) -> None:
    def losses(last: float | None) -> tuple[float | None, ...]:
        return (9.0, 8.0, 7.0, 6.0, 5.0, 4.0, last, last)

    finding = finding_of("final_loss", {"losses": losses(before)}, {"losses": losses(after)})
    assert (finding.before, finding.after, finding.verdict) == (before, after, verdict)


def test_losses_after_different_numbers_of_steps_do_not_compare() -> None:
    assert finding_of("final_loss", {}, {"losses": LOSSES + LOSSES}).verdict == "insufficient"


@pytest.mark.parametrize(
    ("losses", "expected"),
    [((3.0,), 3.0), ((9.0, 9.0, 9.0, 1.0), 1.0), ((9.0,) * 6 + (2.0, 4.0), 3.0), ((1.0, None), None), ((), None)],
)
def test_final_loss_is_the_mean_of_the_last_quarter(losses: tuple[float | None, ...], expected: float | None) -> None:
    assert final_loss(losses) == expected


@pytest.mark.parametrize(
    ("before", "after", "verdict", "code"),
    [
        ("ok", "oom", "regression", 1),
        ("ok", "timeout", "regression", 1),
        ("error", "ok", "improvement", 0),
        ("oom", "oom", "insufficient", 3),
        ("oom", "error", "insufficient", 3),
    ],
)
def test_outcomes_are_judged(before: Any, after: Any, verdict: str, code: int) -> None:
    comparison = compare([sample_record(outcome=after)], [sample_record(outcome=before)])
    assert (comparison.verdict, comparison.exit_code) == (verdict, code)
    [finding] = comparison.recipes[0].findings
    assert (finding.metric, finding.before, finding.after) == ("outcome", before, after)


def test_one_regression_outweighs_any_number_of_improvements() -> None:
    before = [sample_record(rank=rank) for rank in (4, 8, 16)]
    after = [sample_record(rank=rank, step_seconds=times(0.5)) for rank in (4, 8)]
    comparison = compare([*after, sample_record(outcome="oom")], before)
    assert comparison.exit_code == 1
    assert [one.verdict for one in comparison.recipes] == ["regression", "improvement", "improvement"]


def test_recipes_without_a_counterpart_are_listed() -> None:
    comparison = compare([sample_record(rank=4)], [sample_record(rank=8)])
    assert [one.label for one in comparison.only_in_baseline] == ["llama-2m lora r8 1×256 ckpt"]
    assert [one.label for one in comparison.only_in_results] == ["llama-2m lora r4 1×256 ckpt"]
    assert (comparison.verdict, comparison.exit_code) == ("insufficient", 3)


def test_labels_tell_recipes_apart() -> None:
    records = [sample_record(optim="sgd"), sample_record(optim="adafactor"), sample_record(rank=4)]
    assert {one.label for one in compare(records, records).recipes} == {
        "llama-2m lora r16 1×256 ckpt optim=sgd",
        "llama-2m lora r16 1×256 ckpt optim=adafactor",
        "llama-2m lora r4 1×256 ckpt",
    }


def test_different_devices_are_refused() -> None:
    with pytest.raises(UserError, match=r"baseline ran on GPU A \(cuda\), the results on GPU B \(cuda\)"):
        compare(
            [sample_record(device_kind="cuda", device_name="GPU B")],
            [sample_record(device_kind="cuda", device_name="GPU A")],
        )


def test_two_records_of_one_recipe_are_refused() -> None:
    with pytest.raises(UserError, match="the baseline: two records of recipe"):
        compare([sample_record()], [sample_record(), sample_record()])


def test_holm_multiplies_the_least_p_value_most() -> None:
    assert holm([0.04, 0.01, 0.03, 0.9]) == pytest.approx([0.09, 0.04, 0.09, 0.9])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


runs = st.fixed_dictionaries(
    {
        "outcome": st.sampled_from(["ok", "ok", "ok", "oom"]),
        "peak_allocated_bytes": st.integers(7_000_000, 7_100_000),
        "step_seconds": st.lists(st.floats(0.4, 0.5), min_size=4, max_size=9),
        "losses": st.lists(st.none() | st.floats(1.0, 1.2), min_size=3, max_size=4),
    }
)


@given(st.dictionaries(st.integers(1, 4), st.tuples(runs, runs), min_size=1))
def test_a_regression_is_an_improvement_the_other_way_round(suite: dict[int, tuple[Any, Any]]) -> None:
    before = [sample_record(rank=rank, **run) for rank, (run, _) in suite.items()]
    after = [sample_record(rank=rank, **run) for rank, (_, run) in suite.items()]
    swapped = {"regression": "improvement", "improvement": "regression", "same": "same", "insufficient": "insufficient"}

    def verdicts(comparison: Comparison) -> dict[tuple[str, str], str]:
        return {(one.digest, seen.metric): seen.verdict for one in comparison.recipes for seen in one.findings}

    forth = verdicts(compare(after, before))
    assert verdicts(compare(before, after)) == {key: swapped[verdict] for key, verdict in forth.items()}
