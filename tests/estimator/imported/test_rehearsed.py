"""Configs of TRL's command, and what `lorabench rehearse -- trl sft` counted with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorabench.estimator.imported.asked import asked
from tests.replayed import assert_rehearsed, replayed

LLAMA, QWEN = "meta-llama/Llama-3.2-1B", "Qwen/Qwen3-0.6B"
PLAIN = "dataset_name: data\nmax_length: 1024\nper_device_train_batch_size: 4\nmax_steps: 3\n"
LORA = f"model_name_or_path: {LLAMA}\n{PLAIN}use_peft: true\nlora_r: 16\nlora_alpha: 32\nbf16: true\ndtype: bfloat16\n"
QLORA = (
    f"model_name_or_path: {LLAMA}\n{PLAIN}gradient_accumulation_steps: 2\n"
    "use_peft: true\nload_in_4bit: true\nlora_target_modules: all-linear\nlora_r: 32\n"
)
EAGER = "packing: true\nattn_implementation: eager\n"
REHEARSED = {
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


@pytest.mark.parametrize("named", REHEARSED)
def test_the_estimate_of_a_config_is_what_trl_takes(named: str, tmp_path: Path) -> None:
    config, allocated, reserved = REHEARSED[named]
    file = tmp_path / "sft.yaml"
    file.write_text(config)
    memory = replayed("a100-sxm-80gb", asked(None, file, {}).resolved())
    assert_rehearsed(memory, allocated=allocated, reserved=reserved, within=(1e-4, 0.01))
