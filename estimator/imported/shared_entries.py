"""What several writers of configs write alike: Trainer's arguments, settings of LoRA, names of modules, numbers."""

from __future__ import annotations

from typing import Any

from lorabench.estimator.methods.lora import named
from lorabench.estimator.recipes.recipe import Recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe

Entries = dict[str, Any]
"""Keys of a config with their values, in order."""


def trainer_entries(recipe: Recipe) -> Entries:
    """Return those of Trainer's arguments that have the same name and value wherever Trainer trains."""
    return {
        "per_device_train_batch_size": recipe.batch_size,
        "gradient_accumulation_steps": recipe.gradient_accumulation,
        "optim": recipe.optim,
        "torch_empty_cache_steps": recipe.empty_cache_steps,
    }


def lora_entries(recipe: Recipe) -> Entries:
    """Return the settings of LoRA that have peft's names, for a recipe with adapters."""
    return {
        "lora_alpha": plain(recipe.setting("lora_alpha")),
        "lora_dropout": recipe.setting("lora_dropout"),
        "use_rslora": switch(recipe.setting("use_rslora")),
    }


def module_names(resolved: ResolvedRecipe) -> list[str]:
    """Return names by which peft finds just the target modules: last parts, or paths where last parts are ambiguous."""
    targets = set(resolved.target_modules)
    every = {linear.name for group in resolved.spec.groups for linear in group.linears}
    found = []
    for path in resolved.target_modules:
        last = path.rpartition(".")[2]
        others = {name for name in every if name.rpartition(".")[2] == last}
        found.append(last if others <= targets else path)
    return list(dict.fromkeys([*found, *_expert_names(resolved)]))


def _expert_names(resolved: ResolvedRecipe) -> list[str]:
    """Return the names of adapted experts, which no linear layer has."""
    if not resolved.adapted_experts:
        return []
    ends = {path.rpartition(".")[2] for path in resolved.target_modules}
    return [name for name in named(resolved.recipe.setting("target_modules")) if name not in ends]


def saved_modules(recipe: Recipe) -> list[str] | None:
    """Return the modules that train in full beside adapters; None without such modules."""
    return None if recipe.modules_to_save is None else recipe.modules_to_save.split(",")


def is_all_linear(resolved: ResolvedRecipe) -> bool:
    """Return whether all linear layers get adapters."""
    adapter = resolved.recipe.adapter
    return adapter is not None and adapter.target_modules == "all-linear"


def plain(number: float) -> float:
    """Return a whole number as such: some tools parse it as one."""
    return int(number) if number == int(number) else number


def switch(on: Any) -> bool | None:
    """Return True, or None to leave a switch out."""
    return True if on else None
