"""axolotl's YAML."""

from __future__ import annotations

from typing import Any

from lorabench.estimator.errors import UserError
from lorabench.estimator.imported import common
from lorabench.estimator.imported.common import Results
from lorabench.estimator.imported.keys import (
    Key,
    Keys,
    Missing,
    Options,
    anything,
    flag,
    mapping,
    missing,
    names,
    number,
    option,
    part,
    refused,
    text,
    used,
    whole,
    without_effect,
)
from lorabench.estimator.imported.reading import Tool, Values

ADAPTERS = {"lora": "lora", "qlora": "qlora", "full": "full"}
ATTENTION_FLAGS = {
    "xformers_attention": "xformers",
    "sage_attention": "sage",
    "flex_attention": "flex_attention",
    "flash_attention": "flash_attention_2",
    "sdp_attention": "sdpa",
    "eager_attention": "eager",
}
"""Older switch → name of the kernel, the most specific first."""


def _method(value: Any, values: Values) -> Options | Results:
    name = str(value or "full").lower()
    if name not in ADAPTERS:
        raise UserError(f"{name} is not among the methods: use lora or qlora")
    if name == "full":
        return {"method": "full"}
    four_bits = values["load_in_4bit"] or name == "qlora"
    adapters: Results = [{"method": "qlora" if four_bits else "lora"}]
    if values["lora_r"] is None:
        raise UserError("axolotl has no default rank: write lora_r")
    adapters.append({"rank": values["lora_r"], "lora_dropout": values["lora_dropout"]})
    if values["lora_alpha"] is not None:
        adapters.append({"lora_alpha": values["lora_alpha"]})
    if four_bits:
        settings = values["bnb_config_kwargs"] or {}
        quant_type = str(settings.get("bnb_4bit_quant_type", "nf4"))
        double = flag(settings.get("bnb_4bit_use_double_quant", True))
        adapters += [{"quant_type": quant_type, "double_quant": double}, common.UNPREPARED]
    if values["lora_target_linear"]:
        adapters.append(common.linear_layers(values.spec))
    elif values["lora_target_modules"]:
        adapters += common.targets(values["lora_target_modules"], values.spec)
    elif not values["lora_target_parameters"]:
        adapters.append(common.peft_targets(values.spec))
    adapters += common.saved_modules(values["lora_modules_to_save"], values.spec)
    if not values["peft_autocast_adapter_dtype"]:
        adapters.append({"adapter_dtype": _weights(values)})
    if _fuses_adapters(values):
        adapters.append(common.LORA_KERNELS)
    return adapters


def _fuses_adapters(values: Values) -> bool:
    """Return whether axolotl turns its kernels of adapters on by itself, or was asked to."""
    asked = [values[f"lora_{name}_kernel"] for name in ("mlp", "qkv", "o")]
    if any(each is not None for each in asked):
        return any(asked)
    return not (values["rl"] or values["trust_remote_code"] or values["load_in_8bit"])


def _half(values: Values) -> tuple[bool, bool]:
    """Return whether autocast runs in bfloat16, and in float16 (`resolve_dtype`, on a GPU with bfloat16)."""
    fp16 = bool(values["fp16"])
    auto = str(values["bf16"]).lower() in ("auto", "full")
    bf16 = not fp16 if auto else flag(values["bf16"])
    return bf16, fp16 and not bf16


def _weights(values: Values) -> str:
    bf16, fp16 = _half(values)
    if bf16 or values["bfloat16"]:
        return "bfloat16"
    return "float16" if fp16 or values["float16"] or values["load_in_8bit"] else "float32"


def _precision(_: Any, values: Values) -> Options:
    bf16, fp16 = _half(values)
    # Plain bfloat16 and float16 set the Trainer's own switch as well.
    both = common.mixed_precision(bf16 or bool(values["bfloat16"]), fp16 or bool(values["float16"]))
    return {**both, "dtype": _weights(values)}


def _batch(value: Any, values: Values) -> Options:
    steps = values["gradient_accumulation_steps"]
    if steps is None:
        steps = (values["batch_size"] or value) // value
    return {"batch_size": value, "gradient_accumulation": max(steps, 1)}


def _attention(value: Any, values: Values) -> Options | Missing | Results:
    older = next((name for key, name in ATTENTION_FLAGS.items() if values[key]), None)
    return common.attention(value or older, values)


