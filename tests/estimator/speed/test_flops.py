"""The arithmetic of a step, against torch's own count of a real step and against formulas on paper."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lorabench.estimator.devices.device import find_device
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.recipes.recipe import Recipe, make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.speed.flops import step_flops
from lorabench.estimator.speed.throughput import estimate_throughput
from lorabench.estimator.training.model import build_model
from lorabench.estimator.training.optimizer import make_optimizer
from lorabench.estimator.training.step import TrainingStep
from tests.small_models import FAMILIES, MIXTURES, small_model

pytestmark = pytest.mark.filterwarnings("ignore")


def counted_by_torch(resolved: ResolvedRecipe) -> int:
    """Return the operations of the matrix products of a step that really runs.

    Angles of rotary tables are left out: older transformers, such as 5.17, take a product of matrices for them.
    """
    recipe = resolved.recipe
    model = build_model(resolved, "cpu", seed=0)
    step = TrainingStep(model, make_optimizer(model, recipe), recipe)
    tokens = torch.randint(0, resolved.spec.vocab_size, (recipe.batch_size, recipe.seq_len))
    with FlopCounterMode(display=False) as counter:
        step([{"input_ids": tokens, "labels": tokens}] * recipe.gradient_accumulation)
    counts = counter.get_flop_counts()
    angles = sum(sum(found.values()) for module, found in counts.items() if module.endswith("rotary_emb"))
    return int(counter.get_total_flops()) - angles


SETTINGS: list[dict[str, Any]] = [
    {"method": "full", "gradient_checkpointing": False},
    {"method": "full", "gradient_checkpointing": True},
    {"method": "full", "use_reentrant": True},
    {"method": "lora", "gradient_checkpointing": True, "gradient_accumulation": 2, "batch_size": 1},
    {"method": "lora", "gradient_checkpointing": False, "target_modules": "attention"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(map(str, settings.values())))
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in MIXTURES])
def test_a_step_does_the_products_that_torch_counts(family: str, settings: dict[str, Any]) -> None:
    spec = small_model(family)
    options = {"batch_size": 2, "seq_len": 48, "attn_implementation": "eager", "mixed_precision": "no"} | settings
    recipe = make_recipe(spec.name, dtype="float32", **options)
    assert step_flops(ResolvedRecipe(spec, recipe)).hardware == counted_by_torch(ResolvedRecipe(spec, recipe))


@pytest.mark.parametrize("family", FAMILIES)
def test_qlora_does_the_products_of_lora(family: str) -> None:
    spec = small_model(family)
    lora, qlora = (make_recipe(spec.name, method=method, target_modules="attention") for method in ("lora", "qlora"))
    assert step_flops(ResolvedRecipe(spec, qlora)) == step_flops(ResolvedRecipe(spec, lora))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_fused_loss_does_the_products_of_the_other(method: str) -> None:
    spec = small_model("llama", vocab_size=4096)
    standard, liger = (make_recipe(spec.name, method=method, loss=loss, seq_len=512) for loss in ("standard", "liger"))
    assert step_flops(ResolvedRecipe(spec, liger)) == step_flops(ResolvedRecipe(spec, standard))


@pytest.mark.parametrize("family", MIXTURES)
def test_only_the_experts_that_a_token_is_sent_to_count(family: str) -> None:
    few, many = (
        small_model(family, **{key: count for key in ("num_experts", "num_local_experts") if key in FAMILIES[family]})
        for count in (4, 8)
    )
    recipe = make_recipe("small", method="full", seq_len=64)
    router = 3 * 2 * few.hidden_size * few.num_hidden_layers * recipe.tokens * (8 - 4)
    assert step_flops(ResolvedRecipe(many, recipe)).model - step_flops(ResolvedRecipe(few, recipe)).model == router
    one, two = (small_model(family, num_experts_per_tok=chosen) for chosen in (1, 2))
    inner = one.config.get("moe_intermediate_size") or one.intermediate_size
    expert = 3 * 2 * 3 * one.hidden_size * inner * one.num_hidden_layers * recipe.tokens
    assert step_flops(ResolvedRecipe(two, recipe)).model - step_flops(ResolvedRecipe(one, recipe)).model == expert


LLAMA, MISTRAL = "meta-llama/Llama-3.1-8B", "mistralai/Mistral-7B-v0.1"
LENGTH = 4096


def options(method: str, **more: Any) -> Recipe:
    return make_recipe(MISTRAL, method=method, seq_len=LENGTH, attn_implementation="flash_attention_2", **more)


def on_paper() -> tuple[float, float]:
    """Return 2 · (weights of all products of Mistral-7B) and its attention's forward, per token."""
    layer = 4096 * (4096 + 1024 + 1024 + 4096) + 3 * 4096 * 14336
    weights = 32 * layer + 4096 * 32000
    attention = 32 * 2 * 2 * 4096 * (LENGTH + 1) / 2
    return 2 * weights, attention


def test_full_fine_tuning_is_three_times_the_forward_pass() -> None:
    linear, attention = on_paper()
    recipe = options("full")
    assert step_flops(ResolvedRecipe(find_model(MISTRAL), recipe)).model == pytest.approx(
        3 * (linear + attention) * LENGTH, rel=1e-6
    )


