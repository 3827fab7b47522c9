"""Configs of other tools become the recipes that those tools train, and what a recipe cannot say is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorabench.estimator.errors import UserError
from lorabench.estimator.imported.asked import Asked, asked
from lorabench.estimator.imported.keys import NotTaken
from lorabench.estimator.imported.sources import TOOLS

LLAMA = "meta-llama/Llama-3.1-8B"


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """Return a function that reads a config from its text; options override it."""

    def read_text(text: str, name: str = "config.yml", model: str | None = None, **options: Any) -> Asked:
        file = tmp_path / name
        file.write_text(text, encoding="utf-8")
        return asked(model, file, options)

    return read_text


def _left(found: Asked) -> dict[str, NotTaken]:
    assert found.imported is not None
    return {each.key: each for each in found.imported.not_taken_into_account}


def _settings(found: Asked) -> dict[str, Any]:
    return found.resolved().recipe.settings()


AXOLOTL = f"""
base_model: {LLAMA}
adapter: qlora
load_in_4bit: true
lora_r: 32
lora_alpha: 16
lora_target_linear: true
micro_batch_size: 2
gradient_accumulation_steps: 4
sequence_len: 4096
sample_packing: true
optimizer: paged_adamw_8bit
gradient_checkpointing: true
flash_attention: true
learning_rate: 2e-4
"""


def test_an_axolotl_qlora_has_its_settings_and_axolotls_defaults(read: Any) -> None:
    settings = _settings(read(AXOLOTL))
    assert settings == {
        "model": LLAMA,
        "method": "qlora",
        "rank": 32,
        "lora_alpha": 16.0,
        "lora_dropout": 0.0,
        "target_modules": "all-linear",
        "adapter_dtype": "float32",
        "dtype": "bfloat16",
        "mixed_precision": "bf16",
        "quant_type": "nf4",
        "double_quant": True,
        "prepare_kbit": False,
        "optim": "paged_adamw_8bit",
        "batch_size": 2,
        "seq_len": 4096,
        "gradient_accumulation": 4,
        "gradient_checkpointing": True,
        "attn_implementation": "flash_attention_2",
        "loss": "standard",
    }


def test_axolotl_without_settings_trains_all_weights_in_bfloat16_without_checkpointing(read: Any) -> None:
    settings = _settings(read(f"base_model: {LLAMA}"))
    wanted = {"method": "full", "dtype": "bfloat16", "seq_len": 512, "batch_size": 1, "gradient_checkpointing": False}
    assert wanted.items() <= settings.items()


@pytest.mark.parametrize(
    ("config", "padding", "shorter"),
    [
        # transformers' collator pads to a multiple of 64 or 8, if the tool asks for it.
        (f"base_model: {LLAMA}\nmicro_batch_size: 1\n", True, True),
        (f"base_model: {LLAMA}\nmicro_batch_size: 1\npad_to_sequence_len: true\n", True, False),
        (f"base_model: {LLAMA}\nmicro_batch_size: 1\npad_to_sequence_len: false\n", None, True),
        (f"base_model: {LLAMA}\nmicro_batch_size: 2\npad_to_sequence_len: false\n", True, True),
        (f"base_model: {LLAMA}\nmicro_batch_size: 2\nflash_attention: true\n", None, True),
        (f"base_model: {LLAMA}\nmicro_batch_size: 2\nsample_packing: true\n", None, False),
        (f"model_name_or_path: {LLAMA}\nstage: sft\nper_device_train_batch_size: 1\n", True, True),
        (f"model_name_or_path: {LLAMA}\nstage: pt\nper_device_train_batch_size: 1\n", None, False),
        (f"model_name_or_path: {LLAMA}\ndataset_name: x\nper_device_train_batch_size: 1\n", None, True),
        (f"model_name_or_path: {LLAMA}\ndataset_name: x\nper_device_train_batch_size: 2\n", True, True),
        (f"model_name_or_path: {LLAMA}\ndataset_name: x\npacking: true\npacking_strategy: wrapped\n", None, False),
        (f"model_name_or_path: {LLAMA}\ndataset_name: x\npacking: true\nuse_flash_attn: true\n", None, False),
    ],
)
def test_batches_are_padded_as_the_tool_pads_them(read: Any, config: str, padding: bool | None, shorter: bool) -> None:
    found = read(config)
    assert _settings(found).get("padding") is padding
    assert any("a batch is as long as its longest sequence" in each.why for each in _left(found).values()) is shorter


def test_trl_joins_the_rows_that_it_packs_to_one_with_a_mask(read: Any) -> None:
    config = f"model_name_or_path: {LLAMA}\ndataset_name: x\nper_device_train_batch_size: 4\n"
    for joining in ("packing: true\n", "padding_free: true\n", "packing: true\npacking_strategy: bfd_split\n"):
        found = read(config + joining)
        settings = _settings(found)
        assert (settings["batch_size"], settings["seq_len"], settings["padding"]) == (1, 4 * 1024, True)
    [left] = _left(read(f"{config}packing: true\nmax_length: 100000\n")).values()
    assert left.key == "packing"
    assert left.memory == "more memory"


def test_keys_that_a_recipe_cannot_say_are_named_with_the_direction(read: Any) -> None:
    more = "load_in_8bit: true\ndeepspeed: zero2.json\nrl: dpo\noptimizer: adamw_torch_4bit\n"
    more += "plugins: [axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin]\n"
    found = read(f"base_model: {LLAMA}\nadapter: lora\nlora_r: 8\n{more}")
    left = _left(found)
    assert {key: each.memory for key, each in left.items()} == {
        "load_in_8bit": "less memory",
        "sample_packing": "less memory",
        "deepspeed": "less memory",
        "optimizer": "less memory",
        "rl": "more memory",
    }
    assert _settings(found)["optim"] == "adamw_8bit"
    assert _settings(found)["loss"] == "cut-cross-entropy"


def test_an_unknown_key_is_named_with_the_nearest_one(read: Any) -> None:
    left = _left(read(AXOLOTL.replace("learning_rate", "learning_rte")))
    assert "did you mean learning_rate?" in left["learning_rte"].why


def test_a_feature_that_is_switched_off_is_not_named(read: Any) -> None:
    off = "load_in_8bit: false\ndeepspeed:\nlora_mlp_kernel: false\ntokens: []\nfsdp: []\ntorch_compile: no\n"
    assert _left(read(AXOLOTL + off)) == {}


@pytest.mark.parametrize("kind", ["grpo", "gdpo"])
def test_training_on_generated_text_is_refused_with_the_key(read: Any, kind: str) -> None:
    with pytest.raises(UserError, match=rf"config.yml: rl: {kind} trains with generated text"):
        read(AXOLOTL + f"rl: {kind}\n")


def test_options_override_a_config(read: Any) -> None:
    settings = _settings(read(AXOLOTL, seq_len=1024, rank=8))
    assert (settings["seq_len"], settings["rank"]) == (1024, 8)


def test_another_method_drops_the_settings_that_it_does_not_have(read: Any) -> None:
    settings = _settings(read(AXOLOTL, method="full"))
    assert "rank" not in settings
    assert settings["batch_size"] == 2


def test_llamafactory_applies_its_own_defaults(read: Any) -> None:
    settings = _settings(read(f"model_name_or_path: {LLAMA}\nstage: sft\nfinetuning_type: lora\nbf16: true\n"))
    assert settings["rank"] == 8
    assert settings["lora_alpha"] == 16
    assert settings["lora_dropout"] == 0
    assert settings["batch_size"] == 8  # transformers' default
    assert settings["use_reentrant"]
    assert settings["target_modules"] == "all-linear"


def test_llamafactory_trains_all_weights_in_float32_unless_pure_bf16(read: Any) -> None:
    text = f"model_name_or_path: {LLAMA}\nstage: sft\nfinetuning_type: full\nbf16: true\n"
    assert _settings(read(text))["dtype"] == "float32"
    pure = _settings(read(f"{text}pure_bf16: true\n"))
    assert (pure["dtype"], pure["mixed_precision"]) == ("bfloat16", "no")


def test_llamafactory_can_keep_norms_in_float32(read: Any) -> None:
    text = f"model_name_or_path: {LLAMA}\nstage: sft\nquantization_bit: 4\nbf16: true\n"
    assert not _settings(read(text))["prepare_kbit"]
    raised = _settings(read(f"{text}upcast_layernorm: true\n"))
    assert raised["prepare_kbit"]
    assert raised["recast"]


def test_trl_loads_in_float32_and_adapts_what_peft_does_by_default(read: Any) -> None:
    found = read(f"model_name_or_path: {LLAMA}\ndataset_name: x\nuse_peft: true\n")
    wanted = {"dtype": "float32", "mixed_precision": "bf16", "rank": 16, "lora_alpha": 32, "lora_dropout": 0.05}
    assert wanted.items() <= _settings(found).items()
    assert _settings(found)["target_modules"] == "q_proj,v_proj"
    assert _settings(found)["seq_len"] == 1024
    assert _settings(found)["loss"] == "trl"


def test_trl_keeps_adapters_of_a_quantised_model_in_bfloat16(read: Any) -> None:
    settings = _settings(read(f"model_name_or_path: {LLAMA}\ndataset_name: x\nuse_peft: true\nload_in_4bit: true\n"))
    assert settings["adapter_dtype"] == "bfloat16"
    assert not settings["prepare_kbit"]
    assert not settings["double_quant"]


COMMAND = """#!/bin/bash
MODEL=meta-llama/Llama-3.1-8B  # comment
trl sft --model_name_or_path $MODEL \\
    --dataset_name x --use_peft --lora_target_modules q_proj k_proj \\
    --per_device_train_batch_size=4 --max-length 256
