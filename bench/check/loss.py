"""Compare final losses before and after, relative to the spread between seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lorabench.bench.check.findings import Finding, Judgement, departure
from lorabench.bench.check.matching import Runs, Work
from lorabench.bench.check.statistics import (
    SIGNIFICANCE,
    change_of,
    holm,
    mean_interval,
    mean_log,
    p_mean_greater,
    pooled_spread,
)
from lorabench.bench.check.thresholds import Thresholds

_TRAINED_ON = {
    "weights": "unknown",
    "weights_digest": "unknown",
    "dataset": "built-in text",
    "dataset_digest": "built-in text",
}
"""Fields of a record that must be equal → how to name a missing value."""


def mean_of_last_quarter(losses: Sequence[float | None]) -> float | None:
    """Return the mean of the last quarter of ``losses`` (at least one), or None if one of these is not finite."""
    return _mean(losses[-max(1, len(losses) // 4) :])


def judge_losses(pairs: Mapping[Work, tuple[Runs, Runs]], thresholds: Thresholds) -> dict[Work, Finding]:
    """Judge the final losses of all recipes: by t-test, as one family, with repeated runs; else by threshold only.

    Each recipe has its own spread, since learning rate and method decide how much a seed matters. A metric whose
    threshold is off is left out.
    """
    if thresholds.loss is None and thresholds.loss_over_seeds is None:
        return {}
    findings: dict[Work, Finding] = {}
    repeated: dict[Work, tuple[list[float], list[float]]] = {}
    for work, pair in pairs.items():
        differs = _incomparable(*pair)
        old, new = ([mean_of_last_quarter(one.losses) for one in side.measurements] for side in pair)
        finite = [loss for loss in old if loss is not None], [loss for loss in new if loss is not None]
        if differs is None and any(loss <= 0 for side in finite for loss in side):
            differs = "loss is 0 or negative: relative change is undefined"
        if differs is not None:
            findings[work] = Finding(
                metric="final_loss", before=_mean(old), after=_mean(new), verdict="insufficient", reason=differs
            )
        elif None in old or None in new:
            findings[work] = _judge_not_finite(old, new)
        elif len(old) > 1 or len(new) > 1:
            repeated[work] = finite
        elif thresholds.loss is not None:
            findings[work] = _judge_single(finite[0][0], finite[1][0], thresholds.loss)
    if thresholds.loss_over_seeds is not None:
        findings |= _judge_repeated(repeated, thresholds.loss_over_seeds)
    return findings


def _incomparable(before: Runs, after: Runs) -> str | None:
    """Return why the losses cannot be compared, or None if they can."""
    steps = [sorted({len(one.losses) for one in side.measurements}) for side in (before, after)]
    if steps[0] != steps[1] or len(steps[0]) != 1 or steps[0] == [0]:
        counts = [" or ".join(map(str, one)) for one in steps]
        return f"baseline ran {counts[0]} steps, results {counts[1]}: use the same --steps"
    for what, unnamed in _TRAINED_ON.items():
        old, new = (
            " or ".join(sorted({str(getattr(record, what) or unnamed) for record in side.records}))
            for side in (before, after)
        )
        if old != new:
            return f"baseline used {what.replace('_', ' ')} {old}, results {new}: use the same"
    seeds = [{record.seed for record in side.records} for side in (before, after)]
    if max(map(len, seeds)) == 1 and seeds[0] != seeds[1]:
        old_seed, new_seed = min(seeds[0]), min(seeds[1])
        return f"baseline used seed {old_seed}, results {new_seed}: use the same --seed, or several (--repeats)"
    return None


def _mean(losses: Sequence[float | None]) -> float | None:
    finite = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    return math.fsum(loss / len(finite) for loss in finite) if len(finite) == len(losses) and finite else None


def _judge_not_finite(old: Sequence[float | None], new: Sequence[float | None]) -> Finding:
    diverged = [None in side for side in (old, new)]
    verdict: Judgement = "same"
    if diverged[0] != diverged[1]:
        verdict = "regression" if diverged[1] else "improvement"
    when = "before and after" if diverged[0] == diverged[1] else "after" if diverged[1] else "before"
    return Finding(
        metric="final_loss",
        before=_mean(old),
        after=_mean(new),
        verdict=verdict,
        reason=f"the loss is not finite {when}",
    )


def _judge_single(old: float, new: float, tolerance: float) -> Finding:
    verdict = departure(old, new, tolerance) or "same"
    return Finding(metric="final_loss", before=old, after=new, change=(new - old) / old, verdict=verdict)


def _judge_repeated(losses: Mapping[Work, tuple[list[float], list[float]]], tolerance: float) -> dict[Work, Finding]:
    counts = {work: (len(old), len(new)) for work, (old, new) in losses.items()}
    shifts = {work: mean_log(new) - mean_log(old) for work, (old, new) in losses.items()}
    spreads = {work: spread for work, sides in losses.items() if (spread := pooled_spread(sides)) is not None}
    worse = holm([p_mean_greater(shifts[work], counts[work], spreads[work]) for work in losses])
    better = holm([p_mean_greater(-shifts[work], counts[work], spreads[work]) for work in losses])
    findings = {}
    for (work, (old_losses, new_losses)), *p_values in zip(losses.items(), worse, better, strict=True):
        old, new = math.exp(mean_log(old_losses)), math.exp(mean_log(new_losses))
        interval = mean_interval(shifts[work], counts[work], spreads[work])
        p_value = p_values[0] if shifts[work] >= 0 else p_values[1]
        verdict = departure(old, new, tolerance) or "same"
        reason = None
        if verdict != "same" and p_value > SIGNIFICANCE:
            verdict = "same"
            seeds_differ = 100 * change_of(spreads[work].deviation)
            reason = f"within the spread between seeds, {seeds_differ:.2g}% (p = {p_value:.2g})"
        findings[work] = Finding(
            metric="final_loss",
            before=old,
            after=new,
            change=(new - old) / old,
            interval=(change_of(interval[0]), change_of(interval[1])),
            p_value=p_value,
            verdict=verdict,
            reason=reason,
        )
    return findings
