"""Which recipes a model can run at all, and what is odd about one that it can."""

from __future__ import annotations

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
