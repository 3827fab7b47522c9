"""Print to standard output and standard error. Commands print through this module only."""

from __future__ import annotations

import io
import sys

import click

from lorabench.estimator.foreign_text import printable_lines


def show(text: str = "", *, err: bool = False) -> None:
    """Print ``text``, which may hold foreign text, without control characters."""
    show_styled(printable_lines(text), err=err)


def show_styled(text: str, *, err: bool = False, end: str = "\n") -> None:
    """Print ``text`` as it is: its foreign parts are printable, its escape sequences are lorabench's own.

    A standard error that takes no text, such as that of a closed terminal, changes nothing but that it stays unread.
    """
    try:
        click.echo(f"{text}{end}", nl=False, err=err)
    except OSError:
        if not err:
            raise
        sys.stderr = io.StringIO()  # what it has buffered cannot be written when Python ends either
