"""The closed form of memory: a recipe's breakdown at the peak of a steady training step."""

from __future__ import annotations

from lorabench.estimator.breakdown import COMPONENTS, Breakdown, Kernels
from lorabench.estimator.closed_form.sizes import monomial_values
from lorabench.estimator.closed_form.step import step_moments
from lorabench.estimator.models import ModelSpec
from lorabench.estimator.recipes import Recipe

SEGMENT_BYTES = 2 * 2**20
"""The caching allocator takes memory from the device in multiples of this."""
CUDA_CONTEXT_BYTES = 600 * 2**20
"""What a process takes on a GPU before its first tensor: driver context and loaded kernels. 0.3 to 0.6 GiB is seen,
by driver and GPU; this is the upper end, so that what is said to fit does."""


def estimate_memory(spec: ModelSpec, recipe: Recipe, kernels: Kernels = "cuda") -> Breakdown:
    """Return the breakdown of ``recipe`` on ``spec``, on one device that runs ``kernels``.

    Raises:
        UserError: target modules that the model does not have, or a combination that no kernel runs.
    """
    moments = step_moments(spec, recipe, kernels)
    values = monomial_values(recipe.batch_size, recipe.seq_len, recipe.rank or 0)
    phase_peaks: dict[str, int] = {}
    peak, at_peak = -1, moments[0]
    for moment in moments:
        total = sum(coefficient * value for coefficient, value in zip(moment.total(), values, strict=True))
        phase_peaks[moment.phase] = max(phase_peaks.get(moment.phase, 0), total)
        if total > peak:
            peak, at_peak = total, moment
    held = at_peak.component_bytes(values)
    reserved = -(-peak // SEGMENT_BYTES) * SEGMENT_BYTES if kernels == "cuda" else None
    return Breakdown(
        components={name: held[name] for name in COMPONENTS},
        phase=at_peak.phase,
        peak_allocated_bytes=peak,
        phase_peaks_bytes=phase_peaks,
        peak_reserved_bytes=reserved,
        device_total_bytes=None if reserved is None else reserved + CUDA_CONTEXT_BYTES,
    )
