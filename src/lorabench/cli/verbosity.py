"""The option -v of the commands that call the libraries."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from lorabench.estimator.quiet import SPEAK

Command = TypeVar("Command", bound=Callable[..., Any])


def let_libraries_speak(context: click.Context, parameter: click.Parameter, verbose: bool) -> bool:
    """Let the libraries print while the command runs, also in processes that it starts; return ``verbose``."""
    if verbose:
        before = os.environ.get(SPEAK)
        os.environ[SPEAK] = "1"

        @context.call_on_close
        def be_as_before() -> None:
            if before is None:
                del os.environ[SPEAK]
            else:
                os.environ[SPEAK] = before

    return verbose


def verbose_option(command: Command) -> Command:
    """Give ``command`` the option -v."""
    return click.option(
        "-v",
        "--verbose",
        is_flag=True,
        expose_value=False,
        callback=let_libraries_speak,
        help="Print the libraries' output to standard error.",
    )(command)
