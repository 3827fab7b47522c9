"""Short names of recipes that are to be told apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from lorabench.estimator.recipes import Recipe


def distinct_labels(recipes: Mapping[str, Recipe]) -> dict[str, str]:
    """Return a name for each recipe by its digest, unlike every other name.

    It is the recipe's label; where several have the same, the settings in which they differ are added, and where those
    tell nothing (models of one name with different shapes), the digest.
    """
    alike: dict[str, list[str]] = {}
    for digest, recipe in recipes.items():
        alike.setdefault(recipe.label(), []).append(digest)
    names: dict[str, str] = {}
    for label, digests in alike.items():
        settings = {digest: recipes[digest].describe() for digest in digests}
        differing = [
            field
            for field in Recipe.__struct_fields__
            if field != "model" and len({said.get(field) for said in settings.values()}) > 1
        ]
        told = {
            digest: " ".join([label, *(f"{field}={said[field]}" for field in differing if field in said)])
            for digest, said in settings.items()
        }
        taken = Counter(told.values())
        names |= {digest: name if taken[name] == 1 else f"{name} {digest}" for digest, name in told.items()}
    return names