"""


def test_a_command_line_is_a_config(read: Any) -> None:
    settings = _settings(read(COMMAND.replace("  # comment", ""), "train.sh"))
    assert settings["target_modules"] == "k_proj,q_proj"
    assert (settings["batch_size"], settings["seq_len"]) == (4, 256)


def test_a_command_names_its_trainer(read: Any) -> None:
    command = COMMAND.replace("  # comment", "")
    assert "trainer" in _left(read(command.replace("trl sft", "trl dpo"), "train.sh"))
    with pytest.raises(UserError, match="trainer: grpo"):
        read(command.replace("trl sft", "trl grpo"), "train.sh")


def test_a_variable_that_the_file_does_not_set_is_refused(read: Any) -> None:
    with pytest.raises(UserError, match=r"\$MODEL is not set in the file"):
        read("trl sft --model_name_or_path $MODEL --use_peft", "train.sh")


TORCHTUNE = """
model:
  _component_: torchtune.models.llama3_1.qlora_llama3_1_8b
  lora_attn_modules: ['q_proj', 'output_proj']
  apply_lora_to_mlp: True
  lora_rank: 4
  lora_alpha: 8
tokenizer: {_component_: torchtune.models.llama3.llama3_tokenizer, path: /tmp/x, max_seq_len: 1024}
dataset: {_component_: torchtune.datasets.alpaca_dataset, packed: True}
optimizer: {_component_: torch.optim.AdamW, fused: True, lr: 3e-4}
loss: {_component_: torchtune.modules.loss.CEWithChunkedOutputLoss}
batch_size: 2
dtype: bf16
enable_activation_checkpointing: True
checkpointer: {_component_: torchtune.training.FullModelHFCheckpointer, output_dir: '${output_dir}'}
"""


def test_torchtune_names_a_model_by_its_builder_and_has_no_autocast(read: Any) -> None:
    found = read(TORCHTUNE)
    settings = _settings(found)
    wanted = {"model": LLAMA, "method": "qlora", "rank": 4, "mixed_precision": "no", "adapter_dtype": "bfloat16"}
    assert wanted.items() <= settings.items()
    assert settings["target_modules"] == "down_proj,gate_proj,o_proj,q_proj,up_proj"
    assert set(_left(found)) == {"loss._component_"}


def test_a_torchtune_file_that_trains_nothing_is_refused(read: Any) -> None:
    with pytest.raises(UserError, match="trains nothing"):
        read("model: {_component_: torchtune.models.gemma.gemma_2b}\ntasks: [x]\n")


def test_unsloth_applies_its_own_defaults(read: Any) -> None:
    settings = _settings(read("model: unsloth/Meta-Llama-3.1-8B\ntraining:\n  max_steps: 3\n"))
    wanted = {"method": "qlora", "rank": 64, "lora_alpha": 16, "batch_size": 2, "gradient_accumulation": 4}
    assert wanted.items() <= settings.items()
    assert settings["optim"] == "adamw_8bit"


def test_an_adapter_config_names_its_model_and_has_pefts_defaults(read: Any) -> None:
    config = {"peft_type": "LORA", "base_model_name_or_path": LLAMA, "target_modules": ["q_proj"], "bias": "none"}
    found = read(json.dumps(config), "adapter_config.json")
    wanted = {"method": "lora", "rank": 8, "lora_alpha": 8, "lora_dropout": 0, "target_modules": "q_proj"}
    assert wanted.items() <= _settings(found).items()
    assert _left(found) == {}


def test_an_adapter_of_another_kind_is_refused(read: Any) -> None:
    with pytest.raises(UserError, match="peft_type: VERA is not among the methods"):
        read(json.dumps({"peft_type": "VERA", "base_model_name_or_path": LLAMA}), "adapter_config.json")


@pytest.mark.parametrize(
    ("text", "name", "wanted"),
    [
        ('{"per_device_train_batch_size": 2, "optim": "sgd"}', "args.json", {"batch_size": 2, "optim": "sgd"}),
        ("distributed_type: NO\nmixed_precision: fp16\n", "accelerate.yaml", {"mixed_precision": "fp16"}),
        (
            '{"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": 4, "bf16": {"enabled": "auto"}}',
            "ds.json",
            {"batch_size": 4},
        ),
    ],
)
def test_a_config_without_a_model_needs_one(read: Any, text: str, name: str, wanted: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="names no model: name the MODEL besides --from"):
        read(text, name)
    assert wanted.items() <= _settings(read(text, name, LLAMA)).items()


def test_a_file_of_no_known_tool_is_refused_with_its_keys(read: Any) -> None:
    with pytest.raises(UserError, match=r"no config of axolotl, .* its keys are apples, pears"):
        read("apples: 1\npears: 2\n")
    with pytest.raises(UserError, match=r"no config of axolotl, .* its keys are \(tool\)"):
        read("(tool): apples\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("lora_r: many", "lora_r must be a whole number, got many"),
        ("bf16: [1]", "must be|not"),
        ("gradient_checkpointing: {}", "gradient_checkpointing"),
        ("adapter: vera", "adapter: vera is not among the methods"),
        ("optimizer: quantum", "optimizer: the optimizer 'quantum' is not known"),
    ],
)
def test_a_wrong_value_is_refused_with_file_and_key(read: Any, line: str, message: str) -> None:
    key = line.partition(":")[0]
    kept = "\n".join(each for each in AXOLOTL.splitlines() if not each.startswith(f"{key}:"))
    with pytest.raises(UserError, match=message) as caught:
        read(f"{kept}\n{line}\n")
    assert "config.yml" in str(caught.value)


def test_switches_may_be_written_as_in_yaml_1_1(read: Any) -> None:
    settings = _settings(read(AXOLOTL.replace("gradient_checkpointing: true", "gradient_checkpointing: Yes")))
    assert settings["gradient_checkpointing"]


def test_control_characters_of_a_file_do_not_reach_the_terminal(read: Any) -> None:
    left = _left(read(AXOLOTL + '"str\\e[31mange": "a\\e[31mb"\n'))
    assert not any("\x1b" in str(each) for each in left.values())
    for line in ('adapter: "a\\e[31mb"', 'rl: "\\e[31m"', 'optimizer: "\\e[31m"', 'micro_batch_size: "\\e[31m"'):
        with pytest.raises(UserError) as caught:
            read(f"base_model: {LLAMA}\n{line}\n")
        assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_every_rule_of_a_table_reads_its_default(tool: Any) -> None:
    for name, key in tool.keys.items():
        if key.default is not None and key.default != ():
            assert key.read(key.default) == key.default, name


@pytest.mark.parametrize("ending", ["bnb-4bit", "GPTQ", "AWQ-INT4"])
def test_a_checkpoint_in_4_bits_by_its_name_trains_by_qlora(read: Any, ending: str) -> None:
    text = f"model_name_or_path: unsloth/Llama-3.1-8B-{ending}\nstage: pt\nfinetuning_type: lora\n"
    found = read(text)
    wanted = {"method": "qlora", "quant_type": "nf4", "double_quant": True, "prepare_kbit": False}
    assert wanted.items() <= _settings(found).items()
    assert not _left(found)
    with pytest.raises(UserError, match=r"method lora: the weights of meta-llama/Llama-3\.1-8B are stored in 4 bits"):
        read(text, method="lora").resolved()


def test_a_value_out_of_range_is_refused_by_the_recipe_with_the_file(read: Any) -> None:
    found = read(AXOLOTL.replace("micro_batch_size: 2", "micro_batch_size: 0"))
    with pytest.raises(UserError, match=r"config.yml: batch_size must be a whole number from 1"):
        found.resolved()


def test_text_with_dashes_in_yaml_is_no_command(read: Any) -> None:
    text = f"{AXOLOTL}chat_template: |\n  first line\n  write --this\n"
    assert _settings(read(text))["rank"] == 32
