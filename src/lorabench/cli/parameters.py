"""Types of option values. A refusal names the nearest valid choice, or what to write."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lorabench.estimator.errors import UserError
from lorabench.estimator.foreign_text import quoted
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
            self.fail(f"{quoted(value)}: {value_meant(param.name if param else '', str(value), choices)}", param, ctx)


class NamedPath(click.Path):
    """A path. Empty text, such as from an unset shell variable, is refused: it would mean the current folder."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return ``value`` as a path."""
        if not str(value):
            self.fail("the path is empty: write one", param, ctx)
        return super().convert(value, param, ctx)


class _Read(click.ParamType):  # type: ignore[type-arg]  # generic only from click 8.4 on
    """A value that a function of the library reads from its text."""

    def read(self, text: str) -> Any:
        """Return the value of ``text``.

        Raises:
            UserError: it is no such value.
        """
        raise NotImplementedError

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return ``value`` as `read` reads it."""
        try:
            return self.read(str(value))
        except UserError as error:
            self.fail(str(error), param, ctx)


class Share(_Read):
    """A share from 0 to under 1, written ``3%`` or ``0.03``; or ``off``, which is None."""

    name = "share"

    def read(self, text: str) -> float | None:
        """Return the number: 0.03 for ``3%``."""
        from lorabench.bench.check.thresholds import read_share

        return read_share(text)


class Length(_Read):
    """Tokens of a sequence: ``4096``, or ``4k`` with k = 1024."""

    name = "length"

    def read(self, text: str) -> int:
        """Return the number: 4096 for ``4k``."""
        return read_length(text)


class Count(_Read):
    """A whole number from 1 on, such as ``300k``, ``50M``, ``1e9``."""

    name = "count"

    def read(self, text: str) -> int:
        """Return the number: 50,000,000 for ``50M``."""
        return read_count(text)


class Listed(click.ParamType):  # type: ignore[type-arg]  # generic only from click 8.4 on
    """One value, or several separated by commas, which are a tuple."""

    def __init__(self, one: Any) -> None:
        """Make the type of values of the type ``one``."""
        self.one = one
        self.name = f"{one.name},…"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        """Return what the help shows as the value."""
        shown = self.one.get_metavar(param, ctx)
        return shown and f"{shown},…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value, or the tuple of values, without those that are named twice."""
        parts = str(value).split(",")
        if len(parts) > 1 and any(re.fullmatch("0[0-9]+", part.strip()) for part in parts[1:]):
            self.fail(f"{quoted(value)}: commas separate values, so write numbers without them", param, ctx)
        values = tuple(dict.fromkeys(self.one.convert(part.strip(), param, ctx) for part in parts))
        return values if len(values) > 1 else values[0]


class AllocatorConf(_Read):
    """Settings of torch's allocator, as in PYTORCH_ALLOC_CONF: ``max_split_size_mb:128,expandable_segments:True``."""

    name = "key:value,…"

    def read(self, text: str) -> AllocatorSettings:
        """Return the settings."""
        from lorabench.estimator.memory.allocator_settings import read_settings

        return read_settings(text)


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
