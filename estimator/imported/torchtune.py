"""torchtune's recipe YAML. Its components are named by the paths of Python functions, which are never imported."""

from __future__ import annotations

import re
from collections.abc import Mapping
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

MODELS = {
    "llama2_7b": "meta-llama/Llama-2-7b-hf",
    "llama2_13b": "meta-llama/Llama-2-13b-hf",
    "llama2_70b": "meta-llama/Llama-2-70b-hf",
    "code_llama2_7b": "codellama/CodeLlama-7b-hf",
    "code_llama2_13b": "codellama/CodeLlama-13b-hf",
    "code_llama2_70b": "codellama/CodeLlama-70b-hf",
    "llama3_8b": "meta-llama/Meta-Llama-3-8B",
    "llama3_70b": "meta-llama/Meta-Llama-3-70B",
    "llama3_1_8b": "meta-llama/Llama-3.1-8B",
    "llama3_1_70b": "meta-llama/Llama-3.1-70B",
    "llama3_1_405b": "meta-llama/Llama-3.1-405B",
    "llama3_2_1b": "meta-llama/Llama-3.2-1B",
    "llama3_2_3b": "meta-llama/Llama-3.2-3B",
    "llama3_3_70b": "meta-llama/Llama-3.3-70B-Instruct",
    "llama3_2_vision_11b": "meta-llama/Llama-3.2-11B-Vision",
    "llama3_2_vision_90b": "meta-llama/Llama-3.2-90B-Vision",
    "mistral_7b": "mistralai/Mistral-7B-v0.1",
    "gemma_2b": "google/gemma-2b",
    "gemma_7b": "google/gemma-7b",
    "gemma2_2b": "google/gemma-2-2b",
    "gemma2_9b": "google/gemma-2-9b",
    "gemma2_27b": "google/gemma-2-27b",
    "phi3_mini": "microsoft/Phi-3-mini-4k-instruct",
    "phi4_14b": "microsoft/phi-4",
    "qwen2_0_5b": "Qwen/Qwen2-0.5B",
    "qwen2_1_5b": "Qwen/Qwen2-1.5B",
    "qwen2_7b": "Qwen/Qwen2-7B",
    **{
        f"qwen2_5_{size.lower().replace('.', '_')}": f"Qwen/Qwen2.5-{size}"
        for size in ("0.5B", "1.5B", "3B", "7B", "14B", "32B", "72B")
    },
    **{
        f"qwen3_{size.lower().replace('.', '_')}": f"Qwen/Qwen3-{size}"
        for size in ("0.6B", "1.7B", "4B", "8B", "14B", "32B")
    },
}
"""Name of a model builder → model with the same shapes."""
ATTENTION = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "output_proj": "o_proj"}
FEED_FORWARD = ("gate_proj", "down_proj", "up_proj")
FUSED = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv_proj"),
    **dict.fromkeys(("gate_proj", "up_proj"), "gate_up_proj"),
}
"""Layer of torchtune → the layer that transformers fuses it into, in models such as Phi-3."""
OPTIMIZERS = {
    "torch.optim.SGD": "sgd",
    "torch.optim.Adam": "adamw_torch_fused",
    "torch.optim.AdamW": "adamw_torch_fused",
    "bitsandbytes.optim.AdamW8bit": "adamw_8bit",
    "bitsandbytes.optim.PagedAdamW8bit": "paged_adamw_8bit",
    "bitsandbytes.optim.PagedAdamW": "paged_adamw_32bit",
    "torchao.optim.AdamW8bit": "adamw_torch_8bit",
    "torchao.optim.AdamW4bit": "adamw_torch_4bit",
}


def _builder(values: Values) -> tuple[str, str]:
    """Return the method's prefix (``lora``, ``qlora`` or none), and the name of the model."""
    last = str(values["model._component_"]).rpartition(".")[2]
    found = re.fullmatch(r"(?:(q?lora)_)?(.*)", last)
    assert found is not None
    return found[1] or "", re.sub(r"_(instruct|base)$", "", found[2])


def _model(values: Values) -> str | None:
    name = _builder(values)[1]
    if name not in MODELS:
        raise UserError(f"model._component_: the shapes of {name} are not known: name the MODEL besides --from")
    return MODELS[name]


def _method(value: Any, values: Values) -> Options | Results:
    prefix, _ = _builder(values)
    dtype = shared_rules.dtype_option(values["dtype"])
    weights = dtype.get("dtype", "bfloat16")
    always: dict[str, Any] = {"dtype": weights, "mixed_precision": "no"}
    if not prefix:
        return {"method": "full", **always}
    rank = values["model.lora_rank"]
    results: Results = [
        {
            "method": "qlora" if prefix == "qlora" or values["model.quantize_base"] else "lora",
            "rank": rank,
            "lora_alpha": values["model.lora_alpha"],
            "lora_dropout": values["model.lora_dropout"],
            "adapter_dtype": weights,
            **always,
        },
        _targets(values),
    ]
    if values["model.apply_lora_to_output"]:
        results.append(shared_rules.EMBEDDED)
    if prefix == "qlora":
        # torchao's NF4Tensor: blocks of 64 weights, whose scales are quantised in blocks of 256.
        results += [{"quant_type": "nf4", "double_quant": True}, shared_rules.UNPREPARED]
    return results


def _targets(values: Values) -> Options:
    linears = {linear.name.rpartition(".")[2] for group in values.spec.layers for linear in group.linears}
    asked = [ATTENTION.get(name, name) for name in values["model.lora_attn_modules"]]
    asked += FEED_FORWARD if values["model.apply_lora_to_mlp"] else ()
    found = [name if name in linears else FUSED.get(name, name) for name in asked]
    return {"target_modules": ",".join(dict.fromkeys(found))}


