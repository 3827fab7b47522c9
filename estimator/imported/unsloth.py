"""The YAML of ``unsloth train --config``."""

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
    number,
    option,
    part,
    text,
    used,
    whole,
)
from lorabench.estimator.imported.reading import Tool, Values
from lorabench.estimator.imported.shared_rules import Results

OPTIMIZER = "adamw_8bit"
"""The only optimizer of its command line."""


def _method(value: Any, values: Values) -> Options | Results:
    loss = shared_rules.UNSLOTH_LOSS
    kernels = Missing("Unsloth's kernels keep fewer tensors", "less memory")
    always: dict[str, Any] = {"optim": OPTIMIZER, "dtype": "bfloat16", "mixed_precision": "bf16"}
    if value.lower() == "full":
        return [{"method": "full", **always}, loss, kernels]
    named = [name.strip() for name in values["lora.target_modules"].split(",") if name.strip()]
    results: Results = [
        {
            "method": "qlora" if values["training.load_in_4bit"] else "lora",
            "rank": values["lora.lora_r"],
            "lora_alpha": values["lora.lora_alpha"],
            "lora_dropout": values["lora.lora_dropout"],
            **({"use_rslora": True} if values["lora.use_rslora"] else {}),
            **always,
        },
        *shared_rules.targets(named, values.spec),
        loss,
        kernels,
    ]
    if values["training.load_in_4bit"]:
        # FastLanguageModel quantises to nf4 with double quantisation; norms stay in 16 bits.
        results += [{"quant_type": "nf4", "double_quant": True}, shared_rules.UNPREPARED]
    return results


def _checkpointing(value: Any, _: Values) -> Options | Results:
    word = {"true": "true", "1": "true", "yes": "true"}.get(str(value).lower(), str(value).lower())
    if word == "unsloth":
        return [{"gradient_checkpointing": True}, Missing(shared_rules.OFFLOADED, "less memory")]
    return {"gradient_checkpointing": word == "true"}


def _packing(value: Any, _: Values) -> Results:
    return shared_rules.packing(value)  # its attention has no mask of the padding


def _unused(section: str, words: str) -> Keys:
    return {f"{section}.{word}": Key(anything, effect=False) for word in words.split()}


KEYS: Keys = {
    "model": part(text),
    "training.training_type": used(text, _method, "lora"),
    "training.max_seq_length": option("seq_len", whole, 2048),
    "training.load_in_4bit": part(flag, True),
    "training.batch_size": option("batch_size", whole, 2),
    "training.gradient_accumulation_steps": option("gradient_accumulation", whole, 4),
    "training.packing": used(flag, _packing, False),
    "training.gradient_checkpointing": used(anything, _checkpointing, "unsloth"),
    "lora.lora_r": part(whole, 64),
    "lora.lora_alpha": part(number, 16),
    "lora.lora_dropout": part(number, 0.0),
    "lora.target_modules": part(text, "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"),
    "lora.use_rslora": part(flag, False),
    "lora.use_dora": shared_rules.DORA,
    "lora.use_loftq": shared_rules.INIT,
    "lora.vision_all_linear": missing("layers of the vision tower get adapters", "more memory"),
    **_unused(
        "lora", "finetune_vision_layers finetune_language_layers finetune_attention_modules finetune_mlp_modules"
    ),
    **_unused(
        "training",
        "output_dir num_epochs learning_rate warmup_steps max_steps save_steps weight_decay random_seed "
        "train_on_completions",
    ),
    "data": Key(anything, effect=False),
    "logging": Key(anything, effect=False),
}
TOOL = Tool(
    name="Unsloth",
    read_in="2026.9.7",
    keys=KEYS,
    model=lambda values: values["model"],
    recognised=lambda config: isinstance(config.get("model"), str) and bool({"training", "lora"} & set(config)),
)
