"""Estimate memory, verdict and speed of one recipe.

What only an estimate for a GPU needs is imported for such an estimate: its modules take as long as the closed form.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from msgspec import Struct
from msgspec.structs import replace

from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.closed_form.replay import Training, warn_of_no_replay
from lorabench.estimator.errors import NoClosedForm
from lorabench.estimator.imported.reading import Imported
from lorabench.estimator.memory.allocator_settings import DEFAULTS, AllocatorSettings
from lorabench.estimator.memory.breakdown import Breakdown
from lorabench.estimator.memory.states import Term, states
from lorabench.estimator.models.read_config import has_closed_form
from lorabench.estimator.recipes.feasibility import recipe_warnings, refuse_impossible
from lorabench.estimator.recipes.parameters import ParameterCounts
from lorabench.estimator.recipes.recipe import Recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe

if TYPE_CHECKING:
    from lorabench.estimator.answers.verdict import Change, Fit
    from lorabench.estimator.devices.device import Device
    from lorabench.estimator.speed.calibrations import Calibration
    from lorabench.estimator.speed.throughput import Throughput

Source = Literal["closed form", "trace"]


class Estimate(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Memory and speed of a recipe on one GPU."""

    source: Source
    """Source of the memory: the trace for architectures without a closed form. A trace has no speed and no search for
    settings that fit, since each try would need another trace."""
    recipe: Recipe
    parameters: ParameterCounts
    states: tuple[Term, ...]
    """Persistent memory as products of elements and bytes. The list includes gradients, although they exist only from
    backward on."""
    memory: Breakdown
    """Memory at the peak of a steady training step."""
    assumptions: tuple[str, ...] = ()
    """Choices of model, recipe and GPU that the user did not make and that are not defaults, with reasons."""
    warnings: tuple[str, ...] = ()
    """Warnings about a recipe that runs, but is unusual."""
    gpu: str | None = None
    gpu_memory_bytes: int | None = None
    gpu_usable_bytes: int | None = None
    """Memory that a process can use: all but the driver's share."""
    verdict: Fit | None = None
    """fits, tight or does not fit; None without a GPU, like all fields below. By a replay of the allocator: the steps
    run with the largest CUDA context, only with the smallest, or with neither. By ranges: the upper end of the device
    total is within the usable bytes, only the point estimate is within the GPU's memory, or neither is."""
    fits: bool | None = None
    """Whether the verdict is ``fits``."""
    margin_bytes: int | None = None
    """Usable bytes minus the upper end of the device total; negative if it is larger. 0 if the recipe fits only because
    the allocator gives cached segments back."""
    largest_batch_size: int | None = None
    """Largest batch size that fits at the recipe's length; None if 1 does not fit, and with a trace."""
    longest_seq_len: int | None = None
    """Longest sequence that fits at the recipe's batch size: the model's ``max_position_embeddings`` or a multiple of
    128. None if no length fits, and with a trace."""
    max_position_embeddings: int | None = None
    """Longest sequence that the model supports."""
    changes: tuple[Change, ...] = ()
    """Changes that make it fit, the least intrusive first. Empty if it fits, if no two changes suffice, and with a
    trace."""
    throughput: Throughput | None = None
    """Training speed if it fits; None if the GPU's rates are unknown."""
    emulated_dtype: str = ""
    """The recipe's dtype that the GPU does not support, so that PyTorch computes in float32; "" if it supports all."""
    imported: Imported | None = None
    """What became of the config of another tool; None without one."""


