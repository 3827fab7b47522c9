"""Hide the libraries' own output from the user's terminal. Only this module does so.

torch, transformers, peft, bitsandbytes and their dependencies warn, log, draw progress bars, print, and write from C.
None of that answers a user's question. With ``-v`` all of it goes to standard error.

Three kinds of processes call the libraries. The command line redirects its standard output and standard error while
they run, and again when Python ends. If it dies while they run, the end of their output is shown. A process that
lorabench starts keeps its standard error, which is a file and shows how the process died. A program that calls
lorabench keeps both, since other threads may write there.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from lorabench.estimator.foreign_text import printable_lines

SPEAK = "LORABENCH_VERBOSE"
"""Environment variable that shows the libraries' output, of this process and of all that lorabench starts. ``-v`` sets
it to 1."""
NO_BARS = {"TQDM_DISABLE": "1"}
"""Environment without progress bars of tqdm, transformers and huggingface_hub, which read it on import."""


class _Process:
    """The state of this process."""

    is_command_line = False
    is_turned_away = False
    """Whether its standard output and standard error are redirected now."""


@contextmanager
def command_line() -> Iterator[None]:
    """Return a context in which `quiet_libraries` also redirects standard output and standard error."""
    before, _Process.is_command_line = _Process.is_command_line, True
    try:
        yield
    finally:
        _Process.is_command_line = before


def own_stdout() -> int:
    """Return a new descriptor of standard output, and redirect descriptor 1 to standard error from now on.

    It is for a process whose standard output another process reads: nothing else can write there.
    """
    own = os.dup(1)
    os.dup2(2, 1)
    return own


def wants_library_output() -> bool:
    """Return whether the user requested the libraries' output."""
    return os.environ.get(SPEAK, "") not in ("", "0")


def quiet_environment() -> dict[str, str]:
    """Return environment variables that silence a new process's libraries; none if the user wants their output."""
    return {} if wants_library_output() else NO_BARS


def pass_on(output: str) -> None:
    """Write ``output``, the standard error of another process, to this process's, if the user requested such output."""
    if output and wants_library_output() and sys.stderr is not None:
        with suppress(OSError):  # nobody can read it
            print(printable_lines(output.removesuffix("\n")), file=sys.stderr)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Return a context that hides the output of libraries, or sends it to standard error if the user requested it.

    Import and call the libraries inside. Messages of lorabench inside need a stream of their own, such as that of
    `cli.tracing.progress`.
    """
    import logging
    import warnings

    speak = wants_library_output()
    disabled = logging.root.manager.disable
    with _hidden_output(speak):
        try:
            if speak:
                yield
                return
            logging.disable()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.disable(disabled)


@contextmanager
def _hidden_output(speak: bool) -> Iterator[None]:
    """Redirect standard output and standard error of the command line inside, and when the process ends.

    If the user requested the libraries' output, both go to standard error inside.
    """
    if _Process.is_turned_away or not _Process.is_command_line:
        yield
        return
    from lorabench.estimator.last_words import last_words

    unheard = os.memfd_create("unheard")
    _Process.is_turned_away = True
    try:
        if speak:
            with _redirected_to(2 if _is_open(2) else unheard):
                yield
        else:
            with last_words(unheard), _redirected_to(unheard):
                yield
    finally:
        _Process.is_turned_away = False
        os.close(unheard)
        if not speak:
            # atexit runs the function first that was registered last.
            atexit.unregister(_redirect_until_exit)
            atexit.register(_redirect_until_exit)


@contextmanager
def _redirected_to(target: int) -> Iterator[None]:
    """Redirect standard output and standard error to descriptor ``target`` inside. A closed one stays closed."""
    _flush()
    saved = {descriptor: os.dup(descriptor) for descriptor in (1, 2) if _is_open(descriptor)}
    for descriptor in saved:
        os.dup2(target, descriptor)
    try:
        yield
    finally:
        _flush()
        for descriptor, before in saved.items():
            os.dup2(before, descriptor)
            os.close(before)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _redirect_until_exit() -> None:
    """Redirect both when Python ends: C libraries report leaks after that."""
    _flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)


def _flush() -> None:
    """Flush the buffers of Python and C, so that their contents go to the current target."""
    import ctypes

    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with suppress(OSError, ValueError):
                stream.flush()
    ctypes.CDLL(None).fflush(None)
