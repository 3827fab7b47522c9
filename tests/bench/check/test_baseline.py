from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from lorabench.bench.check.baseline import compare
from lorabench.bench.check.findings import EXIT_CODES, Comparison
from lorabench.bench.check.thresholds import Thresholds
from lorabench.bench.records.record import RunRecord
from lorabench.estimator.errors import UserError
from tests.bench.check.records import record, repeats, times
from tests.sample_records import STEP_SECONDS, as_rehearsed


def code(comparison: Comparison) -> int:
    return EXIT_CODES[comparison.verdict]


def test_a_folder_against_itself_is_all_same() -> None:
    records = [record(method=method) for method in ("full", "lora", "qlora")]
    comparison = compare(records, records)
    assert comparison.counts == {"regression": 0, "suspicious": 0, "insufficient": 0, "improvement": 0, "same": 9}
    assert (comparison.verdict, code(comparison)) == ("same", 0)


@pytest.mark.parametrize(
    ("before", "after", "verdict", "exit_code"),
    [
        ("ok", "oom", "regression", 1),
        ("ok", "timeout", "regression", 1),
        ("error", "ok", "improvement", 0),
        ("oom", "oom", "insufficient", 3),  # the outcome is the same, but nothing was measured
        ("error", "error", "insufficient", 3),
        ("oom", "error", "insufficient", 3),
        ("ok", "skipped", "insufficient", 3),
    ],
)
def test_outcomes_are_judged(before: Any, after: Any, verdict: str, exit_code: int) -> None:
    comparison = compare([record(outcome=after)], [record(outcome=before)])
    assert (comparison.verdict, code(comparison)) == (verdict, exit_code)
    [finding] = comparison.recipes[0].findings
    assert (finding.metric, finding.before, finding.after) == ("outcome", before, after)


def test_what_never_fits_does_not_keep_the_rest_from_passing() -> None:
    records = [record(rank=64, outcome="oom"), record(rank=4)]
    assert code(compare(records, records)) == 0


def test_a_repeat_that_fails_is_a_regression_beside_what_the_others_say() -> None:
    after = [*repeats(2), record(repeat=2, outcome="oom", message="CUDA out of memory")]
    comparison = compare(after, repeats(3))
    [recipe] = comparison.recipes
    assert {one.metric: one.verdict for one in recipe.findings}["outcome"] == "regression"
    assert recipe.findings[0].after == "2 ok, 1 oom"
    assert recipe.runs == (3, 3)
    assert len(recipe.findings) == 4


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (("improvement", "improvement", "regression"), 1),
        (("improvement", "same", "suspicious"), 3),
        (("improvement", "same", "insufficient"), 3),
        (("improvement", "same", "same"), 0),
        (("insufficient", "regression", "suspicious"), 1),
    ],
)
def test_the_worst_of_all_recipes_decides(verdicts: tuple[str, ...], expected: int) -> None:
    wide = (0.30, 0.35, 0.40, 0.45, 0.50, 0.55)
    after: dict[str, dict[str, Any]] = {
        "improvement": {"step_seconds": times(0.5)},
        "regression": {"step_seconds": times(2)},
        "same": {},
        "suspicious": {"step_seconds": (0.36, 0.40, 0.44, 0.47, 0.51, 0.60)},
        "insufficient": {"unstable": ("GPU shared",)},
    }
    before = [
        one
        for place, verdict in enumerate(verdicts, 1)
        for one in repeats(2, rank=place, step_seconds=wide if verdict == "suspicious" else STEP_SECONDS)
    ]
    results = [one for place, verdict in enumerate(verdicts, 1) for one in repeats(2, rank=place, **after[verdict])]
    comparison = compare(results, before)
    assert {one.recipe.rank: one.verdict for one in comparison.recipes} == dict(enumerate(verdicts, 1))
    assert code(comparison) == expected
    assert comparison.recipes[0].verdict == comparison.verdict


def test_metrics_that_are_off_are_not_judged() -> None:
    off = Thresholds(memory=None, speed=None, loss=None, loss_over_seeds=None)
    comparison = compare([record(step_seconds=times(9))], [record()], off)
    assert [one.metric for one in comparison.recipes[0].findings] == ["outcome"]
    assert code(comparison) == 0


def test_recipes_without_a_counterpart_are_listed() -> None:
    comparison = compare([record(rank=4)], [record(rank=8)])
    assert [one.label for one in comparison.only_in_baseline] == ["llama-2m lora r8 1×256 ckpt"]
    assert [one.label for one in comparison.only_in_results] == ["llama-2m lora r4 1×256 ckpt"]
    assert (comparison.verdict, code(comparison)) == ("insufficient", 3)


