"""LLaMA-Factory's YAML and JSON, and the arguments of ``llamafactory-cli train``."""

from __future__ import annotations

from typing import Any

from lorabench.estimator.errors import UserError
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
    option,
    part,
    text,
    used,
    whole,
    without_effect,
)
from lorabench.estimator.imported.reading import Tool, Values
from lorabench.estimator.imported.shared_rules import Results
from lorabench.estimator.imported.training_arguments import TRAINING_KEYS

ATTENTION = {"fa2": "flash_attention_2", "fa3": "flash_attention_3", "disabled": "eager"}


def _method(value: Any, values: Values) -> Options | Results:
    kind = str(value).lower()
    if kind in ("full", "freeze"):
        full = {"method": "full", "dtype": "bfloat16" if values["pure_bf16"] else "float32"}
        frozen = Missing("only some layers train; the answer counts all", "less memory")
        return [full, frozen] if kind == "freeze" else full
    if kind == "oft":
        return [
            _adapters(values),
            *_bases(values),
            Missing("OFT trains rotations; the answer counts LoRA", "other memory"),
        ]
    if kind != "lora":
        raise UserError(f"{kind} is not among the methods: use lora or full")
    return [_adapters(values), *_bases(values), *_modules(values)]


def _adapters(values: Values) -> dict[str, Any]:
    rank = values["lora_rank"]
    alpha = values["lora_alpha"]
    rslora = {"use_rslora": True} if values["use_rslora"] else {}
    return {
        "method": "qlora" if values["quantization_bit"] == 4 else "lora",
        "rank": rank,
        "lora_alpha": 2 * rank if alpha is None else alpha,
        "lora_dropout": values["lora_dropout"],
        "adapter_dtype": "bfloat16" if values["pure_bf16"] else "float32",
        **rslora,
    }


def _bases(values: Values) -> Results:
    bits = values["quantization_bit"]
    if bits is None:
        return [shared_rules.CHECKPOINT_DTYPE]
    if bits != 4:
        return [
            shared_rules.CHECKPOINT_DTYPE,
            Missing(f"base weights in {bits} bits; the answer counts 16", "less memory"),
        ]
    results: Results = [{"quant_type": values["quantization_type"], "double_quant": values["double_quantization"]}]
    results.append(shared_rules.FLOAT32_NORMS if values["upcast_layernorm"] else shared_rules.UNPREPARED)
    if values["quantization_method"] not in ("bnb", "bitsandbytes"):
        results.append(Missing("another 4-bit format; the answer counts that of bitsandbytes", "about the same memory"))
    return results


def _modules(values: Values) -> Results:
    named = values["lora_target"]
    named = [name.strip() for name in named.split(",")] if isinstance(named, str) else named
    results: Results = (
        [shared_rules.linear_layers(values.spec)] if named == ["all"] else shared_rules.targets(named, values.spec)
    )
    return results + shared_rules.saved_modules(values["additional_target"], values.spec)


def _precision(value: Any, values: Values) -> Options:
    if values["pure_bf16"]:
        return {"mixed_precision": "no"}
    return shared_rules.mixed_precision(bool(value), bool(values["fp16"]))


def _checkpointing(value: Any, values: Values) -> Options | Results:
    results: Results = [{"gradient_checkpointing": not value}]
    if value:
        return results
    if values["use_unsloth_gc"]:
        results.append(Missing(shared_rules.OFFLOADED, "less memory"))
    if values["use_reentrant_gc"]:
        results.append(shared_rules.REENTRANT)
    return results


def _packing(value: Any, values: Values) -> Results:
    packed = values["stage"] == "pt" if value is None else value
    # Lengths are padded to a multiple of 8, those of a single sequence too.
    return shared_rules.packing(packed or values["neat_packing"], pads=True)


def _liger(value: Any, values: Values) -> Options | Results:
    if not value:
        return {}
    losses = [shared_rules.liger_loss(values.spec)] if values["stage"] in ("pt", "sft") else []
    return [*losses, shared_rules.LIGER_KERNELS]


