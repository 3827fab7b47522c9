"""Probe facts that only a real GPU can show, before the first recipe: one line of JSON per probe.

``python -m lorabench.bench.machine.gpu_probe FILE`` runs the probes without an answer in ``FILE`` and appends each
answer at once. A probe that fails, hangs or crashes the process therefore loses only its own answer.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from lorabench.bench.machine.asking import answering, ask
from lorabench.bench.machine.doctor_probe import launch_triton_kernel, quantise_to_nf4
from lorabench.bench.machine.environment import NEEDED, driver_version
from lorabench.bench.measuring.meters.driver import NvmlGpu
from lorabench.bench.null_gpu import on_null_gpu
from lorabench.bench.records.text import first_line, name_end, without_own_folders
from lorabench.estimator.errors import UserError
from lorabench.estimator.input_files import read_input

if TYPE_CHECKING:
    import torch

PROBE_SECONDS = 120
LARGEST_ANSWERS_BYTES = 16 * 2**20
"""Time limit of one process; the probe that was running is recorded without an answer."""
FILE_NAME = "probe.jsonl"
LOOKS = 50
"""Number of timed NVML calls."""
NOT_REHEARSED = ("_ms", "process_bytes", "context_bytes", "taken_bytes", "largest_error")
"""Ends of the names of facts that a null GPU does not know: times, values, and the driver's own memory."""
SIDE = 2048
"""Rows and columns of the matrices and of the attention scores that the probes multiply."""


class Answer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to one probe."""

    probe: str
    found: dict[str, Any] = {}
    error: str | None = None
    """Why there is no answer."""
    seconds: float = 0.0
    """Duration of the probe; 0 if it was rehearsed."""
    rehearsed: bool = False
    """Whether a null GPU answered: nothing was measured then."""


def probe_gpu(path: Path, environment: Mapping[str, str] | None = None, *, rehearsing: bool = False) -> list[Answer]:
    """Run the probes that ``path`` has no answer to, and return all answers.

    Args:
        path: file of the answers.
        environment: variables for the probes, in addition to this process's.
        rehearsing: whether they run on a null GPU.

    Raises:
        UserError: ``path`` cannot be read or written, or has answers of both a real GPU and a null GPU.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if any(answer.rehearsed != rehearsing for answer in read_answers(path)):
            kind = "a GPU" if rehearsing else "a rehearsal"
            raise UserError(f"{path}: has answers of {kind}: name another folder with -o, or remove the file")
        for _ in PROBES:
            waiting = [name for name in PROBES if name not in {answer.probe for answer in read_answers(path)}]
            if not waiting:
                break
            ended = _run_process(path, environment)
            if ended:
                _add_crashed_probe(path, ended, rehearsing=rehearsing)
        return read_answers(path)
    except OSError as error:
        raise UserError(f"{path}: cannot write the probe's answers: {error.strerror}") from error


