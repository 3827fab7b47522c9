"""Import of the libraries that a trace runs."""

from __future__ import annotations

import gc
import sys


def import_libraries() -> None:
    """Import torch, bitsandbytes, transformers and peft, without output and without garbage collection.

    The libraries and a trace's model stay in memory, so collections run rarely and skip the libraries. On two cores of
    a server, that reduced the CPU time of a trace of Llama-3.1-8B from 8.4 s to between 6.6 and 7.5 s.

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
            import transformers.loss.loss_utils  # noqa: F401 - it imports the other modules that models need
    finally:
        gc.freeze()
        gc.enable()


def leave_out_hub_kernels() -> None:
    """Prevent the import of the package kernels in this process, even if it is installed.

    On a CPU with AVX512-BF16, bitsandbytes imports it to download compiled code from the Hub and run it. Nobody
    requested that code, and without a network the download waits for a minute.
    """
    sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]
