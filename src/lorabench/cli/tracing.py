"""Import the libraries of a trace, and show its progress."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from lorabench.estimator.errors import UserError

PATIENCE_SECONDS = 1.0
"""Progress is shown only after this time."""


def import_training_libraries(what: str) -> None:
    """Import the libraries of a trace for ``what``.

    Raises:
        UserError: a package of the ``bench`` extra is not installed.
    """
    from lorabench.estimator.training.libraries import import_libraries

    try:
        import_libraries()
    except ImportError as error:
        raise UserError(f"{what} needs {error.name}, which is not installed: pip install 'lorabench[bench]'") from error


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Yield a function that reports the current stage. It is shown only on a terminal, and only if it takes long."""
    if not sys.stderr.isatty():
        yield lambda what: None
        return
    started = time.monotonic()
    now = ""
    lock = threading.Lock()
    ended = False

    def show() -> None:
        with lock:
            elapsed = time.monotonic() - started
            if not ended and elapsed >= PATIENCE_SECONDS:
                click.echo(f"\r\033[K{elapsed:.0f} s: {now}", nl=False, err=True)

    def say(what: str) -> None:
        nonlocal now
        now = what
        show()

    # Show the stage that was reported before PATIENCE_SECONDS had passed.
    timer = threading.Timer(PATIENCE_SECONDS, show)
    timer.daemon = True
    timer.start()
    try:
        yield say
    finally:
        timer.cancel()
        with lock:
            ended = True
            if time.monotonic() - started >= PATIENCE_SECONDS:
                click.echo("\r\033[K", nl=False, err=True)
