"""Where the training ended, before and after, relative to the spread that seeds give."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lorabench.bench.check.findings import Finding, Verdict
from lorabench.bench.check.matching import Runs, Work
from lorabench.bench.check.statistics import (
    SIGNIFICANCE,
    holm,
    mean_interval,
    mean_log,
    p_mean_greater,
    pooled_spread,
)
from lorabench.bench.check.thresholds import Thresholds


def final_loss(losses: Sequence[float | None]) -> float | None:
    """Return the mean of the last quarter of ``losses`` (one at least), or None where one there is not finite."""
    last = losses[-max(1, len(losses) // 4) :]
    finite = [loss for loss in last if loss is not None and math.isfinite(loss)]
    return math.fsum(finite) / len(finite) if finite and len(finite) == len(last) else None


def judge_losses(pairs: Mapping[Work, tuple[Runs, Runs]], thresholds: Thresholds) -> dict[Work, Finding]:
    """Judge the final losses of all recipes: those with repeated runs by a t-test, as one family; others by share.

    A recipe's spread is its own, since learning rate and method decide how much a seed matters. A metric whose
    threshold is off is left out.
    """
    findings: dict[Work, Finding] = {}
    repeated: dict[Work, tuple[list[float], list[float]]] = {}
    for work, pair in pairs.items():
        differs = _incomparable(*pair)
        old, new = ([final_loss(one.losses) for one in side.measurements] for side in pair)
        finite = [loss for loss in old if loss is not None], [loss for loss in new if loss is not None]
        if differs is not None:
            if thresholds.loss is not None or thresholds.loss_over_seeds is not None:
                findings[work] = Finding(
                    metric="final_loss", before=_mean(old), after=_mean(new), verdict="insufficient", reason=differs
                )
        elif len(finite[0]) < len(old) or len(finite[1]) < len(new) or min(*finite[0], *finite[1]) <= 0:
            if thresholds.loss is not None or thresholds.loss_over_seeds is not None:
                findings[work] = _judge_not_finite(old, new)
        elif len(old) > 1 or len(new) > 1:
            repeated[work] = finite
        elif thresholds.loss is not None:
            findings[work] = _judge_single(finite[0][0], finite[1][0], thresholds.loss)
    if thresholds.loss_over_seeds is not None:
        findings |= _judge_repeated(repeated, thresholds.loss_over_seeds)
    return findings


def _incomparable(before: Runs, after: Runs) -> str | None:
    """Return why the losses do not compare, or None where they do."""
    steps = [sorted({len(one.losses) for one in side.measurements}) for side in (before, after)]
    if steps[0] != steps[1] or len(steps[0]) != 1 or steps[0] == [0]:
        told = [" or ".join(map(str, one)) for one in steps]
        return f"trained {told[0]} steps before and {told[1]} after: train as many"
    for what in ("weights", "dataset", "dataset_digest"):
        old, new = (
            " or ".join(sorted({str(getattr(record, what) or "built-in text") for record in side.records}))
            for side in (before, after)
        )
        if old != new:
            return f"{what.replace('_', ' ')} {old} before and {new} after: train on the same"
    seeds = [{record.seed for record in side.records} for side in (before, after)]
    if max(map(len, seeds)) == 1 and seeds[0] != seeds[1]:
        return (
            f"seed {min(seeds[0])} before and {min(seeds[1])} after: train with the same, or with several (--repeats)"
        )
    return None


def _mean(losses: Sequence[float | None]) -> float | None:
    finite = [loss for loss in losses if loss is not None]
    return math.fsum(finite) / len(finite) if len(finite) == len(losses) and finite else None


def _judge_not_finite(old: Sequence[float | None], new: Sequence[float | None]) -> Finding:
    diverged = [None in side for side in (old, new)]
    verdict: Verdict = "same"
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
    verdict: Verdict = "same"
    if new - old > tolerance * old:
        verdict = "regression"
    elif old - new > tolerance * new:
        verdict = "improvement"
    return Finding(metric="final_loss", before=old, after=new, change=(new - old) / old, verdict=verdict)


def _judge_repeated(losses: Mapping[Work, tuple[list[float], list[float]]], tolerance: float) -> dict[Work, Finding]:
    shifts = {work: mean_log(new) - mean_log(old) for work, (old, new) in losses.items()}
    spreads = {work: pooled_spread(sides) for work, sides in losses.items()}

    def corrected(sign: int) -> dict[Work, float]:
        p_values = []
        for work, (old, new) in losses.items():
            spread = spreads[work]
            assert spread is not None
            p_values.append(p_mean_greater(sign * shifts[work], (len(old), len(new)), spread))
        return dict(zip(losses, holm(p_values), strict=True))

    worse, better = corrected(1), corrected(-1)
    findings = {}
    for work, (old_losses, new_losses) in losses.items():
        old, new = math.exp(mean_log(old_losses)), math.exp(mean_log(new_losses))
        spread = spreads[work]
        assert spread is not None
        interval = mean_interval(shifts[work], (len(old_losses), len(new_losses)), spread)
        rises, falls = new - old > tolerance * old, old - new > tolerance * new
        p_value = worse[work] if shifts[work] >= 0 else better[work]
        verdict: Verdict = "same"
        reason = None
        if (rises or falls) and p_value <= SIGNIFICANCE:
            verdict = "regression" if rises else "improvement"
        elif rises or falls:
            reason = f"within the spread of the seeds, {100 * math.expm1(spread.deviation):.2g}% (p = {p_value:.2g})"
        findings[work] = Finding(
            metric="final_loss",
            before=old,
            after=new,
            change=(new - old) / old,
            interval=(math.expm1(interval[0]), math.expm1(interval[1])),
            p_value=p_value,
            verdict=verdict,
            reason=reason,
        )
    return findings
