"""The first of the three answers: what a recipe takes, worked out in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from lorabench.estimator.answers.support import emulated, refuse_lacking
from lorabench.estimator.architectures import MODEL_TYPES
from lorabench.estimator.devices.device import Device
from lorabench.estimator.errors import UserError
from lorabench.estimator.memory.breakdown import Breakdown, ParameterCounts
from lorabench.estimator.memory.estimate import estimate_memory
from lorabench.estimator.memory.fused_loss import FUSED_LOSS_MODEL_TYPES
from lorabench.estimator.memory.states import Term, states
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.recipes.parameters import adapted_experts, adapted_linears, count_parameters, stacked_experts
from lorabench.estimator.recipes.recipe import Recipe
from lorabench.estimator.speed.calibrations import Calibration
from lorabench.estimator.speed.throughput import Throughput, estimate_throughput

Answer = Literal["fits", "tight", "does not fit"]
Source = Literal["closed form", "trace"]


class Change(Struct, frozen=True, kw_only=True):
    """One or two changes with which a recipe fits."""

    settings: dict[str, Any]
    """What to set, by the recipe's name of it (or the environment variable's), and to what."""
    device_total_most_bytes: int
    """The upper end of the device total with them."""


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
    warnings: tuple[str, ...] = ()
    """What is odd about the recipe, though it runs."""
    gpu: str | None = None
    gpu_memory_bytes: int | None = None
    gpu_usable_bytes: int | None = None
    """What a process can use of it: all but what the driver keeps."""
    verdict: Answer | None = None
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
    spec: ModelSpec,
    recipe: Recipe,
    device: Device | None = None,
    calibration: Calibration | None = None,
    on_progress: Callable[[str], None] = lambda what: None,
) -> Estimate:
    """Return the estimate of ``recipe`` on ``spec``, held against ``device`` if one is given.

    Its speed is at the rates of ``calibration``, or else of the device's datasheet. An architecture that has no closed
    form is traced, which takes some seconds: ``on_progress`` is told what is being done.

    Raises:
        UserError: the model lacks the recipe's target modules, or cannot take sequences as long as the recipe's; the
            device lacks what the recipe runs on; the model has no closed form, and cannot be traced or not here.
    """
    refuse_impossible(spec, recipe)
    if device is not None:
        refuse_lacking(recipe, device)
    if not has_closed_form(spec):
        return _estimate_by_trace(spec, recipe, device, on_progress)
    memory = estimate_memory(spec, recipe, architecture=None if device is None else device.architecture)
    estimate = Estimate(
        source="closed form",
        recipe=recipe,
        parameters=count_parameters(spec, recipe),
        states=states(spec, recipe, "cuda").terms,
        memory=memory,
        warnings=recipe_warnings(spec, recipe),
    )
    if device is None:
        return estimate
    from lorabench.estimator.answers.verdict import judge

    verdict = judge(spec, recipe, memory, device)
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
        throughput=estimate_throughput(spec, recipe, device, calibration),
        emulated_dtype=emulated(recipe, device),
    )


def has_closed_form(spec: ModelSpec) -> bool:
    """Return whether the memory and the speed of ``spec``'s architecture are worked out without torch."""
    return spec.model_type in MODEL_TYPES


def _estimate_by_trace(
    spec: ModelSpec, recipe: Recipe, device: Device | None, on_progress: Callable[[str], None]
) -> Estimate:
    from lorabench.estimator.answers.traced_estimates import trace_for_estimate, traced_terms
    from lorabench.estimator.answers.verdict import hold_against

    traced = trace_for_estimate(spec, recipe, None if device is None else device.architecture, on_progress)
    estimate = Estimate(
        source="trace",
        recipe=recipe,
        parameters=traced.parameters,
        states=traced_terms(spec, traced),
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
        max_position_embeddings=spec.max_position_embeddings or None,
    )


def recipe_warnings(spec: ModelSpec, recipe: Recipe) -> tuple[str, ...]:
    """Return what is odd about ``recipe`` on ``spec``, though it runs."""
    warnings = []
    longest = spec.max_position_embeddings
    if 0 < longest < recipe.seq_len:
        warnings.append(
            f"seq_len {recipe.seq_len} is longer than the {longest} positions that {spec.name} was made for: it runs, "
            "but may not learn well there"
        )
    if recipe.method == "qlora":
        experts = sum(group.count * weight.parameters for group in spec.layers for weight in stacked_experts(group))
        if experts:
            warnings.append(
                f"qlora leaves {experts:,} of {spec.parameters:,} base weights in {recipe.unquantized_dtype}: "
                "transformers 5 keeps experts and routers as parameters, and bitsandbytes quantises linear layers only"
            )
    full_ranks = _full_ranks(spec, recipe)
    reached = {name: full for name, full in full_ranks.items() if full <= (recipe.rank or 0)}
    if reached:
        which = "any matrix that it adapts" if reached == full_ranks else ", ".join(reached)
        warnings.append(
            f"rank {recipe.rank} is not low for {which}, whose full rank is {max(reached.values())} at most: such an "
            "adapter has more parameters than the matrix itself"
        )
    return tuple(warnings)


def _full_ranks(spec: ModelSpec, recipe: Recipe) -> dict[str, int]:
    """Return the full rank of each linear layer that gets an adapter; none where they are not known without a trace."""
    if not has_closed_form(spec):
        return {}
    return {linear.name: min(linear.in_features, linear.out_features) for linear, _ in adapted_linears(spec, recipe)}


def refuse_impossible(spec: ModelSpec, recipe: Recipe) -> None:
    """Refuse a recipe that transformers and peft cannot run on the model.

    Raises:
        UserError: learned positions that end before the sequence does; attention scores that no sdpa kernel caps;
            flash attention in float32; a model that Liger has no fused loss for; dropout on adapters of experts.
    """
    if spec.learned_positions and 0 < spec.max_position_embeddings < recipe.seq_len:
        raise UserError(
            f"seq_len {recipe.seq_len}: {spec.name} has learned positions for {spec.max_position_embeddings} tokens: "
            f"use --seq-len {spec.max_position_embeddings} or less"
        )
    if spec.model_type == "gemma2" and recipe.attn_implementation == "sdpa":
        raise UserError(
            f"attn_implementation sdpa: {spec.name} caps its attention scores, which sdpa cannot: "
            "use --attn-implementation eager or flash_attention_2"
        )
    if recipe.attn_implementation == "flash_attention_2" and recipe.compute_dtype == "float32":
        raise UserError(
            "attn_implementation flash_attention_2 runs in 16 bits only, and this recipe computes in float32: "
            "use --mixed-precision bf16, --dtype bfloat16 or --attn-implementation sdpa"
        )
    if recipe.loss == "liger" and spec.model_type not in FUSED_LOSS_MODEL_TYPES:
        raise UserError(
            f"loss liger: Liger has no fused loss for {spec.name}, whose model_type is {spec.model_type}: "
            "use --loss standard"
        )
    if recipe.lora_dropout and has_closed_form(spec) and any(True for _ in adapted_experts(spec, recipe)):
        raise UserError(
            f"lora_dropout {recipe.lora_dropout:g}: peft has no dropout for adapters of fused experts, which "
            f"{spec.name} has: use --lora-dropout 0, or --target-modules attention"
        )
