"""Try what training needs on this machine, in a separate process, and print the result as a line of JSON.

``python -m lorabench.bench.machine.doctor_probe`` imports the libraries, asks CUDA for its devices, and quantises a
tensor. It is a separate process because a broken library may crash it, and because a CUDA context takes GPU memory.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from lorabench.bench.machine.asking import answering
from lorabench.bench.machine.environment import NEEDED, driver_version
from lorabench.bench.machine.unpacking import columns_unpacked_wrong
from lorabench.bench.null_gpu import on_null_gpu
from lorabench.estimator.memory.quantization import BLOCK

LARGEST_NF4_ERROR = 0.16
"""As a share of a block's largest value. NF4's codes are at most 0.304 apart (−1 and −0.696; Dettmers et al. 2023,
appendix E), so the rounding error is at most half of that."""


class ProbedGpu(Struct, frozen=True, kw_only=True):
    """One CUDA device."""

    name: str
    memory_bytes: int
    free_bytes: int
    capability: str
    """Compute capability, such as ``9.0``."""
    bfloat16: bool
    """Whether its tensor cores compute in bfloat16."""


class Probe(Struct, frozen=True, kw_only=True):
    """The result of the probe."""

    import_errors: dict[str, str] = {}
    """Package → import error, for installed packages that cannot be imported."""
    torch_cuda: str | None = None
    """The CUDA version that torch is built for."""
    cuda_error: str | None = None
    """CUDA's error, if it lists no device."""
    driver: str | None = None
    gpus: tuple[ProbedGpu, ...] = ()
    null_gpu: bool = False
    """Whether the GPUs are null GPUs, whose kernels compute nothing."""
    quantization_errors: dict[str, str | None] = {}
    """Device on which bitsandbytes was tested (cpu, cuda) → error; None if it works."""
    part_blocks_wrong: bool = False
    """Whether bitsandbytes on the CPU dequantises wrongly if rows end with an incomplete block."""
    flash_attention_error: str | None = None
    """Why the installed flash attention does not run here."""
    liger_error: str | None = None
    """Why the installed Liger kernels do not run here."""


def main() -> None:
    """Answer with the probe's result."""
    with answering() as answer:
        answer(msgspec.json.encode(_probe()))


def _probe() -> Probe:
    errors: dict[str, str] = {}
    for package in NEEDED:
        if importlib.util.find_spec(package) is not None:
            error = _error_of(lambda package=package: importlib.import_module(package))  # type: ignore[misc]
            if error is not None:
                errors[package] = error
    probe = Probe(import_errors=errors, driver=_driver())
    if importlib.util.find_spec("torch") is not None and "torch" not in errors:
        probe = _with_torch(probe)
    return probe


def _with_torch(probe: Probe) -> Probe:
    import torch

    cuda_error = _error_of(torch.cuda.init) if torch.version.cuda else None
    gpus = () if cuda_error or not torch.version.cuda else tuple(map(_gpu, range(torch.cuda.device_count())))
    quantized: dict[str, str | None] = {}
    if importlib.util.find_spec("bitsandbytes") is not None and "bitsandbytes" not in probe.import_errors:
        for device in ("cpu", "cuda") if gpus else ("cpu",):
            quantized[device] = _error_of(lambda device=device: quantise_to_nf4(device))  # type: ignore[misc]
    part_blocks = BLOCK + BLOCK // 2
    tried = {"flash_attn": (bool(gpus), _flash_attention), "liger_kernel": (bool(gpus), _liger)}
    found = {
        package: _error_of(run) if wanted and importlib.util.find_spec(package) is not None else None
        for package, (wanted, run) in tried.items()
    }
    return msgspec.structs.replace(
        probe,
        torch_cuda=torch.version.cuda,
        cuda_error=cuda_error,
        gpus=gpus,
        null_gpu=bool(gpus) and on_null_gpu(),
        quantization_errors=quantized,
        part_blocks_wrong=quantized.get("cpu", "") is None and columns_unpacked_wrong([part_blocks], "nf4") != [],
        flash_attention_error=found["flash_attn"],
        liger_error=found["liger_kernel"],
    )


def _error_of(run: Callable[[], object]) -> str | None:
    """Return the first line of the error that ``run`` raises; None if it raises none."""
    try:
        run()
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
    return None


def _driver() -> str | None:
    """Return the NVIDIA driver's version from NVML, or else from the kernel; None without a driver."""
    version = driver_version()
    if version is not None:
        return version
    try:
        first = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace").splitlines()[0]
    except (OSError, IndexError):
        return None
    return driver_of_kernel_module(first)


def driver_of_kernel_module(line: str) -> str | None:
    """Return the version from the first line of /proc/driver/nvidia/version: it follows the module's name."""
    words = line.partition("Kernel Module")[2].split()
    return next((word for word in words if word[0].isdigit()), None)


def _gpu(index: int) -> ProbedGpu:
    import torch

    properties = torch.cuda.get_device_properties(index)
    free, _ = torch.cuda.mem_get_info(index)
    return ProbedGpu(
        name=properties.name,
        memory_bytes=properties.total_memory,
        free_bytes=free,
        capability=f"{properties.major}.{properties.minor}",
        bfloat16=properties.major >= 8,
    )


def quantise_to_nf4(device: str) -> float:
    """Quantise a tensor to NF4 on ``device`` and back, as QLoRA does, and return the largest error.

    Raises RuntimeError if the result is not the input, rounded to the nearest code; on a null GPU, which computes
    nothing, any result is right.
    """
    import bitsandbytes
    import torch

    # Every block of 64 values has the same range, so double quantisation of the constants is exact.
    values = torch.linspace(-1, 1, 64, device=device).repeat(128, 1)
    packed, state = bitsandbytes.functional.quantize_4bit(values, quant_type="nf4", compress_statistics=True)
    error = (bitsandbytes.functional.dequantize_4bit(packed, state) - values).abs()
    if not (error <= LARGEST_NF4_ERROR).all() and not (device == "cuda" and on_null_gpu()):
        raise RuntimeError(f"dequantised values are off by up to {error.max().item():.3g}")
    return float(error.max().item())


def _flash_attention() -> None:
    """Run flash attention on a few tokens, forward and backward."""
    import torch
    from flash_attn import flash_attn_func  # type: ignore[import-not-found]

    query = torch.randn(1, 128, 2, 64, device="cuda", dtype=torch.float16, requires_grad=True)
    flash_attn_func(query, query, query, causal=True).sum().backward()
    torch.cuda.synchronize()


def _liger() -> None:
    importlib.import_module("liger_kernel.transformers")
    launch_triton_kernel()


def launch_triton_kernel() -> None:
    """Compile and run a Triton kernel, since Liger uses Triton.

    Importing is not enough: Triton compiles its launcher with the machine's C compiler, Python's headers and the
    driver's library. Raises the error of whatever is missing, and RuntimeError if the result is wrong; on a null GPU,
    which computes nothing, any result is right.
    """
    import torch
    import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]

    from lorabench.bench.machine.triton_kernel import add_one

    numbers = torch.zeros(128, device="cuda")
    add_one[(1,)](numbers, COUNT=triton.next_power_of_2(numbers.numel()))
    if not (numbers == 1).all() and not on_null_gpu():
        raise RuntimeError("a Triton kernel returned a wrong result")


if __name__ == "__main__":
    main()