def _checkpointing(value: Any, values: Values) -> Options | Results:
    word = str(value).lower()
    activations = values["activation_offloading"]
    offloads = word.startswith("offload") or (activations and str(activations).lower() != "false")
    on = offloads or flag(value)
    results: Results = [{"gradient_checkpointing": on}]
    arguments = values["gradient_checkpointing_kwargs"] or {}
    if on and flag(arguments.get("use_reentrant", False)):
        results.append(common.REENTRANT)
    if offloads:
        results.append(Missing(common.OFFLOADED, "less memory"))
    return results


def _plugins(value: Any, values: Values) -> Results:
    loaded = " ".join(value or [])
    results: Results = []
    if "CutCrossEntropy" in loaded:
        results.append(common.CUT_CROSS_ENTROPY)
    if "LigerPlugin" in loaded:
        if values["liger_fused_linear_cross_entropy"]:
            results.append(common.liger_loss(values.spec))
        kernels = ("rope", "rms_norm", "rms_norm_gated", "layer_norm", "swiglu", "glu_activation")
        if any(values[f"liger_{kernel}"] for kernel in kernels):
            results.append(common.LIGER_KERNELS)
    known = ("CutCrossEntropy", "LigerPlugin", "SwanLab", "LMEval", "KernelsPlugin", "ExpertParallel")
    others = [name for name in value or [] if not any(word in name for word in known)]
    if others:
        results.append(Missing(f"what {', '.join(name.rpartition('.')[2] for name in others)} does", "other memory"))
    return results


def _packing(value: Any, values: Values) -> Options | Missing:
    return {} if value or values["batch_flattening"] else Missing(common.PADDED, "less memory")


def _fsdp(value: Any, _: Values) -> Options | Missing:
    return Missing(common.SHARDS, "less memory") if value else {}


