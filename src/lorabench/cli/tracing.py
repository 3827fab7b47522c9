"""Import the libraries of a trace, and show its progress."""

from __future__ import annotations

import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

import click

from lorabench.estimator.errors import UserError
from lorabench.estimator.foreign_text import printable
from lorabench.estimator.working_folder import require_working_folder

PATIENCE_SECONDS = 0.1
"""Progress is shown only after this time."""


def import_training_libraries(what: str) -> None:
    """Import the libraries of a trace for ``what``.

    Raises:
        UserError: a package of the ``bench`` extra is not installed, or the working folder was deleted.
    """
    from lorabench.estimator.training.libraries import import_libraries

    require_working_folder()
    try:
        import_libraries()
    except ImportError as error:
        raise UserError(f"{what} needs {error.name}, which is not installed: pip install 'lorabench[bench]'") from error


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Yield a function that reports the current stage. It is shown only on a terminal, and only if it takes long."""
    if sys.stderr is None or not sys.stderr.isatty():  # it is None if the shell closed it
        yield lambda what: None
        return
    with _own_stderr() as stream:
        shown = _Shown(stream)
        try:
            yield shown.say
        finally:
            shown.end()


class _Shown:
    """A line on a terminal with the current stage and its duration."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._started = time.monotonic()
        self._now = ""
        self._lock = threading.Lock()
        self._ended = False
        # Show the stage that was reported before PATIENCE_SECONDS had passed.
        self._timer = threading.Timer(PATIENCE_SECONDS, self._show)
        self._timer.daemon = True
        self._timer.start()

    def say(self, what: str) -> None:
        """Show ``what``."""
        self._now = what
        self._show()

    def end(self) -> None:
        """Clear the line."""
        self._timer.cancel()
        with self._lock:
            self._ended = True
            if self._elapsed >= PATIENCE_SECONDS:
                self._write("")

    def _write(self, line: str) -> None:
        with suppress(OSError):  # the terminal is closed
            click.echo(f"\r\033[K{line}", self._stream, nl=False)

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def _show(self) -> None:
        with self._lock:
            if not self._ended and self._elapsed >= PATIENCE_SECONDS:
                self._write(f"{self._elapsed:.1f} s: {printable(self._now)}")


@contextmanager
def _own_stderr() -> Iterator[TextIO]:
    """Yield the current standard error, to write to while the libraries' output is redirected."""
    try:
        descriptor = os.dup(sys.stderr.fileno())
    except io.UnsupportedOperation:  # it is not a file
        yield sys.stderr
        return
    with os.fdopen(descriptor, "w", encoding=sys.stderr.encoding, errors="replace") as stream:
        yield stream
