"""Types of option values. A refusal names the nearest valid choice, or what to write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lorabench.estimator.errors import UserError
from lorabench.estimator.recipes.other_names import value_meant
from lorabench.estimator.written_numbers import read_count, read_length

if TYPE_CHECKING:
    from lorabench.estimator.memory.allocator_settings import AllocatorSettings

_Command = TypeVar("_Command", bound=Callable[..., Any])


class OneOf(click.Choice[str]):
    """One of a few words; any other is refused with the nearest of them."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return ``value`` if it is one of the choices."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            choices = [str(choice) for choice in self.choices]
            self.fail(f"{value!r}: {value_meant(param.name if param else '', str(value), choices)}", param, ctx)


class NamedPath(click.Path):
    """A path. Empty text, such as from an unset shell variable, is refused: it would mean the current folder."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return ``value`` as a path."""
        if not str(value):
            self.fail("the path is empty: write one", param, ctx)
        return super().convert(value, param, ctx)


class Share(click.ParamType):  # type: ignore[type-arg]  # generic only from click 8.4 on
    """A share from 0 to under 1, written ``3%`` or ``0.03``; or ``off``, which is None."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        """Return ``value`` as a number: 0.03 for ``3%``."""
        from lorabench.bench.check.thresholds import read_share

        try:
            return read_share(value)
        except UserError as error:
            self.fail(str(error), param, ctx)


class Length(click.ParamType):  # type: ignore[type-arg]  # generic only from click 8.4 on
    """Tokens of a sequence: ``4096``, or ``4k`` with k = 1024."""

    name = "length"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return ``value`` as a number: 4096 for ``4k``."""
        try:
            return read_length(str(value))
        except UserError as error:
            self.fail(str(error), param, ctx)


class Count(click.ParamType):  # type: ignore[type-arg]  # generic only from click 8.4 on
    """A whole number from 1 on, such as ``300k``, ``50M``, ``1e9``."""

    name = "count"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return ``value`` as a number: 50,000,000 for ``50M``."""
        try:
            return read_count(str(value))
        except UserError as error:
            self.fail(str(error), param, ctx)


class AllocatorConf(click.ParamType):  # type: ignore[type-arg]  # generic only from click 8.4 on
    """Settings of torch's allocator, as in PYTORCH_ALLOC_CONF: ``max_split_size_mb:128,expandable_segments:True``."""

    name = "key:value,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> AllocatorSettings:
        """Return ``value`` as settings."""
        from lorabench.estimator.memory.allocator_settings import read_settings

        try:
            return read_settings(str(value))
        except UserError as error:
            self.fail(str(error), param, ctx)


def alloc_conf_option(command: _Command) -> _Command:
    """Give ``command`` the option ``--alloc-conf``, which is None if it is absent."""
    return click.option(
        "--alloc-conf",
        type=AllocatorConf(),
        help="Settings of torch's allocator, as in PYTORCH_ALLOC_CONF. [the environment's]",
    )(command)


def timeout_option(what: str) -> Callable[[_Command], _Command]:
    """Return the option ``--timeout``, which ends ``what`` after some seconds."""
    return click.option(
        "--timeout",
        type=click.IntRange(1, 10**8),
        default=3600,
        show_default=True,
        help=f"End {what} after this many seconds.",
    )
