"""One recipe in a process of its own: reads a `Job` from the first line of standard input, writes an `Answer`.

Standard input stays open as long as the runner lives; when it closes, the worker ends at once, so that none is left
behind holding a GPU.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
import traceback
from pathlib import Path

import msgspec

from lorabench.bench.jobs import Answer, Job
from lorabench.bench.measure import measure
from lorabench.estimator.errors import UserError

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc", "alloc_failed")
"""What torch's CPU and CUDA allocators, C++, cuBLAS and the kernel say in errors that have no type of their own."""


def main() -> None:
    """Do the job on standard input."""
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    threading.Thread(target=_end_with_runner, daemon=True).start()
    answer = answer_job(job)
    Path(job.answer_path).write_bytes(msgspec.json.encode(answer))


def answer_job(job: Job) -> Answer:
    """Return how measuring the job's recipe went; whatever it raises is part of the answer."""
    try:
        measurement = measure(job.spec, job.recipe, job.settings)
    except UserError as error:
        return Answer(outcome="error", message=str(error))
    except Exception as error:
        message = first_line(f"{type(error).__name__}: {error}")
        if is_out_of_memory(error):
            return Answer(outcome="oom", message=message)
        return Answer(outcome="error", message=message, traceback=without_own_folders(traceback.format_exc()))
    not_finite = sum(loss is None for loss in measurement.losses)
    note = f"the loss was not finite in {not_finite} of {len(measurement.losses)} steps" if not_finite else None
    return Answer(outcome="ok", message=note, measurement=measurement)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether ``error`` says that memory ran out, on the host or on the GPU."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return says_out_of_memory(str(error))


def says_out_of_memory(text: str) -> bool:
    """Tell whether an error's text says that memory ran out."""
    lowered = text.lower()
    return any(phrase in lowered for phrase in OUT_OF_MEMORY)


def without_own_folders(text: str) -> str:
    """Return ``text`` without the paths that tell where Python is installed and who the user is: records are shared."""
    for name in ("purelib", "platlib", "stdlib"):
        text = text.replace(sysconfig.get_path(name) + os.sep, "")
    return text.replace(str(Path.home()) + os.sep, "~" + os.sep)


def first_line(text: str) -> str:
    """Return the first line of an error's text, no longer than a terminal takes."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:300] if lines else "no message"


def _end_with_runner() -> None:
    # Not through sys.stdin, whose lock the interpreter wants when it shuts down.
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
