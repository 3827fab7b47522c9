"""Reports of a rehearsal's processes, one JSON file each, and their readers."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from lorabench.estimator.errors import UserError

PROCESS_FILES = "process.*.json"


class AliveTensors(Struct, frozen=True, kw_only=True):
    """Tensors of one kind and place that are alive at the peak."""

    kind: str
    """weights, gradients, optimizer states, made in forward, made in backward, or made elsewhere."""
    place: str
    """Path of the parameter or module, with ``*`` for layer numbers; or the line of the program that allocated them."""
    count: int
    bytes: int
    """Requested bytes of all these tensors."""


class Peak(Struct, frozen=True, kw_only=True):
    """The moment at which most bytes are allocated on one GPU."""

    step: int
    """Number of optimizer steps before it."""
    module: str
    """Path of the module whose forward pass runs; empty outside forward passes."""
    stack: tuple[str, ...]
    """Python frames that allocate the last tensor, innermost first, as ``file:line in function``."""
    alive: tuple[AliveTensors, ...]
    """Sorted by bytes, the largest first."""


class OutOfMemory(Struct, frozen=True, kw_only=True):
    """The first allocation that failed."""

    device: int
    requested_bytes: int
    allocated_bytes: int
    """Bytes of live blocks at that moment."""
    step: int
    stack: tuple[str, ...]


class RehearsedGpu(Struct, frozen=True, kw_only=True):
    """Counters of torch's caching allocator on one GPU of one process."""

    index: int
    peak_allocated_bytes: int
    """``torch.cuda.max_memory_allocated``."""
    peak_reserved_bytes: int
    """``torch.cuda.max_memory_reserved``."""
    peak_requested_bytes: int
    """Peak of the bytes that tensors request, before rounding to blocks."""
    peak: Peak | None = None
    """None if the allocator recorded no history."""


class RehearsedProcess(Struct, frozen=True, kw_only=True):
    """The result of one process of the program."""

    pid: int
    program: str
    """Its script and arguments."""
    rank: int | None = None
    """Its rank in a distributed training."""
    steps: int
    """Number of optimizer steps."""
    stopped: bool
    """Whether it was stopped after the wanted steps."""
    trainer: bool
    """Whether transformers' Trainer ran its loop."""
    gpus: tuple[RehearsedGpu, ...]
    out_of_memory: OutOfMemory | None = None


class Noticed(Struct, frozen=True):
    """A note of the null GPU (`null_gpu.inside.notes`)."""

    kind: str
    operation: str
    where: str


def read_processes(folder: Path) -> list[RehearsedProcess]:
    """Return the reports of the processes that used a GPU, sorted by peak memory, the largest first.

    Raises:
        UserError: a report is broken.
    """
    processes = []
    for path in folder.glob(PROCESS_FILES):
        try:
            processes.append(msgspec.json.decode(path.read_bytes(), type=RehearsedProcess))
        except msgspec.MsgspecError as error:
            raise UserError(f"{path}: not a rehearsal's report ({error})") from error
    used = [process for process in processes if process.gpus]
    return sorted(used, key=lambda process: -max(gpu.peak_allocated_bytes for gpu in process.gpus))


def read_noticed(folder: Path) -> list[Noticed]:
    """Return the notes of the null GPU, in order."""
    path = folder / "noticed"
    if not path.exists():
        return []
    return msgspec.json.Decoder(Noticed).decode_lines(path.read_bytes())


def read_refused(folder: Path) -> list[str]:
    """Return the CUDA functions that were called and cannot be rehearsed, each once."""
    path = folder / "refused"
    if not path.exists():
        return []
    return sorted({line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line})


def read_launches(folder: Path) -> dict[str, int]:
    """Return kernel → launches over all processes, the most frequent first."""
    counts: dict[str, int] = {}
    for path in folder.glob("launches.*"):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            count, _, kernel = line.partition("\t")
            if kernel and count.isdecimal():  # the last line of a process that was killed may lack its end
                counts[kernel] = counts.get(kernel, 0) + int(count)
    return dict(sorted(counts.items(), key=lambda item: -item[1]))
