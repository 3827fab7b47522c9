"""What share of a GPU's peak a step makes up, compared with the arithmetic that everybody quotes."""

from __future__ import annotations

import pytest

from lorabench.bench.measuring.utilisation import utilisation
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe

H100 = "NVIDIA H100 80GB HBM3"  # as its driver has it
BFLOAT16_PEAK = 989.5e12
SPEC = find_model("meta-llama/Llama-3.1-8B")
PRODUCTS = 8_030_261_248 - 128_256 * 4096  # weights that take part in products: all but the embedding's table


@pytest.mark.parametrize(("method", "passes"), [("full", 6), ("lora", 4)])
def test_full_training_takes_six_operations_a_weight_and_token_and_lora_four(method: str, passes: int) -> None:
    """Attention adds 32 layers · 2 products · 2 · 4096 · half of 512 positions, three times."""
    recipe = make_recipe(SPEC.name, method=method, seq_len=512, gradient_checkpointing=False)
    used = utilisation(ResolvedRecipe(SPEC, recipe), H100, 0.1)
    per_token = passes * PRODUCTS + 3 * 32 * 2 * 2 * 4096 * 256
    adapters = 6 * 41_943_040 if method == "lora" else 0
    assert used.mfu == pytest.approx((per_token + adapters) * 512 / 0.1 / BFLOAT16_PEAK, rel=0.01)


def test_recomputation_counts_for_the_hardware_alone() -> None:
    plain, again = (
        utilisation(ResolvedRecipe(SPEC, make_recipe(SPEC.name, gradient_checkpointing=checkpointing)), H100, 1.0)
        for checkpointing in (False, True)
    )
    assert plain.mfu is not None
    assert plain.hfu is not None
    assert again.hfu is not None
    assert again.mfu == plain.mfu
    assert again.hfu > 1.3 * plain.hfu  # LoRA: a third pass over frozen layers beside two


def test_accumulated_batches_add_up() -> None:
    one, four = (
        utilisation(ResolvedRecipe(SPEC, make_recipe(SPEC.name, gradient_accumulation=n)), H100, 1.0) for n in (1, 4)
    )
    assert one.mfu is not None
    assert four.mfu == pytest.approx(4 * one.mfu)


@pytest.mark.parametrize("device", [None, "Unheard-of GPU"])
def test_of_a_device_without_known_rates_nothing_is_said(device: str | None) -> None:
    assert utilisation(ResolvedRecipe(SPEC, make_recipe(SPEC.name)), device, 1.0) == (None, None)


def test_a_gpu_without_units_for_the_dtype_has_no_peak_for_it() -> None:
    assert utilisation(ResolvedRecipe(SPEC, make_recipe(SPEC.name)), "Tesla T4", 1.0) == (None, None)
    assert (
        utilisation(ResolvedRecipe(SPEC, make_recipe(SPEC.name, mixed_precision="fp16")), "Tesla T4", 1.0).mfu
        is not None
    )
