"""What the processes of a rehearsal report, one JSON file each, and what is read of them."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from lorabench.estimator.errors import UserError

PROCESS_FILES = "process.*.json"


class AliveTensors(Struct, frozen=True, kw_only=True):
    """Tensors that are alive at the peak, of one kind and place."""

    kind: str
    """weights, gradients, optimizer states, or made in: forward, backward or elsewhere."""
    place: str
    """Path of the module, ``*`` for the numbers of layers; or the line of the program that asked for them."""
    count: int
    bytes: int
    """Requested bytes of all of them."""


class Peak(Struct, frozen=True, kw_only=True):
    """The moment at which one GPU has most bytes allocated."""

    step: int
    """Optimizer steps that were done before."""
    module: str
    """Path of the module whose forward pass ran; empty outside."""
    stack: tuple[str, ...]
    """Python frames that asked for the last tensor, innermost first, as ``file:line in function``."""
    alive: tuple[AliveTensors, ...]
    """The largest first."""


class OutOfMemory(Struct, frozen=True, kw_only=True):
    """The first request that failed."""

    device: int
    requested_bytes: int
    allocated_bytes: int
    """Live blocks at that moment."""
    step: int
    stack: tuple[str, ...]


class RehearsedGpu(Struct, frozen=True, kw_only=True):
    """What torch's caching allocator counted on one GPU of one process."""

    index: int
    peak_allocated_bytes: int
    """``torch.cuda.max_memory_allocated``."""
    peak_reserved_bytes: int
    """``torch.cuda.max_memory_reserved``."""
    peak_requested_bytes: int
    """What tensors asked for, before blocks were rounded up."""
    peak: Peak | None = None
    """None if the allocator's history was not kept."""


class RehearsedProcess(Struct, frozen=True, kw_only=True):
    """What one process of the program did."""

    pid: int
    program: str
    """Its script and arguments."""
    rank: int | None = None
    """In a distributed training."""
    steps: int
    """Optimizer steps that were done."""
    stopped: bool
    """Whether it was stopped after the steps that were asked for."""
    trainer: bool
    """Whether transformers' Trainer ran its loop."""
    gpus: tuple[RehearsedGpu, ...]
    out_of_memory: OutOfMemory | None = None


class Noticed(Struct, frozen=True):
    """What the null GPU noticed (`null_gpu.inside.notes`)."""

    kind: str
    operation: str
    where: str


def read_processes(folder: Path) -> list[RehearsedProcess]:
    """Return what the processes reported that used a GPU, the one with most memory first.

    Raises:
        UserError: a file there is broken.
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
    """Return what the null GPU noticed, in order."""
    path = folder / "noticed"
    if not path.exists():
        return []
    return msgspec.json.Decoder(Noticed).decode_lines(path.read_bytes())


def read_refused(folder: Path) -> list[str]:
    """Return the functions of CUDA that were called and cannot be rehearsed, each once."""
    path = folder / "refused"
    if not path.exists():
        return []
    return sorted({line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line})


def read_launches(folder: Path) -> dict[str, int]:
    """Return how often each kernel was launched, in all processes, the most frequent first."""
    counts: dict[str, int] = {}
    for path in folder.glob("launches.*"):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            count, _, kernel = line.partition("\t")
            if kernel and count.isdecimal():  # the last line of a process that was killed may lack its end
                counts[kernel] = counts.get(kernel, 0) + int(count)
    return dict(sorted(counts.items(), key=lambda item: -item[1]))
