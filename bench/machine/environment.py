"""The device and the software of a measurement, without anything that identifies the host.

A separate process looks them up (``python -m lorabench.bench.machine.environment``): a CUDA context takes GPU memory
for as long as its process lives.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from lorabench.bench.machine.asking import answering, ask
from lorabench.bench.measuring.meters.driver import NvmlGpu
from lorabench.bench.null_gpu import on_null_gpu
from lorabench.bench.records.record import DeviceFacts, Environment
from lorabench.bench.records.text import name_end
from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.errors import UserError
from lorabench.estimator.memory.allocator_settings import text_of_environment
from lorabench.estimator.optimizers.table import OPTIMIZERS
from lorabench.estimator.version import __version__

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "numpy",
    "triton",
    "nvidia-cublas",
    "nvidia-cudnn-cu13",
    "flash-attn",
    "liger-kernel",
)
NEEDED = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
DeviceChoice = Literal["auto", "cpu", "cuda"]


class Surroundings(Struct, frozen=True, kw_only=True):
    """Where recipes run."""

    device: DeviceFacts
    """The first device of the requested kind."""
    equal_devices: tuple[int, ...] = (0,)
    """Indices of all devices equal to the first one, itself included."""
    environment: Environment
    null_gpu: bool = False
    """Whether the device is a null GPU, which measures nothing."""


def require_bench_extra() -> None:
    """Refuse to continue without the packages for training.

    Raises:
        UserError: packages are missing; the message says which, and what to install.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"training needs {', '.join(missing)}: pip install 'lorabench[bench]'")


GPU_FILES = ("/dev/nvidiactl", "/dev/nvmap", "/dev/kfd", "/dev/dxg")
"""Through these files CUDA and ROCm reach a GPU on Linux: NVIDIA's, a Jetson's, AMD's, and any one under WSL."""


def local_device(choice: DeviceChoice) -> DeviceFacts:
    """Return the device of ``choice`` on this machine (auto: CUDA if there is a GPU), without torch if it is the CPU.

    Raises:
        UserError: as in `probe_surroundings`.
    """
    require_bench_extra()
    no_gpu = sys.platform == "linux" and not on_null_gpu() and not any(Path(file).exists() for file in GPU_FILES)
    if choice == "cpu" or (choice == "auto" and no_gpu):
        return _device_facts("cpu")
    return probe_surroundings(choice).device


def probe_surroundings(choice: DeviceChoice, environment: Mapping[str, str] | None = None) -> Surroundings:
    """Return the device of ``choice`` on this machine (auto: CUDA if there is a GPU) and the software.

    Raises:
        UserError: packages for training are missing or cannot be imported, or there is no CUDA device.
    """
    require_bench_extra()
    asked = ask("lorabench.bench.machine.environment", choice, environment=environment)
    if asked.exit_code == 0:
        return msgspec.json.decode(asked.answer, type=Surroundings)
    last = asked.last_words or name_end(asked.exit_code)
    raise UserError(last if asked.exit_code == 2 else f"torch cannot be used here: {last}")


def main(choice: str) -> None:
    """Answer with the surroundings as JSON; exit with 2 and a reason if there is no such device."""
    with answering() as answer:
        answer(msgspec.json.encode(_surroundings(choice)))


def _surroundings(choice: str) -> Surroundings:
    import torch

    if choice == "cuda" and not torch.cuda.is_available():
        built_for = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        print(f"no CUDA device (torch {torch.__version__} is built {built_for}): use --device cpu", file=sys.stderr)
        sys.exit(2)
    backend: Backend = "cuda" if choice != "cpu" and torch.cuda.is_available() else "cpu"
    device = _device_facts(backend)
    count = torch.cuda.device_count() if backend == "cuda" else 1
    equal_devices = tuple(index for index in range(count) if _device_facts(backend, index) == device)
    null_gpu = backend == "cuda" and on_null_gpu()
    return Surroundings(
        device=device, equal_devices=equal_devices, environment=_environment(backend), null_gpu=null_gpu
    )


def _device_facts(backend: Backend, index: int = 0) -> DeviceFacts:
    if backend == "cuda":
        import torch

        properties = torch.cuda.get_device_properties(index)
        return DeviceFacts(
            backend="cuda",
            name=properties.name,
            memory_bytes=properties.total_memory,
            compute_capability=None if torch.version.hip else f"{properties.major}.{properties.minor}",
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return DeviceFacts(backend="cpu", name=processor_name(), memory_bytes=memory)


def processor_name() -> str:
    """Return the CPU's name from the kernel."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.machine() or "unknown processor"


def _environment(backend: Backend) -> Environment:
    import torch

    gpu = NvmlGpu.open(str(torch.cuda.get_device_properties(0).uuid)) if backend == "cuda" else None
    return Environment(
        lorabench=__version__,
        python=platform.python_version(),
        operating_system=operating_system(),
        packages=_installed_packages(),
        cpu_threads=torch.get_num_threads(),
        cuda=torch.version.cuda if backend == "cuda" else None,
        driver=driver_version() if backend == "cuda" else None,
        allocator=text_of_environment() or None,
        commit=commit(),
        power_limit_watts=None if gpu is None else gpu.power_limit_watts(),
        highest_sm_clock_mhz=None if gpu is None else gpu.highest_sm_clock_mhz(),
        highest_memory_clock_mhz=None if gpu is None else gpu.highest_memory_clock_mhz(),
    )


def _installed_packages() -> dict[str, str]:
    """Return the versions of installed packages, out of `PACKAGES` and the packages of optimizers."""
    names = [*PACKAGES, *(optimizer.library.package for optimizer in OPTIMIZERS.values())]
    return {name: version for name in names if (version := installed_version(name)) is not None}


def installed_version(package: str) -> str | None:
    """Return the version of an installed package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def operating_system() -> str:
    """Return distribution and architecture, such as ``Debian GNU/Linux 12 (bookworm), x86_64``."""
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = platform.system()
    return f"{name}, {platform.machine()}"


def driver_version() -> str | None:
    """Return the NVIDIA driver's version; None if NVML does not answer, or its package is not installed."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except (ImportError, OSError):
        return None
    except pynvml.NVMLError:
        return None
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def commit() -> str | None:
    """Return the commit of the running lorabench, with a ``+`` if files differ from it; None if unknown.

    It is known for an installation from a repository, and for a checkout.
    """
    if installed := _installed_commit():
        return installed
    here = Path(__file__).resolve()
    head = _git(here.parent, "rev-parse", "HEAD")
    # The checkout must contain lorabench's own files, and not just a virtual environment with lorabench in it.
    if head is None or _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    return head + ("+" if _git(here.parent, "status", "--porcelain", "--untracked-files=no") else "")


def _installed_commit() -> str | None:
    """Return the commit that pip installed lorabench from (direct_url.json, see the packaging user guide)."""
    try:
        url = importlib.metadata.distribution("lorabench").read_text("direct_url.json")
        return str(json.loads(url or "{}")["vcs_info"]["commit_id"])
    except (importlib.metadata.PackageNotFoundError, ValueError, LookupError):
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        ran = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ran.stdout.strip() if ran.returncode == 0 else None


if __name__ == "__main__":
    main(*sys.argv[1:])
