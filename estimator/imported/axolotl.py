"""axolotl's YAML."""

from __future__ import annotations

from typing import Any

from lorabench.estimator.errors import UserError
from lorabench.estimator.imported import shared_rules
from lorabench.estimator.imported.axolotl_without_effect import WITHOUT_EFFECT
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
from lorabench.estimator.imported.shared_rules import Results

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
        adapters += [{"quant_type": quant_type, "double_quant": double}, shared_rules.UNPREPARED]
    if values["lora_target_linear"]:
        adapters.append(shared_rules.linear_layers(values.spec))
    elif values["lora_target_modules"]:
        adapters += shared_rules.targets(values["lora_target_modules"], values.spec)
    elif not values["lora_target_parameters"]:
        adapters.append(shared_rules.peft_targets(values.spec))
    adapters += shared_rules.saved_modules(values["lora_modules_to_save"], values.spec)
    if not values["peft_autocast_adapter_dtype"]:
        adapters.append({"adapter_dtype": _weights(values)})
    if _fuses_adapters(values):
        adapters.append(shared_rules.LORA_KERNELS)
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
    both = shared_rules.mixed_precision(bf16 or bool(values["bfloat16"]), fp16 or bool(values["float16"]))
    return {**both, "dtype": _weights(values)}


def _batch(value: Any, values: Values) -> Options:
    steps = values["gradient_accumulation_steps"]
    if steps is None:
        steps = (values["batch_size"] or value) // max(value, 1)
    return {"batch_size": value, "gradient_accumulation": max(steps, 1)}


def _attention(value: Any, values: Values) -> Options | Missing | Results:
    older = next((name for key, name in ATTENTION_FLAGS.items() if values[key]), None)
    return shared_rules.attention(value or older, values)


def _checkpointing(value: Any, values: Values) -> Options | Results:
    word = str(value).lower()
    activations = values["activation_offloading"]
    offloads = word.startswith("offload") or (activations and str(activations).lower() != "false")
    on = offloads or flag(value)
    results: Results = [{"gradient_checkpointing": on}]
    arguments = values["gradient_checkpointing_kwargs"] or {}
    if on and flag(arguments.get("use_reentrant", False)):
        results.append(shared_rules.REENTRANT)
    if offloads:
        results.append(Missing(shared_rules.OFFLOADED, "less memory"))
    return results


def _plugins(value: Any, values: Values) -> Results:
    loaded = " ".join(value or [])
    results: Results = []
    if "CutCrossEntropy" in loaded and values["cut_cross_entropy"] is not False:
        results.append(shared_rules.CUT_CROSS_ENTROPY)
    if "LigerPlugin" in loaded:
        if values["liger_fused_linear_cross_entropy"]:
            results.append(shared_rules.liger_loss(values.spec))
        kernels = ("rope", "rms_norm", "rms_norm_gated", "layer_norm", "swiglu", "glu_activation")
        if any(values[f"liger_{kernel}"] for kernel in kernels):
            results.append(shared_rules.LIGER_KERNELS)
    known = ("CutCrossEntropy", "LigerPlugin", "SwanLab", "LMEval", "KernelsPlugin", "ExpertParallel")
    others = [name for name in value or [] if not any(word in name for word in known)]
    if others:
        results.append(Missing(f"what {', '.join(name.rpartition('.')[2] for name in others)} does", "other memory"))
    return results


def _packing(value: Any, values: Values) -> Options | Results:
    packed, to_length = value or values["batch_flattening"], values["pad_to_sequence_len"]
    if to_length and not packed:
        return shared_rules.PADDED
    # Unless told otherwise, lengths are padded to a multiple of 64, those of a single sequence too.
    return shared_rules.packing(packed, pads=to_length is None or values["micro_batch_size"] > 1)


def _fsdp(value: Any, _: Values) -> Options | Missing:
    return Missing(shared_rules.SHARDS, "less memory") if value else {}


