"""What was asked for: a model and recipe options, from the command line, from the config of a tool, or both."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from lorabench.estimator.errors import UserError
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.recipes.defaults import recipe_for
from lorabench.estimator.recipes.recipe import option_value, settings_of
from lorabench.estimator.recipes.resolved import ResolvedRecipe

if TYPE_CHECKING:
    from lorabench.estimator.imported.reading import Config, Imported


class Asked(NamedTuple):
    """A model with recipe options."""

    spec: ModelSpec
    options: dict[str, Any]
    """Those of the config, overridden by those of the command line."""
    imported: Imported | None = None
    """What became of the config; None without one."""

    def resolved(self) -> ResolvedRecipe:
        """Return the recipe.

        Raises:
            UserError: as in `recipe_for`; it names the config too.
        """
        if self.imported is None:
            return recipe_for(self.spec, **self.options)
        try:
            return recipe_for(self.spec, **self.options)
        except UserError as error:
            raise UserError(f"{self.imported.file}: {error}") from error


def asked(
    model: str | Path | ModelSpec | None, config: str | Path | Config | None, options: Mapping[str, Any]
) -> Asked:
    """Return the model and the options of ``config``, which may also be named as the model.

    Args:
        model: as in `find_model`; None: the one that the config names.
        config: a file with a config of another tool, or what was read from it; None: no config.
        options: recipe options that override those of the config; None for those not given.

    Raises:
        UserError: neither names a model, or one of them cannot be read.
    """
    given = {name: value for name, value in options.items() if value is not None}
    model, read = read_once(model, config)
    if read is None:
        if model is None:
            raise UserError("name a MODEL, or the config of another tool with --from FILE")
        return Asked(_spec(model), given)
    named = read.model if model is None else model
    if named is None:
        raise UserError(f"{read.file}: a config of {read.tool.name} names no model: name the MODEL besides --from")
    try:
        spec = _spec(named)
    except UserError as error:
        if model is not None:
            raise
        raise UserError(f"{read.file}: {error}; or name the MODEL besides --from") from error
    imported = read.on(spec)
    if spec.stored is not None and imported.options.get("method") == "lora":
        # A tool loads such a checkpoint as it is, also without a word of it in the config.
        imported = replace(imported, options={**imported.options, **spec.stored.options})
    options = {**_kept(imported.options, given), **given}
    if "padding" not in given and options.get("attn_implementation") == "flash_attention_2":
        options.pop("padding", None)  # it takes the padding out of a batch
    return Asked(spec, options, imported)


def _kept(options: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a config that a method on the command line leaves in force."""
    if "method" not in given:
        return dict(options)
    applying = settings_of(option_value("method", given["method"]))
    return {name: value for name, value in options.items() if name in applying and name != "method"}


def read_once(
    model: str | Path | ModelSpec | None, config: str | Path | Config | None
) -> tuple[str | Path | ModelSpec | None, Config | None]:
    """Return the model, and what was read of the config of another tool, for any number of calls of `asked`.

    The model is None if it named that config. The arguments are those of `asked`.

    Raises:
        UserError: the config cannot be read.
    """
    if isinstance(config, (str, Path)):
        from lorabench.estimator.imported.sources import read_config_file

        return model, read_config_file(Path(config))
    if config is None and isinstance(model, (str, Path)) and os.path.exists(model):  # noqa: PTH110 - names may be no paths
        from lorabench.estimator.imported.sources import config_named

        read = config_named(str(model))
        return (model if read is None else None), read
    return model, config


def _spec(model: str | Path | ModelSpec) -> ModelSpec:
    return model if isinstance(model, ModelSpec) else find_model(model)
