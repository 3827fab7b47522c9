"""Compare measurements, or rehearsals, with the estimate, computed now from each record's recipe and model config.

The prediction stored in the record is ignored, so a change of the closed form shows at once. Too much and too little
are both wrong: a deviation in either direction is a regression.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_low

from msgspec.structs import replace

from lorabench.bench.check.findings import Comparison, Finding, Judgement, Metric, in_order, of_recipe, overall
from lorabench.bench.check.matching import Runs, labels_of, runs_by_work
from lorabench.bench.check.memory import counted_peaks
from lorabench.bench.check.thresholds import Thresholds
from lorabench.bench.records.record import RunRecord
from lorabench.bench.records.rehearsal import Counted
from lorabench.estimator.answers.traced_estimates import trace_for_estimate
from lorabench.estimator.answers.verdict import verdict_and_margin
from lorabench.estimator.closed_form.replay import replayed_memory
from lorabench.estimator.errors import UserError
from lorabench.estimator.foreign_text import printable
from lorabench.estimator.memory.breakdown import Breakdown
from lorabench.estimator.models.read_config import has_closed_form, read_config
from lorabench.estimator.recipes.feasibility import refuse_impossible
from lorabench.estimator.recipes.parameters import ParameterCounts
from lorabench.estimator.recipes.resolved import ResolvedRecipe


def compare_with_estimate(results: Sequence[RunRecord], thresholds: Thresholds | None = None) -> Comparison:
    """Compare parameters, peaks and outcome of every recipe of ``results`` with its estimate.

    Parameters must be equal. The allocated peak, and the peak of each phase, may differ by the threshold. Reserved
    bytes and the driver's count must be within the estimate's own range, widened by the threshold. A recipe that ran
    out of GPU memory must not be estimated to fit, and a recipe that ran must not be estimated not to fit.

    Raises:
        UserError: the results hold the same repeat of a recipe twice, or one recipe from several devices.
    """
    thresholds = thresholds or Thresholds()
    after = runs_by_work(results, "the results")
    labels = labels_of([after])
    recipes = [
        of_recipe(work, labels[work], None, runs, _judge(runs, thresholds.estimate)) for work, runs in after.items()
    ]
    return Comparison(
        against="estimate",
        verdict=overall(recipes),
        device=", ".join(sorted({printable(runs.device.name) for runs in after.values()})),
        environment_changes=(),
        thresholds=thresholds,
        run_to_run=None,
        recipes=in_order(recipes),
        only_in_baseline=(),
        only_in_results=(),
        unused_waivers=(),
        rehearsed=any(record.rehearsed for record in results),
    )


def _estimate_of(runs: Runs) -> tuple[ParameterCounts, Breakdown]:
    """Return the estimate of this lorabench for the recipe, on the kind of device that it ran on.

    Raises:
        UserError: the recipe is impossible, or it has no closed form and cannot be traced here.
    """
    recipe, device = runs.recipe, runs.device
    spec = read_config(runs.records[0].model_config, recipe.model)
    resolved = ResolvedRecipe(spec, recipe)
    refuse_impossible(resolved)
    texts = {record.environment.allocator for record in runs.records}
    if len(texts) > 1:
        raise UserError("the runs had different settings of torch's allocator (PYTORCH_ALLOC_CONF)")
    allocator = device.allocator_settings(texts.pop())
    gpu = device.compute_capability, device.multiprocessors
    if not has_closed_form(spec):
        traced = trace_for_estimate(resolved, *gpu, backend=device.backend, allocator=allocator)
        return traced.parameters, traced.memory
    memory = replayed_memory(resolved, device.backend, *gpu, allocator=allocator)
    return resolved.parameters, memory


def _judge(runs: Runs, tolerance: float | None) -> list[Finding]:
    outcome = " or ".join(sorted(runs.outcomes))
    try:
        parameters, memory = _estimate_of(runs)
    except UserError as error:
        return [
            Finding(metric="outcome", before=None, after=outcome, verdict="insufficient", reason=printable(str(error)))
        ]
    findings = _judge_outcome(runs, memory, outcome)
    measurements = runs.counted
    if not measurements:
        return findings
    findings.append(_judge_parameters(parameters, measurements[0].parameters))
    if tolerance is None:
        return findings
    return [
        *findings,
        *_judge_peaks(memory, measurements, tolerance),
        *_judge_phases(memory, measurements, tolerance),
    ]


def _judge_peaks(estimated: Breakdown, measurements: Sequence[Counted], tolerance: float) -> list[Finding]:
    """Compare each measured peak with the estimate, or with its range if it has one.

    NVML counts paged optimizer states too, as many of them as the driver keeps on the GPU.
    """
    total_range = estimated.device_total_range_bytes
    if total_range is not None:
        total_range = total_range[0], total_range[1] + estimated.paged_states_bytes
    held: dict[Metric, tuple[int | None, tuple[int, int] | None]] = {
        "peak_allocated_bytes": (estimated.peak_allocated_bytes, None),
        "peak_reserved_bytes": (estimated.peak_reserved_bytes, estimated.peak_reserved_range_bytes),
        "nvml_process_peak_bytes": (estimated.device_total_bytes, total_range),
    }
    findings = []
    for metric, seen in counted_peaks(measurements).items():
        point, ends = held[metric]
        if point is not None:
            findings.append(_judge_bytes(metric, point, ends or (point, point), median_low(seen), tolerance))
    return findings


def _judge_phases(estimated: Breakdown, measurements: Sequence[Counted], tolerance: float) -> list[Finding]:
    """Compare the measured peak of each phase, and return the finding with the largest deviation."""
    findings = {}
    for phase, point in estimated.phase_peaks_bytes.items():
        seen = [one.memory.phase_peaks_bytes[phase] for one in measurements if phase in one.memory.phase_peaks_bytes]
        if seen:
            findings[phase] = _judge_bytes("phase_peaks_bytes", point, (point, point), median_low(seen), tolerance)
    if not findings:
        return []
    phase, finding = max(findings.items(), key=lambda item: abs(item[1].change or 0.0))
    return [replace(finding, phase=phase)]


def _judge_outcome(runs: Runs, memory: Breakdown, outcome: str) -> list[Finding]:
    """Compare whether the recipe ran with whether the estimate says that it fits.

    On a CPU the estimate gives no verdict: other processes use the same memory.
    """
    answer = None if runs.device.backend == "cpu" else verdict_and_margin(memory, runs.device.memory_bytes)[0]
    failed = [record for record in runs.records if record.outcome != "ok"]
    if not failed and answer is None:
        return []
    verdict: Judgement
    reason = next((printable(record.message) for record in failed if record.message), None)
    if not failed:
        verdict = "regression" if answer == "does not fit" else "same"
    elif answer is not None and any(one.outcome == "oom" and one.out_of in ("device", None) for one in failed):
        verdict = "regression" if answer == "fits" else "same"
    else:
        verdict = "insufficient"
    return [Finding(metric="outcome", before=answer, after=outcome, verdict=verdict, reason=reason)]


def _judge_parameters(estimated: ParameterCounts, counted: ParameterCounts) -> Finding:
    differing = [
        f"{name.replace('_', ' ')}: {getattr(estimated, name):,} estimated, {getattr(counted, name):,} counted"
        for name in ("total", "trainable", "quantized", "adapter")
        if getattr(estimated, name) != getattr(counted, name)
    ]
    return Finding(
        metric="parameters",
        before=estimated.total,
        after=counted.total,
        change=(counted.total - estimated.total) / estimated.total,
        verdict="regression" if differing else "same",
        reason="; ".join(differing) or None,
    )


def _judge_bytes(metric: Metric, point: int, ends: tuple[int, int], measured: int, tolerance: float) -> Finding:
    """Check that ``measured`` lies between the two ``ends`` of the estimate, widened by the tolerance."""
    allowed = ends[0] * (1 - tolerance), ends[1] * (1 + tolerance)
    return Finding(
        metric=metric,
        before=point,
        after=measured,
        change=(measured - point) / point,
        interval=(allowed[0] / point - 1, allowed[1] / point - 1),
        verdict="same" if allowed[0] <= measured <= allowed[1] else "regression",
    )
