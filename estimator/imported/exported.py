"""Write a recipe as the config of another tool, and read it back: a recipe that it does not say is refused."""

from __future__ import annotations

from collections.abc import Callable

from lorabench.estimator.errors import UserError
from lorabench.estimator.imported import accelerate_config, axolotl, llamafactory, trl
from lorabench.estimator.imported.reading import Imported, Tool, read_values
from lorabench.estimator.imported.script import python_script
from lorabench.estimator.imported.shared_entries import (
    Entries,
    is_all_linear,
    lora_entries,
    module_names,
    plain,
    saved_modules,
    switch,
    trainer_entries,
)
from lorabench.estimator.recipes.defaults import recipe_for
from lorabench.estimator.recipes.recipe import Recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe


def _axolotl(resolved: ResolvedRecipe) -> Entries:
    recipe = resolved.recipe
    half = {"bfloat16": "bf16", "float16": "fp16"}.get(recipe.dtype)
    entries: Entries = {
        "base_model": recipe.model,
        "bf16": half == "bf16",
        "fp16": switch(half == "fp16"),
        "sequence_len": recipe.seq_len,
        "sample_packing": not recipe.padding,
        "pad_to_sequence_len": True,
        "micro_batch_size": recipe.batch_size,
        "gradient_accumulation_steps": recipe.gradient_accumulation,
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": True} if recipe.use_reentrant else None,
        "attn_implementation": recipe.attn_implementation,
        "optimizer": recipe.optim,
        "torch_empty_cache_steps": recipe.empty_cache_steps,
    }
    if recipe.loss == "cut-cross-entropy":
        entries["plugins"] = ["axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"]
    if recipe.loss == "liger":
        entries["plugins"] = ["axolotl.integrations.liger.LigerPlugin"]
        entries["liger_fused_linear_cross_entropy"] = True
    if recipe.adapter is not None:
        entries |= _axolotls_adapters(resolved)
    data = {"datasets": [{"path": "tatsu-lab/alpaca", "type": "alpaca"}], "learning_rate": 0.0002}
    return {**entries, **data, "num_epochs": 1, "output_dir": "./out"}


def _axolotls_adapters(resolved: ResolvedRecipe) -> Entries:
    recipe = resolved.recipe
    entries: Entries = {
        "adapter": "lora" if recipe.quantization is None else "qlora",
        "lora_r": recipe.rank,
        "lora_alpha": plain(recipe.setting("lora_alpha")),
        "lora_dropout": recipe.setting("lora_dropout"),
        "peft_use_rslora": switch(recipe.setting("use_rslora")),
        "lora_modules_to_save": saved_modules(recipe),
        "peft_autocast_adapter_dtype": None if recipe.trained_dtype == "float32" else False,
        **{f"lora_{name}_kernel": False for name in ("mlp", "qkv", "o")},
    }
    if is_all_linear(resolved):
        entries["lora_target_linear"] = True
    else:
        entries["lora_target_modules"] = module_names(resolved)
    if recipe.quantization is not None:
        entries["load_in_4bit"] = True
        entries["bnb_config_kwargs"] = {
            "bnb_4bit_quant_type": recipe.setting("quant_type"),
            "bnb_4bit_use_double_quant": recipe.setting("double_quant"),
        }
    return entries


def _llamafactory(resolved: ResolvedRecipe) -> Entries:
    recipe = resolved.recipe
    entries: Entries = {
        "model_name_or_path": recipe.model,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full" if recipe.adapter is None else "lora",
        **_half(recipe, recipe.trained_dtype == "bfloat16"),
        "cutoff_len": recipe.seq_len,
        "packing": not recipe.padding,
        **trainer_entries(recipe),
        "disable_gradient_checkpointing": not recipe.gradient_checkpointing,
        "use_reentrant_gc": recipe.use_reentrant,
        "flash_attn": {"flash_attention_2": "fa2", "eager": "disabled"}.get(
            recipe.attn_implementation, recipe.attn_implementation
        ),
        "enable_liger_kernel": switch(recipe.loss == "liger"),
    }
    if recipe.adapter is not None:
        entries |= {
            "lora_rank": recipe.rank,
            **lora_entries(recipe),
            "lora_target": "all" if is_all_linear(resolved) else ",".join(module_names(resolved)),
            "additional_target": recipe.modules_to_save,
        }
        if recipe.quantization is not None:
            entries |= {
                "quantization_bit": 4,
                "quantization_method": "bnb",
                "quantization_type": recipe.setting("quant_type"),
                "double_quantization": recipe.setting("double_quant"),
                "upcast_layernorm": switch(recipe.prepared and recipe.recast),
            }
    return {**entries, "template": "default", "dataset": "alpaca_en_demo", "learning_rate": 0.0001, "output_dir": "out"}


