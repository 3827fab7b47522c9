"""Short, unique names of recipes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from lorabench.estimator.recipes.recipe import SETTINGS, Recipe, make_recipe


def distinct_labels(recipes: Mapping[str, Recipe]) -> dict[str, str]:
    """Return digest → unique name of each recipe.

    The name is the recipe's label. If several recipes share a label, the setting that differs is added; if several
    settings differ, only those that are not the default. If this is not unique either (models of one name with
    different shapes), the digest is added.
    """
    sharing_label: dict[str, list[str]] = {}
    for digest, recipe in recipes.items():
        sharing_label.setdefault(recipe.label(), []).append(digest)
    names: dict[str, str] = {}
    for label, digests in sharing_label.items():
        if len(digests) == 1:
            names[digests[0]] = label
            continue
        settings = {digest: recipes[digest].describe() for digest in digests}
        differing = [
            field
            for field in SETTINGS
            if field != "model" and len({described.get(field) for described in settings.values()}) > 1
        ]
        chosen = {}
        for digest, described in settings.items():
            usual = make_recipe("any", method=recipes[digest].method).describe() if len(differing) > 1 else {}
            chosen[digest] = " ".join(
                [
                    label,
                    *(f"{field}={described[field]}" for field in differing if described.get(field) != usual.get(field)),
                ]
            )
        taken = Counter(chosen.values())
        names |= {digest: name if taken[name] == 1 else f"{name} {digest}" for digest, name in chosen.items()}
    return {digest: names[digest] for digest in recipes}
