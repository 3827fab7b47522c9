"""DeepSpeed's JSON: how a model is spread, and in which dtype. It names no model, and little of the recipe."""

from __future__ import annotations

from typing import Any

from lorabench.estimator.imported import shared_rules
from lorabench.estimator.imported.keys import (
    Key,
    Keys,
    Missing,
    Options,
    anything,
    missing,
    text,
    used,
    whole,
    without_effect,
)
from lorabench.estimator.imported.reading import Tool, Values
from lorabench.estimator.imported.shared_rules import Results

MASTER = Missing("DeepSpeed keeps float32 copies of the 16-bit weights that train", "more memory")
OPTIMIZERS = {
    "adam": "adamw_torch_fused",
    "adamw": "adamw_torch_fused",
    "sgd": "sgd",
    "adagrad": "adagrad",
    "lion": "lion_32bit",
}


def _number(name: str) -> Key:
    def rule(value: Any, _: Values) -> Options:
        return {} if value in (None, "auto") else {name: whole(value)}

    return used(anything, rule)


def _precision(name: str) -> Key:
    def rule(value: Any, _: Values) -> Options | Results:
        return [{"mixed_precision": name}, MASTER] if value is True else {}

    return used(anything, rule)


def _optimizer(value: Any, _: Values) -> Options | Results:
    name = str(value or "").lower()
    return {"optim": OPTIMIZERS[name]} if name in OPTIMIZERS else shared_rules.optimizer(value)


KEYS: Keys = {
    "train_micro_batch_size_per_gpu": _number("batch_size"),
    "gradient_accumulation_steps": _number("gradient_accumulation"),
    "bf16.enabled": _precision("bf16"),
    "bfloat16.enabled": _precision("bf16"),
    "fp16.enabled": _precision("fp16"),
    "optimizer.type": used(text, _optimizer),
    "zero_optimization.stage": missing(shared_rules.SHARDS, "less memory", off=(None, 0)),
    "zero_optimization.offload_optimizer.device": missing("optimizer states are in host memory", "less memory"),
    "zero_optimization.offload_param.device": missing("weights are in host memory", "less memory"),
    "zero_optimization.zero_quantized_weights": missing("weights are sent in 8 bits", "other memory"),
    "zero_optimization.zero_quantized_nontrainable_weights": missing("frozen weights are quantised", "less memory"),
    "zero_optimization.cpu_offload": missing("optimizer states are in host memory", "less memory"),
    "zero_optimization.cpu_offload_param": missing("weights are in host memory", "less memory"),
    "zero_optimization.zenflow": missing("optimizer states are in host memory", "less memory"),
    "activation_checkpointing": missing("DeepSpeed's own checkpointing", "other memory"),
    "tensor_parallel": missing(shared_rules.SPLITS, "less memory"),
    "sequence_parallel_size": missing(shared_rules.SPLITS, "less memory"),
    **dict.fromkeys(
        (
            *("bf16", "bfloat16", "fp16", "optimizer", "zero_optimization"),
            *("zero_optimization.offload_optimizer", "zero_optimization.offload_param"),
        ),
        Key(anything, effect=False),
    ),
    **without_effect(
        "train_batch_size gradient_clipping steps_per_print wall_clock_breakdown zero_allow_untrained_params "
        "zero_allow_untested_optimizer zero_force_ds_cpu_optimizer scheduler communication_data_type flops_profiler "
        "prescale_gradients comms_logger dump_state data_types amp"
    ),
}
TOOL = Tool(
    name="DeepSpeed",
    read_in="at 1b88ac36",
    keys=KEYS,
    model=lambda values: None,
    recognised=lambda config: "zero_optimization" in config or "train_micro_batch_size_per_gpu" in config,
)
