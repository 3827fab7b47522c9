"""What commands do around a trace: import the libraries that it runs, and say how far it is."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from lorabench.estimator.errors import UserError

PATIENCE_SECONDS = 1.0
"""Nothing is said of progress before."""


def import_training_libraries(what: str) -> None:
    """Import what a trace runs, or say that ``what`` needs it.

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
    """Yield a function to say what is being done; it is shown on a terminal, and only when it takes long."""
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

    # What was said before patience ran out is shown when it has.
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
