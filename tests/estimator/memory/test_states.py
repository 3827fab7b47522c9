"""What is held for the whole training, worked out by hand: 16P, 2P + 16·P_lora, 0.5 B + 0.127 bit."""

from __future__ import annotations

from typing import Any

import pytest

from lorabench.estimator.memory.states import States, states
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.optimizers.table import OPTIMIZERS
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe

LLAMA = "meta-llama/Llama-3.1-8B"
P = 8_030_261_248
P_LORA = 41_943_040
LINEAR = 6_979_321_856
"""Weights of the layers' linear modules: 7 in each of 32 layers."""
LINEARS = 7 * 32
CODES = LINEAR // 2
ABSMAX = LINEAR // 64  # every layer's weight is whole blocks
TABLES = 16 * 4 + 256 * 4 + 4  # codebook, nested codebook, offset


def held(model: str, **options: Any) -> States:
    return states(ResolvedRecipe(find_model(model), make_recipe(model, **options)), "cuda")


def total(of: States, *components: str) -> int:
    return sum(of.component_bytes(component) for component in components)


TRAINED = ("gradients", "optimizer_states")


def test_full_fine_tuning_holds_16_bytes_a_parameter() -> None:
    """Weights 4, gradients 4, two moments 8; and a step count of 4 bytes for each of the 291 tensors."""
    of = held(LLAMA, method="full")
    assert total(of, "weights", *TRAINED) == 16 * P + 4 * 291
    assert total(of, "adapters", "quantized_weights") == 0


@pytest.mark.parametrize(
    ("options", "bytes_a_parameter"),
    [
        ({"dtype": "bfloat16", "optim": "adamw_torch"}, 2 + 2 + 4),  # "roughly four times the model's size"
        ({"dtype": "float32", "optim": "sgd"}, 4 + 4),
        ({"dtype": "bfloat16", "optim": "lion_32bit"}, 2 + 2 + 4),
        ({"dtype": "bfloat16", "optim": "paged_adamw_32bit"}, 2 + 2),  # large states are paged; norms are small
    ],
)
def test_full_fine_tuning_by_optimizer(options: dict[str, Any], bytes_a_parameter: int) -> None:
    of = held(LLAMA, method="full", **options)
    small = 8 * 65 * 4096 if OPTIMIZERS[options["optim"]].paged else 0  # 65 norms of 4096 weights
    assert total(of, "weights", *TRAINED) == bytes_a_parameter * P + small


def test_paged_states_are_not_among_the_allocators() -> None:
    of = held(LLAMA, method="full", optim="paged_adamw_32bit")
    assert of.optimizer.paged == 8 * (P - 65 * 4096)


def test_lora_holds_2_bytes_a_parameter_and_16_an_adapter_parameter() -> None:
    of = held(LLAMA, rank=16, optim="adamw_torch")
    assert total(of, "weights", "adapters", *TRAINED) == 2 * P + 16 * P_LORA
    assert held(LLAMA, rank=16).optimizer.states == 8 * P_LORA + 4 * 2 * LINEARS  # fused counts steps on the GPU


def test_lora_in_16_bits_holds_8_bytes_an_adapter_parameter() -> None:
    of = held(LLAMA, rank=16, optim="adamw_torch", adapter_dtype="bfloat16", target_modules="attention")
    assert total(of, "weights", "adapters", *TRAINED) == 2 * P + 8 * 13_631_488


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_qlora_holds_half_a_byte_and_0_127_bit_a_quantised_parameter(quant_type: str) -> None:
    of = held(LLAMA, method="qlora", quant_type=quant_type, prepare_kbit=True, optim="adamw_torch")
    assert total(of, "quantized_weights") == CODES + ABSMAX + 4 * ABSMAX // 256 + LINEARS * TABLES
    assert 8 * (total(of, "quantized_weights") - LINEARS * TABLES) / LINEAR == pytest.approx(4.127, abs=5e-4)
    assert total(of, "weights") == 4 * (P - LINEAR)  # prepared: embedding, head and norms in float32
    assert total(of, "adapters", *TRAINED) == 16 * P_LORA


def test_qlora_without_double_quantisation_holds_half_a_bit_of_constants() -> None:
    of = held(LLAMA, method="qlora", double_quant=False, prepare_kbit=False)
    assert total(of, "quantized_weights") == CODES + 4 * ABSMAX + LINEARS * 16 * 4
    assert total(of, "weights") == 2 * (P - LINEAR)


def test_constants_of_65_billion_weights_take_1_03_gb() -> None:
    linear_weights = 65e9
    of = held(LLAMA, method="qlora")
    constants = total(of, "quantized_weights") - CODES - LINEARS * TABLES
    assert constants / LINEAR * linear_weights == pytest.approx(1.03e9, rel=2e-3)


def test_terms_say_how_many_elements_of_how_many_bytes() -> None:
    terms = {term.component: term for term in held(LLAMA, rank=16).terms}
    assert (terms["weights"].elements, terms["weights"].bytes_per_element) == (P, 2)
    assert (terms["adapters"].elements, terms["adapters"].bytes_per_element) == (P_LORA, 4)
    assert (terms["gradients"].elements, terms["gradients"].bytes) == (P_LORA, 4 * P_LORA)


@pytest.mark.parametrize(
    ("model", "biases"),
    [
        # q, k, v of 24 layers: 896, 128, 128
        ("Qwen/Qwen2.5-0.5B", 24 * (896 + 2 * 128)),
        # c_attn, c_proj, c_fc, c_proj of 12 layers
        ("openai-community/gpt2", 12 * (2304 + 768 + 3072 + 768)),
    ],
)
def test_biases_of_4_bit_layers_stay_in_the_dtype_of_the_computation(model: str, biases: int) -> None:
    spec = find_model(model)
    for mixed_precision, itemsize in (("bf16", 2), ("no", 4)):
        options = {"dtype": "float32", "mixed_precision": mixed_precision}
        of = held(model, method="qlora", **options)
        other = spec.parameters - spec.linear_parameters - biases
        assert total(of, "weights") == 4 * other + itemsize * biases