def estimate_recipe(
    resolved: ResolvedRecipe,
    device: Device | None = None,
    calibration: Calibration | None = None,
    on_progress: Callable[[str], None] = lambda what: None,
    *,
    replay: bool = False,
    allocator: AllocatorSettings = DEFAULTS,
) -> Estimate:
    """Return the estimate of the recipe on its model, compared with ``device`` if one is given.

    ``replay``: replay CUDA's caching allocator over whole steps, which takes some tenths of a second. Then allocated
    and reserved bytes are those that torch counts, and the verdict is the allocator's. Without it, allocated bytes are
    the tensors', and reserved bytes have a range. Some models are not replayed (`is_replayed`); a warning says so.
    ``allocator``: the settings of that allocator. Without a replay they change nothing, and a warning says so.

    The speed uses the rates of ``calibration``, or else of the device's datasheet. An architecture without a closed
    form is traced, which takes some seconds. ``on_progress`` is called with each stage. The estimate has the
    assumptions of the recipe and of the device.

    Raises:
        UserError: the model lacks the target modules or supports only shorter sequences; the device does not support
            the recipe; the model has no closed form and cannot be traced here; the settings of the allocator need a
            device.
    """
    spec, recipe = resolved.spec, resolved.recipe
    refuse_impossible(resolved)
    assumptions = resolved.assumptions
    if device is not None:
        from lorabench.estimator.answers.support import refuse_lacking

        refuse_lacking(recipe, device)
        assumptions = (*assumptions, *device.assumptions)
    allocator = allocator.on(None if device is None else device.usable_bytes)
    if has_closed_form(spec):
        with suppress(NoClosedForm):
            return _estimate_by_closed_form(resolved, device, calibration, on_progress, assumptions, replay, allocator)
    traced = _estimate_by_trace(resolved, device, on_progress, allocator)
    return replace(traced, assumptions=assumptions, warnings=(*traced.warnings, *allocator.warnings()))


def with_training(estimate: Estimate, tokens: int | None, price_per_hour: float | None = None) -> Estimate:
    """Return ``estimate`` with time and cost of a training on ``tokens``, if there are any and the speed is known.

    Raises:
        UserError: as in `plan_training`.
    """
    if tokens is None or estimate.throughput is None:
        return estimate
    from lorabench.estimator.speed.throughput import plan_training

    return replace(estimate, throughput=plan_training(estimate.throughput, tokens, price_per_hour))


def _estimate_by_closed_form(
    resolved: ResolvedRecipe,
    device: Device | None,
    calibration: Calibration | None,
    on_progress: Callable[[str], None],
    assumptions: tuple[str, ...],
    replay: bool,
    allocator: AllocatorSettings,
) -> Estimate:
    spec, recipe = resolved.spec, resolved.recipe
    capability = None if device is None else device.compute_capability
    unreplayed = warn_of_no_replay(spec) if replay else ()
    replay = replay and not unreplayed
    if replay:
        on_progress("replaying the allocator")
        multiprocessors = None if device is None else device.multiprocessors
        training = Training(resolved, capability, multiprocessors)
        memory = training.memory(allocator)
        warnings = allocator.warnings()
    else:
        training = None
        memory = estimate_memory(resolved, compute_capability=capability)
        warnings = (*unreplayed, *allocator.unheeded())
    estimate = Estimate(
        source="closed form",
        recipe=recipe,
        parameters=resolved.parameters,
        states=states(resolved, "cuda").terms,
        memory=memory,
        assumptions=assumptions,
        warnings=(*recipe_warnings(resolved), *warnings),
    )
    if device is None:
        return estimate
    from lorabench.estimator.answers.support import emulated
    from lorabench.estimator.answers.verdict import judge
    from lorabench.estimator.speed.throughput import estimate_throughput

    on_progress("searching for settings that fit")
    verdict = judge(resolved, memory, device, training, allocator=allocator if replay else DEFAULTS)
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
        max_position_embeddings=spec.max_position_embeddings or None,
        changes=verdict.changes,
        throughput=estimate_throughput(resolved, device, calibration),
        emulated_dtype=emulated(recipe, device),
    )


def _estimate_by_trace(
    resolved: ResolvedRecipe,
    device: Device | None,
    on_progress: Callable[[str], None],
    allocator: AllocatorSettings,
) -> Estimate:
    from lorabench.estimator.answers.traced_estimates import trace_for_estimate, traced_terms

    capability = None if device is None else device.compute_capability
    multiprocessors = None if device is None else device.multiprocessors
    traced = trace_for_estimate(resolved, capability, multiprocessors, on_progress, allocator=allocator)
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
    from lorabench.estimator.answers.verdict import verdict_and_margin

    answer, margin = verdict_and_margin(traced.memory, device.memory_bytes)
    reserved = traced.memory.peak_reserved_bytes
    if allocator.limit is not None and reserved is not None and reserved > allocator.limit:
        answer, margin = "does not fit", min(margin, allocator.limit - reserved)
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
