"""The first of the three answers: what a recipe takes, worked out in milliseconds."""

from __future__ import annotations

from msgspec import Struct

from lorabench.estimator.breakdown import Breakdown, ParameterCounts
from lorabench.estimator.devices import Device
from lorabench.estimator.errors import UserError
from lorabench.estimator.memory import estimate_memory
from lorabench.estimator.models import ModelSpec
from lorabench.estimator.parameters import adapted_experts, count_parameters
from lorabench.estimator.recipes import Recipe
from lorabench.estimator.states import Term, states


class Estimate(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a recipe takes on one GPU."""

    recipe: Recipe
    parameters: ParameterCounts
    states: tuple[Term, ...]
    """What is held for the whole training (gradients: from backward on), as products of elements and bytes."""
    memory: Breakdown
    """At the peak of a steady training step."""
    gpu: str | None = None
    gpu_memory_bytes: int | None = None
    fits: bool | None = None
    """Whether the device total is within the GPU's memory; None without a GPU."""
    margin_bytes: int | None = None
    """What is left of the GPU's memory; negative where it does not fit."""


def estimate_recipe(spec: ModelSpec, recipe: Recipe, device: Device | None = None) -> Estimate:
    """Return the estimate of ``recipe`` on ``spec``, held against ``device`` if one is given.

    Raises:
        UserError: the model lacks the recipe's target modules, cannot take sequences as long as the recipe's, or has
            no closed form for a combination of options.
    """
    refuse_impossible(spec, recipe)
    memory = estimate_memory(spec, recipe)
    estimate = Estimate(
        recipe=recipe,
        parameters=count_parameters(spec, recipe),
        states=states(spec, recipe, "cuda").terms,
        memory=memory,
    )
    if device is None:
        return estimate
    assert memory.device_total_bytes is not None
    from msgspec.structs import replace

    return replace(
        estimate,
        gpu=device.name,
        gpu_memory_bytes=device.memory_bytes,
        fits=memory.device_total_bytes <= device.memory_bytes,
        margin_bytes=device.memory_bytes - memory.device_total_bytes,
    )


def refuse_impossible(spec: ModelSpec, recipe: Recipe) -> None:
    """Refuse a recipe that transformers and peft cannot run on the model.

    Raises:
        UserError: learned positions that end before the sequence does; attention scores that no sdpa kernel caps;
            flash attention in float32; dropout on adapters of experts.
    """
    if spec.model_type == "gpt2" and recipe.seq_len > spec.max_position_embeddings:
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
    if recipe.lora_dropout and any(True for _ in adapted_experts(spec, recipe)):
        raise UserError(
            f"lora_dropout {recipe.lora_dropout:g}: peft has no dropout for adapters of fused experts, which "
            f"{spec.name} has: use --lora-dropout 0, or --target-modules attention"
        )
