"""Bytes of 4-bit weights: by hand, and as bitsandbytes allocates them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorabench.estimator.memory.quantization import QuantizedBytes, quantized_bytes
from lorabench.estimator.memory.states import states
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.training.model import build_model
from tests.small_models import FAMILIES, small_model

pytestmark = pytest.mark.filterwarnings("ignore")


def allocated(packed: Any, state: Any) -> QuantizedBytes:
    """Return the storages' bytes of a weight that bitsandbytes quantised."""

    def nbytes(*tensors: Any) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    nested = state.state2 if state.nested else None
    return QuantizedBytes(
        codes=nbytes(packed),
        absmax=nbytes(state.absmax),
        nested_absmax=nbytes(nested.absmax) if nested else 0,
        tables=nbytes(state.code) + (nbytes(nested.code, state.offset) if nested else 0),
    )


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize(
    "shape", [(1, 1), (3, 5), (7, 9), (64, 1), (65, 1), (101, 103), (64, 256), (64, 257), (129, 513), (300, 1001)]
)
def test_a_weight_takes_what_bitsandbytes_allocates(
    shape: tuple[int, int], quant_type: str, double_quant: bool
) -> None:
    import bitsandbytes

    packed, state = bitsandbytes.functional.quantize_4bit(
        torch.randn(shape), quant_type=quant_type, compress_statistics=double_quant
    )
    assert quantized_bytes(shape[0] * shape[1], double_quant=double_quant) == allocated(packed, state)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("double_quant", [True, False])
def test_a_models_base_takes_what_its_tensors_do(family: str, double_quant: bool) -> None:
    """Quantised or not, with the embedding, the norms, the biases, a tied head once."""
    attention = "eager" if family == "gemma2" else "sdpa"
    spec = small_model(family, hidden_size=72 if family == "gpt2" else 128)
    recipe = make_recipe(
        spec.name,
        method="qlora",
        double_quant=double_quant,
        target_modules="attention",
        attn_implementation=attention,
    )
    model = build_model(ResolvedRecipe(spec, recipe), "cpu")
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=torch.arange(8).reshape(1, 8))  # only then do the biases take the dtype of the computation
    quantized = plain = 0
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            quantized += allocated(parameter, state).total
        elif ".lora_" not in name:
            plain += parameter.untyped_storage().nbytes()
    held = states(ResolvedRecipe(spec, recipe), "cpu")
    assert held.component_bytes("quantized_weights") == quantized
    assert held.component_bytes("weights") == plain


@pytest.mark.parametrize(
    ("double_quant", "bits"),
    [
        (True, 4 + 8 / 64 + 32 / (64 * 256)),  # 4.127
        (False, 4 + 32 / 64),  # 4.5
    ],
)
def test_a_large_weight_takes_half_a_byte_and_its_constants(double_quant: bool, bits: float) -> None:
    elements = 8192 * 28672
    taken = quantized_bytes(elements, double_quant=double_quant)
    assert 8 * (taken.total - taken.tables) == elements * bits


@pytest.mark.parametrize(("model_size", "saved_bytes"), [(7e9, 326e6), (65e9, 3.03e9)])
def test_double_quantisation_saves_0_373_bit_a_weight(model_size: float, saved_bytes: float) -> None:
    elements = int(model_size)
    saved = quantized_bytes(elements, double_quant=False).total - quantized_bytes(elements, double_quant=True).total
    assert saved == pytest.approx(saved_bytes, rel=2e-3)
    assert 8 * saved / elements == pytest.approx(0.5 - 0.127, abs=1e-3)


@given(st.integers(1, 2**34), st.booleans())
def test_more_weights_never_take_less(elements: int, double_quant: bool) -> None:
    fewer = quantized_bytes(elements, double_quant=double_quant).total
    assert elements / 2 < fewer <= quantized_bytes(elements + 1, double_quant=double_quant).total
