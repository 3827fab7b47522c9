"""The null GPU's part inside a Python program: real values for the tensors that decide what the program does next."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from typing import Any

BEGIN = "NULL_GPU_BEGIN"
"""Variable that names a module whose ``begin()`` is called too, such as the observer's."""


def keep_out_of_compiled_code() -> None:
    """Make torch's compiler skip this package: it would compile it, and break graphs because of it."""

    def pass_over() -> None:
        rules: Any = importlib.import_module("torch._dynamo.trace_rules")
        rules.add("lorabench.bench.null_gpu")

    sys.meta_path.insert(0, importlib.import_module("sitecustomize").After("torch._dynamo.trace_rules", pass_over))


def begin() -> None:
    """Give small tensors real values, in this thread and in all threads that start later."""
    from lorabench.bench.null_gpu.inside.absent_ranks import go_alone
    from lorabench.bench.null_gpu.inside.knowledge import Knowledge
    from lorabench.bench.null_gpu.inside.printing import print_from_the_host
    from lorabench.bench.null_gpu.inside.real_values import RealValues

    print_from_the_host()
    go_alone()
    keep_out_of_compiled_code()
    knowledge = Knowledge()
    RealValues(knowledge).__enter__()  # type: ignore[no-untyped-call]
    run: Any = threading.Thread._bootstrap_inner  # type: ignore[attr-defined]

    def run_with_values(thread: threading.Thread) -> None:
        with RealValues(knowledge):
            run(thread)

    threading.Thread._bootstrap_inner = run_with_values  # type: ignore[attr-defined]
    if BEGIN in os.environ:
        importlib.import_module(os.environ[BEGIN]).begin()
