"""Complete a recipe with defaults. A default that the model does not support is replaced by the usual alternative.

All commands complete recipes here, so that they choose the same values.
"""

from __future__ import annotations

from typing import Any

from lorabench.estimator.models.older_experts import NAMES, with_linear_experts
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.recipes.feasibility import obstacles
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe


def recipe_for(spec: ModelSpec, **options: Any) -> ResolvedRecipe:
    """Return the recipe of ``spec`` with ``options``. Options that are missing or None have their default.

    If the model does not support a default, the usual alternative is chosen and listed in the assumptions. Given
    options are never changed: `feasibility.refuse_impossible` refuses those that the model does not support.

    Raises:
        UserError: as in `make_recipe`.
    """
    given = {option: value for option, value in options.items() if value is not None}
    usual = make_recipe(spec.name, **given)
    chosen: dict[str, Any] = {}
    assumptions = [*spec.assumptions]
    if usual.transformers is not None and spec.model_type in NAMES:
        spec = with_linear_experts(spec)
        assumptions.append("all experts get the same number of tokens: the router decides that at run time")
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
    return ResolvedRecipe(spec, make_recipe(spec.name, **given, **chosen), tuple(assumptions))
