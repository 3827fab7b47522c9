"""Importing the libraries that a trace runs."""

from __future__ import annotations

import gc
import sys


def import_libraries() -> None:
    """Import torch, bitsandbytes, transformers and peft, without a word and without collecting garbage.

    What is imported stays, and so does the model of a trace, so garbage is looked for rarely and not among the
    libraries. On two cores of a server, that took a trace of Llama-3.1-8B from 8.4 s of CPU time to 6.6 to 7.5 s.

    Raises:
        ImportError: one of them is not installed.
    """
    from lorabench.estimator.quiet import quiet_libraries

    leave_out_hub_kernels()
    gc.disable()
    gc.set_threshold(100_000)
    try:
        with quiet_libraries():
            import bitsandbytes  # noqa: F401
            import peft  # noqa: F401
            import torch  # noqa: F401
            import transformers.loss.loss_utils  # noqa: F401 - brings the rest of what models import
    finally:
        gc.freeze()
        gc.enable()


def leave_out_hub_kernels() -> None:
    """Let nothing in this process import the package kernels, if it is installed.

    On a CPU with AVX512-BF16, bitsandbytes imports it to fetch compiled code from the hub and run that: code that
    nobody asked for, and a minute of waiting without a network.
    """
    sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]
