from __future__ import annotations

import pytest
from msgspec.structs import replace

from lorabench.bench.check.baseline import compare
from lorabench.bench.check.findings import Finding
from lorabench.bench.check.loss import mean_of_last_quarter
from lorabench.bench.records.record import RunRecord
from tests.bench.check.records import record
from tests.sample_records import LOSSES

Losses = tuple[float | None, ...]


def loss(before: list[RunRecord], after: list[RunRecord]) -> Finding:
    [finding] = [one for one in compare(after, before).recipes[0].findings if one.metric == "final_loss"]
    return finding


def ending(last: float | None) -> Losses:
    return (9.0, 8.0, 7.0, 6.0, 5.0, 4.0, last, last)


def seeds(*last: float) -> list[RunRecord]:
    return [record(repeat=seed, losses=ending(one)) for seed, one in enumerate(last)]


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
def test_single_runs_are_judged_by_the_last_quarter_of_their_steps(
    before: float | None, after: float | None, verdict: str
) -> None:
    finding = loss([record(losses=ending(before))], [record(losses=ending(after))])
    assert (finding.before, finding.after, finding.verdict) == (before, after, verdict)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ((3.0,), 3.0),
        ((9.0, 9.0, 9.0, 1.0), 1.0),
        ((9.0,) * 6 + (2.0, 4.0), 3.0),
        ((1.0, None), None),
        ((), None),
        ((1e308,) * 12, 1e308),
    ],
)
def test_the_loss_is_the_mean_of_the_last_quarter(losses: Losses, expected: float | None) -> None:
    assert mean_of_last_quarter(losses) == expected


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ((2.00, 2.01, 2.02), (2.10, 2.11, 2.12), "regression"),  # 5 % where seeds differ by half a percent
        ((2.10, 2.11, 2.12), (2.00, 2.01, 2.02), "improvement"),
        ((2.00, 2.20, 2.40), (2.20, 2.40, 2.60), "same"),  # 9 % where seeds differ by as much
        ((2.000, 2.001, 2.002), (2.010, 2.011, 2.012), "same"),  # beyond the seeds, but half a percent
        ((2.00, 2.01, 2.02), (2.16,), "regression"),
    ],
)
def test_repeated_runs_are_judged_by_the_spread_of_their_seeds(
    before: tuple[float, ...], after: tuple[float, ...], verdict: str
) -> None:
    finding = loss(seeds(*before), seeds(*after))
    assert finding.verdict == verdict
    assert finding.interval is not None
    assert finding.change is not None
    assert finding.interval[0] < finding.change < finding.interval[1]
    if verdict == "same" and finding.change > 0.01:
        assert "within the spread between seeds" in (finding.reason or "")


def test_a_seed_that_diverges_is_a_regression() -> None:
    after = [*seeds(2.0, 2.01), record(repeat=2, losses=ending(None))]
    assert loss(seeds(2.0, 2.01, 2.02), after).verdict == "regression"


@pytest.mark.parametrize(("before", "after"), [(2.0, 0.0), (0.0, 2.0), (2.0, -1.0), (0.0, 0.0)])
@pytest.mark.parametrize("runs", [1, 2])
def test_a_loss_of_zero_or_less_is_not_judged(before: float, after: float, runs: int) -> None:
    finding = loss(seeds(*[before] * runs), seeds(*[after] * runs))
    assert (finding.before, finding.after, finding.verdict) == (before, after, "insufficient")
    assert "loss is 0 or negative" in (finding.reason or "")


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (record(losses=LOSSES + LOSSES), "baseline ran 12 steps, results 24: use the same --steps"),
        (record(seed=7), "baseline used seed 0, results 7: use the same --seed, or several (--repeats)"),
        (
            replace(record(), dataset="novel.txt"),
            "baseline used dataset built-in text, results novel.txt: use the same",
        ),
        (
            replace(record(), dataset_digest="12ab"),
            "baseline used dataset digest built-in text, results 12ab: use the same",
        ),
        (
            replace(record(), weights="pretrained"),
            "baseline used weights random, results pretrained: use the same",
        ),
        (
            replace(record(), weights_digest="34cd"),
            "baseline used weights digest unknown, results 34cd: use the same",
        ),
    ],
)
def test_losses_of_different_training_do_not_compare(after: RunRecord, reason: str) -> None:
    finding = loss([record()], [after])
    assert (finding.verdict, finding.reason) == ("insufficient", reason)
