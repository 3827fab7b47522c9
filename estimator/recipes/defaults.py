"""What people leave open of a recipe: its defaults, or what a model's users run where it cannot have them.

Every recipe of a model that people leave anything open of is made here, so that all commands choose alike.
"""

from __future__ import annotations

from typing import Any

from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.recipes.feasibility import obstacles
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe


def recipe_for(spec: ModelSpec, **options: Any) -> ResolvedRecipe:
    """Return the recipe of ``spec`` with ``options``: what they leave out, or give as None, has its default.

    A default that the model cannot have gives way to what people run on it. What was asked for stays, even where it
    cannot be: `feasibility.refuse_impossible` refuses it.

    Raises:
        UserError: as of `make_recipe`.
    """
    given = {option: value for option, value in options.items() if value is not None}
    usual = make_recipe(spec.name, **given)
    chosen: dict[str, Any] = {}
    assumptions = [*spec.assumptions]
    for obstacle in obstacles(ResolvedRecipe(spec, usual)):
        setting = next((setting for setting in obstacle.instead if setting not in given), None)
        if setting is not None:
            chosen[setting] = obstacle.instead[setting]
            recipe = make_recipe(spec.name, **given, **chosen)
            now, before = recipe.describe()[setting], usual.describe().get(setting, "a default")
            assumptions.append(f"{setting} {now} instead of {before}: {obstacle.why}")
    return ResolvedRecipe(spec, make_recipe(spec.name, **given, **chosen), tuple(assumptions))
