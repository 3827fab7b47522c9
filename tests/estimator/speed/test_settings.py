"""Which way each setting of a recipe moves the time of a step."""

from __future__ import annotations

from typing import Any

import pytest

from lorabench.estimator.devices.device import find_device
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.speed.throughput import estimate_throughput

LLAMA, SMALL, MISTRAL = "meta-llama/Llama-3.1-8B", "HuggingFaceTB/SmolLM2-135M", "mistralai/Mistral-7B-v0.1"
MIXTRAL, GEMMA = "mistralai/Mixtral-8x7B-v0.1", "google/gemma-2-9b"
QLORA, FULL = {"method": "qlora"}, {"method": "full"}
FLASH, EAGER = {"attn_implementation": "flash_attention_2"}, {"attn_implementation": "eager"}
HALF = {"dtype": "float16", "mixed_precision": "fp16"}


def tokens_per_second(model: str, gpu: str, options: dict[str, Any]) -> float:
    speed = estimate_throughput(ResolvedRecipe(find_model(model), make_recipe(model, **options)), find_device(gpu))
    assert speed is not None
    return speed.tokens_per_second


@pytest.mark.parametrize(
    ("model", "gpu", "slower", "faster"),
    [
        (LLAMA, "h100-sxm", {}, {"gradient_checkpointing": False}),  # nothing is done twice
        (LLAMA, "h100-sxm", EAGER, {}),  # scores are written out, in float32 too
        (LLAMA, "h100-sxm", {"loss": "legacy"}, {}),  # shifted logits are a copy
        (LLAMA, "h100-sxm", {"loss": "liger"}, {}),  # gradients of the loss are made a chunk of tokens at a time
        (LLAMA, "h100-sxm", {}, {"lora_dropout": 0.0}),
        (LLAMA, "h100-sxm", {}, {"adapter_dtype": "bfloat16"}),  # inputs are not raised to float32
        (LLAMA, "h100-sxm", {}, {"target_modules": "mlp"}),
        (LLAMA, "h100-sxm", {"rank": 64}, {}),
        (LLAMA, "h100-sxm", {"modules_to_save": "lm_head"}, {}),
        (LLAMA, "h100-sxm", {"seq_len": 8192}, {}),  # attention is quadratic
        (LLAMA, "h100-sxm", {}, {"gradient_accumulation": 8}),  # the optimizer steps once for all
        (LLAMA, "h100-sxm", {"mixed_precision": "fp16"}, {}),  # bfloat16 weights are cast at every use
        (LLAMA, "h100-sxm", {"mixed_precision": "no"}, {}),  # float32 adapters multiply in float32
        (LLAMA, "h100-sxm", {"dtype": "float32"}, {}),
        (LLAMA, "h100-sxm", {"optim": "adafactor"}, {}),  # one tensor after the other
        (LLAMA, "h100-sxm", QLORA | {"prepare_kbit": True}, QLORA),  # norms' outputs stay in 16 bits
        (LLAMA, "h100-sxm", FULL | {"optim": "adamw_torch"}, FULL),  # 21 accesses of an element, and 7
        (LLAMA, "h100-sxm", FULL, FULL | {"optim": "sgd"}),
        (LLAMA, "h100-sxm", FULL, FULL | {"dtype": "bfloat16", "mixed_precision": "no"}),
        (LLAMA, "h100-sxm", FULL | {"optim": "paged_adamw_32bit"}, FULL | {"optim": "paged_adamw_8bit"}),  # over PCIe
        (SMALL, "rtx-4090", {"seq_len": 256}, {"seq_len": 256, "batch_size": 8}),  # launches are shared by more tokens
        (SMALL, "rtx-4090", QLORA | {"seq_len": 64}, QLORA | {"seq_len": 64, "double_quant": False}),  # fewer launches
        (MISTRAL, "h100-sxm", {"seq_len": 16384}, FLASH | {"seq_len": 16384}),  # sdpa is given the window as a mask
        (GEMMA, "h100-sxm", EAGER, FLASH),
        (LLAMA, "h100-sxm", FLASH, {}),  # torch prefers cuDNN's kernel
        (MIXTRAL, "h200", {"lora_dropout": 0.0}, {"target_modules": "attention"}),  # adapted experts are made anew
        ("meta-llama/Llama-3.2-1B", "t4", {}, HALF),  # no units for bfloat16
        ("meta-llama/Llama-3.2-1B", "v100-sxm-32gb", {}, HALF),
    ],
)
def test_a_setting_moves_time_the_way_its_work_goes(
    model: str, gpu: str, slower: dict[str, Any], faster: dict[str, Any]
) -> None:
    assert tokens_per_second(model, gpu, slower) < tokens_per_second(model, gpu, faster)


def test_what_does_the_same_work_takes_the_same_time() -> None:
    plain = tokens_per_second(LLAMA, "a100-sxm-80gb", {})
    assert tokens_per_second(LLAMA, "a100-sxm-80gb", FLASH) == plain  # the same kernel
    assert tokens_per_second(LLAMA, "h100-sxm", QLORA | {"quant_type": "fp4"}) == pytest.approx(
        tokens_per_second(LLAMA, "h100-sxm", QLORA)
    )


def test_a_token_goes_through_two_of_mixtral_s_eight_experts() -> None:
    """46.7 billion parameters that run as 12.9 are faster than a dense model of 32.8."""
    alike = {"target_modules": "attention", "gradient_checkpointing": False}
    assert tokens_per_second(MIXTRAL, "h200", alike) > 1.5 * tokens_per_second("Qwen/Qwen2.5-32B", "h200", alike)
