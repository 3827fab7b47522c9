"""Other tools' names for a recipe's options, each with its name here."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from lorabench.estimator.errors import did_you_mean
from lorabench.estimator.optimizers.table import LEFT_OUT

INSTEAD = {
    "model": "model",  # for the command line, which takes it as an argument
    "model_name_or_path": "model",
    "model_name": "model",
    "base_model": "model",
    "finetuning_type": "method",
    "adapter": "method",
    "tuner_type": "method",
    "quantization_bit": "method=qlora",
    "bits": "method=qlora",
    "load_in_4bit": "method=qlora",
    "use_qlora": "method=qlora",
    "use_peft": "method=lora",
    "r": "rank",
    "lora_r": "rank",
    "lora_rank": "rank",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "rslora": "use_rslora",
    "lora_target": "target_modules",
    "lora_target_modules": "target_modules",
    "lora_target_linear": "target_modules=all-linear",
    "additional_target": "modules_to_save",
    "lora_modules_to_save": "modules_to_save",
    "pure_bf16": "adapter_dtype=bfloat16",
    "use_bnb_nested_quant": "double_quant",
    "double_quantization": "double_quant",
    "model_max_length": "seq_len",
    "activation_checkpointing": "gradient_checkpointing",
    "use_reentrant_gc": "use_reentrant",
    "enable_liger_kernel": "loss=liger",
    "liger_fused_linear_cross_entropy": "loss=liger",
    "flash_attention": "attn_implementation=flash_attention_2",
    "torch_dtype": "dtype",
    "bf16": "mixed_precision=bf16",
    "fp16": "mixed_precision=fp16",
    "bnb_4bit_compute_dtype": "mixed_precision",
    "bnb_4bit_quant_type": "quant_type",
    "bnb_4bit_use_double_quant": "double_quant",
    "use_double_quant": "double_quant",
    "optimizer": "optim",
    "bs": "batch_size",
    "micro_batch_size": "batch_size",
    "train_batch_size": "batch_size",
    "per_device_train_batch_size": "batch_size",
    "length": "seq_len",
    "max_length": "seq_len",
    "max_seq_len": "seq_len",
    "max_seq_length": "seq_len",
    "cutoff_len": "seq_len",
    "sequence_len": "seq_len",
    "block_size": "seq_len",
    "gradient_accumulation_steps": "gradient_accumulation",
    "use_gradient_checkpointing": "gradient_checkpointing",
    "checkpointing": "gradient_checkpointing",
    "reentrant": "use_reentrant",
    "gradient_checkpointing_kwargs": "use_reentrant",
    "transformers_version": "transformers",
    "torch_empty_cache_steps": "empty_cache_steps",
    "attn": "attn_implementation",
    "flash_attn": "attn_implementation=flash_attention_2",
    "use_flash_attention_2": "attn_implementation=flash_attention_2",
    "cut_cross_entropy": "loss=cut-cross-entropy",
    "use_liger": "loss=liger",
    "use_liger_kernel": "loss=liger",
}
"""Name in another tool → option with the same meaning here, with its value if the name implies one."""

_RATE = "the learning rate is fixed: it changes neither memory nor speed"
_ONE_GPU = "a recipe is for one GPU"
_NO_EFFECT = "it changes neither memory nor speed: leave it out"
_SFT = (
    "a recipe is supervised fine-tuning: leave it out for its cost, or rehearse the program (lorabench rehearse -- …)"
)
_CONFIG = "write --from FILE"
_PACKED = "text is always packed"
_LOSSES = "write --loss trl for TRL's own loss"
_ALL_LAYERS = "adapters are in all layers: leave it out"
_DORA = "DoRA is not among the methods"
NOT_HERE = {
    "lr": _RATE,
    "learning_rate": _RATE,
    "num_gpus": _ONE_GPU,
    "nproc_per_node": _ONE_GPU,
    "fsdp": _ONE_GPU,
    **dict.fromkeys(
        (
            *("zero_stage", "num_processes", "world_size", "tensor_parallel_size", "context_parallel_size"),
            "sequence_parallel_size",
        ),
        _ONE_GPU,
    ),
    "deepspeed": _ONE_GPU,
    **dict.fromkeys(("packing", "sample_packing", "padding_free", "neat_packing"), _PACKED),
    **dict.fromkeys(("rl", "stage", "trainer"), _SFT),
    **dict.fromkeys(("config", "config_file", "yaml"), _CONFIG),
    **dict.fromkeys(("chunked_cross_entropy", "loss_type"), _LOSSES),
    **dict.fromkeys(("layers_to_transform", "freeze_trainable_layers", "layers_pattern"), _ALL_LAYERS),
    **dict.fromkeys(
        (
            *("weight_decay", "max_grad_norm", "num_train_epochs", "num_epochs", "epochs", "warmup_ratio"),
            *("warmup_steps", "neftune_noise_alpha", "init_lora_weights", "loftq_config", "use_cache", "seed"),
            *("group_by_length", "tf32", "bnb_4bit_quant_storage", "trust_remote_code", "lr_scheduler_type"),
        ),
        _NO_EFFECT,
    ),
    "dora": _DORA,
    "use_dora": _DORA,
    "peft_use_dora": _DORA,
    "load_in_8bit": "weights are quantised to 4 bits only, by method qlora",
}
"""Name in another tool → the reason why there is no such option here."""
LOSSES = {"cce": "cut-cross-entropy", "cut_cross_entropy": "cut-cross-entropy", "chunked_nll": "trl"}
"""Name of a loss in another tool → its name here."""


def name_here(name: str, options: Iterable[str], write: Callable[[str, str], str] = "{}={}".format) -> str | None:
    """Return a clause with the option to write for another tool's ``name``, or the reason why there is none.

    ``write`` formats an option and its value; the value is empty if the name implies none. The result is None if the
    name is unknown, or its option is not among ``options``.
    """
    option, _, value = INSTEAD.get(name, "").partition("=")
    if option in options:
        return f"write {write(option, value).rstrip('=: ')}"
    return NOT_HERE.get(name)


def value_meant(option: str, value: str, choices: Iterable[str]) -> str:
    """Return a clause that suggests one of the ``choices`` of ``option`` instead of ``value``."""
    if option == "method" and value in NOT_HERE:
        return NOT_HERE[value]
    if option == "loss" and value in LOSSES:
        return f"write {LOSSES[value]}"
    if option == "optim" and value in LEFT_OUT:
        return LEFT_OUT[value]
    return did_you_mean(value, choices, say_all_up_to=40)
