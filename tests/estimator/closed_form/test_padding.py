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