def _stage(value: Any, values: Values) -> Options | Missing:
    chats = values["infer_backend"] and not values["dataset"]
    if values["do_train"] is False or values["export_dir"] or chats:
        raise UserError("this file trains nothing (do_train, export_dir, infer_backend): give the file of a training")
    return shared_rules.training(value)


def _attention(value: Any, values: Values) -> Options | Missing | Results:
    return shared_rules.attention(ATTENTION.get(str(value).lower(), value), values)


KEYS: Keys = {
    **TRAINING_KEYS,
    "model_name_or_path": part(text),
    "stage": used(text, _stage, "sft"),
    "do_train": part(flag),
    **dict.fromkeys(("export_dir", "infer_backend"), part(text)),
    "dataset": part(names),
    "finetuning_type": used(text, _method, "lora"),
    "lora_rank": part(whole, 8),
    "lora_alpha": part(number),
    "lora_dropout": part(number, 0.0),
    "lora_target": part(names, "all"),
    "additional_target": part(names),
    "use_rslora": part(flag, False),
    "use_dora": shared_rules.DORA,
    "pissa_init": shared_rules.INIT,
    "quantization_bit": part(whole),
    "quantization_method": part(text, "bnb"),
    "quantization_type": part(text, "nf4"),
    "double_quantization": part(flag, True),
    "upcast_layernorm": part(flag, False),
    "upcast_lmhead_output": missing("logits in float32", "more memory"),
    "pure_bf16": part(flag, False),
    "bf16": used(flag, _precision, False),
    "cutoff_len": option("seq_len", whole, 2048),
    "packing": used(flag, _packing),
    "neat_packing": part(flag, False),
    "disable_gradient_checkpointing": used(flag, _checkpointing, False),
    "use_reentrant_gc": part(flag, True),
    "use_unsloth_gc": part(flag, False),
    # LLaMA-Factory has switches of its own, and turns on checkpointing itself.
    **dict.fromkeys(
        (
            *("gradient_checkpointing", "gradient_checkpointing_kwargs"),
            *("activation_checkpointing", "activation_checkpointing_kwargs"),
        ),
        Key(anything, effect=False),
    ),
    "flash_attn": used(text, _attention, "auto"),
    "enable_liger_kernel": used(flag, _liger, False),
    "use_unsloth": missing("Unsloth's kernels and loss", "less memory"),
    "shift_attn": missing("attention within groups", "less memory"),
    "resize_vocab": shared_rules.NEW_TOKENS,
    **dict.fromkeys(("add_tokens", "add_special_tokens", "new_special_tokens_config"), shared_rules.NEW_TOKENS),
    "mixture_of_depths": missing("some tokens skip layers", "less memory"),
    **{
        name: missing("states of low rank; the answer counts those of the optimizer that optim names", "less memory")
        for name in ("use_galore", "use_apollo")
    },
    "use_badam": missing("BAdam trains one block at a time; the answer counts all", "less memory"),
    "use_adam_mini": missing("Adam-mini keeps one second moment per block", "less memory"),
    "use_muon": missing("Muon keeps one moment for matrices", "less memory"),
    "use_llama_pro": missing("only new layers train; the answer counts all", "less memory"),
    "use_kt": missing("experts are in host memory", "less memory"),
    **{name: missing("Megatron or HyperParallel trains", "other memory") for name in ("use_mca", "use_hyper_parallel")},
    **{
        name: missing("this loss needs the logits once more", "more memory")
        for name in ("use_dft_loss", "use_asft_loss", "use_eaft_loss")
    },
    "fp8": shared_rules.FP8,
    "use_v1_kernels": missing("fused kernels", "less memory"),
    "ray_num_workers": missing(shared_rules.COPIES, "about the same memory"),
    "sequence_parallel": missing(shared_rules.SPLITS, "less memory"),
    **dict.fromkeys(
        (
            *("tensor_model_parallel_size", "pipeline_model_parallel_size", "expert_model_parallel_size"),
            *("context_parallel_size", "virtual_pipeline_model_parallel_size"),
        ),
        missing(shared_rules.SPLITS, "less memory"),
    ),
    "use_distributed_optimizer": missing(shared_rules.SHARDS, "less memory"),
    "recompute_granularity": missing("Megatron's checkpointing", "other memory"),
    "moe_grouped_gemm": missing("other kernels of experts", "other memory"),
    **without_effect(
        "compute_dtype hyper_parallel_args model_max_length ppo_buffer_size ppo_epochs ppo_score_norm ppo_target "
        "ppo_whiten_rewards profile_modules profiler_active_steps profiler_output_dir profiler_profile_memory "
        "profiler_record_shapes profiler_repeat profiler_wait_steps profiler_warmup_steps profiler_with_stack "
        "reward_model reward_model_adapters reward_model_quantization_bit reward_model_type sglang_config "
        "sglang_lora_backend sglang_maxlen sglang_mem_fraction sglang_tp_size swanlab_lark_secret "
        "swanlab_lark_webhook_url vllm_config vllm_enforce_eager vllm_gpu_util vllm_max_lora_rank vllm_maxlen "
        "template eval_dataset dataset_dir media_dir train_on_prompt mask_history streaming buffer_size mix_strategy "
        "interleave_probs overwrite_cache preprocessing_batch_size preprocessing_num_workers max_samples "
        "eval_num_beams ignore_pad_token_for_loss val_size eval_on_each_dataset tool_format default_system "
        "enable_thinking preserve_thinking tokenized_path data_shared_file_system adapter_name_or_path adapter_folder "
        "cache_dir use_fast_tokenizer split_special_tokens init_special_tokens model_revision low_cpu_mem_usage "
        "rope_scaling moe_aux_loss_coef train_from_scratch offload_folder use_kv_cache infer_dtype hf_hub_token "
        "ms_hub_token om_hub_token print_param_status trust_remote_code quantization_device_map image_max_pixels "
        "image_min_pixels image_do_pan_and_scan crop_to_patches video_max_pixels video_min_pixels video_fps "
        "video_maxlen use_audio_in_video audio_sampling_rate loraplus_lr_ratio loraplus_lr_embedding pissa_iter "
        "pissa_convert create_new_adapter module_dropout oft_rank oft_block_size oft_target freeze_trainable_layers "
        "freeze_trainable_modules freeze_extra_modules pref_beta pref_ftx pref_bco_weight pref_loss "
        "dpo_label_smoothing kto_chosen_weight kto_rejected_weight simpo_gamma ref_model ref_model_adapters "
        "ref_model_quantization_bit ld_alpha galore_target galore_rank galore_update_interval galore_scale "
        "galore_proj_type galore_layerwise apollo_target apollo_rank apollo_update_interval apollo_scale apollo_proj "
        "apollo_proj_type apollo_scale_type apollo_layerwise apollo_scale_front badam_mode badam_start_block "
        "badam_switch_mode badam_switch_interval badam_update_ratio badam_mask_mode badam_verbose use_swanlab "
        "swanlab_project swanlab_workspace swanlab_run_name swanlab_mode swanlab_api_key swanlab_logdir asft_alpha "
        "eaft_alpha freeze_vision_tower freeze_multi_modal_projector freeze_language_model compute_accuracy "
        "disable_shuffling early_stopping_steps plot_loss include_effective_tokens_per_second export_size "
        "export_device export_quantization_bit export_quantization_dataset export_quantization_nsamples "
        "export_quantization_maxlen export_legacy_format export_hub_model_id ray_init_kwargs master_addr master_port "
        "ray_run_name resources_per_worker placement_strategy ray_storage_path enable_torch_profiler fp8_backend "
        "fp8_enable_fsdp_float8_all_gather kt_weight_path kt_expert_checkpoint_path kt_use_lora_experts "
        "kt_lora_expert_num kt_lora_expert_intermediate_size cpu_infer chunk_size kt_optimize_rule max_new_tokens "
        "bias_activation_fusion apply_rope_fusion overlap_param_gather overlap_grad_reduce moe_token_dispatcher_type "
        "top_p temperature num_beams block_diag_attn device_map"
    ),
}
TOOL = Tool(
    name="LLaMA-Factory",
    read_in="0.9.5",
    keys=KEYS,
    model=lambda values: values["model_name_or_path"],
    recognised=lambda config: (
        "model_name_or_path" in config and bool({"finetuning_type", "stage", "template"} & set(config))
    ),
)