def test_lora_needs_no_gradients_of_weights_but_its_own() -> None:
    linear, attention = on_paper()
    rank = 16
    adapters = 2 * rank * 32 * (4096 + 4096 + 2 * (4096 + 1024) + 4096 + 4096)
    recipe = options("lora", rank=rank, target_modules="attention")
    needed = step_flops(ResolvedRecipe(find_model(MISTRAL), recipe)).model / LENGTH
    # Of the first layer, the inputs of q, k and v need no gradient.
    spared = 2 * 4096 * (4096 + 1024 + 1024 + 3 * rank)
    assert needed == pytest.approx(2 * linear + 3 * attention + 3 * adapters - spared, rel=1e-6)


def test_llama_3_1_8b_with_lora_and_checkpointing_does_what_is_on_paper() -> None:
    """Per token: 2 operations a weight forward, 2 for its input's gradient, 2 more where it trains; recomputed: 2."""
    layer = 4096 * (4096 + 1024 + 1024 + 4096) + 3 * 4096 * 14336
    head = 4096 * 128256
    rank, length = 16, 2048
    adapters = rank * ((4096 + 4096) * 2 + (4096 + 1024) * 2 + (4096 + 14336) * 3)
    attention = 2 * 4096 * (length + 1) / 2  # of one product: queries by keys, or what they weigh by values
    forward = 32 * (2 * (layer + adapters) + 2 * attention) + 2 * head
    backward = 32 * (2 * layer + 4 * adapters + 4 * attention) + 2 * head
    # Of the first layer, the inputs of q, k and v need no gradient.
    spared = 2 * (4096 * (4096 + 1024 + 1024) + 3 * rank * 4096)
    # Recomputed is a layer but for its last product, down_proj's lora_B; and backward works the scores out once more.
    again = 32 * (2 * (layer + adapters - rank * 4096) + 2 * attention + attention)
    flops = step_flops(ResolvedRecipe(find_model(LLAMA), make_recipe(LLAMA, method="lora", rank=rank, seq_len=length)))
    assert flops.model == pytest.approx((forward + backward - spared) * length, rel=1e-9)
    assert flops.hardware == pytest.approx((forward + backward + again) * length, rel=1e-9)


def test_mfu_is_palm_s_but_for_what_tokens_do_not_see() -> None:
    """PaLM, appendix B: tokens per second · (6 · N + 12 · L · H · Q · T) / peak, over all pairs of T tokens."""
    gpu, spec = find_device("a100-sxm-80gb"), find_model(MISTRAL)
    speed = estimate_throughput(ResolvedRecipe(spec, options("full")), gpu)
    assert speed is not None
    multiplied = 7_241_732_096 - 32000 * 4096 - 65 * 4096  # all but the embedding, which is looked up, and norms
    attention = 12 * 32 * 32 * 128 * LENGTH
    seen = (LENGTH + 1) / 2 / LENGTH
    assert speed.mfu == pytest.approx(speed.tokens_per_second * (6 * multiplied + seen * attention) / 312e12, rel=1e-9)


def test_checkpointing_changes_what_is_done_but_not_what_is_needed() -> None:
    spec = find_model(MISTRAL)
    plain, checkpointed = (
        step_flops(ResolvedRecipe(spec, options("full", gradient_checkpointing=checkpointing)))
        for checkpointing in (False, True)
    )
    assert plain.model == checkpointed.model
    # Recomputed is a layer's forward but for its last product, whose result backward has no use for.
    layer = 4096 * (4096 + 1024 + 1024 + 4096) + 2 * 4096 * 14336
    attention = on_paper()[1]
    assert checkpointed.hardware - plain.hardware == pytest.approx((32 * 2 * layer + attention) * LENGTH, rel=1e-6)


def test_reentrant_checkpointing_runs_the_last_product_of_a_layer_again_too() -> None:
    spec = find_model(MISTRAL)
    usual, reentrant = (
        step_flops(ResolvedRecipe(spec, options("full", use_reentrant=use_reentrant)))
        for use_reentrant in (False, True)
    )
    assert usual.model == reentrant.model
    down = 2 * 4096 * 14336
    assert reentrant.hardware - usual.hardware == pytest.approx(32 * down * LENGTH, rel=1e-9)


def test_flash_attention_skips_what_lies_before_the_window() -> None:
    spec = small_model("mistral", sliding_window=1024)
    recipes = [
        make_recipe(spec.name, seq_len=4096, attn_implementation=attention, gradient_checkpointing=False)
        for attention in ("flash_attention_2", "sdpa", "eager")
    ]
    flash, sdpa, eager = (step_flops(ResolvedRecipe(spec, recipe)) for recipe in recipes)
    assert flash.model == sdpa.model == eager.model
    assert flash.hardware < sdpa.hardware
    seen = sum(min(position, 1024) for position in range(1, 4097))
    width = spec.num_attention_heads * spec.head_dim
    pairs = spec.num_hidden_layers * 2 * width * (4096 * 4096 - seen)
    assert sdpa.hardware - flash.hardware == pytest.approx((2 + 5) * pairs)
    assert sdpa.hardware - eager.hardware == pytest.approx(spec.num_hidden_layers * 2 * width * 4096 * 4096)
