"""The first of the three answers: what a recipe takes, worked out in milliseconds."""

from __future__ import annotations

from msgspec import Struct

from lorabench.estimator.breakdown import Breakdown, ParameterCounts
from lorabench.estimator.devices import Device
from lorabench.estimator.errors import UserError
from lorabench.estimator.memory import estimate_memory
from lorabench.estimator.models import ModelSpec
from lorabench.estimator.parameters import count_parameters
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
    """Refuse a recipe that the model cannot run.

    Raises:
        UserError: learned positions that end before the sequence does.
    """
    if spec.model_type == "gpt2" and recipe.seq_len > spec.max_position_embeddings:
        raise UserError(
            f"seq_len {recipe.seq_len}: {spec.name} has learned positions for {spec.max_position_embeddings} tokens: "
            f"use --seq-len {spec.max_position_embeddings} or less"
        )
