"""Types of option values, which say the nearest valid choice, or what to write, when they refuse one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lorabench.estimator.errors import UserError
from lorabench.estimator.recipes.other_names import value_meant


class OneOf(click.Choice[str]):
    """One of a few words; another is refused with the nearest of them."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return ``value`` where it is one of the choices."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            choices = [str(choice) for choice in self.choices]
            self.fail(f"{value!r}: {value_meant(param.name if param else '', str(value), choices)}", param, ctx)


class NamedPath(click.Path):
    """A path; empty text, as a variable that is not set leaves, is refused and no name of the current folder."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return ``value`` as a path."""
        if not str(value):
            self.fail("the path is empty: write one", param, ctx)
        return super().convert(value, param, ctx)


class Share(click.ParamType):  # type: ignore[type-arg]  # generic only from click 8.4 on
    """A share from 0 to under 1, written ``3%`` or ``0.03``, or ``off``, which is None."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        """Return ``value`` as a number: 0.03 for ``3%``."""
        from lorabench.bench.check.thresholds import read_share

        try:
            return read_share(value)
        except UserError as error:
            self.fail(str(error), param, ctx)
