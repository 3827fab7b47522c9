"""The output of `lorabench rehearse -- COMMAND`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from lorabench.bench.rehearsing.program import ProgramRehearsal
from lorabench.bench.rehearsing.result import Noticed, OutOfMemory, Peak, RehearsedGpu, RehearsedProcess
from lorabench.cli.listing import Column, as_table, folded
from lorabench.estimator.quantities import in_gib

SHOWN_TENSORS = 10
SHOWN_FRAMES = 5
SHOWN_NOTICES = 5
SHOWN_KERNELS = 10
PLACE_WIDTH = 44
NAMESPACES = re.compile(r"^void |at::native::|\(anonymous namespace\)::")
"""Parts of kernels' names that carry no information."""
IN_BACKWARD = ("in backward, which has no Python stack",)
MEANS = {
    "branch": "decided a branch by a value that only a GPU computes",
    "shape": "took a shape from a value that only a GPU computes",
    "read": "read a float that only a GPU computes; a branch on it may differ",
    "balanced": "chose among many; the choices are spread evenly",
    "not computed": "could not be computed on the host",
}


def as_text(rehearsal: ProgramRehearsal) -> str:
    """Return the outcome, then the peak, its place, the tensors alive there, and warnings about guessed values."""
    return "\n".join(_lines(rehearsal))


def _lines(rehearsal: ProgramRehearsal) -> Iterator[str]:
    yield from folded(_headline(rehearsal))
    for assumption in rehearsal.assumptions:
        yield from folded(f"assumed: {assumption}")
    if rehearsal.processes:
        process = rehearsal.processes[0]
        gpu = max(process.gpus, key=lambda gpu: gpu.peak_allocated_bytes)
        yield from _peaks(rehearsal, process, gpu)
        if process.out_of_memory is not None:
            yield from _ran_out(process.out_of_memory)
        if gpu.peak is not None:
            yield from _where(gpu.peak)
    yield from _others(rehearsal)
    yield from warnings(rehearsal.noticed, rehearsal.refused)
    yield from kernels_launched(rehearsal.launches)


def _headline(rehearsal: ProgramRehearsal) -> str:
    usable = f"{in_gib(rehearsal.gpu_usable_bytes)} usable"
    on = f"rehearsed on {rehearsal.gpu} ({usable} of {in_gib(rehearsal.gpu_memory_bytes)})"
    if rehearsal.outcome == "no GPU used":
        return f"{on}: the program ended without using a GPU"
    if rehearsal.outcome == "timeout":
        return f"{on}: the program took too long and was ended (--timeout)"
    if rehearsal.outcome == "failed":
        return f"{on}: the program failed with exit code {rehearsal.exit_code}, but not from lack of memory"
    steps = max((process.steps for process in rehearsal.processes), default=0)
    did = f"{steps} optimizer step{'' if steps == 1 else 's'}"
    if rehearsal.outcome == "out of memory":
        return f"{on}: OUT OF MEMORY after {did}"
    return f"{on}: it ran, {did}"


def _peaks(rehearsal: ProgramRehearsal, process: RehearsedProcess, gpu: RehearsedGpu) -> Iterator[str]:
    yield ""
    yield f"peak allocated {in_gib(gpu.peak_allocated_bytes):>10}  torch.cuda.max_memory_allocated"
    yield f"peak reserved  {in_gib(gpu.peak_reserved_bytes):>10}  torch.cuda.max_memory_reserved"
    yield f"peak requested {in_gib(gpu.peak_requested_bytes):>10}  by tensors, before rounding to blocks"
    left = rehearsal.gpu_usable_bytes - gpu.peak_reserved_bytes
    yield f"left           {in_gib(left):>10}  for the CUDA context, whose size only a driver knows"


def _ran_out(ran_out: OutOfMemory) -> Iterator[str]:
    yield ""
    yield from folded(
        f"Memory ran out in step {ran_out.step + 1}, at a request of {in_gib(ran_out.requested_bytes)} with "
        f"{in_gib(ran_out.allocated_bytes)} allocated:"
    )
    yield from _stack(ran_out.stack or IN_BACKWARD)


def _where(peak: Peak) -> Iterator[str]:
    yield ""
    module = f", in {peak.module}" if peak.module else ""
    yield f"The peak is in step {peak.step + 1}{module}:"
    yield from _stack(peak.stack or IN_BACKWARD)
    yield ""
    shown = peak.alive[:SHOWN_TENSORS]
    yield as_table(
        [
            Column("alive at the peak", [f"{tensors.kind}" for tensors in shown], right=False),
            Column("bytes", [in_gib(tensors.bytes) for tensors in shown]),
            Column("tensors", [f"{tensors.count:,}" for tensors in shown]),
            Column("module or line", [_end_of(tensors.place) for tensors in shown], right=False),
        ]
    )


def _end_of(place: str) -> str:
    """Return the last parts of a module's path, or of a file's, that fit the table."""
    if len(place) <= PLACE_WIDTH:
        return place
    end = place[-PLACE_WIDTH:]
    return "…" + end[re.search(r"[./]|$", end).start() :].lstrip(".")  # type: ignore[union-attr]


def _stack(frames: tuple[str, ...]) -> Iterator[str]:
    for frame in frames[:SHOWN_FRAMES]:
        yield f"  {frame}"


def _others(rehearsal: ProgramRehearsal) -> Iterator[str]:
    """Yield a line for each other process or GPU."""
    rows = [(process, gpu) for process in rehearsal.processes for gpu in process.gpus]
    if len(rows) > 1:
        yield ""
        yield as_table(
            [
                Column("process", [_name(process) for process, _ in rows], right=False),
                Column("GPU", [str(gpu.index) for _, gpu in rows]),
                Column("allocated", [in_gib(gpu.peak_allocated_bytes) for _, gpu in rows]),
                Column("reserved", [in_gib(gpu.peak_reserved_bytes) for _, gpu in rows]),
            ]
        )


def _name(process: RehearsedProcess) -> str:
    return f"rank {process.rank}" if process.rank is not None else f"pid {process.pid}"


def warnings(noticed: Sequence[Noticed], refused: Sequence[str]) -> Iterator[str]:
    """Yield a warning for each kind of guessed value, with its places, and for each function that was refused."""
    kinds: dict[str, list[Noticed]] = {}
    for one in noticed:
        kinds.setdefault(one.kind, []).append(one)
    for kind, found in kinds.items():
        yield ""
        yield from folded(f"Warning: {len(found)} place{'s' if len(found) > 1 else ''} {MEANS.get(kind, kind)}:")
        for one, _ in Counter(found).most_common(SHOWN_NOTICES):
            yield f"  {one.operation} at {one.where}"
    for function in refused:
        yield f"Warning: {function} cannot be rehearsed, and failed"


def kernels_launched(launches: Mapping[str, int]) -> Iterator[str]:
    """Yield how many kernels were launched, and the most frequent; nothing if they were not counted."""
    if not launches:
        return
    yield ""
    yield f"kernels launched: {sum(launches.values()):,}"
    for kernel, count in list(launches.items())[:SHOWN_KERNELS]:
        yield f"{count:>9,}  {NAMESPACES.sub('', kernel)[:69]}"
