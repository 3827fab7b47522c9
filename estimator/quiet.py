"""Keeping what the libraries say to themselves off the user's terminal: the only place that does.

torch, transformers, peft, bitsandbytes and what they bring warn, log, draw progress bars, print, and write from C. None
of it answers what a user asked. With ``-v`` all of it is heard, on standard error.

Three kinds of process call the libraries. The command line turns its standard output and standard error away while they
run, and again when Python ends; if it dies while they run, their last words are shown. A process that lorabench starts
keeps its standard error, which goes to a file and tells how it died. A program that calls lorabench keeps both, since
other threads may write there.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

SPEAK = "LORABENCH_VERBOSE"
"""Environment variable that lets the libraries speak, here and in every process that lorabench starts; ``-v`` sets
it to 1."""
NO_BARS = {"TQDM_DISABLE": "1"}
"""Environment in which tqdm draws no progress bars, nor do transformers and huggingface_hub; read on import."""


class _Process:
    """What this process is."""

    is_command_line = False
    is_turned_away = False
    """Whether its standard output and standard error are turned away now."""


@contextmanager
def command_line() -> Iterator[None]:
    """Let `quiet_libraries` turn away standard output and standard error too, inside."""
    before, _Process.is_command_line = _Process.is_command_line, True
    try:
        yield
    finally:
        _Process.is_command_line = before


def own_stdout() -> int:
    """Return a descriptor that writes to standard output; what others print there goes to standard error from now on.

    For processes whose standard output another process reads.
    """
    own = os.dup(1)
    os.dup2(2, 1)
    return own


def libraries_speak() -> bool:
    """Tell whether the user asked to hear the libraries."""
    return os.environ.get(SPEAK, "") not in ("", "0")


def quiet_environment() -> dict[str, str]:
    """Return the variables that a process is to be started with, so that its libraries keep quiet if they are to."""
    return {} if libraries_speak() else NO_BARS


def pass_on(said: str) -> None:
    """Write what was ``said`` on the standard error of another process to this one's, if the user asked for it."""
    if said and libraries_speak():
        sys.stderr.write(said if said.endswith("\n") else f"{said}\n")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the libraries, which are imported and called inside; or let them speak on standard error, if asked.

    What lorabench says inside must go to a stream of its own, such as that of `cli.tracing.progress`.
    """
    import logging
    import warnings

    speak = libraries_speak()
    disabled = logging.root.manager.disable
    with _turned_away(speak):
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
def _turned_away(speak: bool) -> Iterator[None]:
    """Turn standard output and standard error of the command line away inside, and when the process ends.

    If the libraries speak, both are turned to standard error inside.
    """
    if _Process.is_turned_away or not _Process.is_command_line:
        yield
        return
    from lorabench.estimator.last_words import last_words

    unheard = os.memfd_create("unheard")
    _Process.is_turned_away = True
    try:
        if speak:
            with _turned_to(2 if _is_open(2) else unheard):
                yield
        else:
            with last_words(unheard), _turned_to(unheard):
                yield
    finally:
        _Process.is_turned_away = False
        os.close(unheard)
        if not speak:
            # Registered last, it runs first.
            atexit.unregister(_turn_away_for_good)
            atexit.register(_turn_away_for_good)


@contextmanager
def _turned_to(target: int) -> Iterator[None]:
    """Turn standard output and standard error to a descriptor inside. One that is closed stays closed."""
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


def _turn_away_for_good() -> None:
    """Turn both away when Python ends: libraries written in C list what leaked, after all of Python has ended."""
    _flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)


def _flush() -> None:
    """Write out what Python and C hold in buffers, so that it goes where it was meant to."""
    import ctypes

    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with suppress(OSError, ValueError):
                stream.flush()
    ctypes.CDLL(None).fflush(None)
