"""The closed form of memory: a recipe's breakdown at the peak of a steady training step."""

from __future__ import annotations

from operator import mul

from msgspec.structs import replace

from lorabench.estimator.closed_form.forms import form_of, persistent_of
from lorabench.estimator.closed_form.sizes import Values
from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.memory.breakdown import Breakdown
from lorabench.estimator.memory.optimizers import paged_states_bytes
from lorabench.estimator.memory.reserved import reserve
from lorabench.estimator.recipes.resolved import ResolvedRecipe


def estimate_memory(
    resolved: ResolvedRecipe, backend: Backend = "cuda", compute_capability: str | None = None
) -> Breakdown:
    """Return the breakdown of the recipe on one device of ``backend``.

    ``compute_capability`` (of `Device`) decides the kernel of attention and the size of cuBLAS' workspaces; see
    `sdpa_kernel` and `workspaces` for None.

    Raises:
        UserError: the model lacks the target modules, or no kernel runs the combination.
    """
    setup, form = form_of(resolved, backend, compute_capability)
    persistent = persistent_of(setup, resolved.recipe.optim, resolved.recipe.rank)
    values = Values(resolved)
    factors = [values[monomial] for monomial in form.monomials]
    phase_peaks: dict[str, int] = {}
    peak, at_peak = -1, form.phases[0].candidates[0]
    for of_phase in form.phases:
        totals = [sum(map(mul, coefficients, factors)) for coefficients in of_phase.coefficients]
        working = max(totals)
        total = working + sum(persistent[of_phase.phase].values())
        phase_peaks[of_phase.phase] = total
        if total > peak:
            peak, at_peak = total, of_phase.candidates[totals.index(working)]
    components = at_peak.component_bytes(values)
    for name, bytes_ in persistent[at_peak.phase].items():
        components[name] += bytes_
    breakdown = Breakdown(
        components=components, phase=at_peak.phase, peak_allocated_bytes=peak, phase_peaks_bytes=phase_peaks
    )
    if backend == "cpu":
        return breakdown
    taken = reserve(components, compute_capability=compute_capability)
    return replace(
        breakdown,
        peak_reserved_bytes=taken.reserved,
        peak_reserved_range_bytes=taken.reserved_range,
        device_total_bytes=taken.device_total,
        device_total_range_bytes=taken.device_total_range,
        paged_states_bytes=paged_states_bytes(resolved),
    )