def read_answers(path: Path) -> list[Answer]:
    """Return the answers in ``path``: none if there is no such file.

    Raises:
        UserError: it has other content.
    """
    if not path.exists():
        return []
    try:
        raw = read_input(path, "a probe's answers", LARGEST_ANSWERS_BYTES)
        return msgspec.json.Decoder(Answer).decode_lines(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not a probe's answers ({error}): remove the file; it is written again") from error


def _run_process(path: Path, environment: Mapping[str, str] | None) -> str:
    """Run the probes without an answer in a separate process; return how it ended, or "" if it finished."""
    try:
        asked = ask(
            "lorabench.bench.machine.gpu_probe", str(path.absolute()), timeout=PROBE_SECONDS, environment=environment
        )
    except subprocess.TimeoutExpired:
        return f"not finished after {PROBE_SECONDS} s"
    last = first_line(without_own_folders(asked.last_words))
    return "" if asked.exit_code == 0 else f"{name_end(asked.exit_code)}: {last}"


def _add_crashed_probe(path: Path, ended: str, *, rehearsing: bool) -> None:
    done = {answer.probe for answer in read_answers(path)}
    asked = next((name for name in PROBES if name not in done), None)
    if asked is not None:
        _append(path, Answer(probe=asked, error=f"the process ended: {ended}", rehearsed=rehearsing))


def _append(path: Path, answer: Answer) -> None:
    with path.open("ab") as file:
        file.write(msgspec.json.encode(answer) + b"\n")


def main(path: str) -> None:
    """Run each probe without an answer in the file at ``path``, and append its answer there."""
    done = {answer.probe for answer in read_answers(Path(path))}
    with answering():
        for name, probe in PROBES.items():
            if name not in done:
                _append(Path(path), _answer(name, probe))


def _answer(name: str, probe: Callable[[], dict[str, Any]]) -> Answer:
    begun = time.perf_counter()
    found, reason = {}, None
    try:
        found = probe()
    except Exception as error:
        reason = first_line(without_own_folders(f"{type(error).__name__}: {error}"))
    if on_null_gpu():
        return Answer(probe=name, found=without_what_a_null_gpu_does_not_know(found), error=reason, rehearsed=True)
    return Answer(probe=name, found=found, error=reason, seconds=time.perf_counter() - begun)


def without_what_a_null_gpu_does_not_know(found: dict[str, Any]) -> dict[str, Any]:
    """Return the facts whose names end in none of `NOT_REHEARSED`, also inside of others."""
    return {
        name: without_what_a_null_gpu_does_not_know(fact) if isinstance(fact, dict) else fact
        for name, fact in found.items()
        if not name.endswith(NOT_REHEARSED)
    }


# The probes. The context's comes first: it starts CUDA.


def _versions() -> dict[str, Any]:
    found = {}
    for package in (*NEEDED, "triton", "liger-kernel", "flash-attn"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"python": platform.python_version(), "driver": driver_version(), "packages": found}


def _context() -> dict[str, Any]:
    """Bytes of the process on the GPU beyond torch's reserved memory, after each first use."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    torch.cuda.init()  # type: ignore[no-untyped-call]
    gpu = NvmlGpu.open(str(torch.cuda.get_device_properties(0).uuid))
    found: dict[str, Any] = {}

    def note(when: str) -> None:
        torch.cuda.synchronize()
        process = None if gpu is None else gpu.processes()[0]
        free, total = torch.cuda.mem_get_info()
        reserved = torch.cuda.memory_reserved()
        found[when] = {
            "process_bytes": process,
            "device_taken_bytes": total - free,
            "reserved_bytes": reserved,
            "context_bytes": None if process is None else process - reserved,
        }

    note("after init")
    matrix = torch.zeros(SIDE, SIDE, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    note("after the first tensor")
    (matrix @ matrix).sum().backward()  # type: ignore[no-untyped-call]
    note("after the first matmul and its backward")
    query = torch.zeros(1, 8, SIDE, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    scaled_dot_product_attention(query, query, query, is_causal=True).sum().backward()  # type: ignore[no-untyped-call]
    note("after the first sdpa and its backward")
    return found


def _device() -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info()
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "shared_memory_per_block_optin_bytes": getattr(properties, "shared_memory_per_block_optin", None),
        "l2_cache_bytes": getattr(properties, "L2_cache_size", None),
        "total_bytes": properties.total_memory,
        "free_bytes": free,
        "driver_total_bytes": total,
        "gpus": torch.cuda.device_count(),
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "allocator": torch.cuda.get_allocator_backend(),
    }


def _workspaces() -> dict[str, Any]:
    """Bytes of cuBLAS workspaces per thread that runs matmuls: the caller's thread, and autograd's."""
    import torch

    matrix = torch.zeros(SIDE, SIDE, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    (matrix @ matrix).sum().backward()  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    both = torch.cuda.memory_allocated()
    torch._C._cuda_clearCublasWorkspaces()
    without = torch.cuda.memory_allocated()
    matrix.detach() @ matrix.detach()
    torch.cuda.synchronize()
    return {"both_threads_bytes": both - without, "one_thread_bytes": torch.cuda.memory_allocated() - without}


def _attention_kernels() -> dict[str, Any]:
    """sdpa's kernel, named by its backward function, by dtype, heads, head size and mask."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    found: dict[str, Any] = {}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for kv_heads in (8, 2):
            for head_dim in (64, 128, 256):
                for masked in (False, True):
                    query = torch.zeros(1, 8, 256, head_dim, device="cuda", dtype=dtype, requires_grad=True)
                    key = torch.zeros(1, kv_heads, 256, head_dim, device="cuda", dtype=dtype, requires_grad=True)
                    mask = torch.zeros(256, 256, device="cuda", dtype=dtype) if masked else None
                    name = f"{str(dtype).removeprefix('torch.')}, {8}/{kv_heads} heads of {head_dim}"
                    try:
                        output = scaled_dot_product_attention(
                            query, key, key, attn_mask=mask, is_causal=not masked, enable_gqa=kv_heads != 8
                        )
                        kernel = type(output.grad_fn).__name__
                    except RuntimeError as error:
                        kernel = first_line(str(error))
                    found[f"{name}, {'masked' if masked else 'causal'}"] = kernel
    return found


def _nvml_looks() -> dict[str, Any]:
    """Milliseconds of each NVML call that a measurement repeats."""
    import torch

    gpu = NvmlGpu.open(str(torch.cuda.get_device_properties(0).uuid))
    if gpu is None:
        raise UserError("NVML does not know this GPU")
    calls: dict[str, Callable[[], object]] = {
        "processes": gpu.processes,
        "device_bytes": gpu.device_bytes,
        "sm_clock_mhz": gpu.sm_clock_mhz,
        "slowdowns": gpu.slowdowns,
        "joules": gpu.joules,
    }
    found = {}
    for name, call in calls.items():
        begun = time.perf_counter()
        for _ in range(LOOKS):
            call()
        found[f"{name}_ms"] = (time.perf_counter() - begun) / LOOKS * 1000
    return found


def _triton() -> dict[str, Any]:
    launch_triton_kernel()
    return {"launched": True}


def _nf4() -> dict[str, Any]:
    return {"largest_error": quantise_to_nf4("cuda")}


def _softmax_backward() -> dict[str, Any]:
    """Requested, allocated and reserved peaks of softmax's backward above the bytes before, in units of the scores.

    The scores are (1, 4, 2048, 2048) float32.
    """
    import torch

    scores = torch.zeros(1, 4, SIDE, SIDE, device="cuda", requires_grad=True)
    probabilities = torch.softmax(scores, -1)
    gradient = torch.zeros_like(probabilities)
    return _peaks_of(lambda: probabilities.backward(gradient), scores)  # type: ignore[no-untyped-call]


def _peaks_of(run: Callable[[], object], unit: torch.Tensor) -> dict[str, Any]:
    import torch

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    names = ("requested_bytes", "allocated_bytes", "reserved_bytes")
    before = torch.cuda.memory_stats()
    run()
    torch.cuda.synchronize()
    after = torch.cuda.memory_stats()
    rise = {name: after[f"{name}.all.peak"] - before[f"{name}.all.current"] for name in names}
    size = unit.numel() * unit.element_size()
    return rise | {name.replace("bytes", "units"): rise[name] / size for name in names}


PROBES: dict[str, Callable[[], dict[str, Any]]] = {
    "versions": _versions,
    "context": _context,
    "device": _device,
    "workspaces": _workspaces,
    "attention kernels": _attention_kernels,
    "nvml looks": _nvml_looks,
    "triton": _triton,
    "nf4": _nf4,
    "softmax backward": _softmax_backward,
}
"""Probe → its function, in order."""


def summary(answers: list[Answer]) -> Iterator[str]:
    """Yield a line for the most important answers, and for each failed probe."""
    found = {answer.probe: answer.found for answer in answers}
    last = list(found.get("context", {}).values())[-1:]
    for moment in last:
        if moment.get("context_bytes") is not None:
            yield f"CUDA context: {moment['context_bytes'] / 2**20:,.0f} MiB in this process"
    for answer in answers:
        if answer.error is not None:
            yield f"probe {answer.probe}: {answer.error}"


if __name__ == "__main__":
    main(*sys.argv[1:])
