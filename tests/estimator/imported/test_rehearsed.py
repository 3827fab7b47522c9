"""Configs of TRL and LLaMA-Factory, and what `lorabench rehearse --` counted when the tools trained with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorabench.estimator.imported.asked import asked
from lorabench.estimator.memory.breakdown import Breakdown
from tests.replayed import assert_rehearsed, replayed

LLAMA, QWEN = "meta-llama/Llama-3.2-1B", "Qwen/Qwen3-0.6B"
PLAIN = "dataset_name: data\nmax_length: 1024\nper_device_train_batch_size: 4\nmax_steps: 3\n"
LORA = f"model_name_or_path: {LLAMA}\n{PLAIN}use_peft: true\nlora_r: 16\nlora_alpha: 32\nbf16: true\ndtype: bfloat16\n"
QLORA = (
    f"model_name_or_path: {LLAMA}\n{PLAIN}gradient_accumulation_steps: 2\n"
    "use_peft: true\nload_in_4bit: true\nlora_target_modules: all-linear\nlora_r: 32\n"
)
EAGER = "packing: true\nattn_implementation: eager\n"
OF_TRL = {
    "padded to the longest sequence": (LORA, 3_396_600_320, 3_539_992_576),
    "packed, joined to one sequence": (f"{LORA}packing: true\n", 3_435_144_704, 3_579_838_464),
    "packed, one sequence": (
        LORA.replace("batch_size: 4", "batch_size: 1") + "packing: true\n",
        2_732_160_512,
        2_770_337_792,
    ),
    "full": (f"model_name_or_path: {QWEN}\n{PLAIN}", 10_214_379_520, 10_766_778_368),
    "qlora": (QLORA, 3_489_296_896, 3_730_833_408),
    "qlora, eager": (QLORA.replace("1024", "2048") + EAGER, 37_856_369_152, 45_552_238_592),
}
"""Config, and the peaks of allocated and reserved bytes of its first steps on a simulated A100 80GB, with trl 1.16.0,
transformers 5.24, peft 0.21.2 and torch 2.13. Its texts are random words: some reach the length, or all fill it."""


FACTORY = (
    f"model_name_or_path: {LLAMA}\nstage: sft\ndataset: own\ntemplate: llama3\ncutoff_len: 1024\nmax_steps: 3\n"
    "per_device_train_batch_size: 2\ngradient_accumulation_steps: 2\n"
)
ADAPTED = f"{FACTORY}lora_target: all\nbf16: true\n"
OF_LLAMA_FACTORY = {
    "lora": (f"{ADAPTED}finetuning_type: lora\nlora_rank: 8\n", 5_883_404_800, 6_668_943_360),
    "lora, packed": (f"{ADAPTED}finetuning_type: lora\nlora_rank: 8\npacking: true\n", 5_883_691_520, 6_671_040_512),
    "qlora": (
        f"{ADAPTED}finetuning_type: lora\nlora_rank: 16\nquantization_bit: 4\nquantization_method: bnb\n",
        4_528_596_480,
        5_278_531_584,
    ),
    "full": (f"{FACTORY}finetuning_type: full\npure_bf16: true\n", 13_225_899_520, 14_130_610_176),
}
"""The same with LLaMA-Factory 0.9.5 and the newest libraries that it allows: transformers 5.6, peft 0.18.1, accelerate
1.11."""


def estimated(config: str, folder: Path) -> Breakdown:
    file = folder / "config.yaml"
    file.write_text(config)
    return replayed("a100-sxm-80gb", asked(None, file, {}).resolved())


@pytest.mark.parametrize("named", OF_TRL)
def test_the_estimate_of_a_config_is_what_trl_takes(named: str, tmp_path: Path) -> None:
    config, allocated, reserved = OF_TRL[named]
    assert_rehearsed(estimated(config, tmp_path), allocated=allocated, reserved=reserved, within=(1e-4, 0.01))


@pytest.mark.parametrize("named", OF_LLAMA_FACTORY)
def test_the_estimate_of_a_config_is_what_llama_factory_takes(named: str, tmp_path: Path) -> None:
    config, allocated, reserved = OF_LLAMA_FACTORY[named]
    assert_rehearsed(estimated(config, tmp_path), allocated=allocated, reserved=reserved, within=(1e-3, 0.01))
