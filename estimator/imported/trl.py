"""TRL: the YAML of its command line, its arguments, and those of scripts that parse the same classes."""

from __future__ import annotations

from typing import Any

from lorabench.estimator.imported import shared_rules
from lorabench.estimator.imported.keys import (
    Key,
    Keys,
    Missing,
    Options,
    anything,
    flag,
    missing,
    names,
    number,
    part,
    refused,
    text,
    used,
    whole,
    without_effect,
)
from lorabench.estimator.imported.reading import Tool, Values
from lorabench.estimator.imported.shared_rules import Results
from lorabench.estimator.imported.training_arguments import TRAINING_KEYS
from lorabench.estimator.methods.base import is_pattern


def _method(value: Any, values: Values) -> Options | Results:
    if not (value or values["use_peft_lora"]):
        return {"method": "full"}
    four_bits = values["load_in_4bit"] or values["use_4bit_quantization"]
    results: Results = [
        {
            "method": "qlora" if four_bits else "lora",
            "rank": values["lora_r"],
            "lora_alpha": values["lora_alpha"],
            "lora_dropout": values["lora_dropout"],
        }
    ]
    if values["use_rslora"]:
        results.append({"use_rslora": True})
    if values["lora_target_modules"]:
        results += shared_rules.targets(_named(values["lora_target_modules"]), values.spec)
    else:
        results.append(shared_rules.peft_targets(values.spec))
    results += shared_rules.saved_modules(values["lora_modules_to_save"], values.spec)
    if four_bits:
        double = bool(values["use_bnb_nested_quant"] or values["use_nested_quant"])
        results += [{"quant_type": values["bnb_4bit_quant_type"], "double_quant": double}, shared_rules.UNPREPARED]
        results.append({"adapter_dtype": "bfloat16"})
        autocast = _precision(values["bf16"], values)["mixed_precision"] != "no"
        if autocast and _dtype(values["dtype"], values)["dtype"] == "float32":
            results.append(Missing("4-bit layers compute in float32, the dtype of the model", "more memory"))
    return results


def _named(value: Any) -> Any:
    """Return a list of names from a list, or from one argument with commas; TRL passes on a single text as it is."""
    if isinstance(value, str) and "," in value and not is_pattern(value):
        return [name.strip() for name in value.split(",")]
    return [value] if isinstance(value, str) and value.isidentifier() else value


def _precision(value: Any, values: Values) -> Options:
    fp16 = bool(values["fp16"])
    return shared_rules.mixed_precision((not fp16) if value is None else bool(value), fp16)


def _length(value: Any, values: Values) -> Options:
    older = values["max_seq_length"]
    return {"seq_len": older if older is not None else value}


def _dtype(value: Any, values: Values) -> Options:
    # peft's script loads the base model in the dtype that holds 4-bit weights, if that is one of numbers.
    found = shared_rules.dtype_option(values["bnb_4bit_quant_storage_dtype"] or values["torch_dtype"] or value)
    return found or shared_rules.CHECKPOINT_DTYPE


JOINING = frozenset({"bfd", "bfd_split"})
"""Packing strategies whose rows are joined to one, as without padding (`SFTTrainer`, `padding_free`)."""


def _packing(value: Any, values: Values) -> Results:
    if not (values["padding_free"] or (value and values["packing_strategy"] in JOINING)):
        return shared_rules.packing(value, pads=values["per_device_train_batch_size"] > 1)
    shorter = shared_rules.packing(value)
    if values["use_flash_attn"] or _is_flash(shared_rules.attention(values["attn_implementation"], values)):
        return shorter
    # One row has all sequences of the batch. Only FlashAttention tells them apart without a mask.
    tokens = values["per_device_train_batch_size"] * _length(values["max_length"], values)["seq_len"]
    if 0 < values.spec.max_position_embeddings < tokens:
        return [
            *shorter,
            Missing("it joins a batch to one sequence, which gets a mask of all its tokens", "more memory"),
        ]
    return [*shorter, {"batch_size": 1, "seq_len": tokens, **shared_rules.PADDED}]


def _is_flash(attention: Options | Missing | Results) -> bool:
    found = attention if isinstance(attention, list) else [attention]
    return {"attn_implementation": "flash_attention_2"} in found


def _liger(value: Any, _: Values) -> Options | Missing:
    return shared_rules.LIGER_KERNELS if value else {}


def _loss(value: Any, _: Values) -> Options | Missing:
    if "dft" in str(value):
        return Missing("dynamic fine-tuning needs the probabilities once more", "more memory")
    return shared_rules.CHUNKED_HEAD


