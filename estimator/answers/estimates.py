"""The first of the three answers: what a recipe takes, worked out in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from lorabench.estimator.answers.support import emulated, refuse_lacking
from lorabench.estimator.answers.verdict import Change, Fit, hold_against, judge
from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.closed_form.replay import Training, with_blocks
from lorabench.estimator.devices.device import Device
from lorabench.estimator.memory.breakdown import Breakdown
from lorabench.estimator.memory.states import Term, states
from lorabench.estimator.recipes.feasibility import has_closed_form, recipe_warnings, refuse_impossible
from lorabench.estimator.recipes.parameters import ParameterCounts
from lorabench.estimator.recipes.recipe import Recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.speed.calibrations import Calibration
from lorabench.estimator.speed.throughput import Throughput, estimate_throughput

Source = Literal["closed form", "trace"]


class Estimate(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a recipe takes on one GPU."""

    source: Source
    """Where the answer is from: the trace, for architectures that have no closed form. Then nothing is sought that
    would take a trace for each try, and the speed is not estimated."""
    recipe: Recipe
    parameters: ParameterCounts
    states: tuple[Term, ...]
    """What is held for the whole training (gradients: from backward on), as products of elements and bytes."""
    memory: Breakdown
    """At the peak of a steady training step."""
    assumptions: tuple[str, ...] = ()
    """What was chosen of model, recipe and GPU that nobody asked for and that is not the default, and why."""
    warnings: tuple[str, ...] = ()
    """What is odd about the recipe, though it runs."""
    gpu: str | None = None
    gpu_memory_bytes: int | None = None
    gpu_usable_bytes: int | None = None
    """What a process can use of it: all but what the driver keeps."""
    verdict: Fit | None = None
    """fits: the upper end of the device total is within what the GPU lets a process use; tight: only the point
    estimate is within its memory; does not fit: not even that. None without a GPU, as all that follows."""
    fits: bool | None = None
    """Whether the verdict is that it fits."""
    margin_bytes: int | None = None
    """What the upper end leaves of the usable bytes; negative where those are too few."""
    largest_batch_size: int | None = None
    """That fits at the recipe's length; None where not even 1 does, and by trace."""
    longest_seq_len: int | None = None
    """That fits at the recipe's batch size: the model's ``max_position_embeddings``, or else a multiple of 128; None
    where none does, and by trace."""
    max_position_embeddings: int | None = None
    """The longest sequence that the model has positions for."""
    changes: tuple[Change, ...] = ()
    """What would make it fit, the most harmless first; empty where it fits, where no two changes are enough, and by
    trace."""
    throughput: Throughput | None = None
    """How fast it trains, if it fits; None where the GPU's rates are not known."""
    emulated_dtype: str = ""
    """What the GPU has no units for and PyTorch computes in float32; "" of none."""


def estimate_recipe(
    resolved: ResolvedRecipe,
    device: Device | None = None,
    calibration: Calibration | None = None,
    on_progress: Callable[[str], None] = lambda what: None,
    *,
    replay: bool = False,
) -> Estimate:
    """Return the estimate of the recipe on its model, compared with ``device`` if one is given.

    With ``replay`` CUDA's caching allocator is replayed over whole steps. That takes some tenths of a second, gives
    the allocated and reserved bytes as torch counts them, and the verdict is the allocator's. Without it, allocated
    bytes are those of tensors, and reserved bytes have a range.

    The speed is at the rates of ``calibration``, or else of the device's datasheet. An architecture without a closed
    form is traced, which takes some seconds: ``on_progress`` is called with each stage. The estimate has the
    assumptions of the recipe and of the device.

    Raises:
        UserError: the model lacks the recipe's target modules, or cannot take sequences as long as the recipe's; the
            device lacks what the recipe runs on; the model has no closed form, and cannot be traced or not here.
    """
    spec, recipe = resolved.spec, resolved.recipe
    refuse_impossible(resolved)
    assumptions = resolved.assumptions
    if device is not None:
        refuse_lacking(recipe, device)
        assumptions = (*assumptions, *device.assumptions)
    if not has_closed_form(spec):
        return replace(_estimate_by_trace(resolved, device, on_progress), assumptions=assumptions)
    memory = estimate_memory(resolved, compute_capability=None if device is None else device.compute_capability)
    if replay:
        on_progress("replaying the allocator")
        training = Training(resolved, None if device is None else device.compute_capability)
        memory = with_blocks(memory, training.replay())
    estimate = Estimate(
        source="closed form",
        recipe=recipe,
        parameters=resolved.parameters,
        states=states(resolved, "cuda").terms,
        memory=memory,
        assumptions=assumptions,
        warnings=recipe_warnings(resolved),
    )
    if device is None:
        return estimate
    on_progress("seeking what fits")
    verdict = judge(resolved, memory, device, replay=replay)
    return replace(
        estimate,
        gpu=device.name,
        gpu_memory_bytes=device.memory_bytes,
        gpu_usable_bytes=device.usable_bytes,
        verdict=verdict.answer,
        fits=verdict.answer == "fits",
        margin_bytes=verdict.margin_bytes,
        largest_batch_size=verdict.largest_batch_size,
        longest_seq_len=verdict.longest_seq_len,
        max_position_embeddings=spec.max_position_embeddings,
        changes=verdict.changes,
        throughput=estimate_throughput(resolved, device, calibration),
        emulated_dtype=emulated(recipe, device),
    )


def _estimate_by_trace(resolved: ResolvedRecipe, device: Device | None, on_progress: Callable[[str], None]) -> Estimate:
    from lorabench.estimator.answers.traced_estimates import trace_for_estimate, traced_terms

    traced = trace_for_estimate(resolved, None if device is None else device.compute_capability, on_progress)
    estimate = Estimate(
        source="trace",
        recipe=resolved.recipe,
        parameters=traced.parameters,
        states=traced_terms(resolved, traced),
        memory=traced.memory,
        warnings=traced.warnings,
    )
    if device is None:
        return estimate
    answer, margin = hold_against(traced.memory, device.memory_bytes)
    return replace(
        estimate,
        gpu=device.name,
        gpu_memory_bytes=device.memory_bytes,
        gpu_usable_bytes=device.usable_bytes,
        verdict=answer,
        fits=answer == "fits",
        margin_bytes=margin,
        max_position_embeddings=resolved.spec.max_position_embeddings or None,
    )
