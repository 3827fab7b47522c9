"""Suites: recipes to run, each checked against its model, with steps and repeats."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct
from msgspec.structs import replace

from lorabench.bench.check.thresholds import Thresholds
from lorabench.bench.records.labels import distinct_labels
from lorabench.bench.training.text import byte_tokenizer
from lorabench.estimator.recipes.feasibility import refuse_impossible
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.typed_values import convert

AMOUNTS: dict[str, Any] = {
    "steps": Annotated[int, Meta(ge=1, le=100_000)],
    "warmup_steps": Annotated[int, Meta(ge=0, le=100_000)],
    "repeats": Annotated[int, Meta(ge=1, le=1_000)],
}
"""Steps and repeats of each recipe, with their ranges."""
BY_HAND = "by hand"
"""Suite name of a recipe from the command line."""


class Suite(Struct, frozen=True, kw_only=True):
    """Recipes to run, each checked against its model."""

    name: str
    recipes: tuple[ResolvedRecipe, ...]
    """In the order of the matrix, without duplicates."""
    description: str = ""
    steps: int = 20
    """Timed steps of each recipe."""
    warmup_steps: int = 3
    """Warm-up steps of each recipe."""
    repeats: int = 1
    """Runs of each recipe, each with another seed."""
    probe: bool = False
    """Whether to probe the GPU before the first recipe (`gpu_probe`)."""
    thresholds: Thresholds = Thresholds()
    """Thresholds for `lorabench check`."""

    @property
    def assumptions(self) -> list[str]:
        """The assumptions of its recipes, without duplicates."""
        return list(dict.fromkeys(assumption for resolved in self.recipes for assumption in resolved.assumptions))

    def labels(self) -> dict[str, str]:
        """Return digest → unique name of each recipe."""
        return distinct_labels({resolved.digest: resolved.recipe for resolved in self.recipes})


def single_recipe(resolved: ResolvedRecipe) -> Suite:
    """Return a suite of one recipe.

    Raises:
        UserError: the recipe cannot train this model.
    """
    check_trainable(resolved)
    return Suite(name=BY_HAND, recipes=(resolved,))


def with_amounts(suite: Suite, given: dict[str, int]) -> Suite:
    """Return ``suite`` with the `AMOUNTS` in ``given`` replaced.

    Raises:
        UserError: one is out of range.
    """
    options = {name: f"--{name.replace('_', '-')}" for name in given}
    return replace(suite, **{name: convert(count, AMOUNTS[name], options[name]) for name, count in given.items()})


def check_trainable(resolved: ResolvedRecipe) -> None:
    """Refuse a recipe that cannot train its model on any device.

    Raises:
        UserError: the model lacks the target modules or modules to save; it has fewer positions than the recipe has
            tokens; or its vocabulary is too small for byte-level text.
    """
    refuse_impossible(resolved)
    _ = resolved.target_modules, resolved.modules_to_save  # raise if the model lacks one
    byte_tokenizer(resolved.spec.vocab_size)
