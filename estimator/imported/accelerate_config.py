"""The YAML of ``accelerate config``: how a program is launched. It names no model."""

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
    text,
    used,
    whole,
    without_effect,
)
from lorabench.estimator.imported.reading import Tool, Values
from lorabench.estimator.imported.shared_rules import Results


def _precision(value: Any, _: Values) -> Options | Missing:
    if value == "fp8":
        return Missing("matmuls in float8; the answer counts bfloat16", "other memory")
    return {} if value is None else {"mixed_precision": value}


def _distribution(value: Any, _: Values) -> Options | Results:
    kind = str(value or "NO").upper()
    if kind in ("NO", "NONE", "FALSE"):
        return {}
    if kind in ("DEEPSPEED", "FSDP", "MEGATRON_LM", "TP"):
        return [Missing(shared_rules.SHARDS, "less memory")]
    return [Missing(shared_rules.COPIES, "about the same memory")]


def _fsdp_checkpointing(value: Any, _: Values) -> Options:
    return {"gradient_checkpointing": True} if value else {}


def _accumulation(value: Any, _: Values) -> Options:
    return {} if str(value) in ("auto", "None") else {"gradient_accumulation": whole(value)}


KEYS: Keys = {
    "mixed_precision": used(text, _precision),
    "distributed_type": used(text, _distribution),
    "num_processes": missing(shared_rules.COPIES, "about the same memory"),
    "num_machines": missing(shared_rules.COPIES, "about the same memory"),
    "gradient_accumulation_steps": used(anything, _accumulation),
    "deepspeed_config.gradient_accumulation_steps": used(anything, _accumulation),
    "deepspeed_config.zero_stage": missing(shared_rules.SHARDS, "less memory", off=(None, 0)),
    "deepspeed_config.offload_optimizer_device": missing("optimizer states are in host memory", "less memory"),
    "deepspeed_config.offload_param_device": missing("weights are in host memory", "less memory"),
    "deepspeed_config.deepspeed_config_file": missing("another file: read it with --from", "other memory"),
    "deepspeed_config": Key(anything, effect=False),
    "fsdp_config.fsdp_activation_checkpointing": used(flag, _fsdp_checkpointing),
    "fsdp_config.fsdp_offload_params": missing("weights are in host memory", "less memory"),
    "fsdp_config": Key(anything, effect=False),
    "dynamo_config": Key(anything, effect=False),
    "dynamo_backend": shared_rules.COMPILED,
    "fp8_config": shared_rules.FP8,
    "megatron_lm_config": missing(shared_rules.SPLITS, "less memory"),
    "parallelism_config": missing(shared_rules.SPLITS, "less memory"),
    **without_effect(
        "compute_environment debug downcast_bf16 machine_rank main_training_function main_process_ip "
        "main_process_port rdzv_backend same_network tpu_env tpu_use_cluster tpu_use_sudo use_cpu enable_cpu_affinity "
        "gpu_ids command_file commands tpu_name tpu_zone mpirun_config ipex_config tpu_vm dynamo_plugin"
    ),
}
TOOL = Tool(
    name="accelerate",
    read_in="1.15.0",
    keys=KEYS,
    model=lambda values: None,
    recognised=lambda config: "distributed_type" in config or "compute_environment" in config,
)
