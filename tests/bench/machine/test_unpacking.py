"""4-bit weights that a CPU's kernel unpacks wrongly are told of, and only those."""

from __future__ import annotations

from typing import Any

import bitsandbytes
import pytest
import torch

from lorabench.bench.machine.doctor import check_quantization
from lorabench.bench.machine.doctor_probe import Probe
from lorabench.bench.machine.unpacking import columns_unpacked_wrong, complaint_about_unpacking
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from tests.small_models import TINY, small_model

KERNEL = bitsandbytes.functional.dequantize_4bit


def right(packed: torch.Tensor, state: Any) -> torch.Tensor:
    """Unpack as in one row, which every kernel does right."""
    shape, state.shape = state.shape, torch.Size([state.shape.numel()])
    unpacked: torch.Tensor = KERNEL(packed, state).reshape(shape)
    state.shape = shape
    return unpacked


def wrong(packed: torch.Tensor, state: Any) -> torch.Tensor:
    """Begin each row with the constant of another block, if a row is no whole number of blocks."""
    unpacked = right(packed, state)
    return unpacked * 2 if len(state.shape) > 1 and state.shape[-1] % 64 else unpacked


@pytest.mark.parametrize(("kernel", "found"), [(right, []), (wrong, [32, 96, 100])])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_rows_of_part_blocks_are_tried(
    kernel: Any, found: list[int], quant_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bitsandbytes.functional, "dequantize_4bit", kernel)
    assert columns_unpacked_wrong([64, 96, 128, 32, 100, 96], quant_type) == found


def test_a_record_names_the_layers_that_compute_with_wrong_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bitsandbytes.functional, "dequantize_4bit", wrong)
    spec = small_model("llama", **{**TINY, "intermediate_size": 96})
    qlora, lora = (make_recipe(spec.name, method=method) for method in ("qlora", "lora"))
    said = complaint_about_unpacking(ResolvedRecipe(spec, qlora), "cpu")
    assert str(said).partition(" unpacks ")[2].startswith("the 4-bit weights of mlp.down_proj wrongly on this CPU (")
    assert complaint_about_unpacking(ResolvedRecipe(spec, lora), "cpu") is None
    assert complaint_about_unpacking(ResolvedRecipe(spec, qlora), "cuda") is None
    whole = small_model("llama", **TINY)
    assert complaint_about_unpacking(ResolvedRecipe(whole, qlora), "cpu") is None


def test_the_doctor_says_so() -> None:
    told = check_quantization(Probe(quantization_errors={"cpu": None}, part_blocks_wrong=True), "cpu", installed=True)
    assert (told.status, "no multiple of 64" in told.found) == ("limited", True)
