"""Types of option values, which say the nearest valid choice, or what to write, when they refuse one."""

from __future__ import annotations

import re
from typing import Any

import click

from lorabench.estimator.errors import did_you_mean


class OneOf(click.Choice[str]):
    """One of a few words; another is refused with the nearest of them."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return ``value`` where it is one of the choices."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            choices = [str(choice) for choice in self.choices]
            self.fail(f"{value!r}: {did_you_mean(str(value), choices, say_all_up_to=12)}", param, ctx)


class Share(click.ParamType):  # type: ignore[type-arg]  # generic only from click 8.4 on
    """A share from 0 to under 1, written ``3%`` or ``0.03``."""

    name = "share"
    _written = re.compile(r"\s*((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)\s*(%?)\s*")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return ``value`` as a number: 0.03 for ``3%``."""
        if isinstance(value, float):
            return value
        match = self._written.fullmatch(str(value))
        if match is None:
            self.fail(f"{value!r} is no share: write one such as 3% or 0.03", param, ctx)
        share = float(match[1]) / (100 if match[2] else 1)
        if share >= 1:
            self.fail(f"{value!r} is 100% or more: write a share such as 3% or 0.03", param, ctx)
        return share