_REWARD = "a reward model has a head with one output, and lorabench answers for language models: use an SFT config"
_ELSEWHERE = (
    "it trains elsewhere or on generated text, and lorabench answers for supervised fine-tuning: use an SFT config"
)
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
    "load_in_8bit": missing(shared_rules.INT8, "less memory"),
    "bnb_config_kwargs": part(mapping),
    "peft_autocast_adapter_dtype": part(flag, True),
    "peft_use_rslora": used(flag, lambda value, values: {"use_rslora": value} if value and values["adapter"] else {}),
    "lora_target_parameters": shared_rules.PARAMETERS,
    "peft_use_dora": shared_rules.DORA,
    **dict.fromkeys(("lora_rank_pattern", "lora_alpha_pattern"), shared_rules.PATTERNS),
    **dict.fromkeys(("peft_layers_to_transform", "peft_layers_pattern"), shared_rules.SOME_LAYERS),
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
    "pad_to_sequence_len": part(flag),
    "gradient_checkpointing": used(anything, _checkpointing, False),
    "gradient_checkpointing_kwargs": part(mapping),
    "activation_offloading": part(anything, False),
    "layer_offloading": missing("weights of layers wait in host memory", "less memory"),
    "selective_checkpointing": missing("some operations are kept instead of run again", "more memory"),
    "optimizer": used(text, shared_rules.optimizer, "adamw_torch_fused"),
    "attn_implementation": used(text, _attention),
    **{key: part(flag, False) for key in ATTENTION_FLAGS},
    "plugins": used(names, lambda value, values: _plugins([value] if isinstance(value, str) else value, values)),
    "cut_cross_entropy": part(flag),
    "chunked_cross_entropy": missing(f"the loss runs in chunks: {shared_rules.NO_LOGITS}", "less memory"),
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
    "rl": used(text, shared_rules.training),
    "reward_model": refused(_REWARD),
    "process_reward_model": refused(_REWARD),
    "deepspeed": missing(shared_rules.SHARDS, "less memory"),
    **dict.fromkeys(("fsdp", "fsdp_config"), used(anything, _fsdp)),
    "dp_shard_size": missing(shared_rules.SHARDS, "less memory"),
    **dict.fromkeys(("dp_replicate_size", "ddp", "world_size"), missing(shared_rules.COPIES, "about the same memory")),
    **dict.fromkeys(
        ("tensor_parallel_size", "context_parallel_size", "sequence_parallel_degree", "expert_parallel_size"),
        missing(shared_rules.SPLITS, "less memory"),
    ),
    **dict.fromkeys(("resize_token_embeddings_to_32x", "tokens", "added_tokens_overrides"), shared_rules.NEW_TOKENS),
    "special_tokens": Key(anything, effect=False),
    "unfrozen_parameters": missing("only some parameters train; the answer counts all", "less memory"),
    "quantize_moe_experts": missing(shared_rules.EXPERT_4BIT, "less memory"),
    "ple_cpu_offload": missing("per-layer embeddings are in host memory", "less memory"),
    "tiled_mlp": missing("the feed-forward runs in pieces", "less memory"),
    "qat": missing("fake quantisation of weights and activations", "more memory"),
    **dict.fromkeys(("fp8", "fp8_config"), shared_rules.FP8),
    "torch_compile": shared_rules.COMPILED,
    "relora": missing("ReLoRA merges adapters and trains in full at first", "more memory"),
    "lisa_n_layers": missing("only some layers train at a time; the answer counts all", "less memory"),
    **dict.fromkeys(("gptq", "model_quantization_config"), missing("weights stored quantised", "less memory")),
    "peft": shared_rules.INIT,
    "overrides_of_model_config": missing("other shapes or positions than those of the model", "other memory"),
    "overrides_of_model_kwargs": missing("other arguments of the model", "other memory"),
    "model_config": missing("other shapes or positions than those of the model", "other memory"),
    "diffusion": missing("diffusion training with masked tokens", "other memory"),
    "fp32_norms": missing("norms are in float32", "more memory"),
    "use_eaft": missing("the entropy of the logits is computed", "more memory"),
    "kd_trainer": missing("logits of a teacher", "more memory"),
    "nemo_gym_enabled": refused(_ELSEWHERE),
    "hatchery": refused(_ELSEWHERE),
    "dense_mixer": missing("all experts run for all tokens", "more memory"),
    "grokfast_alpha": missing("averages of all gradients", "more memory"),
    "spectrum_top_fraction": missing("only some layers train; the answer counts all", "less memory"),
    "dpo_use_liger_kernel": missing(f"Liger's loss for preferences: {shared_rules.NO_LOGITS}", "less memory"),
    "shrink_embeddings": missing("fewer rows of embeddings and head", "less memory"),
    **dict.fromkeys(
        (
            *("nonexpert_quantization", "gemma4_fp8_nonexpert", "gemma4_nf4_nonexpert", "dsv4_fp8_nonexpert_mode"),
            *("moe_bnb_fast", "dsv4_bf16_all"),
        ),
        missing("weights in another format", "other memory"),
    ),
    **dict.fromkeys(
        ("moe_grouped_backend", "dsv4_fp8_lora_kernel", "dsv4_shared_mlp_lora_kernel"),
        missing("other kernels of experts", "other memory"),
    ),
    **dict.fromkeys(
        ("s2_attention", "scaling_softmax", "large_head_attention", "flash_attn_d512"),
        missing("another kernel of attention", "other memory"),
    ),
    **dict.fromkeys(("use_mora", "mora"), shared_rules.ANOTHER_ADAPTER),
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
    **without_effect(WITHOUT_EFFECT),
}
TOOL = Tool(
    name="axolotl",
    read_in="0.19.0",
    keys=KEYS,
    model=lambda values: values["base_model"],
    recognised=lambda config: "base_model" in config,
)