def _length(value: Any, values: Values) -> Options | Results:
    if value is not None:
        return {"seq_len": value}
    unlimited = "no longest length: batches are padded to their longest example, and the answer counts --seq-len"
    return [Missing(unlimited, "other memory")]


def _packed(value: Any, values: Values) -> Results:
    unlimited = values["tokenizer.max_seq_len"] is None
    return shared_rules.packing(value or unlimited)  # its attention has no mask of the padding


def _optimizer(value: Any, values: Values) -> Options | Results:
    if value not in OPTIMIZERS:
        raise UserError(f"the optimizer {value!r} is not known: name one that is with --optim")
    name = OPTIMIZERS[value]
    plain = name == "adamw_torch_fused" and not values["optimizer.fused"]
    return shared_rules.optimizer("adamw_torch" if plain else name)


def _loss(value: Any, _: Values) -> Options | Missing:
    name = (value or "").rpartition(".")[2].lower()
    if "dpo" in name:
        return shared_rules.PREFERENCES["dpo"]
    if "ppo" in name or "grpo" in name:
        return shared_rules.training("ppo")
    return shared_rules.TORCHTUNE_CHUNKS if "chunk" in name or "linear" in name else {}


def _checks(values: Values) -> None:
    if values["policy_model"] is not None:
        shared_rules.training("ppo")
    if values["optimizer._component_"] is None:
        raise UserError("this file trains nothing: it has no optimizer: give the file of a fine-tuning recipe")


def _components(name: str, words: str) -> Keys:
    return {f"{name}.{word}": Key(anything, effect=False) for word in words.split()}


KEYS: Keys = {
    "model._component_": used(text, _method),
    "model.lora_rank": part(whole, 8),
    "model.lora_alpha": part(number, 16),
    "model.lora_dropout": part(number, 0.0),
    "model.lora_attn_modules": part(names, ()),
    "model.apply_lora_to_mlp": part(flag, False),
    "model.apply_lora_to_output": part(flag, False),
    "model.quantize_base": part(flag, False),
    "model.use_dora": shared_rules.DORA,
    "model.max_seq_len": Key(anything, effect=False),
    **_components("model", "decoder_trainable encoder_trainable fusion_trainable image_size"),
    "tokenizer.max_seq_len": used(whole, _length),
    "tokenizer": Key(anything, effect=False),
    "dataset.packed": used(flag, _packed, False),
    "dataset": Key(anything, effect=False),
    "batch_size": option("batch_size", whole, 1),
    "gradient_accumulation_steps": option("gradient_accumulation", whole, 1),
    "dtype": part(text, "bf16"),
    "optimizer._component_": used(text, _optimizer),
    "optimizer.fused": part(flag, False),
    "optimizer": Key(anything, effect=False),
    "loss._component_": used(text, _loss),
    "loss": Key(anything, effect=False),
    "enable_activation_checkpointing": option("gradient_checkpointing", flag, False),
    "enable_activation_offloading": missing(shared_rules.OFFLOADED, "less memory"),
    "optimizer_in_bwd": missing("a step inside backward, without all gradients at once", "less memory"),
    "compile": shared_rules.COMPILED,
    "fsdp_cpu_offload": missing("weights wait in host memory", "less memory"),
    **dict.fromkeys(
        ("tensor_parallel_dim", "tensor_parallel_plan", "data_parallel_shard_dim", "context_parallel_dim"),
        missing(shared_rules.SPLITS, "less memory"),
    ),
    "data_parallel_replicate_dim": missing(shared_rules.COPIES, "about the same memory"),
    **dict.fromkeys(
        ("fsdp", "custom_sharded_layers", "memory_efficient_fsdp_wrap"), missing(shared_rules.SHARDS, "less memory")
    ),
    "quantizer": missing("fake quantisation of weights and activations", "more memory"),
    "fp8": shared_rules.FP8,
    **dict.fromkeys(("teacher_model", "teacher_checkpointer"), missing("a second model, the teacher", "more memory")),
    **dict.fromkeys(
        ("ref_checkpointer", "ref_policy_checkpointer"), missing("a second model, the reference", "more memory")
    ),
    "policy_model": part(anything),
    "ac_mode": missing("some layers or operations are not checkpointed", "more memory"),
    "datasets": Key(anything, effect=False),
    "dataloader": Key(anything, effect=False),
    **without_effect(
        "output_dir checkpointer device seed resume_from_checkpoint metric_logger log_every_n_steps "
        "log_peak_memory_stats shuffle epochs max_steps_per_epoch profiler clip_grad_norm lr_scheduler "
        "save_adapter_weights_only low_cpu_ram collate_fn kd_loss kd_ratio log_level ac_option enable_kv_cache "
        "dataset_val run_val_every_n_steps batch_size_val save_last_epoch_only enable_async_checkpointing "
        "cudnn_deterministic_mode reshard_after_forward keep_last_n_checkpoints epochs_to_train"
    ),
}


def _recognised(config: Mapping[str, Any]) -> bool:
    component = config.get("model")
    component = component if isinstance(component, dict) else config.get("policy_model") or config.get("tokenizer")
    return isinstance(component, dict) and str(component.get("_component_", "")).startswith("torchtune.")


TOOL = Tool(
    name="torchtune",
    read_in="0.6.1",
    keys=KEYS,
    model=_model,
    recognised=_recognised,
    checks=_checks,
)