_GENERATES = (
    "it trains with generated text, and lorabench answers for supervised fine-tuning: rehearse the program: "
    "lorabench rehearse -- …"
)
KEYS: Keys = {
    **TRAINING_KEYS,
    "model_name_or_path": part(text),
    "trainer": used(text, shared_rules.training),
    "beta": used(
        number,
        lambda value, values: (
            {} if value is None or values["trainer"] in shared_rules.PREFERENCES else shared_rules.PREFERENCES["dpo"]
        ),
    ),
    "use_peft": used(flag, _method, False),
    # peft's examples/sft/train.py has names of its own beside those of TRL.
    **dict.fromkeys(("use_peft_lora", "use_4bit_quantization", "use_nested_quant"), part(flag, False)),
    "use_reentrant": used(flag, lambda value, values: shared_rules.REENTRANT if value else {}),
    "use_flash_attn": used(flag, lambda value, values: {"attn_implementation": "flash_attention_2"} if value else {}),
    "use_8bit_quantization": missing(shared_rules.INT8, "less memory"),
    "use_unsloth": missing("Unsloth's kernels and loss", "less memory"),
    "lora_r": part(whole, 16),
    "lora_alpha": part(number, 32),
    "lora_dropout": part(number, 0.05),
    "lora_target_modules": part(names),
    "lora_modules_to_save": part(names),
    "lora_target_parameters": shared_rules.PARAMETERS,
    "use_rslora": part(flag, False),
    "use_dora": shared_rules.DORA,
    "load_in_4bit": part(flag, False),
    "load_in_8bit": missing(shared_rules.INT8, "less memory"),
    "bnb_4bit_quant_type": part(text, "nf4"),
    "use_bnb_nested_quant": part(flag, False),
    "dtype": used(text, _dtype, "float32"),
    **dict.fromkeys(("torch_dtype", "bnb_4bit_quant_storage_dtype"), part(text)),
    "attn_implementation": used(text, shared_rules.attention),
    "max_length": used(whole, _length, 1024),
    **dict.fromkeys(("max_seq_length", "max_seq_len"), part(whole)),
    "packing": used(flag, _packing, False),
    "packing_strategy": part(text, "bfd"),
    "padding_free": part(flag, False),
    "gradient_checkpointing": TRAINING_KEYS["gradient_checkpointing"]._replace(default=True),
    "bf16": used(flag, _precision),
    "use_liger_kernel": used(flag, _liger, False),
    "loss_type": used(anything, _loss, "nll"),
    "activation_offloading": missing("saved activations wait in host memory", "less memory"),
    "precompute_ref_log_probs": Key(anything, effect=False),
    "num_generations": refused(_GENERATES),
    "reward_funcs": refused(_GENERATES),
    "use_vllm": refused(_GENERATES),
    "max_completion_length": refused(_GENERATES, off=(None,)),
    **dict.fromkeys(
        ("config", "config_file", "accelerate_config"), missing("another file: read it with --from", "other memory")
    ),
    **dict.fromkeys(
        ("num_processes", "nproc_per_node", "num_machines", "nnodes"),
        missing(shared_rules.COPIES, "about the same memory"),
    ),
    **dict.fromkeys(("use_deepspeed", "use_fsdp", "zero_stage"), missing(shared_rules.SHARDS, "less memory")),
    **without_effect(
        "discopop_tau f_alpha_divergence_coef f_divergence_type ld_alpha precompute_ref_batch_size "
        "ref_model_mixup_alpha ref_model_sync_steps sync_ref_model use_weighting chat_template_format "
        "bnb_4bit_compute_dtype env model_revision trust_remote_code lora_task_type bnb_4bit_quant_storage "
        "dataset_name dataset_config dataset_train_split dataset_test_split dataset_streaming ignore_bias_buffers "
        "dataset_text_field dataset_kwargs dataset_num_proc eos_token pad_token chat_template_path truncation_mode "
        "shuffle_dataset pad_to_multiple_of eval_packing completion_only_loss assistant_only_loss "
        "router_aux_loss_coef model_init_kwargs datasets streaming test_split_size preprocessing_num_workers "
        "dataset_mixer dataset_mixture dataset_splits dataset_configs dataset_seed chat_template "
        "auto_insert_empty_system_msg columns split max_prompt_length disable_dropout loss_weights "
        "generate_during_eval rpo_alpha label_smoothing simpo_gamma lora_task benchmarks callbacks system_prompt "
        "hub_model_revision num_train_samples multi_gpu machine_rank main_process_port rdzv_backend "
        "add_special_tokens append_concat_token splits dataset_shuffle dataset_id_or_path"
    ),
}
RECOGNISED = {"dataset_name", "dataset_mixer", "dataset_mixture", "max_length", "max_seq_length", "use_peft"}
TOOL = Tool(
    name="TRL",
    read_in="1.16.0",
    keys=KEYS,
    model=lambda values: values["model_name_or_path"],
    recognised=lambda config: (
        "model_name_or_path" in config and not {"finetuning_type", "stage", "template"} & set(config)
    ),
)
