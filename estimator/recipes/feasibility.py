"""Which recipes a model can run at all, and what is odd about one that it can."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from lorabench.estimator.errors import UserError
from lorabench.estimator.models.read_config import MODEL_TYPES
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.recipes.parameters import adapted_experts, adapted_linears, stacked_experts
from lorabench.estimator.recipes.recipe import Recipe

FUSED_LOSS_MODEL_TYPES = frozenset(
    {
        "deepseek_v3",
        "exaone4",
        "gemma",
        "gemma2",
        "gemma3_text",
        "glm4",
        "gpt_oss",
        "llama",
        "ministral",
        "mistral",
        "mixtral",
        "nemotron",
        "olmo2",
        "olmo3",
        "phi3",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "qwen3_next",
        "smollm3",
    }
)
"""Causal language models whose loss Liger replaces; of any other it leaves the logits as they are."""


def has_closed_form(spec: ModelSpec) -> bool:
    """Return whether the memory and the speed of ``spec``'s architecture are worked out without torch."""
    return spec.model_type in MODEL_TYPES


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


class Obstacle(NamedTuple):
    """A reason why transformers and peft cannot run a recipe on a model."""

    setting: str
    why: str
    mend: str
    """What to ask for instead, as people write it."""
    instead: Mapping[str, Any] = {}
    """Setting → what people run who do not ask for it; of several, the first that was not asked for is enough."""


def refuse_impossible(spec: ModelSpec, recipe: Recipe) -> None:
    """Refuse a recipe that transformers and peft cannot run on the model.

    Raises:
        UserError: learned positions that end before the sequence does; attention scores that no sdpa kernel caps, or
            attention that transformers does not run through sdpa; flash attention in float32; a model that Liger has no
            fused loss for; dropout on adapters of experts.
    """
    for obstacle in obstacles(spec, recipe):
        value = recipe.describe()[obstacle.setting]
        raise UserError(f"{obstacle.setting} {value}: {obstacle.why}: use {obstacle.mend}")


def obstacles(spec: ModelSpec, recipe: Recipe) -> Iterator[Obstacle]:
    """Yield why ``recipe`` cannot run on ``spec``, one for each setting that is in the way."""
    longest = spec.max_position_embeddings
    if spec.learned_positions and 0 < longest < recipe.seq_len:
        yield Obstacle(
            "seq_len",
            f"{spec.name} has learned positions for {longest} tokens",
            f"--seq-len {longest} or less",
            {"seq_len": longest},
        )
    if spec.caps_scores and recipe.attn_implementation == "sdpa":
        yield Obstacle(
            "attn_implementation",
            f"{spec.name} caps its attention scores, which sdpa cannot",
            "--attn-implementation eager or flash_attention_2",
            # What transformers 4.45 made its default (pull request 32865); flash_attention_2 is a package more.
            {"attn_implementation": "eager"},
        )
    if not spec.has_sdpa and recipe.attn_implementation == "sdpa":
        yield Obstacle(
            "attn_implementation",
            f"transformers has no sdpa attention for model_type {spec.model_type}",
            "another, such as --attn-implementation eager",
            {"attn_implementation": "eager"},
        )
    if recipe.attn_implementation == "flash_attention_2" and recipe.compute_dtype == "float32":
        yield Obstacle(
            "attn_implementation",
            "it runs in 16 bits only, and this recipe computes in float32",
            "--mixed-precision bf16, --dtype bfloat16 or --attn-implementation sdpa",
        )
    if recipe.loss == "liger" and spec.model_type not in FUSED_LOSS_MODEL_TYPES:
        yield Obstacle(
            "loss",
            f"Liger has no fused loss for {spec.name}, whose model_type is {spec.model_type}",
            "--loss standard",
        )
    if recipe.lora_dropout and has_closed_form(spec) and any(True for _ in adapted_experts(spec, recipe)):
        yield Obstacle(
            "lora_dropout",
            f"peft has no dropout for adapters of fused experts, which {spec.name} has",
            "--lora-dropout 0, or --target-modules attention",
            # As ms-swift's example of Mixtral: of rank 16, adapters of the experts too are 26 times as many parameters.
            {"target_modules": "attention", "lora_dropout": 0.0},
        )