def _half(recipe: Recipe, pure: bool) -> Entries:
    if recipe.mixed_precision == "no" and pure:
        return {"pure_bf16": True}
    return {"bf16": switch(recipe.mixed_precision == "bf16"), "fp16": switch(recipe.mixed_precision == "fp16")}


def _trl(resolved: ResolvedRecipe) -> Entries:
    recipe = resolved.recipe
    entries: Entries = {
        "model_name_or_path": recipe.model,
        "dtype": recipe.dtype,
        "bf16": recipe.mixed_precision == "bf16",
        "fp16": switch(recipe.mixed_precision == "fp16"),
        "max_length": recipe.seq_len,
        "packing": not recipe.padding,
        "packing_strategy": None if recipe.padding else "wrapped",
        **trainer_entries(recipe),
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": True} if recipe.use_reentrant else None,
        "attn_implementation": recipe.attn_implementation,
    }
    if recipe.adapter is not None:
        entries |= {
            "use_peft": True,
            "lora_r": recipe.rank,
            **lora_entries(recipe),
            "lora_target_modules": ["all-linear"] if is_all_linear(resolved) else module_names(resolved),
            "lora_modules_to_save": saved_modules(recipe),
        }
        if recipe.quantization is not None:
            entries |= {
                "load_in_4bit": True,
                "bnb_4bit_quant_type": recipe.setting("quant_type"),
                "use_bnb_nested_quant": recipe.setting("double_quant"),
            }
    return {**entries, "dataset_name": "trl-lib/Capybara", "learning_rate": 0.0002, "output_dir": "out"}


def _accelerate(resolved: ResolvedRecipe) -> Entries:
    return {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "NO",
        "num_machines": 1,
        "num_processes": 1,
        "mixed_precision": resolved.recipe.mixed_precision,
        "use_cpu": False,
    }


WRITERS: dict[str, tuple[Tool, Callable[[ResolvedRecipe], Entries]]] = {
    "axolotl": (axolotl.TOOL, _axolotl),
    "llamafactory": (llamafactory.TOOL, _llamafactory),
    "trl": (trl.TOOL, _trl),
    "accelerate": (accelerate_config.TOOL, _accelerate),
}
FORMATS = (*WRITERS, "python")
"""What a recipe can be written as."""
LAUNCHES = ("accelerate",)
"""Formats that hold the launch of a program alone; the rest of the recipe is the program's."""


def exported(resolved: ResolvedRecipe, format_: str) -> str:
    """Return ``resolved`` as a config, or as a script that trains it.

    Comments at its head name what the tool does otherwise, whatever the config says.

    Args:
        resolved: the recipe.
        format_: one of `FORMATS`.

    Raises:
        UserError: the tool cannot say an option of the recipe.
    """
    if format_ == "python":
        return python_script(resolved)
    tool, write = WRITERS[format_]
    if resolved.recipe.method == "ia3":
        raise UserError(f"{tool.name} has no IA3: write --as python, or use method lora")
    entries = {key: value for key, value in write(resolved).items() if value is not None}
    imported = read_values(format_, tool, entries).on(resolved.spec)
    if format_ not in LAUNCHES:
        _compare(resolved, imported, tool)
    return _as_yaml(tool, entries, imported)


def _compare(resolved: ResolvedRecipe, imported: Imported, tool: Tool) -> None:
    """Refuse a recipe that is another one when it is read back from its config."""
    back = recipe_for(resolved.spec, **imported.options)
    wanted, found = resolved.recipe.settings(), back.recipe.settings()
    for name in dict.fromkeys([*wanted, *found]):
        if name == "target_modules" and _same_targets(resolved, back):
            continue
        if wanted.get(name) != found.get(name):
            said, other = (settings.get(name, "left out") for settings in (wanted, found))
            raise UserError(f"{tool.name} {tool.read_in} cannot say {name} {said}, and trains with {other}: use that")


def _same_targets(one: ResolvedRecipe, other: ResolvedRecipe) -> bool:
    return one.target_modules == other.target_modules and one.adapted_experts == other.adapted_experts


def _as_yaml(tool: Tool, entries: Entries, imported: Imported) -> str:
    import yaml

    head = [f"# {tool.name} {tool.read_in}, written by lorabench"]
    head += [f"# not as in the recipe: {each}" for each in imported.not_taken_into_account]
    return "\n".join([*head, yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)])
