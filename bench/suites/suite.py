"""Suites: recipes to run, each checked against its model, and how much of each is run."""

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
"""How much of each recipe is run."""
BY_HAND = "by hand"
"""Suite name of recipes that were given on the command line."""


class Planned(Struct, frozen=True):
    """A recipe with the shapes of its model."""

    recipe: Recipe
    spec: ModelSpec
    assumptions: tuple[str, ...] = ()
    """What of the recipe nobody asked for, though it is not the default, and why."""

    @property
    def digest(self) -> str:
        """What names its record."""
        return self.recipe.digest(self.spec.config)


class Suite(Struct, frozen=True, kw_only=True):
    """Recipes to run one after another, each checked against its model."""

    name: str
    recipes: tuple[Planned, ...]
    """In the order of the matrix, each once."""
    description: str = ""
    steps: int = 20
    """Timed steps of each recipe."""
    warmup_steps: int = 3
    """Steps before the timed ones."""
    repeats: int = 1
    """How often each recipe runs, each time with another seed."""
    probe: bool = False
    """Whether the GPU itself is probed before the first recipe (`gpu_probe`)."""
    thresholds: Thresholds = Thresholds()
    """How much worse its results may get."""

    @property
    def assumptions(self) -> list[str]:
        """Those of its recipes, each once."""
        return list(dict.fromkeys(said for planned in self.recipes for said in planned.assumptions))

    def labels(self) -> dict[str, str]:
        """Return a name for each recipe, by its digest, that tells it from the others."""
        return distinct_labels({planned.digest: planned.recipe for planned in self.recipes})


def single_recipe(spec: ModelSpec, recipe: Recipe, assumptions: tuple[str, ...] = ()) -> Suite:
    """Return a suite of one recipe.

    Raises:
        UserError: the recipe cannot train this model.
    """
    check_trainable(spec, recipe)
    return Suite(name=BY_HAND, recipes=(Planned(recipe, spec, assumptions),))


def with_amounts(suite: Suite, given: dict[str, int]) -> Suite:
    """Return ``suite`` with those of `AMOUNTS` that are ``given`` as options.

    Raises:
        UserError: one is out of range.
    """
    options = {name: f"--{name.replace('_', '-')}" for name in given}
    return replace(suite, **{name: convert(count, AMOUNTS[name], options[name]) for name, count in given.items()})


def check_trainable(spec: ModelSpec, recipe: Recipe) -> None:
    """Refuse a recipe that cannot train its model on any device.

    Raises:
        UserError: target modules or modules to save that the model does not have, more tokens than it has positions,
            or a vocabulary that byte-level text does not fit.
    """
    refuse_impossible(spec, recipe)
    resolve_target_modules(spec, recipe)
    resolve_modules_to_save(spec, recipe)
    byte_tokenizer(spec.vocab_size)
