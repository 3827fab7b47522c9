"""Classify failures of a recipe, from an exception, an error's text or the end of a process."""

from __future__ import annotations

import re
import signal
import traceback

from lorabench.bench.records.record import Memory
from lorabench.bench.records.text import first_line, name_end, without_own_folders
from lorabench.bench.running.jobs import JobResult
from lorabench.estimator.devices.backend import Backend

OF_THE_DEVICE = (
    "cuda out of memory",
    "cuda error: out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "cudaerrormemoryallocation",
)
"""Messages of torch's CUDA allocator, the driver and its libraries if GPU memory runs out."""
OF_THE_HOST = ("can't allocate memory", "cannot allocate memory", "bad_alloc")
"""Messages of torch's CPU allocator, the C library and C++ if host memory runs out."""
OF_EITHER = "out of memory"
"""Message of bitsandbytes for GPU memory, and of others for host memory."""
OF_LIBRARIES = re.compile(r"/(torch|bench/null_gpu)/|^<|/contextlib\.py$")
"""Files whose lines name no operation of a model, an optimizer or a training loop."""
LINES_KEPT = 40
"""Number of last lines kept of a dead worker's output."""


def answer_of(error: Exception, backend: Backend, traceback_text: str) -> JobResult:
    """Return the result for an exception that was raised while a recipe was measured."""
    message = first_line(without_own_folders(f"{type(error).__name__}: {error}"))
    memory = which_memory(error, backend)
    if memory is not None:
        return JobResult(outcome="oom", out_of=memory, message=message + operation_of(error))
    return JobResult(outcome="error", message=message, traceback=without_own_folders(traceback_text))


def operation_of(error: BaseException) -> str:
    """Return the line outside torch that raised ``error``, such as ``; at loss.backward() (…/step.py:70)``."""
    frames = [one for one in traceback.extract_tb(error.__traceback__) if not OF_LIBRARIES.search(one.filename)]
    if not frames:
        return ""
    last = frames[-1]
    place = re.sub(r"^.*/(?=lorabench/)", "", without_own_folders(last.filename))
    return f"; at {last.line or last.name} ({place}:{last.lineno})"


def which_memory(error: BaseException, backend: Backend) -> Memory | None:
    """Return which memory ran out according to ``error``; None if none did."""
    import torch

    if isinstance(error, MemoryError):
        return "host"
    if isinstance(error, torch.OutOfMemoryError):
        return "device"
    return memory_in_text(str(error), backend)


def memory_in_text(text: str, backend: Backend) -> Memory | None:
    """Return which memory ran out according to an error's text; None if none did."""
    lowered = text.lower()
    if any(phrase in lowered for phrase in OF_THE_DEVICE):
        return "device"
    if any(phrase in lowered for phrase in OF_THE_HOST):
        return "host"
    if OF_EITHER in lowered:
        return "device" if backend == "cuda" else "host"
    return None


def answer_of_crashed_worker(exit_code: int, output: str, backend: Backend, kernel_kills: int | None) -> JobResult:
    """Return the result of a worker that ended without an answer.

    Args:
        exit_code: negative for a signal.
        output: its standard output and error.
        kernel_kills: processes that the OOM killer has ended since the worker started; None if unknown.
    """
    if exit_code == -signal.SIGKILL and kernel_kills != 0:
        certain = "killed by the kernel's OOM killer"
        likely = "killed by SIGKILL, probably by the kernel's OOM killer (this system does not report its kills)"
        return JobResult(outcome="oom", out_of="killed", message=likely if kernel_kills is None else certain)
    end = name_end(exit_code)
    if exit_code == -signal.SIGKILL:
        end += ", but not by the OOM killer"
    last = [line for line in without_own_folders(output).splitlines() if line.strip()][-LINES_KEPT:]
    reason = f"the worker ended without an answer: {end}" + (f": {first_line(last[-1])}" if last else "")
    memory = memory_in_text(output, backend)
    return JobResult(
        outcome="error" if memory is None else "oom",
        out_of=memory,
        message=reason,
        traceback="\n".join(last) or None,
    )
