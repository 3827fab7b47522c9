"""Check whether a model can run a recipe, and warn of unusual settings."""

from __future__ import annotations

from collections.abc import Iterator

from lorabench.estimator.dtypes import DTYPES
from lorabench.estimator.errors import UserError
from lorabench.estimator.models.read_config import has_closed_form
from lorabench.estimator.obstacle import Obstacle
from lorabench.estimator.optimizers.table import OPTIMIZERS
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.recipes.target_modules import warn_of_unmatched


def recipe_warnings(resolved: ResolvedRecipe) -> tuple[str, ...]:
    """Return warnings about a recipe that runs on its model, but is unusual."""
    spec, recipe = resolved.spec, resolved.recipe
    warnings = []
    longest = spec.max_position_embeddings
    if 0 < longest < recipe.seq_len:
        warnings.append(
            f"seq_len {recipe.seq_len} is longer than the {longest} positions that {spec.name} was made for: it runs, "
            "but may not learn well beyond them"
        )
    if recipe.quantization is not None:
        left = sum(count * linear.in_features * linear.out_features for linear, count in spec.unquantizable)
        if left:
            names = {linear.name.rpartition(".")[2]: None for linear, _ in spec.unquantizable}
            warnings.append(
                f"{recipe.method} leaves {left:,} of {spec.parameters:,} base weights in {recipe.unquantized_dtype}: "
                f"transformers 5 does not let bitsandbytes replace {', '.join(names)}"
            )
        experts = sum(group.count * weight.parameters for group in spec.layers for weight in group.experts)
        if experts:
            warnings.append(
                f"{recipe.method} leaves {experts:,} of {spec.parameters:,} base weights in "
                f"{recipe.unquantized_dtype}: "
                "transformers 5 keeps experts and routers as parameters, and bitsandbytes quantises linear layers only"
            )
    if recipe.adapter is not None:
        if has_closed_form(spec):  # other models' adapted layers are known only from a trace
            warnings += recipe.adapter.warnings([linear for linear, _ in resolved.adapted_linears])
        warnings += warn_of_unmatched(spec, recipe.adapter)
    return tuple(warnings)


def refuse_impossible(resolved: ResolvedRecipe) -> None:
    """Refuse a recipe that transformers and peft cannot run on its model.

    Raises:
        UserError: the sequence is longer than the learned positions; sdpa cannot run the model's attention; flash
            attention would run in float32; autocast would meet a dtype that it refuses; Liger has no fused loss for the
            model; adapters of experts have dropout.
    """
    for obstacle in obstacles(resolved):
        value = resolved.recipe.describe().get(obstacle.setting, "left out")
        raise UserError(f"{obstacle.setting} {value}: {obstacle.why}: use {obstacle.remedy}")


def obstacles(resolved: ResolvedRecipe) -> Iterator[Obstacle]:
    """Yield one obstacle for each setting that the model cannot run."""
    spec, recipe = resolved.spec, resolved.recipe
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
            f"{spec.name} caps its attention scores, which sdpa does not support",
            "--attn-implementation eager or flash_attention_2",
            # The default since transformers 4.45 (pull request 32865). flash_attention_2 needs another package.
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
    in_4_bits = recipe.quantization is not None and recipe.unquantized_dtype == "bfloat16"
    if in_4_bits and recipe.mixed_precision == "fp16" and not spec.learned_positions:
        yield Obstacle(
            "dtype",
            "4-bit layers return the dtype of their input, and autocast to float16 refuses to concatenate bfloat16 in "
            "the rotary embedding",
            "--dtype float16 or --mixed-precision bf16",
            {"dtype": "float16"},
        )
    fused = recipe.fused_loss
    if fused is not None and not fused.replaces_that_of(spec.model_type):
        yield Obstacle(
            "loss",
            f"{fused.title} has no fused loss for {spec.name}, whose model_type is {spec.model_type}",
            "--loss standard",
        )
    if recipe.loss == "cut-cross-entropy" and recipe.dtype_of(spec.head.name) == "float32":
        yield Obstacle(
            "loss",
            "its kernels take a head in 16 bits, and this one is in float32",
            "--dtype bfloat16 without --prepare-kbit, or another loss",
        )
    compared = recipe.rules.model_types
    if recipe.transformers is not None and spec.model_type not in compared:
        yield Obstacle(
            "transformers",
            f"it was compared with rehearsals for {', '.join(sorted(compared))} only, and {spec.name} is a "
            f"{spec.model_type}",
            "--transformers 5",
        )
    window = spec.config.get("sliding_window") or 0
    masked = recipe.attn_implementation != "flash_attention_2"
    if recipe.transformers is not None and masked and 0 < window <= recipe.seq_len:
        yield Obstacle(
            "transformers",
            f"older series make other masks if a sequence fills the sliding window of {spec.name}",
            f"--seq-len {window - 1} or less, or --attn-implementation flash_attention_2",
        )
    of_adapter = () if recipe.adapter is None else tuple(recipe.adapter.obstacles(spec))
    yield from of_adapter
    optimizer = OPTIMIZERS[recipe.optim]
    if of_adapter or len(optimizer.dtypes) == len(DTYPES) or not has_closed_form(spec):
        return  # the optimizer supports all dtypes, or the trained tensors are not known
    refused = (group.dtype for group in resolved.trained_tensors if not optimizer.steps(group))
    dtype = next(refused, None)
    if dtype is not None:
        yield Obstacle(
            "optim",
            f"{optimizer.library.package} has no kernel for 32-bit states of {dtype} weights",
            "another optimizer, such as --optim rmsprop, or train float32 weights",
        )
