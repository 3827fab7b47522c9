"""transformers' TrainingArguments, as `TrainingArguments.to_json_string` writes them."""

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
    mapping,
    missing,
    option,
    part,
    text,
    used,
    whole,
    without_effect,
)
from lorabench.estimator.imported.reading import Tool, Values
from lorabench.estimator.imported.shared_rules import Results


def precision(_: Any, values: Values) -> Options:
    """Return the option of autocast."""
    return shared_rules.mixed_precision(bool(values["bf16"]), bool(values["fp16"]))


def checkpointing(value: Any, values: Values) -> Options | Results:
    """Return the options of checkpointing, under its new name or its older one."""
    on = values["activation_checkpointing"]
    on = value if on is None else on
    given = {**(values["gradient_checkpointing_kwargs"] or {}), **(values["activation_checkpointing_kwargs"] or {})}
    results: Results = [{"gradient_checkpointing": bool(on)}]
    if on and flag(given.get("use_reentrant", False)):
        results.append(shared_rules.REENTRANT)
    if on and (given.get("every_n_layers") or 1) != 1:
        results.append(Missing("only some layers are checkpointed; the answer counts all", "more memory"))
    if on and given.get("offload"):
        results.append(Missing(shared_rules.OFFLOADED, "less memory"))
    return results


def liger(value: Any, values: Values) -> Options | Results:
    """Return the loss of Liger, whose other kernels run too."""
    return [shared_rules.liger_loss(values.spec), shared_rules.LIGER_KERNELS] if value else {}


TRAINING_KEYS: Keys = {
    "per_device_train_batch_size": option("batch_size", whole, 8),
    "gradient_accumulation_steps": option("gradient_accumulation", whole, 1),
    "bf16": used(flag, precision, False),
    "fp16": part(flag),
    "gradient_checkpointing": used(flag, checkpointing, False),
    "gradient_checkpointing_kwargs": part(mapping),
    "activation_checkpointing": part(flag),
    "activation_checkpointing_kwargs": part(mapping),
    "optim": used(text, shared_rules.optimizer, "adamw_torch_fused"),
    "torch_empty_cache_steps": option("empty_cache_steps", whole),
    "use_liger_kernel": used(flag, liger, False),
    "torch_compile": shared_rules.COMPILED,
    "deepspeed": missing(shared_rules.SHARDS, "less memory"),
    "fsdp": missing(shared_rules.SHARDS, "less memory"),
    "fsdp_config": Key(anything, effect=False),
    "parallelism_config": missing(shared_rules.SPLITS, "less memory"),
    "optim_target_modules": missing("only these layers have states of low rank", "other memory"),
    "label_smoothing_factor": missing("label smoothing needs the logits once more", "more memory", off=(0.0, 0, None)),
    **without_effect(
        "output_dir overwrite_output_dir do_train do_eval do_predict eval_strategy evaluation_strategy "
        "prediction_loss_only per_device_eval_batch_size eval_accumulation_steps eval_delay learning_rate "
        "weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm num_train_epochs max_steps lr_scheduler_type "
        "lr_scheduler_kwargs warmup_ratio warmup_steps log_level log_level_replica log_on_each_node logging_dir "
        "logging_strategy logging_first_step logging_steps logging_nan_inf_filter save_strategy save_steps "
        "save_total_limit save_safetensors save_on_each_node save_only_model restore_callback_states_from_checkpoint "
        "no_cuda use_cpu use_mps_device seed data_seed jit_mode_eval use_ipex bf16_full_eval fp16_full_eval "
        "fp16_opt_level half_precision_backend tf32 local_rank ddp_backend tpu_num_cores debug dataloader_drop_last "
        "eval_steps dataloader_num_workers dataloader_prefetch_factor past_index run_name disable_tqdm "
        "remove_unused_columns label_names load_best_model_at_end metric_for_best_model greater_is_better "
        "ignore_data_skip accelerator_config optim_args adafactor group_by_length length_column_name report_to "
        "ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_timeout "
        "dataloader_pin_memory dataloader_persistent_workers dataloader_multiprocessing_context dataloader_in_order "
        "skip_memory_metrics push_to_hub resume_from_checkpoint hub_model_id hub_strategy hub_token hub_private_repo "
        "hub_always_push hub_revision include_for_metrics include_num_input_tokens_seen include_tokens_per_second "
        "neftune_noise_alpha batch_eval_metrics eval_on_start eval_do_concat_batches eval_use_gather_object use_cache "
        "average_tokens_across_devices auto_find_batch_size full_determinism torch_compile_backend torch_compile_mode "
        "torchdynamo ray_scope train_sampling_strategy project trackio_space_id trackio_bucket_id "
        "trackio_static_space_id enable_jit_checkpoint liger_kernel_config push_to_hub_token push_to_hub_model_id "
        "push_to_hub_organization include_inputs_for_metrics fp16_backend mp_parameters fsdp_min_num_params "
        "fsdp_transformer_layer_cls_to_wrap per_gpu_train_batch_size per_gpu_eval_batch_size predict_with_generate "
        "generation_max_length generation_num_beams generation_config sortish_sampler"
    ),
}
"""Keys of TrainingArguments, with its defaults."""
KEYS: Keys = {
    **TRAINING_KEYS,
    # Trainer trains the model that a script gives it, which from_pretrained loads in the dtype of its checkpoint.
    "method": used(text, lambda value, values: {"method": value, **shared_rules.CHECKPOINT_DTYPE}, "full"),
}
TOOL = Tool(
    name="transformers' TrainingArguments",
    read_in="5.24",
    keys=KEYS,
    model=lambda values: None,
    recognised=lambda config: "per_device_train_batch_size" in config or {"output_dir", "optim"} <= set(config),
)
