"""peft's adapter_config.json: the adapter, and the model that it was trained on."""

from __future__ import annotations

from typing import Any

from lorabench.estimator.errors import UserError
from lorabench.estimator.imported import shared_rules
from lorabench.estimator.imported.keys import (
    Keys,
    Options,
    missing,
    names,
    number,
    part,
    text,
    used,
    whole,
    without_effect,
)
from lorabench.estimator.imported.reading import Tool, Values
from lorabench.estimator.imported.shared_rules import Results


def _method(value: Any, values: Values) -> Options | Results:
    kind = str(value).upper()
    if kind == "IA3":
        named = shared_rules.targets(values["target_modules"], values.spec) if values["target_modules"] else []
        return [{"method": "ia3"}, *named, *shared_rules.saved_modules(values["modules_to_save"], values.spec)]
    if kind != "LORA":
        raise UserError(f"{kind} is not among the methods, which are LORA and IA3 here: use one of them")
    lora: dict[str, Any] = {name: values[key] for key, name in (("r", "rank"), ("lora_alpha", "lora_alpha"))}
    lora |= {"method": "lora", "lora_dropout": values["lora_dropout"]}
    if values["use_rslora"]:
        lora["use_rslora"] = True
    if values["target_modules"]:
        named = shared_rules.targets(values["target_modules"], values.spec)
    elif values["target_parameters"]:
        named = []
    else:
        named = [shared_rules.peft_targets(values.spec)]
    return [lora, *named, *shared_rules.saved_modules(values["modules_to_save"], values.spec)]


KEYS: Keys = {
    "base_model_name_or_path": part(text),
    "peft_type": used(text, _method, "LORA"),
    "r": part(whole, 8),
    "lora_alpha": part(number, 8),
    "lora_dropout": part(number, 0.0),
    "use_rslora": part(bool, False),
    "target_modules": part(names),
    "modules_to_save": part(names),
    "target_parameters": shared_rules.PARAMETERS,
    "bias": missing("biases train too", "more memory"),
    "lora_bias": missing("adapters have biases", "more memory"),
    "use_dora": shared_rules.DORA,
    **dict.fromkeys(("rank_pattern", "alpha_pattern"), shared_rules.PATTERNS),
    **dict.fromkeys(("layers_to_transform", "layers_pattern", "exclude_modules"), shared_rules.SOME_LAYERS),
    "layer_replication": missing("repeated layers", "more memory"),
    "trainable_token_indices": missing("rows of the embedding train too", "more memory"),
    **dict.fromkeys(
        ("init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config"), shared_rules.INIT
    ),
    **dict.fromkeys(
        ("use_qalora", "use_bdlora", "kasa_config", "velora_config", "monteclora_config", "arrow_config"),
        missing("a variant of LoRA; the answer counts plain LoRA", "other memory"),
    ),
    "alora_invocation_tokens": missing("adapters that only some tokens use", "less memory"),
    **without_effect(
        "task_type auto_mapping peft_version revision inference_mode fan_in_fan_out feedforward_modules "
        "init_ia3_weights megatron_config megatron_core qalora_group_size runtime_config ensure_weight_tying"
    ),
}
TOOL = Tool(
    name="peft",
    read_in="0.21.2",
    keys=KEYS,
    model=lambda values: values["base_model_name_or_path"],
    recognised=lambda config: "peft_type" in config,
)
