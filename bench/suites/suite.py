"""Suites: recipes to run, each checked against its model, with steps and repeats."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct
from msgspec.structs import replace

from lorabench.bench.check.thresholds import Thresholds
from lorabench.bench.records.labels import distinct_labels
from lorabench.bench.training.text import byte_tokenizer
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.recipes.feasibility import refuse_impossible
from lorabench.estimator.recipes.modules_to_save import resolve_modules_to_save
from lorabench.estimator.recipes.recipe import Recipe
from lorabench.estimator.recipes.target_modules import resolve_target_modules
from lorabench.estimator.typed_values import convert

AMOUNTS: dict[str, Any] = {
    "steps": Annotated[int, Meta(ge=1, le=100_000)],
    "warmup_steps": Annotated[int, Meta(ge=0, le=100_000)],
    "repeats": Annotated[int, Meta(ge=1, le=1_000)],
}
"""Steps and repeats of each recipe, with their ranges."""
BY_HAND = "by hand"
"""Suite name of a recipe from the command line."""


class Planned(Struct, frozen=True):
    """A recipe with the shapes of its model."""

    recipe: Recipe
    spec: ModelSpec
    assumptions: tuple[str, ...] = ()
    """Settings that replace a default which the model does not support, with the reason."""

    @property
    def digest(self) -> str:
        """Digest in the name of its record."""
        return self.recipe.digest(self.spec.config)


class Suite(Struct, frozen=True, kw_only=True):
    """Recipes to run, each checked against its model."""

    name: str
    recipes: tuple[Planned, ...]
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
        return list(dict.fromkeys(assumption for planned in self.recipes for assumption in planned.assumptions))

    def labels(self) -> dict[str, str]:
        """Return digest → unique name of each recipe."""
        return distinct_labels({planned.digest: planned.recipe for planned in self.recipes})


def single_recipe(spec: ModelSpec, recipe: Recipe, assumptions: tuple[str, ...] = ()) -> Suite:
    """Return a suite of one recipe.

    Raises:
        UserError: the recipe cannot train this model.
    """
    check_trainable(spec, recipe)
    return Suite(name=BY_HAND, recipes=(Planned(recipe, spec, assumptions),))


def with_amounts(suite: Suite, given: dict[str, int]) -> Suite:
    """Return ``suite`` with the `AMOUNTS` in ``given`` replaced.

    Raises:
        UserError: one is out of range.
    """
    options = {name: f"--{name.replace('_', '-')}" for name in given}
    return replace(suite, **{name: convert(count, AMOUNTS[name], options[name]) for name, count in given.items()})


def check_trainable(spec: ModelSpec, recipe: Recipe) -> None:
    """Refuse a recipe that cannot train its model on any device.

    Raises:
        UserError: the model lacks the target modules or modules to save, has fewer positions than the recipe has
        tokens,
            or has a vocabulary that is too small for byte-level text.
    """
    refuse_impossible(spec, recipe)
    resolve_target_modules(spec, recipe)
    resolve_modules_to_save(spec, recipe)
    byte_tokenizer(spec.vocab_size)
