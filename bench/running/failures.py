"""What an exception, an error's text or a process's death says of why a recipe was not measured."""

from __future__ import annotations

import signal

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
"""What torch's CUDA allocator, the driver and its libraries say when the GPU's memory runs out."""
OF_THE_HOST = ("can't allocate memory", "cannot allocate memory", "bad_alloc")
"""What torch's CPU allocator, the C library and C++ say when the process is given no more memory."""
OF_EITHER = "out of memory"
"""What bitsandbytes says of the GPU's memory, and others of the host's."""
LINES_KEPT = 40
"""Of what a worker said before it died."""


def answer_of(error: Exception, device: Backend, traceback: str) -> JobResult:
    """Return the answer that an exception makes, which was raised while a recipe was measured."""
    message = first_line(without_own_folders(f"{type(error).__name__}: {error}"))
    memory = which_memory(error, device)
    if memory is not None:
        return JobResult(outcome="oom", out_of=memory, message=message)
    return JobResult(outcome="error", message=message, traceback=without_own_folders(traceback))


def which_memory(error: BaseException, device: Backend) -> Memory | None:
    """Return which memory ran out, as ``error`` says; None where it says no such thing."""
    import torch

    if isinstance(error, MemoryError):
        return "host"
    if isinstance(error, torch.OutOfMemoryError):
        return "device"
    return memory_in_text(str(error), device)


def memory_in_text(text: str, device: Backend) -> Memory | None:
    """Return which memory ran out, as an error's text says; None where it says no such thing."""
    lowered = text.lower()
    if any(phrase in lowered for phrase in OF_THE_DEVICE):
        return "device"
    if any(phrase in lowered for phrase in OF_THE_HOST):
        return "host"
    if OF_EITHER in lowered:
        return "device" if device == "cuda" else "host"
    return None


def answer_of_the_dead(exit_code: int, said: str, device: Backend, kernel_kills: int | None) -> JobResult:
    """Return the answer of a worker that ended without one.

    ``exit_code`` is negative for a signal; ``kernel_kills`` counts the processes that the kernel has killed for want of
    memory since the worker was started, None where it does not say.
    """
    if exit_code == -signal.SIGKILL and kernel_kills != 0:
        certain = "killed by the kernel, which had run out of memory"
        likely = "killed by SIGKILL, as the kernel does when memory runs out (here it does not say whether it did)"
        return JobResult(outcome="oom", out_of="killed", message=likely if kernel_kills is None else certain)
    end = name_end(exit_code)
    if exit_code == -signal.SIGKILL:
        end += ", and not for want of memory"
    last = [line for line in without_own_folders(said).splitlines() if line.strip()][-LINES_KEPT:]
    reason = f"the worker ended without an answer: {end}" + (f": {first_line(last[-1])}" if last else "")
    memory = memory_in_text(said, device)
    return JobResult(
        outcome="error" if memory is None else "oom",
        out_of=memory,
        message=reason,
        traceback="\n".join(last) or None,
    )
