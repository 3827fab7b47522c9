"""Complete a recipe with defaults. A default that the model does not support is replaced by the usual alternative.

All commands complete recipes here, so that they choose the same values.
"""

from __future__ import annotations

from typing import Any

from lorabench.estimator.errors import UserError
from lorabench.estimator.models.older_experts import NAMES, with_linear_experts
from lorabench.estimator.models.spec import ModelSpec, Stored
from lorabench.estimator.recipes.feasibility import obstacles
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe


def recipe_for(spec: ModelSpec, **options: Any) -> ResolvedRecipe:
    """Return the recipe of ``spec`` with ``options``. Options that are missing or None have their default.

    If the model does not support a default, the usual alternative is chosen and listed in the assumptions. Given
    options are never changed: `feasibility.refuse_impossible` refuses those that the model does not support.

    Raises:
        UserError: as in `make_recipe`; or the model is stored quantised, and options say otherwise.
    """
    given = {option: value for option, value in options.items() if value is not None}
    if spec.stored is not None:
        given = _on_stored(spec, spec.stored, given)
    usual = make_recipe(spec.name, **given)
    chosen: dict[str, Any] = {}
    assumptions = [*spec.assumptions]
    if usual.transformers is not None and spec.model_type in NAMES:
        spec = with_linear_experts(spec)
        assumptions.append("all experts get the same number of tokens: the router decides that at run time")
    if spec.scan_chunk:
        assumptions.append(
            "scans run in PyTorch, as transformers does without mamba-ssm, flash-linear-attention and causal-conv1d: "
            "with their kernels they take less memory and time"
        )
    for obstacle in obstacles(ResolvedRecipe(spec, usual)):
        setting = next((setting for setting in obstacle.instead if setting not in given), None)
        if setting is not None:
            chosen[setting] = obstacle.instead[setting]
            recipe = make_recipe(spec.name, **given, **chosen)
            now, before = recipe.describe()[setting], usual.describe().get(setting, "a default")
            assumptions.append(f"{setting} {now} instead of {before}: {obstacle.why}")
    if usual.transformers is not None and usual.gradient_checkpointing and "use_reentrant" not in given:
        chosen["use_reentrant"] = True
        assumptions.append(f"use_reentrant yes instead of no: the default of transformers {usual.transformers}")
    recipe = make_recipe(spec.name, **given, **chosen) if chosen else usual
    return ResolvedRecipe(spec, recipe, tuple(assumptions))


def _on_stored(spec: ModelSpec, stored: Stored, given: dict[str, Any]) -> dict[str, Any]:
    """Return ``given`` with the options that follow from how the weights are stored.

    Raises:
        UserError: an option says that they are stored otherwise.
    """
    for option, value in stored.options.items():
        if given.get(option, value) != value:
            raise UserError(
                f"{option} {given[option]}: the weights of {spec.name} are stored in {stored.what}: use {value}, or "
                "name the model that it was quantised from"
            )
    return {**stored.options, **given}
