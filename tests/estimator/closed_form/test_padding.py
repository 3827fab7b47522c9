"""Padded batches: attention gets a mask of each sequence, and another kernel runs."""

from __future__ import annotations

from typing import Any

import pytest

from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.errors import NoClosedForm, UserError
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.models.read_config import read_config
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from tests.replayed import assert_rehearsed, replayed_on
from tests.small_models import FAMILIES, MIXTURES, small_model
from tests.traced_tensors import traced_tensors

B, S = 3, 511


def padded(family: str, **options: Any) -> ResolvedRecipe:
    spec = small_model(family, num_hidden_layers=3, hidden_size=256)
    plain = {"lora_dropout": 0.0} if family in MIXTURES and options.get("method") != "full" else {}
    sizes = {"batch_size": B, "seq_len": S}
    return ResolvedRecipe(spec, make_recipe(spec.name, padding=True, **sizes, **plain, **options))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{"method": "full", "gradient_checkpointing": False}, {"method": "lora"}])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_closed_form_meets_the_trace(family: str, options: dict[str, Any]) -> None:
    attention = "eager" if family == "gemma2" else "sdpa"
    resolved = padded(family, attn_implementation=attention, **options)
    traced, estimated = traced_tensors(resolved), estimate_memory(resolved)
    assert estimated.peak_allocated_bytes == pytest.approx(traced.peak_allocated_bytes, rel=0.001)


def test_each_layer_saves_the_mask_that_is_added_to_its_scores() -> None:
    spec = find_model("meta-llama/Llama-3.2-1B")

    def peak(layers: int, **options: Any) -> int:
        changed = read_config({**spec.config, "num_hidden_layers": layers}, "changed")
        recipe = make_recipe("changed", gradient_checkpointing=False, batch_size=2, lora_dropout=0.0, **options)
        return estimate_memory(ResolvedRecipe(changed, recipe), compute_capability="8.0").peak_allocated_bytes

    pairs, tokens = 2 * 2048 * 2048, 2 * 2048
    heads, kv_heads, head_dim = 32, 8, 64
    # The mask that is added; keys and values of all heads instead of those of the 8 heads of keys.
    of_a_layer = 2 * pairs + 2 * 2 * tokens * (heads - kv_heads) * head_dim
    assert peak(9, padding=True) - peak(8, padding=True) - (peak(9) - peak(8)) == of_a_layer
    # The batch has a third tensor. The mask in bool is gone at the peak, since only checkpoints refer to it.
    assert peak(8, padding=True) - peak(8) == 8 * of_a_layer + 8 * tokens


def test_flash_attention_2_and_older_transformers_take_no_padding() -> None:
    with pytest.raises(UserError, match="flash_attention_2 takes the padding out"):
        make_recipe("any", padding=True, attn_implementation="flash_attention_2")
    with pytest.raises(UserError, match=r"padding makes other masks in transformers 4\.57"):
        make_recipe("any", padding=True, transformers="4.57")


def test_a_model_that_masks_its_convolutions_has_no_closed_form_of_padding() -> None:
    spec = find_model("LiquidAI/LFM2-1.2B")
    with pytest.raises(NoClosedForm, match="masks the padding before a convolution"):
        estimate_memory(ResolvedRecipe(spec, make_recipe(spec.name, padding=True)))


REHEARSED: list[tuple[str, dict[str, Any], int, int]] = [
    ("meta-llama/Llama-3.2-1B", {"batch_size": 2, "seq_len": 1024}, 5_930_529_792, 6_784_286_720),
    (
        "meta-llama/Llama-3.2-1B",
        {"batch_size": 3, "seq_len": 1000, "gradient_checkpointing": False},
        14_271_692_800,
        15_439_233_024,
    ),
    (
        "meta-llama/Llama-3.2-1B",
        {"batch_size": 1, "seq_len": 1024, "attn_implementation": "eager"},
        4_282_139_648,
        4_970_250_240,
    ),
    ("Qwen/Qwen2.5-0.5B", {"method": "full", "batch_size": 4, "seq_len": 512}, 10_264_305_664, 12_490_637_312),
    ("google/gemma-3-270m", {"method": "full", "batch_size": 2, "seq_len": 777}, 8_548_473_344, 10_791_944_192),
    ("google/gemma-2b", {"method": "qlora", "batch_size": 2, "seq_len": 1024}, 8_786_301_952, 10_223_616_000),
    ("mistralai/Mistral-7B-v0.1", {"method": "qlora", "batch_size": 2}, 7_370_073_088, 8_579_448_832),
    ("gpt2", {"method": "full", "batch_size": 4, "seq_len": 512}, 2_915_478_016, 3_690_987_520),
]
"""Model, options, and peaks of allocated and reserved bytes on a simulated A100 80GB with torch 2.13."""


@pytest.mark.parametrize(("model", "options", "allocated", "reserved"), REHEARSED)
def test_the_estimate_agrees_with_rehearsals(
    model: str, options: dict[str, Any], allocated: int, reserved: int
) -> None:
    memory = replayed_on("a100-sxm-80gb", model, padding=True, **options)
    assert_rehearsed(memory, allocated=allocated, reserved=reserved, within=(2e-4, 5e-4))