_REWARD = "a reward model has a head with one output, and lorabench answers for language models: use an SFT config"
KEYS: Keys = {
    "base_model": part(text),
    "adapter": used(text, _method),
    **dict.fromkeys(("lora_r", "batch_size"), part(whole)),
    "gradient_accumulation_steps": part(whole),
    "lora_alpha": part(number),
    "lora_dropout": part(number, 0.0),
    "lora_target_modules": part(names),
    "lora_target_linear": part(flag, False),
    "lora_modules_to_save": part(names),
    "load_in_4bit": part(flag, False),
    "load_in_8bit": missing(common.INT8, "less memory"),
    "bnb_config_kwargs": part(mapping),
    "peft_autocast_adapter_dtype": part(flag, True),
    "peft_use_rslora": used(flag, lambda value, values: {"use_rslora": value} if value and values["adapter"] else {}),
    "lora_target_parameters": common.PARAMETERS,
    "peft_use_dora": common.DORA,
    **dict.fromkeys(("lora_rank_pattern", "lora_alpha_pattern"), common.PATTERNS),
    **dict.fromkeys(("peft_layers_to_transform", "peft_layers_pattern"), common.SOME_LAYERS),
    "peft_layer_replication": missing("repeated layers", "more memory"),
    "peft_trainable_token_indices": missing("rows of the embedding train too", "more memory"),
    "bf16": used(anything, _precision, "auto"),
    "fp16": part(flag),
    "bfloat16": part(flag),
    "float16": part(flag),
    "micro_batch_size": used(whole, _batch, 1),
    "sequence_len": option("seq_len", whole, 512),
    "sample_packing": used(flag, _packing, False),
    "batch_flattening": part(anything),
    "gradient_checkpointing": used(anything, _checkpointing, False),
    "gradient_checkpointing_kwargs": part(mapping),
    "activation_offloading": part(anything, False),
    "layer_offloading": missing("weights of layers wait in host memory", "less memory"),
    "selective_checkpointing": missing("some operations are kept instead of run again", "more memory"),
    "optimizer": used(text, common.optimizer, "adamw_torch_fused"),
    "attn_implementation": used(text, _attention),
    **{key: part(flag, False) for key in ATTENTION_FLAGS},
    "plugins": used(names, lambda value, values: _plugins([value] if isinstance(value, str) else value, values)),
    "cut_cross_entropy": part(flag),
    "chunked_cross_entropy": missing(f"the loss runs in chunks: {common.NO_LOGITS}", "less memory"),
    "liger_fused_linear_cross_entropy": part(flag),
    **{
        f"liger_{name}": part(flag, False)
        for name in ("rope", "rms_norm", "rms_norm_gated", "layer_norm", "swiglu", "glu_activation")
    },
    "liger_cross_entropy": missing("Liger's loss overwrites the logits with their gradients", "less memory"),
    **{f"lora_{name}_kernel": part(flag) for name in ("mlp", "qkv", "o")},
    "lora_embedding_kernel": missing("fused kernels of adapters of embeddings", "less memory"),
    "torch_empty_cache_steps": option("empty_cache_steps", whole),
    "gc_steps": Key(anything, effect=False),
    "rl": used(text, common.training),
    "reward_model": refused(_REWARD),
    "process_reward_model": refused(_REWARD),
    "deepspeed": missing(common.SHARDS, "less memory"),
    **dict.fromkeys(("fsdp", "fsdp_config"), used(anything, _fsdp)),
    "dp_shard_size": missing(common.SHARDS, "less memory"),
    **dict.fromkeys(("dp_replicate_size", "ddp", "world_size"), missing(common.COPIES, "about the same memory")),
    **dict.fromkeys(
        ("tensor_parallel_size", "context_parallel_size", "sequence_parallel_degree", "expert_parallel_size"),
        missing(common.SPLITS, "less memory"),
    ),
    **dict.fromkeys(("resize_token_embeddings_to_32x", "tokens", "added_tokens_overrides"), common.NEW_TOKENS),
    "special_tokens": Key(anything, effect=False),
    "unfrozen_parameters": missing("only some parameters train; the answer counts all", "less memory"),
    "quantize_moe_experts": missing(common.EXPERT_4BIT, "less memory"),
    "ple_cpu_offload": missing("per-layer embeddings are in host memory", "less memory"),
    "tiled_mlp": missing("the feed-forward runs in pieces", "less memory"),
    "qat": missing("fake quantisation of weights and activations", "more memory"),
    **dict.fromkeys(("fp8", "fp8_config"), common.FP8),
    "torch_compile": common.COMPILED,
    "relora": missing("ReLoRA merges adapters and trains in full at first", "more memory"),
    "lisa_n_layers": missing("only some layers train at a time; the answer counts all", "less memory"),
    **dict.fromkeys(("gptq", "model_quantization_config"), missing("weights stored quantised", "less memory")),
    "peft": common.INIT,
    "overrides_of_model_config": missing("other shapes or positions than those of the model", "other memory"),
    "overrides_of_model_kwargs": missing("other arguments of the model", "other memory"),
    "model_config": missing("other shapes or positions than those of the model", "other memory"),
    "diffusion": missing("diffusion training with masked tokens", "other memory"),
    "fp32_norms": missing("norms are in float32", "more memory"),
    "use_eaft": missing("the entropy of the logits is computed", "more memory"),
    "kd_trainer": missing("logits of a teacher", "more memory"),
    "use_mora": common.ANOTHER_ADAPTER,
    "llama4_linearized_experts": missing("experts as linear layers", "other memory"),
    **dict.fromkeys(
        (
            "flash_attn_cross_entropy",
            "flash_attn_rms_norm",
            "flash_attn_fuse_mlp",
            "flash_optimum",
            "fused_attn_kernel",
        ),
        missing("a fused kernel", "less memory"),
    ),
    **dict.fromkeys(
        ("use_scattermoe", "use_sonicmoe", "use_kernels", "experts_implementation", "expert_backend"),
        missing("other kernels of experts", "other memory"),
    ),
    "use_onebitllms": missing("ternary weights", "other memory"),
    "use_ray": Key(flag, effect=False),
    **without_effect(
        "base_model_config cls_model_config tokenizer_config tokenizer_use_fast tokenizer_legacy processor_type "
        "tokenizer_use_mistral_common tokenizer_type processor_kwargs tokenizer_save_jinja_files model_type "
        "type_of_model trust_remote_code revision_of_model experimental_skip_move_to_device strict "
        "resume_from_checkpoint auto_resume_from_checkpoints mean_resizing_embeddings reinit_weights trainer_cls trl "
        "vllm ebft num_labels dynamic_checkpoint datasets test_datasets shuffle_merged_datasets "
        "shuffle_before_merging_datasets dataset_prepared_path dataset_shard_num dataset_shard_idx "
        "skip_prepare_dataset num_dataset_shards_to_save pretraining_dataset dataset_processes dataset_num_proc "
        "dataset_exact_deduplication dataset_keep_in_memory dataloader_pin_memory dataloader_num_workers "
        "dataloader_prefetch_factor dataloader_drop_last device_map accelerator_config remove_unused_columns "
        "push_dataset_to_hub hf_use_auth_token device local_rank seed debug ddp_timeout ddp_bucket_cap_mb "
        "ddp_broadcast_buffers ddp_find_unused_parameters do_causal_lm_eval eval_causal_lm_metrics do_bench_eval "
        "bench_dataset bench_split metric_for_best_model greater_is_better loss_watchdog_threshold "
        "loss_watchdog_patience gc_collect_steps tf32 float32 freeze_mm_modules excess_length_strategy "
        "eval_sequence_len min_sample_len max_prompt_len sample_packing_group_size sample_packing_bin_size "
        "sample_packing_sequentially sample_packing_mp_start_method eval_sample_packing sample_packing_eff_est "
        "sample_packing_seq_len_multiplier total_num_tokens total_supervised_tokens pad_to_sequence_len "
        "pad_to_multiple_of curriculum_sampling multipack_real_batches streaming pretrain_multipack_buffer_size "
        "pretrain_multipack_attn pretraining_sample_concatenation streaming_multipack_buffer_size "
        "flex_attn_compile_kwargs gemma4_hybrid_attn_impl sdpa_varlen chunked_cross_entropy_num_chunks "
        "tiled_mlp_num_shards eaft_alpha eaft_k deepcompile fsdp_version fsdp_final_state_dict_type heads_k_stride "
        "ring_attn_func fp32_norm_classes val_set_size torch_compile_backend torch_compile_mode torch_compile_options "
        "max_steps warmup_steps warmup_ratio eval_steps evals_per_epoch eval_strategy evaluation_strategy save_steps "
        "saves_per_epoch save_strategy save_total_limit save_first_step logging_steps early_stopping_patience "
        "load_best_model_at_end save_only_model use_tensorboard profiler_steps profiler_steps_start nvfp4_merge_aware "
        "dsv4_fp4_grouped_mode use_dsv4_kernels use_glm_dsa_kernels neftune_noise_alpha noisy_embedding_alpha "
        "orpo_alpha simpo_gamma cpo_alpha kto_desirable_weight kto_undesirable_weight rl_beta dpo_beta max_memory "
        "gpu_memory_limit low_cpu_mem_usage chat_template chat_template_jinja chat_template_kwargs eot_tokens "
        "default_system_message fix_untrained_tokens generate_samples lora_model_dir lora_fan_in_fan_out "
        "peft_init_lora_weights lora_on_cpu loraplus_lr_ratio loraplus_lr_embedding merge_lora relora_prune_ratio "
        "relora_prune_method relora_cpu_offload jagged_restart_steps jagged_restart_warmup_steps "
        "jagged_restart_anneal_steps eval_batch_size auto_find_batch_size train_on_inputs group_by_length "
        "learning_rate embedding_lr embedding_lr_scale weight_decay optim_args optim_target_modules torchdistx_path "
        "lr_scheduler lr_scheduler_kwargs lr_quadratic_warmup cosine_min_lr_ratio cosine_constant_lr_ratio "
        "lr_div_factor lr_groups adam_epsilon adam_epsilon2 adam_eps adam_beta1 adam_beta2 adam_beta3 max_grad_norm "
        "num_epochs eta_min output_dir hub_model_id hub_strategy hub_revision save_safetensors "
        "max_packed_sequence_len rope_scaling eval_table_size eval_max_new_tokens use_mlflow mlflow_tracking_uri "
        "mlflow_experiment_name mlflow_run_name hf_mlflow_log_artifacts lisa_step_interval lisa_layers_attribute "
        "use_wandb wandb_name wandb_run_id wandb_mode wandb_project wandb_entity wandb_watch wandb_log_model "
        "use_comet comet_project_name ray_run_name ray_num_workers resources_per_worker use_otel_metrics "
        "otel_metrics_host otel_metrics_port use_trackio trackio_project_name trackio_run_name trackio_space_id "
        "image_size image_resize_algorithm role_boundaries use_swanlab swanlab_project swanlab_experiment_name "
        "swanlab_description swanlab_mode swanlab_workspace swanlab_log_model swanlab_log_completions "
        "swanlab_completion_log_interval swanlab_completion_max_buffer gptq_groupsize gptq_model_v1 "
        "gptq_disable_exllama model_quantization_config_kwargs llmcompressor center_rewards_coefficient "
        "expert_parallel_num_nvl_bytes expert_parallel_token_capacity fp8_enable_fsdp_float8_all_gather "
        "base_model_ignore_patterns torch_dtype is_llama_derived_model is_falcon_derived_model "
        "is_mistral_derived_model is_qwen_derived_model logging_first_step precompute_ref_log_probs "
        "dpo_label_smoothing dpo_use_weighting include_tokens_per_second"
    ),
}
TOOL = Tool(
    name="axolotl",
    read_in="0.19.0",
    keys=KEYS,
    model=lambda values: values["base_model"],
    recognised=lambda config: "base_model" in config,
)
