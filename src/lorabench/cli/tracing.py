"""What commands do around a trace: import the libraries that it runs, and say how far it is."""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from lorabench.estimator.errors import UserError

_unlimited = functools.lru_cache(maxsize=None)

PATIENCE_SECONDS = 1.0
"""Nothing is said of progress before."""


def import_training_libraries(what: str) -> None:
    """Import what a trace runs, or say that ``what`` needs it, and keep its notices off the terminal.

    Raises:
        UserError: a package of the ``bench`` extra is not installed.
    """
    import gc
    import warnings

    warnings.simplefilter("ignore")
    # What is imported stays, and so does the model: to look through them for garbage again and again takes a second.
    gc.disable()
    gc.set_threshold(100_000)
    try:
        import torch

        from lorabench.estimator.trace.patches import replaced

        # bitsandbytes wraps its CPU kernels in torch.compile, which imports the compiler for seconds; none runs here.
        with replaced(torch, "compile", lambda function=None, **_: function or (lambda kernel: kernel)):
            import bitsandbytes  # noqa: F401
        # transformers looks through its folders for names twice, and its cache of 128 folders holds none by then.
        with replaced(functools, "lru_cache", _unlimited_cache):
            import transformers.utils

        # scipy serves the losses of object detection, which transformers imports with all others.
        with replaced(transformers.utils, "is_scipy_available", lambda: False):
            import transformers.loss.loss_utils
        import peft  # noqa: F401
        from transformers.utils import logging
    except ImportError as error:
        raise UserError(f"{what} needs {error.name}, which is not installed: pip install 'lorabench[bench]'") from error
    finally:
        gc.freeze()
        gc.enable()
    logging.set_verbosity_error()


def _unlimited_cache(function: Any = None, **_: Any) -> Any:
    """Cache as `functools.lru_cache` does, but without a limit."""
    return _unlimited(function) if callable(function) else _unlimited


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