def test_the_two_engines_of_a_recipe_are_matched_apart() -> None:
    records = [record(), replace(record(step_seconds=times(2)), engine="trainer")]
    comparison = compare(records, records)
    assert {one.label for one in comparison.recipes} == {
        "llama-2m lora r16 1×256 ckpt",
        "llama-2m lora r16 1×256 ckpt trainer",
    }
    assert code(comparison) == 0


def test_labels_tell_recipes_apart() -> None:
    records = [record(optim="sgd"), record(optim="adafactor"), record(rank=4)]
    assert {one.label for one in compare(records, records).recipes} == {
        "llama-2m lora r16 1×256 ckpt optim=sgd",
        "llama-2m lora r16 1×256 ckpt optim=adafactor",
        "llama-2m lora r4 1×256 ckpt",
    }


def on(name: str) -> RunRecord:
    return record(backend="cuda", device_name=name)


def test_different_devices_are_refused_unless_they_are_meant() -> None:
    with pytest.raises(UserError, match=r"baseline ran on GPU A \(cuda\), the results on GPU B \(cuda\)"):
        compare([on("GPU B")], [on("GPU A")])
    comparison = compare([on("GPU B")], [on("GPU A")], across_devices=True)
    assert comparison.device == "GPU A (cuda) → GPU B (cuda)"
    assert code(comparison) == 0


@pytest.mark.parametrize(
    ("baseline", "said"),
    [
        ([record(), record()], "the baseline: recipe .* has two records of the same repeat"),
        ([on("GPU A"), replace(on("GPU B"), repeat=1)], "the baseline: recipe .* ran on GPU A .* and on GPU B"),
    ],
)
def test_a_side_that_contradicts_itself_is_refused(baseline: list[RunRecord], said: str) -> None:
    with pytest.raises(UserError, match=said):
        compare([record()], baseline)


def test_what_changed_in_the_environment_is_told() -> None:
    new = record()
    packages = {**new.environment.packages, "torch": "9.9.9", "triton": "4.0"}
    environment = replace(new.environment, packages=packages, python="3.12.1", commit="12ab", power_limit_watts=300.0)
    new = replace(new, environment=environment)
    assert compare([new], [record()]).environment_changes == (
        "lorabench's commit none → 12ab",
        "Python 3.11.7 → 3.12.1",
        "power limit none → 300 W",
        "torch 2.13.0 → 9.9.9",
        "triton none → 4.0",
    )


runs = st.fixed_dictionaries(
    {
        "outcome": st.sampled_from(["ok", "ok", "ok", "oom"]),
        "peak_allocated_bytes": st.integers(7_000_000, 7_100_000),
        "step_seconds": st.lists(st.floats(0.4, 0.5), min_size=4, max_size=9),
        "losses": st.lists(st.none() | st.floats(1.0, 1.2), min_size=3, max_size=4),
        "unstable": st.sampled_from([(), (), ("shared",)]),
    }
)
sides = st.lists(runs, min_size=1, max_size=3)


@given(st.dictionaries(st.integers(1, 3), st.tuples(sides, sides), min_size=1))
def test_a_regression_is_an_improvement_the_other_way_round(suite: dict[int, tuple[Any, Any]]) -> None:
    def side(index: int) -> list[RunRecord]:
        return [
            record(rank=rank, repeat=repeat, **run)
            for rank, both in suite.items()
            for repeat, run in enumerate(both[index])
        ]

    before, after = side(0), side(1)
    swapped = {"regression": "improvement", "improvement": "regression"}

    def verdicts(comparison: Comparison) -> dict[tuple[str, str], str]:
        return {(one.digest, seen.metric): seen.verdict for one in comparison.recipes for seen in one.findings}

    forth = verdicts(compare(after, before))
    assert verdicts(compare(before, after)) == {key: swapped.get(one, one) for key, one in forth.items()}


def test_rehearsals_are_compared_with_rehearsals_alone() -> None:
    measured = [record(backend="cuda")]
    rehearsed = [as_rehearsed(one) for one in measured]
    assert compare(rehearsed, rehearsed).verdict == "same"
    assert {one.metric for one in compare(rehearsed, rehearsed).recipes[0].findings} <= {
        "peak_allocated_bytes",
        "peak_reserved_bytes",
    }
    other = [record(backend="cuda", method="full")]
    for results, baseline, complaint in (
        (rehearsed, measured, "the baseline was measured, the results were rehearsed: compare like with like"),
        (measured, [as_rehearsed(other[0])], "the baseline was rehearsed, the results were measured"),
        ([*rehearsed, *other], rehearsed, "the results: both rehearsals and measurements: keep rehearsals in a folder"),
    ):
        with pytest.raises(UserError, match=complaint):
            compare(results, baseline)
