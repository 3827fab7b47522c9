"""Find out what this machine can train and rehearse, what is missing, and the command that fixes it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct, field

from lorabench.bench.machine import control_groups
from lorabench.bench.machine.asking import ask
from lorabench.bench.machine.doctor_probe import Probe, ProbedGpu
from lorabench.bench.machine.environment import (
    NEEDED,
    DeviceChoice,
    installed_version,
    operating_system,
    processor_name,
)
from lorabench.bench.machine.host_memory import available_bytes
from lorabench.bench.machine.tested_versions import TESTED_BY, departures, matching_set
from lorabench.bench.null_gpu.installed import find_installed_cuda
from lorabench.bench.null_gpu.library import find_cache, find_compiler, require_linux
from lorabench.bench.records.text import first_line, name_end
from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.errors import UserError
from lorabench.estimator.losses.liger import LIGER
from lorabench.estimator.memory.quantization import BLOCK
from lorabench.estimator.methods.catalogue import METHODS, Method
from lorabench.estimator.version import __version__

Status = Literal["ok", "limited", "missing", "unknown"]

CHECKOUT = Path(__file__).resolve().parents[2] / "pyproject.toml"
PROBE_SECONDS = 120
"""A hanging driver must not hang the doctor. Importing the libraries from a cold disk takes tens of seconds."""
INSTALL = "pip install 'lorabench[bench]'"
LEAST_FREE_BYTES = 64 * 2**20
"""Records need about 10 kB per recipe; a disk with less free space than this counts as full."""


class Check(Struct, frozen=True, kw_only=True):
    """The result of one check."""

    name: str
    status: Status
    """limited: something is slow or not possible; missing: needed for training; unknown: never tested."""
    found: str
    remedy: str | None = field(name="mend", default=None)
    """The command or step that fixes it. JSON names it ``mend``: programs read it by that key."""


class Diagnosis(Struct, frozen=True, kw_only=True):
    """What this machine can train."""

    lorabench: str
    python: str
    operating_system: str
    driver: str | None
    torch_cuda: str | None
    gpus: tuple[ProbedGpu, ...]
    packages: dict[str, str]
    """Package → installed version."""
    checks: tuple[Check, ...]
    backend: Backend = field(name="device")
    """The device type that recipes would train on. JSON names it ``device``: programs read it by that key."""
    can_train: tuple[str, ...]
    """The methods that train here."""
    ready: bool
    """Whether everything needed is there."""


def diagnose(choice: DeviceChoice = "auto", folder: Path = Path()) -> Diagnosis:
    """Check this machine. ``folder`` is where results would go.

    ``choice``: ``cuda`` needs a GPU, ``cpu`` ignores GPUs, ``auto`` uses one if there is any.
    """
    outcome = run_probe()
    probe = outcome if isinstance(outcome, Probe) else Probe()
    needed = list(dict.fromkeys((*NEEDED, *admitted_versions())))
    installed = {name: version for name in needed if (version := installed_version(name)) is not None}
    gpus = () if choice == "cpu" else probe.gpus
    backend: Backend = "cuda" if gpus or choice == "cuda" else "cpu"
    checks = [
        *(check_package(name, installed.get(name), probe.import_errors.get(name)) for name in needed),
        check_together(installed),
        *([] if choice == "cpu" else check_gpus(probe, needed=choice == "cuda")),
        check_bfloat16(gpus),
        check_quantization(probe, backend, "bitsandbytes" in installed),
        *check_kernels(probe, bool(gpus)),
        check_host_memory(),
        check_cores(),
        *check_disks(folder),
        *check_rehearsals(),
    ]
    if not isinstance(outcome, Probe):
        checks.insert(0, Check(name="libraries", status="missing", found=outcome, remedy=f"{INSTALL} in a fresh venv"))
    missing = {check.name for check in checks if check.status == "missing"}
    without = missing - {"bitsandbytes", "quantisation"}
    return Diagnosis(
        lorabench=__version__,
        python=platform.python_version(),
        operating_system=operating_system(),
        driver=probe.driver,
        torch_cuda=probe.torch_cuda,
        gpus=gpus,
        packages=installed,
        checks=tuple(checks),
        backend=backend,
        can_train=() if without else _methods(quantized=not missing),
        ready=not missing,
    )


def _methods(*, quantized: bool) -> tuple[Method, ...]:
    """Return the methods; those that quantise only if ``quantized``."""
    return tuple(method for method, parts in METHODS.items() if quantized or parts.quantization is None)


def run_probe() -> Probe | str:
    """Return the result of the probe's process, or the reason why it has none."""
    try:
        asked = ask("lorabench.bench.machine.doctor_probe", timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return f"importing them and asking CUDA took more than {PROBE_SECONDS} s: a busy machine or a hanging driver"
    if asked.exit_code == 0:
        return msgspec.json.decode(asked.answer, type=Probe)
    return f"importing them failed: {name_end(asked.exit_code)}: {first_line(asked.last_words)}"


# Packages.


@cache
def admitted_versions() -> dict[str, str]:
    """Return package → versions that lorabench allows, such as ``>=5.17,<6``, for all packages of training."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires("lorabench") or []
        wanted = [each for each in map(Requirement, lines) if each.marker and each.marker.evaluate({"extra": "bench"})]
    except importlib.metadata.PackageNotFoundError:  # running from a checkout that is not installed
        project = tomllib.loads(CHECKOUT.read_text(encoding="utf-8"))["project"] if CHECKOUT.is_file() else {}
        wanted = [Requirement(line) for line in project.get("optional-dependencies", {}).get("bench", ())]
    return {requirement.name: str(requirement.specifier) for requirement in wanted}


def check_package(name: str, version: str | None, import_error: str | None) -> Check:
    """Check that a package is installed, in an allowed version, and importable."""
    from packaging.specifiers import SpecifierSet

    if version is None:
        return Check(name=name, status="missing", found="not installed", remedy=INSTALL)
    admitted = admitted_versions().get(name, "")
    if not SpecifierSet(admitted).contains(version, prereleases=True):
        remedy = f"pip install '{name}{admitted}'"
        return Check(name=name, status="missing", found=f"{version}, but lorabench needs {admitted}", remedy=remedy)
    if import_error is not None:
        remedy = f"pip install --force-reinstall '{name}=={version}'"
        return Check(name=name, status="missing", found=f"{version} cannot be imported: {import_error}", remedy=remedy)
    return Check(name=name, status="ok", found=version)


def check_together(installed: Mapping[str, str]) -> Check:
    """Check whether the installed versions are within the tested ones. Others may work, but nobody has tested them.

    ``installed``: package → version, for the packages of training.
    """
    missing = [package for package in NEEDED if package not in installed]
    if missing:
        return Check(
            name="version set", status="unknown", found=f"unknown without {', '.join(missing)}", remedy=INSTALL
        )
    name = matching_set({package: installed[package] for package in NEEDED})
    if name is not None:
        return Check(name="version set", status="ok", found=f"the {name} set: {TESTED_BY[name]} pass with it")
    outside = departures(installed)
    if not outside:
        between = "each is between the lowest and the newest tested version; this combination is untested"
        return Check(name="version set", status="ok", found=between)
    reasons = (
        f"{each.package} {each.version} is {'newer' if each.newer else 'older'} than tested ({each.nearest})"
        for each in outside
    )
    wanted = " ".join(f"{each.package}=={each.nearest}" for each in outside)
    return Check(
        name="version set",
        status="unknown",
        found="; ".join(reasons),
        remedy=f"optional; to install tested versions: pip install {wanted}",
    )


# Devices.


def check_gpus(probe: Probe, *, needed: bool) -> list[Check]:
    """List the GPUs, or say why there is none."""
    if probe.gpus:
        found = [
            Check(
                name="GPU" if len(probe.gpus) == 1 else f"GPU {index}",
                status="ok",
                found=f"{gpu.name}, {gpu.memory_bytes / 2**30:.1f} GiB, {gpu.free_bytes / 2**30:.1f} GiB free, "
                f"compute capability {gpu.capability}",
            )
            for index, gpu in enumerate(probe.gpus)
        ]
        if probe.null_gpu:
            found_null = "a null GPU, which computes nothing: runs on it are rehearsals"
            found.append(Check(name="null GPU", status="limited", found=found_null))
        cuda = Check(name="CUDA", status="ok", found=f"torch's {probe.torch_cuda}, driver {probe.driver or 'unknown'}")
        return [*found, cuda]
    status: Status = "missing" if needed else "limited"
    if probe.driver is None:
        found_nothing = "no NVIDIA driver, so no GPU; small models train on the CPU"
        remedy = "install the driver (nvidia-smi must list the GPU), or use another machine" if needed else None
        return [Check(name="GPU", status=status, found=found_nothing, remedy=remedy)]
    if probe.torch_cuda is None:
        remedy = "pip install --force-reinstall torch, as a CUDA build"
        return [Check(name="GPU", status=status, found=f"driver {probe.driver}, but torch without CUDA", remedy=remedy)]
    reason = probe.cuda_error or "CUDA lists no device"
    remedy = "check that nvidia-smi lists the GPU; if the driver is old, update it or install an older torch"
    return [Check(name="GPU", status=status, found=f"driver {probe.driver}, but {reason}", remedy=remedy)]


def check_bfloat16(gpus: tuple[ProbedGpu, ...]) -> Check:
    """Check whether the device supports bfloat16, the default of recipes."""
    if gpus:
        without = sorted({gpu.name for gpu in gpus if not gpu.bfloat16})
        if not without:
            return Check(name="bfloat16", status="ok", found="in the GPU's tensor cores")
        remedy = "use --mixed-precision fp16 --dtype float16"
        return Check(name="bfloat16", status="limited", found=f"only emulated on {', '.join(without)}", remedy=remedy)
    if computes_in_bfloat16(_processor_flags()):
        return Check(name="bfloat16", status="ok", found=f"in the CPU ({processor_name()})")
    remedy = "use --mixed-precision no --dtype float32 on the CPU"
    return Check(name="bfloat16", status="limited", found="emulated by this CPU: slow", remedy=remedy)


def computes_in_bfloat16(flags: set[str]) -> bool:
    """Return whether a CPU multiplies in bfloat16, from the feature names of Linux (x86 or Arm)."""
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def _processor_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    named = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return set(next(named, "").split())


def check_quantization(probe: Probe, backend: Backend, installed: bool) -> Check:
    """Check that bitsandbytes quantises a tensor on the device."""
    if backend not in probe.quantization_errors:
        found = f"bitsandbytes could not be tested on {_device(backend)}" if installed else "no bitsandbytes"
        remedy = None if installed else INSTALL
        return Check(name="quantisation", status="missing", found=f"{found}; qlora needs it", remedy=remedy)
    error = probe.quantization_errors[backend]
    if error is None and backend == "cpu" and probe.part_blocks_wrong:
        found = (
            f"NF4 round trip works on {_device(backend)}, except for rows that are no multiple of {BLOCK}: "
            "a fault of bitsandbytes on this CPU; losses of models with such rows are wrong"
        )
        return Check(name="quantisation", status="limited", found=found)
    if error is None and backend == "cuda" and probe.null_gpu:
        found = "NF4 round trip runs on the null GPU, which computes no values"
        return Check(name="quantisation", status="limited", found=found)
    if error is None:
        return Check(name="quantisation", status="ok", found=f"NF4 round trip works on {_device(backend)}")
    remedy = "pip install --force-reinstall bitsandbytes; for details: python -m bitsandbytes"
    return Check(name="quantisation", status="missing", found=f"fails on {_device(backend)}: {error}", remedy=remedy)


def _device(backend: Backend) -> str:
    return "the GPU" if backend == "cuda" else "the CPU"


def check_kernels(probe: Probe, gpu: bool) -> list[Check]:
    """Check whether flash_attention_2 and ``--loss liger`` run. The defaults need neither."""
    return [
        _check_kernel(
            "flash attention",
            "flash-attn",
            probe.flash_attention_error,
            gpu,
            default="--attn-implementation sdpa",
            install="flash-attn --no-build-isolation",
        ),
        _check_kernel(
            "liger",
            "liger-kernel",
            probe.liger_error,
            gpu,
            default="--loss standard",
            install=f"'liger-kernel>={LIGER.oldest}'",
            oldest=LIGER.oldest,
        ),
    ]


def _check_kernel(
    name: str, package: str, error: str | None, gpu: bool, *, default: str, install: str, oldest: str = "0"
) -> Check:
    from packaging.version import Version

    without = f"the default, {default}, does not need it"
    if not gpu:
        return Check(name=name, status="limited", found=f"needs a GPU; {without}")
    remedy = f"pip install {install}"
    if importlib.util.find_spec(package.replace("-", "_")) is None:
        return Check(name=name, status="limited", found=f"not installed; {without}", remedy=remedy)
    version = installed_version(package)
    if version is not None and Version(version) < Version(oldest):
        found = f"{version}, but lorabench needs {oldest} or newer; {without}"
        return Check(name=name, status="limited", found=found, remedy=remedy)
    version = version or "of unknown version"
    if error is None:
        return Check(name=name, status="ok", found=version)
    remedy = f"pip install --force-reinstall {package}"
    return Check(name=name, status="limited", found=f"{version} does not run: {error}; {without}", remedy=remedy)


# The host.


def check_host_memory() -> Check:
    """Report the host's memory. Each recipe's process needs some for the libraries, on a GPU too."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = available_bytes()
    left = "" if free is None else f", {free / 2**30:.1f} GiB available"
    return Check(name="host memory", status="ok", found=f"{total / 2**30:.1f} GiB{left}")


def check_cores() -> Check:
    """Report how many cores this process may use, and whether its threads would wait for them."""
    cores, usable = os.cpu_count(), len(os.sched_getaffinity(0))
    found = f"{usable}" if usable == cores else f"{usable} of {cores} may be used"
    allowed = control_groups.cores_allowed()
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    threads = int(asked) if asked.isdecimal() else usable
    if allowed is None or threads <= max(1, allowed):
        return Check(name="CPU cores", status="ok", found=found)
    found += f", but a control group allows {allowed:.3g} cores' time, for which {threads} threads wait: slow, unstable"
    return Check(
        name="CPU cores", status="limited", found=found, remedy=f"export OMP_NUM_THREADS={max(1, int(allowed))}"
    )


def check_disks(folder: Path) -> list[Check]:
    """Report the free space for results, temporary files and the hub's cache."""
    cache = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    checks = []
    places: tuple[tuple[str, Callable[[], Path | str], Status, str], ...] = (
        ("disk, results", lambda: folder, "missing", "run it in a writable folder, or name one with -o"),
        ("disk, scratch", tempfile.gettempdir, "missing", "set TMPDIR to a folder with free space"),
        ("disk, hub cache", lambda: cache, "limited", "set HF_HOME to a writable folder"),
    )
    for name, find, bad, remedy in places:
        free = None
        with suppress(OSError, RuntimeError):  # the working folder was deleted, or there is no temporary or home folder
            path = Path(find()).expanduser().absolute()
            there = next(parent for parent in (path, *path.parents) if parent.exists())
            free = shutil.disk_usage(there).free if os.access(there, os.W_OK) else None
        found = "cannot be written" if free is None else f"{free / 2**30:.1f} GiB free"
        fine = free is not None and free >= LEAST_FREE_BYTES
        checks.append(Check(name=name, status="ok" if fine else bad, found=found, remedy=None if fine else remedy))
    return checks


# Rehearsals.


def check_rehearsals() -> list[Check]:
    """Check for everything that ``lorabench rehearse`` needs. Training needs none of it."""
    needs: dict[str, Callable[[], str]] = {
        "system": _tried_system,
        "torch": lambda: f"a CUDA build, in {find_installed_cuda().torch}",
        "compiler": find_compiler,
        "cache": lambda: str(find_cache()),
    }
    return [_check_rehearsal(f"rehearsal, {name}", find) for name, find in needs.items()]


def _tried_system() -> str:
    require_linux()
    if platform.machine() != "x86_64":
        raise UserError(f"nobody has tried it on {platform.machine()}: use an x86-64 machine, or try it here")
    return f"Linux, {platform.machine()}"


def _check_rehearsal(name: str, find: Callable[[], str]) -> Check:
    """Call ``find``, which returns what it found, or raises a UserError such as ``no compiler: install one``."""
    try:
        return Check(name=name, status="ok", found=find())
    except UserError as error:
        found, _, remedy = str(error).rpartition(": ")
        return Check(name=name, status="limited", found=found, remedy=f"only for rehearsals: {remedy}")
